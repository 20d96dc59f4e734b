"""The decoder-only model: equal to PyTorch's encoder, to itself in pieces, and to its options."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt.gpt import GPT, GPTConfig, Rotary
from mingpt.model import IGNORED
from mingpt.recipes import MODERN
from shared.optim import TOKEN_PARTS

V, T, C, L, H = 11, 16, 24, 2, 3
SMALL: dict[str, Any] = {
    "vocab_size": V, "block_size": T, "n_layer": L, "n_head": H, "n_embd": C,
}  # fmt: skip
MIXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "paper": {
        "norm_place": "post",
        "activation": "relu",
        "positions": "sinusoidal",
        "scaled": True,
    },
    "modern": MODERN,
    "modern, post": {**MODERN, "norm_place": "post", "norm": "layer", "bias": True},
    "odd": {"d_k": 4, "n_hidden": 7, "positions": "rotary", "conv": 1, "softcap": 3.0},
    "unplaced": {"positions": "none", "norm": "plain", "bias": False, "qk_norm": True},
    "smoothed": {"tied": False, "label_smoothing": 0.2, "embed_norm": True, "conv": 6},
}
every_mix = pytest.mark.parametrize("mix", MIXES)


def small(**options: Any) -> GPT:
    """Build a small model, every parameter moved: zeros would hide what they do."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


# What it equals ------------------------------------------------------------------------------


@every_mix
@pytest.mark.parametrize("training", [False, True])
def test_the_fused_model_is_the_lesson(mix: str, training: bool) -> None:
    """To 1e-5 in logits, loss and every gradient, on the same weights."""
    found = []
    idx, targets = torch.randint(V, (3, T)), torch.randint(V, (3, T))
    targets[:, :2] = IGNORED
    for attention in ("lesson", "fused"):
        model = small(**{**MIXES[mix], "attention": attention}).train(training)
        loss = model(idx, targets)
        loss.backward()
        grads = [each.grad for each in model.parameters()]
        found.append([model(idx).detach(), loss.detach(), *grads])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def copy_block(source: Any, target: Any) -> None:
    """Copy one of our blocks into an nn.TransformerEncoderLayer."""
    attention = target.self_attn
    pairs = [
        (source.attention.qkv.weight, attention.in_proj_weight),
        (source.attention.qkv.bias, attention.in_proj_bias),
        (source.attention.out.weight, attention.out_proj.weight),
        (source.attention.out.bias, attention.out_proj.bias),
    ]
    layers = [
        (source.feed_forward.into, target.linear1), (source.feed_forward.out, target.linear2),
        (source.norm_1, target.norm1), (source.norm_2, target.norm2),
    ]  # fmt: skip
    pairs += [(ours.weight, theirs.weight) for ours, theirs in layers]
    pairs += [(ours.bias, theirs.bias) for ours, theirs in layers]
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape
        theirs.copy_(ours)


@pytest.mark.parametrize("attention", ["lesson", "fused"])
@pytest.mark.parametrize(
    ("place", "activation", "positions"),
    [("post", "relu", "sinusoidal"), ("pre", "gelu", "learned")],
    ids=["the paper's", "GPT-2's"],
)
@torch.no_grad()
def test_it_is_torchs_transformer(
    place: str, activation: str, positions: str, attention: str
) -> None:
    """An nn.TransformerEncoder under a causal mask, with the weights copied in."""
    model = small(
        norm_place=place,
        activation=activation,
        positions=positions,
        attention=attention,
        scaled=positions == "sinusoidal",
    ).eval()
    layer = nn.TransformerEncoderLayer(
        C, H, 4 * C, 0.0, activation, batch_first=True, norm_first=place == "pre"
    )
    encoder = nn.TransformerEncoder(layer, L, enable_nested_tensor=False).eval()
    for ours, theirs in zip(model.blocks, encoder.layers, strict=True):
        copy_block(ours, theirs)
    idx = torch.randint(V, (2, T))
    places = torch.arange(T)[:, None]
    if positions == "learned":
        x = model.wte[idx] + dict(model.named_parameters())["wpe.places.wpe"]
    else:
        angle = places / 10000 ** (torch.arange(0, C, 2) / C)
        x = model.wte[idx] * math.sqrt(C) + torch.stack((angle.sin(), angle.cos()), -1).flatten(1)
    mask = torch.full((T, T), -math.inf).triu(1)
    x = encoder(x, mask=mask, is_causal=True)
    if model.norm is not None:
        x = F.layer_norm(x, (C,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(idx), x @ model.wte.T, atol=1e-4, rtol=1e-4)


# Decoding ------------------------------------------------------------------------------------


@every_mix
@pytest.mark.parametrize("chunks", [[1] * T, [5, 1, 1, 7, 2], [T - 1, 1], [T]], ids=str)
@torch.no_grad()
def test_a_text_read_in_chunks_is_the_text(mix: str, chunks: list[int]) -> None:
    """With a cache every position's logits are those of the whole window, read at once."""
    model, idx = small(**MIXES[mix]).eval(), torch.randint(V, (2, T))
    whole, cache, end = model(idx), model.new_cache(), 0
    for chunk in chunks:
        start, end = end, end + chunk
        last = model.next_logits(idx[:, start:end], cache)
        assert cache.length == end
        torch.testing.assert_close(last, whole[:, end - 1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=f"{T + 1} characters do not fit block_size={T}"):
        model.next_logits(idx[:, :1], cache)


@every_mix
@torch.no_grad()
def test_chunks_have_the_features_of_the_whole(mix: str) -> None:
    """Not only the last position of a chunk: all of them."""
    model, idx = small(**MIXES[mix]).eval(), torch.randint(V, (2, T))
    cache = model.new_cache()
    parts = [model.features(part, cache) for part in torch.split(idx, 3, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model.features(idx), atol=1e-5, rtol=1e-5)


# Parts ---------------------------------------------------------------------------------------


def test_rotary_products_depend_on_distance_only() -> None:
    """The product of a turned query and a turned key is the same wherever both are moved."""
    rotary = Rotary(GPTConfig(**{**SMALL, "block_size": 40}))
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i: int, j: int) -> float:
        return float((rotary(q, i) * rotary(k, j)).sum())

    for distance in (0, 1, 7):
        found = {round(product(i + distance, i), 4) for i in (0, 3, 30)}
        assert len(found) == 1, found
    assert product(7, 0) != pytest.approx(product(8, 0), abs=1e-3)
    assert product(0, 7) != pytest.approx(product(7, 0), abs=1e-3)
    assert torch.equal(rotary(q, 9)[..., 4:], q[..., 4:])  # half of the numbers know no place
    everywhere = rotary(q.expand(1, 40, 1, 8))  # a window turns each place by its own angle
    assert torch.equal(everywhere[:, 9], rotary(q, 9)[:, 0])


@every_mix
@torch.no_grad()
def test_a_head_switched_off_writes_nothing(mix: str) -> None:
    """A 0 in head_mask is as zeros in the columns of `out` that read the head; ones do nothing."""
    model, idx = small(**MIXES[mix]).eval(), torch.randint(V, (2, T))
    mask = torch.ones(L, H)
    assert torch.equal(model.features(idx, head_mask=mask), model.features(idx))
    mask[1, 2] = 0
    masked = model.features(idx, head_mask=mask)
    assert not torch.allclose(masked, model.features(idx))
    block: Any = model.blocks[1]
    block.attention.out.weight[:, 2 * C // H :] = 0
    torch.testing.assert_close(model.features(idx), masked)


@every_mix
@pytest.mark.parametrize("attention", ["lesson", "fused"])
@torch.no_grad()
def test_maps_say_where_each_head_looks(mix: str, attention: str) -> None:
    """One (B, H, T, S) a layer, causal, of rows that sum to 1; recording changes nothing."""
    model = small(**{**MIXES[mix], "attention": attention}).eval()
    idx = torch.randint(V, (2, T))
    maps: list[Tensor] = []
    assert torch.equal(model.features(idx, maps=maps), model.features(idx))
    assert [each.shape for each in maps] == [(2, H, T, T)] * L
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(2, H, T))
        assert (each.triu(1) == 0).all()
        assert (each.tril() > 0).any(-1).all()


def test_a_hint_is_added_to_the_embeddings() -> None:
    """A hint that is the difference of two characters' vectors makes one read as the other."""
    model = small().eval()
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 3]])
    hint = (model.wte[b] - model.wte[a]).detach()
    torch.testing.assert_close(model.features(a, hint=hint), model.features(b))


def test_the_softcap_bounds_the_logits() -> None:
    """The cap c of c tanh(y / c): never beyond it, and what is small stays as it is."""
    capped, free = small(softcap=2.0), small()
    x = 100 * torch.randn(5, C)
    assert capped.logits(x).abs().max() <= 2
    assert free.logits(x).abs().max() > 20
    torch.testing.assert_close(capped.logits(x), 2 * torch.tanh(free.logits(x) / 2))


@pytest.mark.parametrize("attention", ["lesson", "fused"])
def test_labels_are_smoothed_in_training_only(attention: str) -> None:
    """Section 5.4, as torch's F.cross_entropy; a validation loss is in true nats."""
    model = small(label_smoothing=0.3, attention=attention)
    idx, targets = torch.randint(V, (2, T)), torch.randint(V, (2, T))
    logits = model(idx).flatten(0, 1)
    smooth = F.cross_entropy(logits, targets.flatten(), label_smoothing=0.3)
    torch.testing.assert_close(model.train()(idx, targets), smooth)
    plain = F.cross_entropy(logits, targets.flatten())
    torch.testing.assert_close(model.eval()(idx, targets), plain)


@torch.no_grad()
def test_dropout_is_of_training_only() -> None:
    """In training no two passes are alike; their mean is about the pass without."""
    model, idx = small(dropout=0.3), torch.randint(V, (2, T))
    model.train()
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))
    assert torch.equal(model(idx), small()(idx))


# The beginning -------------------------------------------------------------------------------


@torch.no_grad()
def test_a_zero_start_is_a_uniform_guess() -> None:
    """With zero_init each block adds nothing, and an untied head says nothing."""
    model, idx = GPT(GPTConfig(**{**SMALL, **MODERN})), torch.randint(V, (2, T))
    assert float(model(idx, idx)) == pytest.approx(math.log(V))
    x = torch.randn(2, T, C)
    for block in model.blocks:
        assert torch.equal(block(x), x)


@torch.no_grad()
def test_a_convolution_starts_as_nothing() -> None:
    """Its first tap is 1 and all others 0."""
    idx = torch.randint(V, (2, T))
    found = []
    for conv in (0, 4):
        torch.manual_seed(0)
        found.append(GPT(GPTConfig(**SMALL, conv=conv))(idx))
    torch.testing.assert_close(*found)


def deviations(**options: Any) -> dict[str, float]:
    """Return the deviation of each parameter of a wide model at the start."""
    shape = {"vocab_size": 200, "n_embd": 96, "n_head": 4, "n_layer": 2, "block_size": 64}
    model = GPT(GPTConfig(**{**shape, **options}))
    return {name: float(each.detach().std()) for name, each in model.named_parameters()}


def test_gpt2_starts_with_two_hundredths() -> None:
    """Radford et al. (2019): 0.02, and less by sqrt(2 L) where the residual stream is written."""
    found = deviations()
    for name in ("wte", "wpe.places.wpe", "blocks.0.attention.qkv.weight"):
        assert found[name] == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.1.attention.out.weight", "blocks.0.feed_forward.out.weight"):
        assert found[name] == pytest.approx(0.02 / math.sqrt(4), rel=0.05)


def test_without_a_deviation_the_start_keeps_variance() -> None:
    """init_std=0: vectors of 1, and matrices of 0.85 / sqrt(inputs)."""
    found = deviations(init_std=0.0, tied=False)
    assert found["wte"] == pytest.approx(1, rel=0.05)
    assert found["head"] == pytest.approx(0.02, rel=0.05)
    into, out = "blocks.0.feed_forward.into.weight", "blocks.0.feed_forward.out.weight"
    assert found[into] == pytest.approx(0.85 / math.sqrt(96), rel=0.05)
    assert found[out] == pytest.approx(0.85 / math.sqrt(4 * 96) / 2, rel=0.05)


def test_muon_gets_the_matrices_and_nothing_else() -> None:
    """Shared's optimizer goes by the names: not embeddings, taps or the head."""
    model = small(**{**MODERN, "positions": "learned", "bias": True, "norm": "layer"})
    matrices = {
        name
        for name, each in model.named_parameters()
        if each.ndim == 2 and not any(part in name for part in TOKEN_PARTS)
    }
    kinds = ("attention.qkv", "attention.out", "feed_forward.into", "feed_forward.out")
    assert matrices == {f"blocks.{i}.{kind}.weight" for i in range(L) for kind in kinds}


@pytest.mark.parametrize("mix", ["paper", "modern"])
def test_it_learns_one_text_by_heart(mix: str) -> None:
    """A few steps on one batch take the loss from log V to almost nothing."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, **MIXES[mix]}))
    text = torch.randint(V, (1, T + 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        loss = model(text[:, :-1], text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(text[:, :-1], text[:, 1:]) < 0.1


# Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({name: 0}, f"{name}=0 must be at least 1") for name in SMALL],
        *[
            ({name: -1}, f"{name}=-1 must be at least 0")
            for name in ("d_k", "n_hidden", "conv", "softcap", "init_std")
        ],
        ({"n_embd": 10, "n_head": 3}, "n_embd=10 must be a multiple of n_head=3; try 9"),
        ({"n_embd": 2, "n_head": 3}, "n_embd=2 must be a multiple of n_head=3; try 3"),
        ({"positions": "rotary", "n_embd": 18, "n_head": 3}, "width 6 must be a multiple of 4"),
        ({"dropout": 1.0}, r"dropout=1.0 must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be at least 0 and below 1"),
        ({"positions": "turning"}, "positions='turning' must be one of learned, sinusoidal"),
        ({"norm": "batch"}, "norm='batch' must be one of layer, plain"),
        ({"norm_place": "mid"}, "norm_place='mid' must be one of pre, post"),
        ({"activation": "tanh"}, "activation='tanh' must be one of relu, gelu, relu2"),
        ({"attention": "flash"}, "attention='flash' must be one of lesson, fused"),
    ],
)
def test_shapes_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    """With the value, the rule and, where there is one, a way out that works."""
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SMALL, **options})

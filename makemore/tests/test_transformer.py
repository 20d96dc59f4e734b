"""The transformer against PyTorch's own attention, with and without padding, and its options."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from makemore.data import Batch, Items, Vocabulary
from makemore.transformer import (
    ROTARY_BASE,
    Layout,
    Transformer,
    TransformerConfig,
    attention,
    rotate,
    rotation,
)

MODERN: dict[str, Any] = {
    "positions": "rotary",
    "qk_norm": True,
    "activation": "relu2",
    "residual_init": "zero",
}


def make(**changes: Any) -> Transformer:
    """Make a small model in fp64 whose weights are large enough for everything to matter."""
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24}
    model = Transformer(TransformerConfig(**(sizes | changes))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def batch(names: list[str], first: int = 0, last: int = 9) -> Batch:
    """Return some of the names as a padded batch."""
    return Items(names, Vocabulary("abcdefghijklmnopqrstuvwxyz")).batch(range(first, last))


def reference(model: Transformer, idx: Tensor) -> Tensor:
    """Score every place of the padded rectangle with `F.scaled_dot_product_attention`."""
    c, (B, T) = model.config, idx.shape
    weights = dict(model.named_parameters())
    norm = (c.n_embd,)
    x = weights["embed.weight"][idx]
    if c.positions == "learned":
        x = x + weights["position_embed.weight"][:T]
    for i in range(c.n_layer):
        own = {n.removeprefix(f"blocks.{i}."): p for n, p in weights.items()}
        y = F.layer_norm(x, norm, own["attention_norm.weight"]) @ own["attention.qkv.weight"].T
        q, k, v = y.view(B, T, 3, c.n_head, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if c.qk_norm:
            q, k = (F.layer_norm(z, (z.size(-1),)) for z in (q, k))
        if c.positions == "rotary":
            q, k = turned(q), turned(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + y.transpose(1, 2).reshape(B, T, -1) @ own["attention.out.weight"].T
        h = F.layer_norm(x, norm, own["feed_norm.weight"]) @ own["feed.hidden.weight"].T
        h = F.gelu(h) if c.activation == "gelu" else F.relu(h) ** 2
        x = x + h @ own["feed.out.weight"].T
    return F.layer_norm(x, norm, weights["norm.weight"]) @ weights["head.weight"].T


def turned(z: Tensor) -> Tensor:
    """Turn each pair of channels of z (B, H, T, D) with sines and cosines, one by one."""
    D, result = z.size(-1), z.clone()
    for t in range(z.size(2)):
        for i in range(0, D, 2):
            angle = t * ROTARY_BASE ** (-i / D)
            a, b, cos, sin = z[:, :, t, i], z[:, :, t, i + 1], math.cos(angle), math.sin(angle)
            result[:, :, t, i], result[:, :, t, i + 1] = a * cos - b * sin, a * sin + b * cos
    return result


@pytest.mark.parametrize("options", [{}, MODERN])
def test_scores_and_gradients_equal_pytorch_attention_on_padding(
    names: list[str], options: dict[str, Any]
) -> None:
    """The N rows that count get what the padded rectangle with torch's attention gives them."""
    model, (idx, targets) = make(**options), batch(names)
    ours, theirs = (
        model.loss(idx, targets),
        F.cross_entropy(reference(model, idx).transpose(1, 2), targets),
    )
    torch.testing.assert_close(ours, theirs)
    weights = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights)
    )


def test_attention_equals_scaled_dot_product_attention() -> None:
    """Eq. 1 written out gives PyTorch's result and gradients, in fp32."""
    q, k, v = (torch.randn(6, 16, 8, requires_grad=True) for _ in range(3))
    ours = attention(q, k, v, torch.full((16, 16), -torch.inf).triu(1))
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (q, k, v), weights),
        torch.autograd.grad(theirs, (q, k, v), weights),
    )


def test_a_batch_is_laid_out_time_first_and_collected_again() -> None:
    """Item b's place t is row t * B + b, up to a multiple of 16."""
    x = torch.arange(1.0, 17).view(4, 4)
    rows = torch.tensor([[0, 1, 2], [3, 0, 0]])
    layout = Layout.of(torch.tensor([0, 1, 2, 3]), rows, x)
    full = layout.spread(x, 2)
    assert full.shape == (2 * 2, 16, 2)
    assert full[0, :3].tolist() == [[1, 2], [5, 6], [9, 10]]  # item 0, head 0
    assert full[3, :1].tolist() == [[15, 16]]  # item 1, head 1
    assert torch.equal(layout.collect(full), x)


@pytest.mark.parametrize("options", [{}, MODERN])
def test_sharing_prefixes_changes_no_score_and_no_gradient(
    names: list[str], options: dict[str, Any]
) -> None:
    """In training, a row for each distinct prefix gives what a row for each place gives."""
    model, (idx, targets) = make(**options).train(), batch([*names, "emma", "em"], 0, 42)
    apart = make(share_prefixes=False, **options).train()
    apart.load_state_dict(model.state_dict())
    keep = targets != -100
    torch.testing.assert_close(model.scores(idx, keep), apart.scores(idx, keep))
    ours, theirs = (
        torch.autograd.grad(each.loss(idx, targets), list(each.parameters()))
        for each in (model, apart)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{}, MODERN])
def test_later_characters_change_no_earlier_score(
    names: list[str], options: dict[str, Any]
) -> None:
    """Scores before place t are the same to the last bit whatever stands from t on."""
    model, (idx, _) = make(**options).float(), batch(names)
    changed = idx.clone()
    changed[:, 4:] = torch.randint(1, 27, changed[:, 4:].shape)
    assert torch.equal(model.logits(idx)[:, :4], model.logits(changed)[:, :4])
    assert not torch.equal(model.logits(idx)[:, 4:], model.logits(changed)[:, 4:])


@pytest.mark.parametrize("options", [{}, MODERN])
def test_scores_do_not_depend_on_the_rest_of_the_batch(
    names: list[str], options: dict[str, Any]
) -> None:
    """An item alone gets the scores that it gets among longer ones."""
    model = make(**options)
    idx, targets = batch(names)
    keep = targets != -100
    lengths = keep.sum(1).tolist()
    together = torch.split(model.scores(idx, keep), lengths)
    for i, length in enumerate(lengths):
        alone = model.logits(idx[i : i + 1, :length])[0]
        torch.testing.assert_close(together[i], alone)


@pytest.mark.parametrize("options", [{}, MODERN, {"noise": 0.5, "share_prefixes": False}])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)])
def test_no_place_gives_no_scores(
    options: dict[str, Any], training: bool, shape: tuple[int, int]
) -> None:
    """Where nothing is kept, of items, of empty ones or of none, the result is (0, V)."""
    idx = torch.zeros(shape, dtype=torch.long)
    scores = make(**options).train(training).scores(idx, torch.zeros(shape, dtype=torch.bool))
    assert scores.shape == (0, 27)


def test_rotary_scores_depend_on_distance_only() -> None:
    """A query and a key three places apart agree as much at 0 and 3 as at 20 and 23."""
    q, k = torch.randn(1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> Tensor:
        at = torch.tensor([query_at, key_at], dtype=torch.float64)
        turn = rotation(at, 8)
        return (rotate(q, turn[:1]) * rotate(k, turn[1:])).sum()

    torch.testing.assert_close(score(3, 0), score(23, 20))
    assert abs(score(3, 0) - score(4, 0)) > 1e-3


def test_rotation_keeps_length() -> None:
    """Turning changes no norm, and place 0 is not turned."""
    x, turn = torch.randn(5, 3, 8), rotation(torch.arange(5.0), 8)
    torch.testing.assert_close(rotate(x, turn).norm(dim=2), x.norm(dim=2))
    assert torch.equal(rotate(x, turn)[0], x[0])
    assert not torch.allclose(rotate(x, turn)[1], x[1])


def test_rotary_positions_have_no_longest_item() -> None:
    """With learned positions an item over block_size is refused by its number, else not."""
    idx = torch.zeros(1, 40, dtype=torch.long)
    message = "an item of 40 places is longer than block_size=24; train with block_size=40"
    with pytest.raises(ValueError, match=message):
        make().logits(idx)
    rotary = make(positions="rotary")
    assert rotary.logits(idx).shape == (1, 40, 27)
    assert (make().block_size, rotary.block_size) == (24, 0)


def test_zero_residual_init_starts_with_equal_chances(names: list[str]) -> None:
    """Blocks that add nothing and a head of zeros give every character log 27 nats."""
    model = Transformer(TransformerConfig(residual_init="zero"))
    assert abs(model.loss(*batch(names)).item() - math.log(27)) < 1e-6
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("out.weight"))


def test_gpt2_init_has_its_spreads() -> None:
    """0.02 for all matrices, divided by sqrt(2 n_layer) for those that write into the stream."""
    weights = dict(Transformer(TransformerConfig()).named_parameters())
    assert abs(weights["blocks.1.feed.hidden.weight"].std().item() - 0.02) < 0.001
    assert abs(weights["blocks.1.feed.out.weight"].std().item() - 0.02 / math.sqrt(8)) < 0.0005


@pytest.mark.parametrize("option", ["dropout", "embed_dropout", "attention_dropout", "noise"])
def test_randomness_is_for_training_only(names: list[str], option: str) -> None:
    """Each kind of dropout changes the loss from call to call in training, never afterwards."""
    model, pair = make(**{option: 0.3}), batch(names)
    assert model.loss(*pair) == model.loss(*pair)
    model.train()
    assert model.loss(*pair) != model.loss(*pair)


def test_the_boundary_is_never_blanked() -> None:
    """Noise leaves the first place alone, whose scores know nothing else."""
    model = make(noise=0.9).train()
    idx = torch.tensor([[0, 5, 13]])
    runs = [model.logits(idx)[0] for _ in range(8)]
    assert all(torch.equal(run[0], runs[0][0]) for run in runs)
    assert any(not torch.equal(run[1], runs[0][1]) for run in runs)


@pytest.mark.parametrize("options", [{}, {**MODERN, "dropout": 0.2, "attention_dropout": 0.2}])
def test_gradients_are_finite_and_reach_everything(
    names: list[str], options: dict[str, Any]
) -> None:
    """Also with rows of a single place, masks of -inf and padding."""
    model = make(**options).train()
    idx, targets = batch([*names, "j"], 38, 41)
    model.loss(idx, targets).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd=10 must be a multiple of n_head=3; try 9 or 12"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"noise": 1.0}, "noise=1.0 must be at least 0 and below 1; try 0.1"),
        ({"activation": "tanh"}, "activation='tanh' must be gelu or relu2"),
        ({"n_embd": 12, "positions": "rotary"}, "an odd number of channels.*try n_embd=16"),
    ],
)
def test_a_shape_that_cannot_be_says_so(changes: dict[str, Any], message: str) -> None:
    """Bad settings name the value, the rule and the remedy."""
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**changes)


def test_operations_are_two_a_weight_and_attention() -> None:
    """4 blocks of 12 C^2 weights and the head, and 2 * 2 * C * 16 for half of 32 places."""
    flops = Transformer(TransformerConfig()).flops_per_character()
    assert flops == 2 * (4 * 12 * 64**2 + 64 * 27) + 4 * 4 * 64 * 16

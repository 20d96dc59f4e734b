import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from gpt2 import linear
from gpt2.model import (
    GPT,
    PRESETS,
    CausalSelfAttention,
    GPTConfig,
    KVCache,
    attention,
    attention_reference,
    estimate_flops,
    linear_cross_entropy,
)
from shared.profiling import measure_flops

MakeModel = Callable[..., GPT]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, published: int) -> None:
    """The tied table counts once."""
    with torch.device("meta"):
        assert GPT(PRESETS[name]).num_parameters() == published


def test_parameters_without_embeddings_are_those_of_the_blocks() -> None:
    """The final norm is counted with the blocks."""
    with torch.device("meta"):
        model = GPT(PRESETS["gpt2"])
    assert model.num_parameters(embeddings=False) == 12 * (12 * 768**2 + 13 * 768) + 2 * 768


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, r"n_embd=10 must be a multiple of n_head=3; try 9 or 12"),
        ({"dropout": 1.0}, r"dropout=1.0 must be at least 0 and below 1"),
        ({"n_layer": 0}, r"n_layer=0 must be at least 1"),
        ({"residual_init": "none"}, r"residual_init='none' must be 'gpt2' or 'zero'"),
    ],
)
def test_a_bad_config_is_refused_with_its_remedy(changes: dict[str, object], message: str) -> None:
    """The message names the value and the rule."""
    with pytest.raises(ValueError, match=message):
        GPTConfig(**changes)  # type: ignore[arg-type]


def test_initialisation_is_gpt2s() -> None:
    """0.02, scaled down by sqrt(2 n_layer) where a branch ends; biases 0, norms 1."""
    model = GPT(GPTConfig(vocab_size=512, block_size=64, n_layer=8, n_head=2, n_embd=128))
    parameters = dict(model.named_parameters())
    for name in ("wte", "wpe", "h.3.attn.c_attn", "h.3.mlp.c_fc"):
        assert parameters[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    for name in ("h.3.attn.c_proj", "h.3.mlp.c_proj"):
        assert parameters[f"{name}.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.03)
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif ".ln_" in name:
            assert (parameter == 1).all()


def test_zero_residual_init_makes_every_block_the_identity() -> None:
    """Only the embeddings and the final norm then reach the head."""
    model = GPT(
        GPTConfig(vocab_size=9, block_size=4, n_layer=2, n_head=1, n_embd=8, residual_init="zero")
    )
    x = torch.randn(1, 4, 8)
    torch.testing.assert_close(model.h[1](x), x, rtol=0, atol=0)


def test_a_fresh_model_guesses_uniformly() -> None:
    """The loss starts near log(vocab_size)."""
    model = GPT(GPTConfig(vocab_size=100, block_size=32, n_layer=2, n_head=2, n_embd=32))
    idx = torch.randint(100, (8, 32))
    assert model(idx, idx.roll(-1, 1)).item() == pytest.approx(math.log(100), abs=0.05)


@pytest.mark.parametrize("queries", [1, 3, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 0.06)]
)
def test_attention_equals_the_formula_in_value_and_gradient(
    queries: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Whichever way it takes, against softmax(q k' / sqrt(D)) v; also for the last few."""
    q = torch.randn(2, 3, queries, 4, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, 3, 7, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    scores = q.double() @ k.double().mT / 2
    scores[..., torch.ones(queries, 7).triu(7 - queries + 1) == 1] = float("-inf")
    expected = scores.softmax(-1) @ v.double()
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), direction)
    for found in (attention(q, k, v), attention_reference(q, k, v)):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        gradients = torch.autograd.grad(found, (q, k, v), direction.to(dtype))
        torch.testing.assert_close(gradients, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "T", "plain"),
    [(torch.float32, 4, False), (torch.bfloat16, 4, True), (torch.bfloat16, 513, False)],
)
def test_short_half_precision_attention_on_a_cpu_is_the_plain_formula(
    dtype: torch.dtype, T: int, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDPA's CPU kernel is slow there, and elsewhere the faster one."""
    called: list[int] = []
    monkeypatch.setattr("gpt2.model.attention_reference", lambda *_: called.append(1))
    attention(*torch.zeros(3, 1, 1, T, 2, dtype=dtype))
    assert bool(called) == plain


def test_both_ways_of_attention_drop_weights() -> None:
    """With half of the weights zeroed and v = 1, the sums are no longer 1."""
    q = torch.zeros(1, 1, 64, 4)
    for attend in (attention, attention_reference):
        torch.testing.assert_close(attend(q, q, q + 1), q + 1)
        assert ((attend(q, q, q + 1, 0.5) - 1).abs() > 0.01).any()


def test_the_attention_layer_is_the_formula_between_two_linear_maps() -> None:
    """Heads are split, attended and put side by side again, in order."""
    layer = CausalSelfAttention(GPTConfig(n_head=2, n_embd=8)).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.c_attn(x).split(8, dim=-1)
    heads = [attention_reference(q[..., s], k[..., s], v[..., s]) for s in (slice(4), slice(4, 8))]
    torch.testing.assert_close(layer(x), layer.c_proj(torch.cat(heads, dim=-1)))


def test_attention_never_looks_ahead(make_model: MakeModel) -> None:
    """Changing token t leaves every logit before t as it was, and changes those from t on."""
    model, idx = make_model(), torch.randint(61, (1, 10))
    changed = idx.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 61
    before, after = model(idx), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=0)
    assert (after[:, 6:] != before[:, 6:]).any(-1).all()


def test_the_loss_is_the_cross_entropy_of_the_logits(make_model: MakeModel) -> None:
    """Value and every gradient, with ignored targets and chunks that do not divide the rows."""
    model = make_model()
    idx, targets = torch.randint(61, (3, 11)), torch.randint(61, (3, 11))
    targets[0, :4] = -100
    expected = F.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2.model.LOGITS_AT_ONCE", 61 * 7)
        loss = model(idx, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, list(model.parameters())), tuple(3 * g for g in wanted)
    )


def test_the_loss_needs_no_gradient(make_model: MakeModel) -> None:
    """Evaluation gets the same number without making a gradient."""
    model = make_model()
    idx = torch.randint(61, (2, 8))
    with torch.no_grad():
        evaluated = model(idx, idx)
    torch.testing.assert_close(evaluated, model(idx, idx).detach(), rtol=0, atol=0)
    assert not evaluated.requires_grad


def test_a_batch_without_targets_has_loss_zero_and_no_gradient(make_model: MakeModel) -> None:
    """All targets ignored: 0, not NaN."""
    model, idx = make_model(), torch.randint(61, (2, 5))
    loss = model(idx, torch.full_like(idx, -100))
    loss.backward()
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert model.wte.weight.grad is not None


def test_the_loss_cannot_be_differentiated_twice() -> None:
    """Its gradient is handed over, not kept; silence would double-count."""
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 3]))
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        torch.autograd.backward(loss)


def test_autocast_gives_the_loss_and_fp32_gradients() -> None:
    """In bf16 the products round; sums, loss and weight gradients stay fp32."""
    model = GPT(GPTConfig(vocab_size=50, block_size=8, n_layer=1, n_head=2, n_embd=16))
    idx = torch.randint(50, (4, 8))
    exact = model(idx, idx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(idx, idx)
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.wte.weight.grad is not None
    assert model.wte.weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_the_fast_product_equals_pytorchs_in_value_and_gradient() -> None:
    """The product of oneDNN against F.linear, where this machine has it; else both are F.linear."""
    layer = linear.Linear(24, 40)
    x = torch.randn(3, 50, 24, requires_grad=True)
    y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    inputs, direction = (x, layer.weight, layer.bias), torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("answer", ["missing", "other arguments", "other numbers"])
def test_a_changed_fast_product_is_not_used(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not public: a PyTorch without it, or with another meaning of it, gets F.linear."""
    replies = {"other arguments": lambda _: None, "other numbers": lambda x, w, *_: 2 * (x @ w.T)}
    ops = SimpleNamespace(mkldnn=SimpleNamespace())
    if answer in replies:
        ops.mkldnn._linear_pointwise = replies[answer]
    monkeypatch.setattr("gpt2.linear.torch.ops", ops)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    linear._onednn.cache_clear()
    try:
        x, weight = torch.randn(64, 8), torch.randn(4, 8)
        assert not linear.use_onednn(x, weight)
        torch.testing.assert_close(linear.product(x, weight), F.linear(x, weight))
    finally:
        linear._onednn.cache_clear()


@pytest.mark.parametrize("pieces", [[1] * 16, [5, 1, 1, 9], [16], [3, 13]])
def test_the_cache_gives_the_logits_of_the_whole_text(
    make_model: MakeModel, pieces: list[int]
) -> None:
    """However the text is cut, the logits after each piece are those without a cache."""
    model, idx = make_model(), torch.randint(61, (2, 16))
    whole, cache = model(idx), KVCache(model.config, 2, dtype=torch.float64)
    end = 0
    for piece in pieces:
        start, end = end, end + piece
        torch.testing.assert_close(model.next_logits(idx[:, start:end], cache), whole[:, end - 1])


def test_more_tokens_than_block_size_are_refused(make_model: MakeModel) -> None:
    """Without a cache and with one that is partly full."""
    model = make_model()
    with pytest.raises(ValueError, match=r"17 tokens do not fit block_size=16; keep the last 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = KVCache(model.config, 1, dtype=torch.float64)
    model.next_logits(torch.zeros(1, 16, dtype=torch.long), cache)
    with pytest.raises(ValueError, match=r"17 tokens do not fit"):
        model.next_logits(torch.zeros(1, 1, dtype=torch.long), cache)


def test_dropout_acts_in_training_only(make_model: MakeModel) -> None:
    """Two passes differ in training and agree in evaluation."""
    model, idx = make_model(dropout=0.5), torch.randint(61, (1, 8))
    torch.testing.assert_close(model(idx), model(idx), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_estimated_flops_are_those_pytorch_counts(make_model: MakeModel) -> None:
    """Per token, with a full context; but for the embedding's lookup nothing is left out."""
    model = make_model(bias=False)
    idx = torch.randint(61, (1, 16))
    counted = measure_flops(model, idx, backward=True)
    assert estimate_flops(model.config).total * 16 == counted

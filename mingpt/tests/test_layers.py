"""Each layer against its counterpart in PyTorch, in value and gradient, and what masks promise."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mingpt import layers
from mingpt.layers import (
    ATTENTIONS,
    Attention,
    Dropout,
    Embedding,
    FeedForward,
    KeyValueCache,
    LayerNorm,
    LearnedPositions,
    Linear,
    MultiHeadAttention,
    SinusoidalPositions,
    attention_weights,
    causal_mask,
    cross_entropy,
    dropout,
    fused_attention,
    padding_mask,
    scaled_dot_product_attention,
    sinusoidal_positions,
    softmax,
)
from mingpt.model import IGNORED

BOTH: list[Attention] = ["lesson", "fused"]


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64) * scale


def gradients(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return f's value and its gradients by each input, weighed by cosines."""
    xs = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*xs)
    weights = torch.arange(y.numel(), dtype=y.dtype).cos().view_as(y)
    return y.detach(), *torch.autograd.grad(y, xs, weights)


def check_alike(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    *inputs: Tensor,
    tolerance: float = 1e-10,
) -> None:
    """Compare two functions in value and in gradient by every input."""
    for a, b in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def called(module: nn.Module, *names: str) -> Callable[..., Tensor]:
    """Turn a module into a function of its input and of the parameters `names`."""

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = functional_call(module, dict(zip(names, parameters, strict=True)), (x,))
        return y

    return call


# What the file promises ------------------------------------------------------------------------


def test_layers_are_made_of_tensor_operations() -> None:
    """No layer or function of torch.nn is used, except in the function that says so."""
    source = inspect.getsource(layers).replace(inspect.getsource(fused_attention), "")
    assert set(re.findall(r"nn\.(\w+)\(|\bnn\.(\w+)", source.split('"""', 2)[2])) <= {
        ("", "Module"),
        ("Parameter", ""),
        ("", "functional"),
        ("", "LayerNorm"),  # in docstrings: what ours is like
        ("", "Linear"),
    }
    assert not re.search(r"\bF\.|\.softmax\(|log_softmax|logsumexp|torch\.embedding", source)


def test_every_layer_names_its_source() -> None:
    """Each public function and class cites an equation, a section or a paper."""
    public = [
        thing
        for name, thing in vars(layers).items()
        if getattr(thing, "__module__", "") == layers.__name__ and not name.startswith("_")
    ]
    assert len(public) > 20
    for thing in public:
        assert re.search(r"eq\. \d|equation \d|sec\. \d|section|, \d{4}\b", thing.__doc__.lower())


# Softmax and the loss --------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_softmax_is_torchs(dim: int, scale: float) -> None:
    """Value and gradient agree along every dimension, with scores e^x cannot hold too."""
    x = random(3, 4, 5, scale=scale)
    x[0, 1, 2] = x[2, 3, 4] = -math.inf
    check_alike(lambda x: softmax(x, dim), lambda x: F.softmax(x, dim), x)


def test_softmax_of_nothing_is_nothing() -> None:
    """A row of -inf gives zeros and zero gradients; its neighbours are what they were."""
    x = random(3, 4)
    alone = gradients(softmax, x[:2])
    x[2] = -math.inf
    y, slope = gradients(softmax, x)
    assert y[2].eq(0).all()
    assert slope[2].eq(0).all()
    assert torch.equal(y[:2], alone[0])
    assert torch.equal(slope[:2], alone[1])


def test_softmax_shows_a_broken_score() -> None:
    """A NaN among the scores is not hidden."""
    assert softmax(torch.tensor([1.0, math.nan])).isnan().all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 2)])
def test_cross_entropy_is_torchs(label_smoothing: float, shape: tuple[int, ...]) -> None:
    """Value and gradient agree for any shape, smoothing, and targets that do not count."""
    logits = random(*shape, 6, scale=30.0)
    targets = torch.randint(6, shape)
    targets.view(-1)[1::3] = IGNORED

    def theirs(x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6)
        return F.cross_entropy(rows, targets.view(-1), label_smoothing=label_smoothing)

    check_alike(lambda x: cross_entropy(x, targets, label_smoothing), theirs, logits)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_in_half_precision(label_smoothing: float) -> None:
    """Logits as large as float16 holds, and rows too long for it to sum, give float32's loss."""
    logits = (torch.rand(3, 100_000) - 0.5).mul(2 * 65504).half()
    targets = torch.tensor([5, 99_999, 7])
    check_alike(
        lambda x: cross_entropy(x, targets, label_smoothing),
        lambda x: F.cross_entropy(x.float(), targets, label_smoothing=label_smoothing),
        logits,
        tolerance=1e-5,
    )
    flat = torch.zeros(1, 100_000, dtype=torch.float16)
    assert cross_entropy(flat, targets[:1]).item() == pytest.approx(math.log(100_000))


def test_cross_entropy_of_no_targets_is_zero() -> None:
    """Where PyTorch divides 0 by 0, the loss is 0 and so are the gradients."""
    nothing = torch.full((2, 3), IGNORED)
    loss, slope = gradients(lambda x: cross_entropy(x, nothing, 0.1), random(2, 3, 5))
    assert loss.item() == 0.0
    assert slope.eq(0).all()


def test_cross_entropy_never_reads_what_does_not_count() -> None:
    """Other logits at a target of -100 leave the loss as it was, and get no gradient."""
    logits, targets = random(4, 5), torch.tensor([1, IGNORED, 3, IGNORED])
    changed = logits.clone()
    changed[1::2] = random(2, 5, scale=1e6)
    loss, slope = gradients(lambda x: cross_entropy(x, targets, 0.1), changed)
    assert loss == cross_entropy(logits, targets, 0.1)
    assert slope[1::2].eq(0).all()


def test_cross_entropy_by_hand() -> None:
    """Of three to one in favour of the target: log 4/3; by half smoothing, half towards log 4."""
    logits = torch.tensor([math.log(3.0), 0.0])
    target = torch.tensor(0)
    assert cross_entropy(logits, target).item() == pytest.approx(math.log(4 / 3))
    other = (math.log(4 / 3) + math.log(4)) / 2
    smoothed = cross_entropy(logits, target, 0.5).item()
    assert smoothed == pytest.approx((math.log(4 / 3) + other) / 2)


@pytest.mark.parametrize("target", [-1, 5])
def test_cross_entropy_refuses_a_class_that_is_not_there(target: int) -> None:
    """Only -100 is special: another number outside 0..V-1 is an error."""
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy(random(2, 5), torch.tensor([0, target]))


# Dropout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_zeroes_its_share_as_torch_does(dtype: torch.dtype) -> None:
    """A share p is 0 and the rest 1 / (1 - p), as nn.Dropout; the same share in every dtype."""
    n, p = 200_000, 0.01  # bfloat16 has no random number between 0 and 0.004
    ones = torch.ones(n, dtype=dtype)
    ours, theirs = Dropout(p)(ones), nn.Dropout(p)(ones)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.unique(), theirs.unique())
    spread = math.sqrt(n * p * (1 - p))
    assert abs((ours == 0).sum().item() - n * p) < 4 * spread
    assert ours.double().mean().item() == pytest.approx(1, abs=0.01)


def test_dropout_draws_each_number_alone() -> None:
    """Neighbours, rows and calls agree no more often than chance."""
    x = torch.ones(500, 500)
    y, again = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    for a, b in ((y[:, 1:], y[:, :-1]), (y[1:], y[:-1]), (y, again)):
        assert (a == b).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_dropout_passes_gradients_where_it_passes_numbers() -> None:
    """The gradient is the same mask, divided by the same 1 - p."""
    x = random(1000).requires_grad_()
    y = dropout(x, 0.25, training=True)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, (y != 0) / 0.75, check_dtype=False)


def test_dropout_is_nothing_outside_training() -> None:
    """In evaluation, or with p = 0, the input itself comes back, and no random number is drawn."""
    x, state = random(5), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [-0.1, 1.0, math.nan])
def test_dropout_refuses_what_is_no_share(p: float) -> None:
    """All of it, less than nothing and NaN are refused by name."""
    with pytest.raises(ValueError, match=re.escape(f"dropout={p} must be at least 0 and below 1")):
        Dropout(p)


# Attention -------------------------------------------------------------------------------------

MASKS: dict[str, Tensor | None] = {
    "none": None,
    "causal (T, S)": causal_mask(4, 5),
    "padding (B, 1, 1, S)": padding_mask(torch.tensor([5, 2]), 5),
    "one row (1, S)": torch.tensor([[True, False, True, True, False]]),
    "both (B, 1, T, S)": padding_mask(torch.tensor([5, 3]), 5) & causal_mask(4, 5),
    "each head its own (H, 1, S)": torch.arange(5) <= torch.arange(1, 4)[:, None, None],
}


@pytest.mark.parametrize("attend", ATTENTIONS.values(), ids=list(ATTENTIONS))
@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_attention_is_torchs(attend: Callable[..., Tensor], mask: Tensor | None) -> None:
    """Value and gradients agree under every mask that broadcasts, with d_v other than d_k."""
    whole = mask if mask is None else mask.expand(2, 3, 4, 5)
    check_alike(
        lambda q, k, v: attend(q, k, v, mask),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, whole),
        random(2, 3, 4, 6, scale=3.0),
        random(2, 3, 5, 6),
        random(2, 3, 5, 7),
    )


def test_attention_works_on_one_sequence() -> None:
    """Without batch and heads: (T, D), (S, D) and (S, Dv) give (T, Dv)."""
    check_alike(
        scaled_dot_product_attention,
        F.scaled_dot_product_attention,
        *(random(4, 6), random(5, 6), random(5, 2)),
    )


def test_attention_has_the_gradient_of_differences() -> None:
    """The gradients agree with central differences, a row that sees nothing included."""
    mask = causal_mask(3, 4)
    mask[1] = False
    inputs = [x.requires_grad_() for x in (random(3, 2), random(4, 2), random(4, 3))]
    assert torch.autograd.gradcheck(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), inputs
    )


def test_fused_attention_is_the_lessons() -> None:
    """In float32, value and gradients agree to 1e-5, where a row sees nothing too."""
    q, k, v = torch.randn(3, 2, 4, 64, 32).unbind()
    mask = causal_mask(64, 64) & padding_mask(torch.tensor([64, 0]), 64)
    mask = mask | padding_mask(torch.tensor([0, 20]), 64)
    mask[1, :, 7] = False
    check_alike(
        lambda q, k, v: fused_attention(q, k, v, mask),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, mask),
        *(q, k, v),
        tolerance=1e-5,
    )


@pytest.mark.parametrize("attend", ATTENTIONS.values(), ids=list(ATTENTIONS))
def test_case_17_a_fully_padded_row_gives_zeros(attend: Callable[..., Tensor]) -> None:
    """A row of the batch that is all padding: output 0, no NaN, finite (zero) gradients."""
    mask = padding_mask(torch.tensor([3, 0]), 5)
    inputs = random(2, 3, 4, 6), random(2, 3, 5, 6), random(2, 3, 5, 7)
    y, *slopes = gradients(lambda q, k, v: attend(q, k, v, mask), *inputs)
    alone = gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask[:1]), *(x[:1] for x in inputs)
    )
    for result, expected in zip((y, *slopes), alone, strict=True):
        assert result[1].eq(0).all()
        torch.testing.assert_close(result[:1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", BOTH)
def test_case_17_a_fully_padded_row_in_a_layer(attention: Attention) -> None:
    """Through the whole layer an all padded row gives W^O's bias, and every gradient is finite."""
    layer = MultiHeadAttention(8, 2, attention=attention)
    assert layer.w_o.bias is not None
    nn.init.normal_(layer.w_o.bias)
    y = layer(torch.randn(2, 5, 8), mask=padding_mask(torch.tensor([4, 0]), 5))
    torch.testing.assert_close(y[1], layer.w_o.bias.expand(5, 8))
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_attention_weights_are_shares() -> None:
    """Each row sums to 1 and is 0 where the mask is False; sharper queries give sharper rows."""
    q, k, mask = random(4, 6), random(5, 6), causal_mask(4, 5)
    weights = attention_weights(q, k, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64))
    assert weights[~mask].eq(0).all()
    assert weights[mask].gt(0).all()
    torch.testing.assert_close(attention_weights(q, k) @ k, scaled_dot_product_attention(q, k, k))


@pytest.mark.parametrize("attend", ATTENTIONS.values(), ids=list(ATTENTIONS))
def test_attention_drops_weights(attend: Callable[..., Tensor]) -> None:
    """Each weight is zeroed or divided by 1 - p; values of the identity matrix show the weights."""
    q, k, eye = random(1, 1, 300, 6), random(1, 1, 200, 6), torch.eye(200, dtype=torch.float64)
    for mask in (torch.ones(300, 200, dtype=torch.bool), causal_mask(300, 200)):
        y = attend(q, k, eye[None, None], mask if not mask.all() else None, dropout=0.2)[0, 0]
        assert (y == 0)[mask].double().mean().item() == pytest.approx(0.2, abs=0.01)
        torch.testing.assert_close(y, attention_weights(q, k, mask)[0, 0] * (y != 0) / 0.8)


# Masks -----------------------------------------------------------------------------------------


def test_causal_mask_is_a_triangle() -> None:
    """Query t, at position S - T + t, sees keys 0..S-T+t and no others."""
    assert causal_mask(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(1, 4).all()


def test_padding_mask_hides_what_lies_beyond_a_length() -> None:
    """A length of 2 shows two keys of three, a length of 0 none."""
    mask = padding_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.shape == (3, 1, 1, 3)
    assert mask.flatten(1).int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("attention", BOTH)
def test_attention_never_looks_ahead(attention: Attention) -> None:
    """Changing token t leaves every output before t as it was, to the bit, and changes t's."""
    layer, x = MultiHeadAttention(16, 4, attention=attention), torch.randn(2, 9, 16)
    before = layer(x, mask=causal_mask(9, 9))
    for t in range(9):
        changed = x.clone()
        changed[:, t] += torch.randn(16)
        after = layer(changed, mask=causal_mask(9, 9))
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t:], before[:, t:]).all(-1).any()


@pytest.mark.parametrize("attention", BOTH)
def test_padding_never_changes_a_result(attention: Attention) -> None:
    """What padding holds changes no bit of a real position; how much there is, no more than 1e-12.

    More padding makes longer rows, which a matrix product may add up in another order.
    """
    layer = MultiHeadAttention(16, 4, attention=attention).double()
    x, lengths = random(3, 7, 16), torch.tensor([7, 4, 1])
    y = layer(x, mask=padding_mask(lengths, 7))
    other = torch.where(torch.arange(7)[:, None] < lengths[:, None, None], x, random(3, 7, 16))
    again = layer(other, mask=padding_mask(lengths, 7))
    longer = torch.cat((x, random(3, 30, 16)), dim=1)
    padded = layer(longer, mask=padding_mask(lengths, 37))
    for row, n in enumerate(lengths.tolist()):
        assert torch.equal(again[row, :n], y[row, :n])
        torch.testing.assert_close(padded[row, :n], y[row, :n], rtol=0, atol=1e-12)
        alone = layer(x[row : row + 1, :n])[0]
        torch.testing.assert_close(alone, y[row, :n], rtol=0, atol=1e-12)


# Positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_embd", [6, 7])
def test_sinusoidal_positions_are_the_formula(n_embd: int) -> None:
    """sin(pos / 10000^(2i / C)) at 2i, cos at 2i + 1, even far out; an odd C ends on a sine."""
    table = sinusoidal_positions(20_000, n_embd)
    assert table.shape == (20_000, n_embd)
    assert table.dtype == torch.get_default_dtype()
    for position in (0, 1, 5, 19_999):
        for channel in range(n_embd):
            angle = position / 10000 ** (channel // 2 * 2 / n_embd)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_a_shift_of_sinusoidal_positions_is_a_rotation() -> None:
    """PE(pos + k) is one linear function of PE(pos), the reason the paper gives in sec. 3.5."""
    table = sinusoidal_positions(200, 8).double()
    shift = torch.linalg.lstsq(table[:100], table[7:107]).solution
    torch.testing.assert_close(table[50:190] @ shift, table[57:197], rtol=0, atol=1e-5)
    torch.testing.assert_close(shift @ shift.T, torch.eye(8).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [LearnedPositions, SinusoidalPositions])
def test_positions_start_where_asked(kind: type[nn.Module]) -> None:
    """A later start gives the later rows; beyond the table is an error that names both sizes."""
    positions = kind(10, 4)
    assert torch.equal(positions(3, start=7), positions(10)[7:])
    with pytest.raises(ValueError, match=r"11 positions do not fit a table of 10; keep the last"):
        positions(4, start=7)


def test_only_learned_positions_are_learned() -> None:
    """A sinusoid has neither parameters nor a place in a checkpoint; a learned table has both."""
    assert not list(SinusoidalPositions(10, 4).state_dict())
    assert not list(SinusoidalPositions(10, 4).parameters())
    learned = LearnedPositions(10, 4)
    (slope,) = torch.autograd.grad(learned(2, start=3).sum(), learned.wpe)
    assert slope.sum(1).tolist() == [0, 0, 0, 4, 4, 0, 0, 0, 0, 0]


# Layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_linear_is_torchs(shape: tuple[int, ...]) -> None:
    """Value and gradients by input, weight and bias agree, and parameters have the same names."""
    inputs = random(*shape), random(7, 5), random(7)
    check_alike(called(Linear(5, 7), "weight", "bias"), F.linear, *inputs)
    check_alike(called(Linear(5, 7, bias=False), "weight"), F.linear, *inputs[:2])
    assert list(Linear(5, 7, bias=False).state_dict()) == ["weight"]
    nn.Linear(5, 7).load_state_dict(Linear(5, 7).state_dict())


def test_linear_starts_as_glorot_and_bengio() -> None:
    """Weights are uniform with variance 2 / (n_in + n_out), biases 0."""
    layer = Linear(300, 500)
    bound = math.sqrt(6 / 800)
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert layer.weight.var().item() == pytest.approx(2 / 800, rel=0.02)
    assert layer.bias is not None
    assert layer.bias.eq(0).all()


def test_layer_norm_is_torchs() -> None:
    """Value and gradients by input, weight and bias agree, with a constant row among them."""
    x, weight, bias = random(2, 3, 8, scale=5.0), random(8), random(8)
    x[0, 1] = 2.5
    check_alike(
        called(LayerNorm(8), "weight", "bias"),
        lambda x, w, b: F.layer_norm(x, (8,), w, b),
        *(x, weight, bias),
    )
    check_alike(
        called(LayerNorm(8, eps=0.1, bias=False), "weight"),
        lambda x, w: F.layer_norm(x, (8,), w, eps=0.1),
        *(x, weight),
    )
    assert list(LayerNorm(8, bias=False).state_dict()) == ["weight"]
    fresh = x.float()
    torch.testing.assert_close(LayerNorm(8)(fresh), nn.LayerNorm(8)(fresh))
    nn.LayerNorm(8).load_state_dict(LayerNorm(8).state_dict())


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_embedding_is_torchs(shape: tuple[int, ...]) -> None:
    """Value and gradient agree, where a token comes twice too."""
    idx = torch.randint(3, shape)

    def ours(weight: Tensor) -> Tensor:
        y: Tensor = functional_call(Embedding(4, 6), {"weight": weight}, (idx,))
        return y

    check_alike(ours, lambda weight: F.embedding(idx, weight), random(4, 6))


@pytest.mark.parametrize("token", [-1, 4])
def test_embedding_refuses_a_token_that_is_not_there(token: int) -> None:
    """An id outside 0..n-1 is an error, never another token's vector."""
    with pytest.raises(IndexError, match="out of range"):
        Embedding(4, 6)(torch.tensor([0, token]))


def test_a_scaled_embedding_serves_as_the_output() -> None:
    """Vectors are multiplied by sqrt(C) on the way in and not on the way out (sec. 3.4)."""
    plain, scaled = Embedding(1000, 64), Embedding(1000, 64, scaled=True)
    tokens, x = torch.arange(1000), torch.randn(3, 64)
    torch.testing.assert_close(scaled(tokens), scaled.weight * 8)
    torch.testing.assert_close(scaled.logits(x), x @ scaled.weight.T)
    for layer in (plain, scaled):
        assert layer(tokens).var().item() == pytest.approx(1, abs=0.05)
    assert scaled.logits(x).var().item() == pytest.approx(1, abs=0.2)


def test_a_shared_embedding_learns_from_both_ends() -> None:
    """The gradient of the table is the sum of what it gets as input and as output."""
    layer, idx = Embedding(5, 4, scaled=True), torch.tensor([1, 3])
    (slope,) = torch.autograd.grad(layer.logits(layer(idx)).sum(), layer.weight)
    w = layer.weight.detach()
    expected = w[idx].sum(0).expand(5, 4) * 2  # out: every row gets the inputs, 2 = sqrt(4)
    expected = expected.index_add(0, idx, w.sum(0).expand(2, 4) * 2)  # in: tokens 1 and 3
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("name", ["relu", "gelu", "relu2"])
def test_activations_are_torchs(name: str) -> None:
    """Value and gradient agree at both signs, at 0 and far out; NaN stays NaN."""
    theirs: dict[str, Callable[..., Tensor]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "relu2": lambda x: F.relu(x).square(),
    }
    x = torch.cat((random(20), torch.tensor([0.0, -50.0, 50.0], dtype=torch.float64)))
    check_alike(layers.ACTIVATIONS[name], theirs[name], x)
    assert layers.ACTIVATIONS[name](torch.tensor(math.nan)).isnan()


def test_feed_forward_is_equation_2() -> None:
    """max(0, x W1 + b1) W2 + b2 with four times the channels in between."""
    layer, x = FeedForward(6).double(), random(2, 3, 6)
    w_1, b_1, w_2, b_2 = (p.detach() for p in layer.parameters())
    assert w_1.shape == (24, 6)
    torch.testing.assert_close(layer(x), torch.clamp(x @ w_1.T + b_1, min=0) @ w_2.T + b_2)
    assert FeedForward(6, 10).w_1.weight.shape == (10, 6)


def test_feed_forward_drops_what_is_hidden() -> None:
    """In training a share of the hidden numbers is 0; in evaluation none."""
    layer = FeedForward(4, 1000, dropout=0.5)
    seen: list[Tensor] = []
    layer.w_2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    x = torch.randn(50, 4)
    layer(x), layer.eval()(x)
    assert seen[0].eq(0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert seen[1].eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)


class EncoderLayer(nn.Module):
    """Our pieces put together as the paper's encoder layer (sec. 3.1)."""

    def __init__(self, attention: Attention, activation: layers.Activation) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(8, 2, attention=attention)
        self.feed_forward = FeedForward(8, 20, activation=activation)
        self.norm1, self.norm2 = LayerNorm(8), LayerNorm(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = self.norm1(x + self.self_attn(x, mask=mask))
        y: Tensor = self.norm2(x + self.feed_forward(x))
        return y


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our parameters to those of nn.TransformerEncoderLayer."""
    theirs = {}
    for kind in ("weight", "bias"):
        stacked = [state.pop(f"self_attn.w_{name}.{kind}") for name in "qkv"]
        theirs[f"self_attn.in_proj_{kind}"] = torch.cat(stacked)
        theirs[f"self_attn.out_proj.{kind}"] = state.pop(f"self_attn.w_o.{kind}")
        theirs[f"linear1.{kind}"] = state.pop(f"feed_forward.w_1.{kind}")
        theirs[f"linear2.{kind}"] = state.pop(f"feed_forward.w_2.{kind}")
    return theirs | state


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_pieces_make_torchs_encoder_layer(
    attention: Attention, activation: layers.Activation
) -> None:
    """Put together, they equal nn.TransformerEncoderLayer in value and every gradient."""
    ours = EncoderLayer(attention, activation)
    theirs = nn.TransformerEncoderLayer(8, 2, 20, 0.0, activation, batch_first=True)
    names = list(ours.state_dict())
    mask, lengths = causal_mask(6, 6), torch.tensor([6, 4])

    def call_ours(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        y: Tensor = functional_call(ours, state, (x, mask & padding_mask(lengths, 6)))
        return y

    def call_theirs(x: Tensor, *parameters: Tensor) -> Tensor:
        state = translated(dict(zip(names, parameters, strict=True)))
        padding = ~padding_mask(lengths, 6)[:, 0, 0]  # True = hidden, the other way round
        y: Tensor = functional_call(theirs, state, (x, ~mask, padding))
        return y

    parameters = [random(*p.shape) for p in ours.state_dict().values()]
    check_alike(call_ours, call_theirs, random(2, 6, 8), *parameters)


# Multi-head attention --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", BOTH)
def test_cross_attention_is_torchs(attention: Attention) -> None:
    """Queries that look at another sequence: value, weights and gradients agree."""
    ours = MultiHeadAttention(8, 2, attention=attention, bias=False)
    theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    assert list(ours.state_dict()) == [f"w_{name}.weight" for name in "qkvo"]
    mask = padding_mask(torch.tensor([5, 3]), 5)
    ours_seen: list[Tensor] = []
    theirs_seen: list[Tensor] = []

    def call_ours(x: Tensor, keys: Tensor, *w: Tensor) -> Tensor:
        state = {f"w_{name}.weight": p for name, p in zip("qkvo", w, strict=True)}
        y: Tensor = functional_call(ours, state, (x, keys, mask), {"maps": ours_seen})
        return y

    def call_theirs(x: Tensor, keys: Tensor, *w: Tensor) -> Tensor:
        state = {"in_proj_weight": torch.cat(w[:3]), "out_proj.weight": w[3]}
        options = {"key_padding_mask": ~mask[:, 0, 0], "average_attn_weights": False}
        y, weights = functional_call(theirs, state, (x, keys, keys), options)
        theirs_seen.append(weights)
        assert isinstance(y, Tensor)
        return y

    inputs = random(2, 4, 8), random(2, 5, 8), *random(4, 8, 8).unbind()
    check_alike(call_ours, call_theirs, *inputs)
    torch.testing.assert_close(ours_seen[0], theirs_seen[0])


def test_heads_may_be_of_any_width() -> None:
    """With d_k and d_v of their own, the layer is the sum over heads of attention by W_i^O."""
    H, d_k, d_v = 3, 5, 2
    layer = MultiHeadAttention(8, H, d_k, d_v).double()
    x, mask = random(2, 4, 8), causal_mask(4, 4)

    def heads_in_turn(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor) -> Tensor:
        y = torch.zeros(2, 4, 8, dtype=torch.float64)
        for i in range(H):
            ks, vs = slice(i * d_k, i * d_k + d_k), slice(i * d_v, i * d_v + d_v)
            q, k, v = x @ w_q[ks].T, x @ w_k[ks].T, x @ w_v[vs].T
            y = y + F.scaled_dot_product_attention(q, k, v, mask) @ w_o[:, vs].T
        return y

    weights = layer.w_q.weight, layer.w_k.weight, layer.w_v.weight, layer.w_o.weight

    def ours(x: Tensor, *w: Tensor) -> Tensor:
        state = {f"w_{name}.weight": p for name, p in zip("qkvo", w, strict=True)}
        y: Tensor = functional_call(layer, state, (x,), {"mask": mask})
        return y

    check_alike(ours, heads_in_turn, x, *weights)


@pytest.mark.parametrize("attention", BOTH)
def test_a_head_switched_off_is_a_head_removed(attention: Attention) -> None:
    """A head_mask of 0 equals the layer without that head; of 1 it changes nothing."""
    layer = MultiHeadAttention(8, 4, attention=attention).double()
    x, mask = random(2, 5, 8), causal_mask(5, 5)
    others = torch.tensor([0, 1, 4, 5, 6, 7])  # the channels of heads 0, 2 and 3
    fewer = MultiHeadAttention(8, 3, 2, 2, attention=attention).double()
    for name in "qkv":
        full, small = layer.get_submodule(f"w_{name}"), fewer.get_submodule(f"w_{name}")
        small.load_state_dict({key: value[others] for key, value in full.state_dict().items()})
    bias = layer.w_o.state_dict()["bias"]
    fewer.w_o.load_state_dict({"weight": layer.w_o.weight.detach()[:, others], "bias": bias})
    off = layer(x, mask=mask, head_mask=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(off, fewer(x, mask=mask), rtol=0, atol=1e-12)
    on = layer(x, mask=mask, head_mask=torch.ones(4))
    assert torch.equal(on, layer(x, mask=mask))
    assert not torch.allclose(on, off)


@pytest.mark.parametrize("attention", BOTH)
def test_maps_show_the_weights(attention: Attention) -> None:
    """Each call appends (B, H, T, S) shares, whatever the kernel and whatever dropout does."""
    layer = MultiHeadAttention(8, 2, dropout=0.9, attention=attention)
    x, mask = torch.randn(3, 5, 8), causal_mask(5, 5)
    maps: list[Tensor] = []
    layer(x, mask=mask, maps=maps)
    layer(x, x[:, :4], maps=maps)
    assert [tuple(m.shape) for m in maps] == [(3, 2, 5, 5), (3, 2, 5, 4)]
    q, k = layer.heads(layer.w_q(x)), layer.heads(layer.w_k(x))
    torch.testing.assert_close(maps[0], attention_weights(q, k, mask))


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 1, 1), (4, 1, 1), (2, 3, 1)])
def test_cached_attention_is_uncached(attention: Attention, steps: tuple[int, ...]) -> None:
    """Feeding a few positions at a time gives what all at once give, whatever the steps."""
    layer, x = MultiHeadAttention(8, 2, 3, 5, attention=attention).double(), random(2, 6, 8)
    cache, parts = KeyValueCache(), []
    for part in torch.split(x, list(steps), dim=1):
        S = cache.length + part.size(1)
        parts.append(layer(part, mask=causal_mask(part.size(1), S), cache=cache))
    assert cache.length == 6
    full = layer(x, mask=causal_mask(6, 6))
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-12)


def test_a_cache_projects_another_sequence_once() -> None:
    """Given keys, later calls look at the first call's projections, and add nothing to them."""
    layer, queries, keys = MultiHeadAttention(8, 2).double(), random(2, 3, 8), random(2, 5, 8)
    cache, projected = KeyValueCache(), []
    layer.w_k.register_forward_hook(lambda *_: projected.append(1))
    parts = [layer(queries[:, t : t + 1], keys, cache=cache) for t in range(3)]
    assert len(projected) == 1
    assert cache.length == 5
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(queries, keys), rtol=0, atol=1e-12)


def test_a_cache_keeps_the_rows_selected() -> None:
    """Rows are dropped, doubled and reordered, so a beam goes on with its own past."""
    layer, x = MultiHeadAttention(8, 2).double(), random(3, 4, 8)
    cache, rows = KeyValueCache(), torch.tensor([2, 0, 0, 1])
    cache.select(rows)  # nothing held: nothing to do
    layer(x[:, :3], cache=cache)
    cache.select(rows)
    last = layer(x[rows, 3:], cache=cache)
    torch.testing.assert_close(last, layer(x)[rows, 3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", BOTH)
def test_attention_drops_only_in_training(attention: Attention) -> None:
    """Two calls differ in training, and agree with no dropout at all in evaluation."""
    layer, x = MultiHeadAttention(8, 2, dropout=0.5, attention=attention), torch.randn(2, 5, 8)
    assert not torch.equal(layer(x), layer(x))
    still = MultiHeadAttention(8, 2, attention=attention)
    still.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), still(x))


@pytest.mark.parametrize("attention", BOTH)
def test_only_fused_attention_calls_pytorchs(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option decides which kernel runs; the lesson's never leaves this package."""
    calls, kernel = [], F.scaled_dot_product_attention

    def counted(*inputs: Any) -> Tensor:
        calls.append(1)
        return kernel(*inputs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    MultiHeadAttention(8, 2, attention=attention)(torch.randn(2, 5, 8), mask=causal_mask(5, 5))
    assert len(calls) == (attention == "fused")


def test_heads_must_divide_the_channels() -> None:
    """Unless both widths are given, n_embd is a multiple of n_head, or the error says what is."""
    for d_k in (None, 5):
        with pytest.raises(ValueError, match=r"n_embd=10 must be a multiple of n_head=4; try 8"):
            MultiHeadAttention(10, 4, d_k)
    assert MultiHeadAttention(10, 4, 3, 2)(torch.randn(1, 2, 10)).shape == (1, 2, 10)

"""The feed-forward model: batch norm against torch's, first weights, what a score depends on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from makemore.mlp import MLP, ActivationName, BatchNorm1d, InitName, MLPConfig
from shared.optim import is_hidden_matrix


def some_items(rows: int = 6, time: int = 7) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) that begin with the boundary, and targets, the later items shorter."""
    idx = torch.randint(1, 27, (rows, time))
    idx[:, 0] = 0
    targets = torch.randint(0, 27, (rows, time))
    for row in range(rows):
        targets[row, max(2, time - row) :] = -100
    return idx, targets


def lively(config: MLPConfig) -> MLP:
    """Return a model in fp64 whose scores differ, unlike those of a fresh one."""
    model = MLP(config).double()
    nn.init.normal_(model.head.weight)
    return model.eval()


# ---- batch norm


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_batch_norm_is_that_of_torch(rows: int, features: int, seed: int) -> None:
    """Values, gradients, running statistics of several batches, and evaluation."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = BatchNorm1d(features).double(), nn.BatchNorm1d(features).double()
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn(features, generator=generator))
            other.copy_(mine)
    for _ in range(3):
        x = torch.randn(rows, features, generator=generator, dtype=torch.float64) * 3 + 1
        weight = torch.randn(rows, features, generator=generator, dtype=torch.float64)
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        outputs = ours(inputs[0]), theirs(inputs[1])
        torch.testing.assert_close(outputs[0], outputs[1])
        for output in outputs:
            (output * weight).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_single_row_is_normalised_by_the_running_averages() -> None:
    """It has no variance; nothing becomes NaN, and the averages stay as they were."""
    norm = BatchNorm1d(3)
    norm(torch.randn(50, 3) * 2 + 1)
    before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 3, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    expected = (x - before[0]) / (before[1] + norm.eps).sqrt()
    torch.testing.assert_close(y, expected)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close((norm.running_mean, norm.running_var), before)


def test_batch_norm_keeps_full_precision_under_autocast() -> None:
    """A bf16 input moves fp32 averages, and by its true mean."""
    norm, x = BatchNorm1d(4), (torch.randn(64, 4) + 100).bfloat16()
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.float().mean(0))


def test_in_evaluation_no_row_depends_on_another() -> None:
    """The scores of an item are the same alone and in a batch."""
    model = lively(MLPConfig(batch_norm=True, n_hidden=16, n_layer=2))
    idx, targets = some_items()
    model.train().loss(idx, targets)
    model.eval()
    torch.testing.assert_close(model.logits(idx[2:3]), model.logits(idx)[2:3])


def test_with_batch_norm_a_hidden_layer_has_no_bias() -> None:
    """The mean that is subtracted would take it away."""
    names = [name for name, _ in MLP(MLPConfig(batch_norm=True)).named_parameters()]
    assert "layers.0.linear.bias" not in names
    assert "layers.0.norm.bias" in names


# ---- first weights


@pytest.mark.parametrize("init", ["he", "xavier"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_first_loss_is_that_of_a_fair_guess(
    init: InitName, activation: ActivationName, batch_norm: bool
) -> None:
    """It is log V, as the output layer starts small."""
    config = MLPConfig(init=init, activation=activation, batch_norm=batch_norm, n_layer=3)
    loss = MLP(config).loss(*some_items(64))
    assert loss.item() == pytest.approx(math.log(27), abs=0.03)


def test_the_naive_first_loss_is_confident_nonsense() -> None:
    """Several times log V."""
    assert MLP(MLPConfig(init="naive")).loss(*some_items(64)).item() > 3 * math.log(27)


@pytest.mark.parametrize(
    ("init", "activation", "std"),
    [
        ("naive", "tanh", 1.0),
        ("he", "relu", math.sqrt(2 / 400)),
        ("he", "tanh", 5 / 3 / math.sqrt(400)),
        ("xavier", "tanh", 5 / 3 * math.sqrt(2 / (400 + 600))),
        ("xavier", "relu", math.sqrt(2) * math.sqrt(2 / (400 + 600))),
    ],
)
def test_first_weights_spread_as_their_papers_say(
    init: InitName, activation: ActivationName, std: float
) -> None:
    """By fan-in for He, by fan-in and fan-out for Xavier, times the activation's gain."""
    config = MLPConfig(n_embd=40, block_size=10, n_hidden=600, init=init, activation=activation)
    weight = dict(MLP(config).named_parameters())["layers.0.linear.weight"]
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    bounded = weight.abs().max().item() < std * math.sqrt(3) * 1.01
    assert bounded == (init == "xavier")  # Glorot's density is uniform


@pytest.mark.parametrize(("init", "low", "high"), [("he", 0.4, 0.8), ("naive", 0.9, 1.0)])
def test_spread_of_activations_through_ten_layers(init: InitName, low: float, high: float) -> None:
    """Scaled weights keep tanh in its middle; naive ones drive it to its ends."""
    model = MLP(MLPConfig(n_layer=10, n_hidden=100, init=init))
    spread = model.layers(torch.randn(200, 30)).std().item()
    assert low < spread < high


def test_both_optimizers_find_their_parameters_by_name() -> None:
    """Muon takes the hidden matrices; embedding, output layer and vectors stay with AdamW."""
    model = MLP(MLPConfig(n_layer=2, batch_norm=True))
    hidden = [name for name, p in model.named_parameters() if is_hidden_matrix(name, p)]
    assert hidden == ["layers.0.linear.weight", "layers.1.linear.weight"]


# ---- scores


def test_one_tanh_layer_is_the_formula_of_bengio() -> None:
    """That is y = b + U tanh(d + H x), x being the embeddings of the last three characters."""
    model, (idx, _) = lively(MLPConfig(n_hidden=8, n_embd=4)), some_items()
    w = dict(model.named_parameters())
    U, H = w["head.weight"], w["layers.0.linear.weight"]
    row, place = 3, 5
    x = torch.cat([w["embed.weight"][idx[row, place - back]] for back in (2, 1, 0)])
    expected = w["head.bias"] + U @ torch.tanh(w["layers.0.linear.bias"] + H @ x)
    torch.testing.assert_close(model.logits(idx)[row, place], expected)


def test_only_kept_places_are_computed() -> None:
    """Rows of the hidden layers are the N kept places, in the order of `idx[keep]`."""
    model, (idx, targets) = lively(MLPConfig(n_hidden=8)), some_items()
    keep, rows = targets != -100, list[int]()
    hook = model.layers.register_forward_hook(lambda *call: rows.append(len(call[2])))
    scores = model.scores(idx, keep)
    hook.remove()
    assert rows == [int(keep.sum())]
    torch.testing.assert_close(scores, model.logits(idx)[keep])


@pytest.mark.parametrize("time", [1, 2, 12])
def test_a_score_depends_on_the_last_characters_and_on_no_others(time: int) -> None:
    """Items shorter and longer than the context work."""
    model = lively(MLPConfig(block_size=4, n_hidden=8))
    idx, _ = some_items(2, time)
    before = model.logits(idx)
    for at in range(1, time):
        changed = idx.clone()
        changed[:, at] = changed[:, at] % 26 + 1
        moved = (model.logits(changed) - before).abs().amax((0, 2)) > 1e-12
        assert moved.nonzero().flatten().tolist() == list(range(at, min(at + 4, time)))


def test_flops_are_those_of_the_matrix_products() -> None:
    """Counted by torch, a multiplication and an addition each."""
    model, (idx, _) = MLP(MLPConfig(n_layer=3, n_hidden=20)), some_items()
    with FlopCounterMode(display=False) as counter:
        model.logits(idx)
    assert counter.get_total_flops() == model.flops_per_character() * idx.numel()


def test_dropout_and_noise_act_in_training_only() -> None:
    """A training pass differs from the next; an evaluation does not, nor sees the blank."""
    idx, targets = some_items()
    for changes in ({"dropout": 0.5}, {"noise": 0.5}):
        model = MLP(MLPConfig(n_hidden=8, n_layer=2, **changes))  # type: ignore[arg-type]
        nn.init.normal_(model.head.weight)
        assert model.loss(idx, targets) != model.loss(idx, targets)
        model.eval()
        assert model.loss(idx, targets) == model.loss(idx, targets)
    with torch.no_grad():
        before = model.loss(idx, targets)
        model.embed.weight[27] += 100  # the blank's
        assert model.loss(idx, targets) == before


def test_every_parameter_gets_a_gradient() -> None:
    """Nothing in the model is left out of training, whatever the options."""
    model = MLP(MLPConfig(n_layer=2, n_hidden=8, batch_norm=True, activation="relu", dropout=0.1))
    model.loss(*some_items()).backward()  # type: ignore[no-untyped-call]
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be .* below 1; try 0.1"),
        ({"noise": -0.1}, r"noise=-0.1 must be at least 0"),
        ({"init": "zero"}, "init='zero' must be naive or xavier or he"),
        ({"activation": "gelu"}, "activation='gelu' must be tanh or relu"),
    ],
)
def test_a_shape_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    """The message names the value and the rule."""
    with pytest.raises(ValueError, match=message):
        MLPConfig(**changes)  # type: ignore[arg-type]

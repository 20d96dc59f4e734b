"""The hand-written backward pass: equal to autograd, and enough to train by."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from makemore import backprop
from makemore.backprop import (
    BackpropConfig,
    Weights,
    all_windows,
    as_model,
    back_through_loss,
    back_through_norm,
    backward,
    batch_norm_gradient,
    compare,
    cross_entropy_gradient,
    fast_backward,
    first_weights,
    forward,
    train,
)
from makemore.data import Items, Vocabulary
from makemore.mlp import MLP, BatchNorm1d, MLPConfig
from shared import cli
from shared.errors import NumericalError

sizes = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(1, 9),
        "block_size": st.integers(1, 4),
        "n_embd": st.integers(1, 4),
        "n_hidden": st.integers(1, 6),
    }
)


def some_weights(shape: MLPConfig) -> Weights:
    """Return weights in fp64 of which none is at a neutral value."""
    weights = first_weights(shape, torch.float64)
    for _, weight in weights.named():
        weight += 0.5 * torch.randn_like(weight)
    return weights


def some_batch(shape: MLPConfig, rows: int) -> tuple[Tensor, Tensor]:
    """Return windows (N, K) and targets (N,)."""
    windows = torch.randint(shape.vocab_size, (rows, shape.block_size))
    return windows, torch.randint(shape.vocab_size, (rows,))


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(2, 8), st.integers(0, 2**31))
def test_every_gradient_is_that_of_autograd(shape: dict[str, int], rows: int, seed: int) -> None:
    """All 26 and the two short cuts, for any sizes, to 1e-10."""
    torch.manual_seed(seed)
    config = MLPConfig(**shape)  # type: ignore[arg-type]
    found = compare(some_weights(config), *some_batch(config, rows))
    assert len(found) == 28
    # Units whose inputs hardly vary have inverse deviations up to 1 / sqrt(eps): rounding grows.
    assert {row.name: row.difference for row in found if not row.difference < 1e-10} == {}


def test_the_comparison_would_notice() -> None:
    """A derivative that is wrong by a thousandth is reported so, and not as exact."""
    config = MLPConfig(n_hidden=8)
    weights, batch = some_weights(config), some_batch(config, 16)
    real = back_through_loss

    def wrong(*args: object) -> dict[str, Tensor]:
        gradients = real(*args)  # type: ignore[arg-type]
        return gradients | {"scores": gradients["scores"] * 1.001}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backprop, "back_through_loss", wrong)
        rows = {row.name: row for row in compare(weights, *batch)}
    assert rows["counts"].difference < 1e-12
    for name in ("scores", "h", "w1", "embed"):
        assert rows[name].difference > 1e-7
        assert not rows[name].exact


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31))
def test_the_fused_cross_entropy_gradient_is_that_of_the_long_way(
    rows: int, vocab: int, seed: int
) -> None:
    """Softmax minus one-hot over N equals autograd through F.cross_entropy."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * 5
    targets = torch.randint(vocab, (rows,), generator=generator)
    copy = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(copy, targets), copy)
    torch.testing.assert_close(cross_entropy_gradient(scores, targets), expected)


def test_the_two_short_cuts_equal_the_long_versions() -> None:
    """Cross-entropy in one step, batch norm in one step, and all seven weights by both."""
    config = MLPConfig(n_hidden=12)
    w, (windows, targets) = some_weights(config), some_batch(config, 20)
    v = forward(w, windows, targets)
    long, fast = backward(w, v, windows, targets), fast_backward(w, v, windows, targets)
    scores = back_through_loss(v, targets)["scores"]
    torch.testing.assert_close(
        cross_entropy_gradient(v.scores, targets), scores, rtol=0.0, atol=1e-12
    )
    z = back_through_norm(long["a"], w, v)["z"]
    fused = batch_norm_gradient(long["a"], v.normal, v.inv_std, w.gain)
    torch.testing.assert_close(fused, z, rtol=0.0, atol=1e-12)
    assert list(fast) == [name for name, _ in w.named()]
    for name, gradient in fast.items():
        torch.testing.assert_close(gradient, long[name], rtol=0.0, atol=1e-12)


def test_what_cannot_matter_has_no_gradient() -> None:
    """A bias before batch norm, and the largest score that is taken from all scores."""
    config = MLPConfig(n_hidden=12)
    w, batch = some_weights(config), some_batch(config, 20)
    found = backward(w, forward(w, *batch), *batch)
    for name in ("b1", "top"):
        assert found[name].abs().max() < 1e-15
    assert found["w1"].abs().max() > 1e-4


def test_the_network_is_the_mlp(names: list[str]) -> None:
    """Same weights, same loss: in training, and with the running averages in evaluation."""
    vocabulary = Vocabulary.of(names)
    items = Items(names, vocabulary)
    config = MLPConfig(vocab_size=len(vocabulary), n_hidden=16, batch_norm=True)
    w = some_weights(config)
    w.b1 += 3.0  # the model has none
    windows, targets = all_windows(items, config.block_size)
    v = forward(w, windows, targets)
    norm = BatchNorm1d(16).double()
    norm.running_mean, norm.running_var = v.mean, v.var  # as if this batch were all there is
    model = as_model(w, norm, config)
    batch = items.batch(range(len(items)))
    for training in (False, True):  # training moves the averages
        model.train(training)
        assert model.loss(*batch).item() == pytest.approx(v.loss.item(), abs=1e-9)


def test_dropout_of_the_mlp_also_acts_on_the_embedded_context() -> None:
    """With that of the hidden layer taken out, training still differs from evaluation."""
    model, idx = MLP(MLPConfig(n_hidden=8, dropout=0.5)), torch.tensor([[0, 5, 13, 13, 1]])
    nn.init.normal_(model.head.weight)
    for layer in model.layers:
        layer.dropout = nn.Identity()
    assert not torch.allclose(model.train().logits(idx), model.eval().logits(idx))


def test_training_by_hand_is_gradient_descent() -> None:
    """Three steps by autograd, on the same rows at the same rates, end with the same weights."""
    config = MLPConfig(n_hidden=8, vocab_size=9)
    windows, targets = some_batch(config, 50)
    by_hand = some_weights(config)
    by_autograd = Weights(*(w.clone().requires_grad_() for _, w in by_hand.named()))
    torch.manual_seed(5)
    train(by_hand, windows, targets, max_steps=3, batch_size=4, learning_rate=0.3)
    torch.manual_seed(5)
    for rate in (0.3, 0.2, 0.1):
        rows = torch.randint(50, (4,))
        parameters = [w for _, w in by_autograd.named()]
        loss = forward(by_autograd, windows[rows], targets[rows]).loss
        with torch.no_grad():
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter -= rate * gradient
    for (_, mine), (_, other) in zip(by_hand.named(), by_autograd.named(), strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-9, atol=1e-9)


def test_training_uses_no_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls to nearly nothing while autograd's entrances are closed.

    The running averages end near the whole set's mean and variance.
    """

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("autograd was asked")

    monkeypatch.setattr(torch.Tensor, "backward", closed)
    monkeypatch.setattr(torch.autograd, "grad", closed)
    config = MLPConfig(n_hidden=32, vocab_size=5)
    windows = torch.randint(5, (60, 3))
    targets = windows[:, 1]
    weights = first_weights(config)
    norm = train(weights, windows, targets, max_steps=200, batch_size=30, learning_rate=0.5)
    assert forward(weights, windows, targets).loss < 0.1
    assert not any(weight.requires_grad for _, weight in weights.named())
    v = forward(weights, windows, targets)
    for average, whole in ((norm.running_mean, v.mean), (norm.running_var, v.var)):
        assert (average - whole).abs().mean() < 0.15 * whole.abs().mean()


def test_a_diverging_loss_ends_the_training_with_its_step() -> None:
    """And with the remedy."""
    config = MLPConfig(n_hidden=8)
    batch = some_batch(config, 20)
    with pytest.raises(NumericalError, match=r"loss of step \d+ is not finite; try a smaller"):
        train(first_weights(config), *batch, max_steps=50, batch_size=8, learning_rate=1e30)


# ---- the command


@pytest.fixture
def names_file(tmp_path: Path, names: list[str]) -> Path:
    """Write forty names."""
    path = tmp_path / "some.txt"
    path.write_text("\n".join(names))
    return path


def run(names_file: Path, *words: str) -> int:
    """Run the command on the names, shortly."""
    out = ["--out", str(names_file.with_suffix(".run")), "--n-hidden", "8", "--max-steps", "5"]
    return cli.execute(backprop.main, ["--data", str(names_file), *out, *words])


def test_the_command_prints_all_gradients_and_samples(
    names_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each with its shape and how it compares; then losses, and made-up names."""
    assert run(names_file, "--samples", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if " exact" in line or " approximate" in line]
    assert len(table) == 28
    assert ["w1", "(30,", "8)"] in [cells[:3] for cells in table]
    assert any(line.strip().startswith("made up") and len(line.split()) == 5 for line in lines)
    result = json.loads((names_file.with_suffix(".run") / "result.json").read_text())
    assert result["largest_difference"] < 1e-10
    assert result["steps"] == 5
    assert {"train_loss", "val_loss", "test_loss"} <= result.keys()


def test_the_command_speaks_json(names_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the result, the gradients and the samples, and nothing else on stdout."""
    assert run(names_file, "--json", "--samples", "2") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["gradients"]) == 28
    assert told["gradients"][0]["name"] == "log_probs"
    assert len(told["samples"]) == 2


def test_without_steps_the_command_only_compares_the_gradients(
    names_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained net has neither losses nor samples, in the text, in JSON and on disk."""
    assert run(names_file, "--max-steps", "0") == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if "e-" in line or "0.0e+00" in line]) == 28
    assert "made up" not in printed
    assert "nats" not in printed
    result = json.loads((names_file.with_suffix(".run") / "result.json").read_text())
    assert result["largest_difference"] < 1e-10
    assert not [name for name in result if name.endswith("_loss")]
    out = str(names_file.with_suffix(".json-run"))
    assert run(names_file, "--max-steps", "0", "--json", "--out", out) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["gradients"]), told["samples"]) == (28, [])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--batch-size", "1"], 2, "batch_size=1 must be at least 2"),
        (["--learning-rate", "0"], 2, "learning_rate=0.0 must be above 0"),
        (["--n-hidden", "0"], 2, "n_hidden=0 must be at least 1"),
        (["--learning-rate", "1e30"], 6, "is not finite; try a smaller --learning-rate"),
    ],
)
def test_a_mistake_is_one_line(
    names_file: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    """With the code of its kind."""
    assert run(names_file, "--max-steps", "50", *words) == code
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


def test_the_defaults_can_work() -> None:
    """The config of a bare command is accepted."""
    assert BackpropConfig().shape(27).batch_norm

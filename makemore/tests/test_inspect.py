"""The diagnostics: what the recorder sees, what the presets show, the search, the command."""

import inspect as standard_inspect
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makemore import inspect, train
from makemore.data import Vocabulary, split_items
from makemore.inspect import (
    DIAGNOSTICS,
    Diagnosis,
    InspectConfig,
    Recorder,
    dead_units,
    diagnose,
    draw_diagnostics,
    draw_trial,
    presets,
    saturated,
    spread,
)
from makemore.mlp import MLP, MLPConfig
from makemore.train import Encoded, loss
from shared import cli
from shared.callbacks import Callback
from shared.config import TrainerConfig
from shared.errors import NumericalError
from shared.parallel import World
from shared.runs import Run
from shared.trainer import Trainer

CPU = World(torch.device("cpu"))
SETTINGS = TrainerConfig(
    max_steps=4, batch_size=8, eval_every=2, checkpoint_every=0, precision="fp32", grad_clip=0.0
)


@pytest.fixture
def encoded(names: list[str]) -> Encoded:
    """Return the parts of forty names."""
    return Encoded.of(split_items(names, "random"), Vocabulary.of(names))


class Witness(Callback):
    """Keeps the batches and the weights before each step, by other means than the recorder."""

    def __init__(self, model: MLP) -> None:
        self.model = model
        self.batches: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_boundary(self, trainer: Trainer[Any]) -> None:  # noqa: ARG002 - the hook's signature
        """Copy the weights."""
        self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Keep the batch."""
        self.batches += trainer.batches


def watched(
    encoded: Encoded, out: Path, settings: TrainerConfig = SETTINGS
) -> tuple[MLP, Recorder, Witness]:
    """Train a small network under the eyes of a recorder and a witness."""
    model = MLP(MLPConfig(vocab_size=27, n_layer=2, n_hidden=8, batch_norm=True))
    torch.nn.init.normal_(model.head.weight)
    seen, witness = Recorder(model), Witness(model)
    with Run.open("test", out, resume=False, config={}) as run:
        trainer = Trainer(
            settings, model, loss, encoded.train, run=run, world=CPU, validation=encoded.val,
            callbacks=[witness, seen],
        )  # fmt: skip
        trainer.fit()
    return model, seen, witness


def test_the_stdlib_keeps_its_module() -> None:
    """Our module of the same name is reached through the package only, as a program too."""
    assert "makemore" not in str(standard_inspect.__file__)
    code = "import makemore.inspect, inspect; print(inspect.signature(len), inspect.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "makemore" not in done.stdout


# ---- measuring


@pytest.mark.parametrize("step", [0, 3])
def test_a_snapshot_holds_what_the_step_computed(
    encoded: Encoded, tmp_path: Path, step: int
) -> None:
    """Activations and gradients of the first and the last step, as computed again here."""
    model, seen, witness = watched(encoded, tmp_path / "run")
    model.load_state_dict(witness.weights[step])
    model.train()
    kept: list[Tensor] = []

    def keep(_module: object, _x: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    layers: list[Any] = list(model.layers)
    for layer in layers:
        layer.activation.register_forward_hook(keep)
    model.zero_grad()
    model.loss(*witness.batches[step]).backward()  # type: ignore[no-untyped-call]
    snapshot = seen.first if step == 0 else seen.last
    for i, layer in enumerate(layers):
        weight = layer.linear.weight
        torch.testing.assert_close(snapshot.activations[i], kept[i].detach())
        torch.testing.assert_close(snapshot.gradients[i], kept[i].grad)
        torch.testing.assert_close(snapshot.weights[i], weight.detach())
        torch.testing.assert_close(snapshot.weight_gradients[i], weight.grad)
    assert seen.first_loss == pytest.approx(
        MLP.loss(load(model, witness.weights[0]), *witness.batches[0]).item(), rel=1e-5
    )


def load(model: MLP, weights: dict[str, Tensor]) -> MLP:
    """Return the model with these weights."""
    model.load_state_dict(weights)
    return model


def test_updates_are_measured_against_the_weights(encoded: Encoded, tmp_path: Path) -> None:
    """std(after - before) / std(before), of each layer at each step."""
    _, seen, witness = watched(encoded, tmp_path / "run")
    assert seen.update_steps == [1, 2, 3, 4]
    for step, ratios in enumerate(seen.update_ratios):
        for i, ratio in enumerate(ratios):
            name = f"layers.{i}.linear.weight"
            before, after = (witness.weights[step + k][name] for k in (0, 1))
            expected = (after - before).std() / before.std()
            assert ratio == pytest.approx(expected.item(), rel=1e-5)
            assert ratio > 0


def test_the_recorder_leaves_no_hooks_and_changes_nothing(encoded: Encoded, tmp_path: Path) -> None:
    """The weights at the end are those of a training that nobody watched."""
    torch.manual_seed(1)
    model, _, _ = watched(encoded, tmp_path / "run")
    layers: list[Any] = list(model.layers)
    assert not any(layer.activation._forward_hooks for layer in layers)
    assert not any(layer.linear.weight._backward_hooks for layer in layers)
    torch.manual_seed(1)
    alone = MLP(MLPConfig(vocab_size=27, n_layer=2, n_hidden=8, batch_norm=True))
    torch.nn.init.normal_(alone.head.weight)
    with Run.open("test", tmp_path / "alone", resume=False, config={}) as run:
        Trainer(SETTINGS, alone, loss, encoded.train, run=run, world=CPU).fit()
    for mine, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_run_of_one_step_has_both_snapshots(encoded: Encoded, tmp_path: Path) -> None:
    """The first step is the last one, too."""
    one = TrainerConfig(max_steps=1, batch_size=8, precision="fp32")
    _, seen, _ = watched(encoded, tmp_path / "run", one)
    assert seen.last.activations.keys() == {0, 1}
    assert len(seen.update_ratios) == 1


def test_saturation_and_death_by_hand() -> None:
    """A tanh saturates at both ends, a relu at 0; dead is who does so for all examples."""
    h = torch.tensor([[0.98, -0.99, 0.5], [0.999, 0.2, 0.0]])
    assert saturated(h, "tanh").tolist() == [[True, True, False], [True, False, False]]
    assert dead_units(h, "tanh").tolist() == [True, False, False]
    r = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    assert saturated(r, "relu").tolist() == [[True, False], [True, True]]
    assert dead_units(r, "relu").tolist() == [True, False]


def test_each_fix_is_seen_in_the_figures(encoded: Encoded, tmp_path: Path) -> None:
    """Less saturation and a first loss of log V; gradients of all layers of one size."""
    config, found = InspectConfig(n_layer=4, n_hidden=50), dict[str, dict[str, float]]()
    shapes = presets(config, 27)
    with Run.open("test", tmp_path / "run", resume=False, config={}) as run:
        for name, shape in shapes.items():
            found[name] = diagnose(name, shape, encoded, SETTINGS, run, CPU).summary()
    naive, scaled, normalised = found.values()
    assert list(found) == ["naive", "scaled", "batch-norm"]
    assert naive["saturated_start"] > 0.6
    assert 0.01 < normalised["saturated_start"] < scaled["saturated_start"] < 0.2
    assert naive["first_loss"] > 2 * math.log(27)
    for each in (scaled, normalised):
        assert each["first_loss"] == pytest.approx(math.log(27), abs=0.05)
        assert 0.5 < each["gradient_ratio"] < 3 < naive["gradient_ratio"]


def test_spread_is_the_standard_deviation() -> None:
    """Of all entries of a tensor."""
    assert spread(torch.tensor([[1.0, 3.0], [1.0, 3.0]])) == 1.0


# ---- searching


def test_a_trial_is_drawn_by_seed_and_number_alone() -> None:
    """The same again, others for other numbers; rates across three powers of ten."""
    trials = [draw_trial(3, number) for number in range(200)]
    assert trials == [draw_trial(3, number) for number in range(200)]
    assert trials[0] != draw_trial(4, 0)
    logs = [math.log10(trial["learning_rate"]) for trial in trials]
    assert -4 <= min(logs) < -3.8
    assert -1.2 < max(logs) <= -1
    assert sum(log < -2.5 for log in logs) == pytest.approx(100, abs=30)
    assert {trial["block_size"] for trial in trials} == {2, 3, 4, 5, 6, 8}


# ---- the command


@pytest.fixture
def command(tmp_path: Path, names: list[str]) -> Callable[..., int]:
    """Return a function that runs the command shortly on forty names, into the folder `out`."""
    (tmp_path / "some.txt").write_text("\n".join(names))
    common = ["--data", str(tmp_path / "some.txt"), "--out", str(tmp_path / "out")]
    common += ["--max-steps", "3", "--n-layer", "2", "--n-hidden", "8", "--batch-size", "8"]
    return lambda *words: cli.execute(inspect.main, [*common, *words])


def png_size(path: Path) -> tuple[int, ...]:
    """Return width and height."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_the_command_draws_and_tells(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page of the diagnostics, a table, and result.json."""
    for name in ("activations", "gradients", "weight_gradients", "dead_units"):
        monkeypatch.delitem(DIAGNOSTICS, name)  # two are enough here
    assert command() == 0
    out = tmp_path / "out"
    assert [path.stem for path in out.glob("*.png")] == ["diagnostics"]
    assert png_size(out / "diagnostics.png") == (1380, 340 * len(DIAGNOSTICS))
    printed = capsys.readouterr().out
    for word in ("naive", "scaled", "batch-norm", "dead units", "log V = ", "diagnostics.png"):
        assert word in printed
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 9
    for preset in ("naive", "scaled", "batch_norm"):
        assert result[f"{preset}_saturated_start"] >= 0
        assert result[f"{preset}_val_loss"] > 0


def test_the_search_tries_and_ranks(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A histogram, a table with the best first; a trial that diverged is counted, not ranked."""
    calls = list[TrainerConfig]()

    def fit(model: Any, encoded: Any, settings: TrainerConfig, *rest: Any) -> dict[str, float]:
        calls.append(settings)
        if len(calls) == 2:
            raise NumericalError("diverged")
        return train.fit(model, encoded, settings, *rest)

    monkeypatch.setattr(inspect, "fit", fit)
    assert command("--search", "4", "--seed", "7") == 0
    assert [settings.seed for settings in calls] == [7, 8, 9, 10]
    assert [s.learning_rate for s in calls] == [
        draw_trial(7, number)["learning_rate"] for number in range(4)
    ]
    out = tmp_path / "out"
    trials = json.loads((out / "trials.json").read_text())
    losses = [trial["val_loss"] for trial in trials]
    assert [number for number, value in enumerate(losses) if value is None] == [1]
    result = json.loads((out / "result.json").read_text())
    assert result["best_val_loss"] == min(value for value in losses if value is not None)
    assert (result["trials"], result["diverged"]) == (4, 1)
    assert png_size(out / "search.png") == (1300, 640)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)


def test_a_search_in_which_all_diverge_fails(
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the code of numerical failures."""

    def fit(*_: object) -> dict[str, float]:
        raise NumericalError("diverged")

    monkeypatch.setattr(inspect, "fit", fit)
    assert command("--search", "2") == 6
    assert "all 2 trials diverged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "-1"], "search=-1 must be at least 0"),
        (["--max-steps", "0"], "max_steps=0 must be at least 1"),
        (["--n-layer", "0"], "n_layer=0 must be at least 1"),
        (["--activation", "gelu"], "--activation gelu"),
    ],
)
def test_a_mistake_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """With code 2, before anything is trained."""
    assert command(*words) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed


def test_relu_units_are_off_rather_than_saturated(encoded: Encoded, tmp_path: Path) -> None:
    """About half of them at the start, with scaled weights; all diagnostics can be drawn."""
    shape = presets(InspectConfig(n_layer=2, n_hidden=50, activation="relu"), 27)["scaled"]
    with Run.open("test", tmp_path / "run", resume=False, config={}) as run:
        found: Diagnosis = diagnose("relu", shape, encoded, SETTINGS, run, CPU)
    assert found.share(found.seen.first) == pytest.approx(0.5, abs=0.1)
    draw_diagnostics([found], list(DIAGNOSTICS), tmp_path / "page.png")
    assert png_size(tmp_path / "page.png") == (460, 340 * 6)

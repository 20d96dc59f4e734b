"""The training loop against plain PyTorch loops, and what it does when a step goes wrong."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from shared.callbacks import Callback
from shared.checkpoint import open_checkpoint
from shared.config import TrainerConfig
from shared.errors import ArtefactError, Interrupted, NumericalError, UsageError
from shared.health import Verdict
from shared.metrics import read_metrics
from shared.optim import make_optimizers
from shared.parallel import World
from shared.plots import plot_loss
from shared.runs import Run
from shared.sampler import IntArray, Sampler
from shared.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = Path(__file__).parent / "golden" / "losses.json"
QUIET: dict[str, Any] = {
    "device": "cpu",
    "precision": "fp32",
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 0,
}
Pair = tuple[Tensor, Tensor]


class Squares:
    """The sum of eight numbers, with noise."""

    def __init__(self, n: int = 64) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 8, generator=generator)
        self.y = self.x.sum(1, keepdim=True) + torch.randn(n, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: IntArray, _epochs: IntArray) -> Pair:
        """Build a batch."""
        chosen = torch.from_numpy(indices)
        return self.x[chosen], self.y[chosen]

    def weight(self, batch: Pair) -> float:
        """Count its examples."""
        return len(batch[0])


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.Linear(16, 16), nn.Dropout(dropout), nn.Tanh()]
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), *middle, nn.Linear(16, 1))


def squared_error(module: Callable[[Tensor], Tensor], batch: Pair) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


Make = Callable[..., Trainer[Any]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes a trainer; `folder` and `resume` say where, flags how."""
    # A plot and three calls of git take longer than the training in most tests here.
    monkeypatch.setattr("shared.callbacks.plot_loss", lambda *_, **__: None)
    monkeypatch.setattr("shared.runs.source_commit", lambda: None)
    with ExitStack() as runs:
        opened: dict[str, ExitStack] = {}

        def make(
            module: nn.Module | None = None,
            loss: Any = squared_error,
            examples: Any = None,
            *,
            folder: str = "run",
            resume: bool = False,
            validation: Any = None,
            callbacks: tuple[Callback, ...] = (),
            **flags: Any,
        ) -> Trainer[Any]:
            if folder in opened:  # one run at a time holds a folder
                opened.pop(folder).close()
            opened[folder] = runs.enter_context(ExitStack())
            run = opened[folder].enter_context(
                Run.open("demo", tmp_path / folder, resume=resume, config={})
            )
            return Trainer(
                TrainerConfig(**{**QUIET, **flags}),
                network() if module is None else module,
                loss,
                Squares() if examples is None else examples,
                run=run,
                world=World(torch.device("cpu")),
                validation=validation,
                callbacks=callbacks,
            )

        yield make


def weights(trainer: Trainer[Any]) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.module.parameters()]


def records(trainer: Trainer[Any], kind: str = "train") -> list[dict[str, Any]]:
    path = trainer.run.folder / "metrics.jsonl"
    return [record for record in read_metrics(path) if record["kind"] == kind]


def deterministic(trainer: Trainer[Any]) -> list[dict[str, Any]]:
    """Return all records without the measured times."""
    timed = {"step_ms", "tok_per_sec", "mfu"}
    lines = read_metrics(trainer.run.folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


class StopAt(Callback):
    """Asks to stop after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Ask."""
        if trainer.state.step == self.step:
            trainer.stop.signum = 15


# -- the loop is the bare loop -------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fit_equals_a_bare_pytorch_loop(make: Make, optimizer: Any) -> None:
    """Same batches, clipping and schedule, written out: same losses, norms, rates and weights."""
    flags = {"learning_rate": 0.01, "grad_clip": 3.0, "warmup_steps": 3, "batch_size": 8}
    trainer = make(max_steps=12, optimizer=optimizer, schedule="linear", seed=5, **flags)
    trainer.fit()

    module, data, sampler = network(), Squares(), Sampler(64, seed=5)
    optimizers = make_optimizers(
        module,
        name=optimizer,
        learning_rate=0.01,
        muon_learning_rate=0.02,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    losses, norms, rates = [], [], []
    for step in range(12):
        batch = data.batch(*(array.copy() for array in sampler.draw(step * 8, 8)))
        loss = squared_error(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 3.0)))
        factor = (step + 1) / 4 if step < 3 else 1 - (step - 3) / 9
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = group["initial_lr"] * factor
            each.step()
            each.zero_grad()
        losses.append(loss.item())
        rates.append(0.01 * factor)

    logged = records(trainer)
    assert [line["loss"] for line in logged] == pytest.approx(losses, rel=1e-4)
    assert [line["grad_norm"] for line in logged] == pytest.approx(norms, rel=1e-4)
    assert [line["learning_rate"] for line in logged] == pytest.approx(rates)
    assert min(norms) < 3.0 < max(norms)  # clipped sometimes, and sometimes not
    for ours, theirs in zip(weights(trainer), module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_accumulating_eight_times_one_equals_four_times_two(make: Make) -> None:
    """The division of a global batch into micro-batches does not matter."""
    results = []
    for batch_size, grad_accum_steps in ((8, 1), (2, 4), (1, 8)):
        flags = {"batch_size": batch_size, "grad_accum_steps": grad_accum_steps}
        trainer = make(folder=str(batch_size), max_steps=6, **flags)
        trainer.fit()
        results.append((weights(trainer), [line["loss"] for line in records(trainer)]))
    for tensors, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], rel=1e-5)
        for ours, theirs in zip(tensors, results[0][0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_no_clipping_at_zero(make: Make) -> None:
    """grad_clip=0 leaves large gradients as they are: SGD-like growth of the step size shows."""
    seen: list[float] = []

    class Watch(Callback):
        def on_step(self, trainer: Trainer[Any]) -> None:
            seen.append(trainer.state.metrics["grad_norm"])

    def scaled(module: nn.Module, batch: Pair) -> Tensor:
        return squared_error(module, batch) * 1000

    free = make(None, scaled, max_steps=2, grad_clip=0.0, folder="free", callbacks=(Watch(),))
    free.fit()
    state = free.optimizers[0].state_dict()["state"][0]["exp_avg_sq"]
    assert float(state.max()) > 1.0  # clipped to norm 1 it could not be
    assert min(seen) > 100


class Point(NamedTuple):
    """A batch with names."""

    x: Tensor
    y: Tensor


@pytest.mark.parametrize("kind", ["tuple", "dict", "tensor", "namedtuple"])
def test_a_package_hands_over_a_module_a_loss_and_batches_of_any_kind(
    make: Make, kind: str
) -> None:
    """Tuples, dicts, plain tensors and named tuples all train, and to the same weights."""
    pack: dict[str, Callable[[Pair], Any]] = {
        "tuple": lambda pair: pair,
        "dict": lambda pair: {"x": pair[0], "y": pair[1]},
        "tensor": lambda pair: torch.cat(pair, 1),
        "namedtuple": lambda pair: Point(*pair),
    }
    unpack: dict[str, Callable[[Any], Pair]] = {
        "tuple": lambda batch: batch,
        "dict": lambda batch: (batch["x"], batch["y"]),
        "tensor": lambda batch: (batch[:, :8], batch[:, 8:]),
        "namedtuple": lambda batch: (batch.x, batch.y),
    }

    class Packed(Squares):
        def batch(self, indices: IntArray, epochs: IntArray) -> Any:
            return pack[kind](super().batch(indices, epochs))

        def weight(self, batch: Any) -> float:
            return len(unpack[kind](batch)[0])

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return squared_error(module, unpack[kind](batch))

    plain = make(folder="plain", max_steps=3, validation=Squares(20))
    packed = make(None, loss, Packed(), max_steps=3, validation=Packed(20))
    expected, metrics = plain.fit(), packed.fit()
    assert metrics["val_loss"] == expected["val_loss"]
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(packed), strict=True))


def test_batches_may_be_changed_by_the_package(
    make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    """The example numbers belong to the batch function, which may write into them."""

    class Writing(Squares):
        def batch(self, indices: IntArray, epochs: IntArray) -> Pair:
            pair = super().batch(indices, epochs)
            indices += 1
            epochs += 1
            return pair

    changed, plain = make(None, examples=Writing(), max_steps=3), make(folder="b", max_steps=3)
    changed.fit()
    plain.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(changed), strict=True))
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_golden_losses(make: Make) -> None:
    """The first twenty losses are those of the stored run, up to another CPU's rounding."""
    trainer = make(network(dropout=0.1), max_steps=20, batch_size=8, optimizer="muon")
    trainer.fit()
    losses = [line["loss"] for line in records(trainer)]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=2e-3)


def test_evaluation_is_the_mean_over_all_validation_examples(make: Make) -> None:
    """Also where the last batch is smaller, without dropout and without a trace in the weights."""
    module, validation = network(dropout=0.5), Squares(30)
    trainer = make(module, max_steps=2, validation=validation, batch_size=8)
    value = trainer.fit()["val_loss"]
    module.eval()
    expected = float(squared_error(module, (validation.x, validation.y)))
    assert value == pytest.approx(expected, rel=1e-5)
    assert not any(p.grad is not None for p in module.parameters())


# -- precision -----------------------------------------------------------------------------------


def test_bf16_autocasts_the_forward_pass_only(make: Make) -> None:
    """Products are bf16 inside the module; weights, gradients and losses stay fp32."""
    seen = []

    def loss(module: nn.Module, batch: Pair) -> Tensor:
        output = module(batch[0])
        seen.append(output.dtype)
        value: Tensor = (output.float() - batch[1]).square().mean()
        return value

    trainer = make(None, loss, max_steps=5, precision="bf16", validation=Squares(20))
    metrics = trainer.fit()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in weights(trainer)} == {torch.float32}
    plain = make(folder="fp32", max_steps=5, precision="fp32", validation=Squares(20))
    assert metrics["val_loss"] == pytest.approx(plain.fit()["val_loss"], rel=0.05)


def test_fp16_overflow_halves_the_scale_and_is_not_counted_as_bad(make: Make) -> None:
    """Four overflows while the loss scale is found do not end the run, and weights stay finite."""

    def loss(module: nn.Module, batch: Pair) -> Tensor:
        return 100 * squared_error(lambda x: module(x).float(), batch)

    trainer = make(None, loss, max_steps=12, precision="fp16", grad_clip=1.0, max_bad_steps=2)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    trainer.fit()
    skipped = records(trainer, "skip")
    assert len(skipped) >= 3  # overflows in a row, more than max_bad_steps
    assert trainer.scaler.get_scale() == 2.0 ** (24 - len(skipped))
    assert trainer.state.health.non_finite_in_a_row == 0
    assert not trainer.state.health.rolled_back
    assert all(bool(p.isfinite().all()) for p in weights(trainer))


def test_fp16_gives_up_on_what_no_scale_can_mend(make: Make) -> None:
    """NaN at every scale ends the run once the scale is down, instead of halving for ever."""

    def loss(module: nn.Module, batch: Pair) -> Tensor:
        return squared_error(module, batch) * math.nan

    trainer = make(None, loss, max_steps=50, precision="fp16", max_bad_steps=3)
    with pytest.raises(NumericalError, match="is step 19;"):  # 16 halvings of 65536, then three
        trainer.fit()


def test_a_loss_spike_leaves_the_fp16_scale_alone(make: Make) -> None:
    """Only an overflow says something about the scale."""
    trainer = make(max_steps=1, precision="fp16")
    trainer.fit()
    scale = trainer.scaler.get_scale()
    trainer.scaler.unscale_(trainer.optimizers[0])
    trainer.call = lambda *_: None  # type: ignore[method-assign]
    trainer.skip(Verdict.SPIKE)
    assert trainer.scaler.get_scale() == scale


# -- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "adamw"},
        {"optimizer": "muon", "grad_accum_steps": 3},
        {"optimizer": "muon", "schedule": "wsd", "warmup_steps": 4, "precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_a_stopped_and_resumed_run_is_bit_identical(make: Make, flags: dict[str, Any]) -> None:
    """Weights and all deterministic metrics equal those of the run that was left alone."""
    common = {"max_steps": 20, "batch_size": 4, "eval_every": 6, "checkpoint_every": 4, **flags}
    whole = make(network(0.2), folder="whole", validation=Squares(20), **common)
    expected = whole.fit()
    for stop in (3, 11):
        stopped = make(
            network(0.2),
            resume=stop > 3,
            validation=Squares(20),
            callbacks=(StopAt(stop),),
            **common,
        )
        with pytest.raises(Interrupted) as raised:
            stopped.fit()
        assert raised.value.exit_code == 143
        assert stopped.state.step == stop + 1  # the signal came during step stop + 1
        torch.manual_seed(stop)  # what happens outside the trainer is of no consequence
    resumed = make(network(0.2), resume=True, validation=Squares(20), **common)
    metrics = resumed.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert deterministic(resumed) == deterministic(whole)
    assert metrics["best_val_loss"] == expected["best_val_loss"]
    assert resumed.state.best_step == whole.state.best_step


def test_randomness_of_a_step_depends_on_seed_and_step_alone(make: Make) -> None:
    """Whatever a callback draws in between, dropout stays; another seed drops others."""

    class Gamble(Callback):
        def on_boundary(self, trainer: Trainer[Any]) -> None:
            torch.rand(trainer.state.step + 1)

    plain = make(network(0.5), folder="plain", max_steps=4)
    gambling = make(network(0.5), folder="gambling", max_steps=4, callbacks=(Gamble(),))
    plain.fit()
    gambling.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(gambling), strict=True))
    seeds = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        plain.config = dataclasses.replace(plain.config, seed=seed)
        plain.state.step = step
        plain.seed_step()
        seeds.append(torch.rand(1).item())
    assert len(set(seeds)) == 3


def test_resuming_a_finished_run_changes_nothing(make: Make, tmp_path: Path) -> None:
    """No step, no evaluation, no checkpoint; the same metrics come back."""
    flags = {"max_steps": 5, "validation": Squares(20)}
    metrics = make(**flags).fit()
    before = {
        path: path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and ("checkpoints" in path.parts or path.name == "metrics.jsonl")
    }
    again = make(resume=True, **flags).fit()
    assert before == {path: path.read_bytes() for path in before}
    assert again | {"peak_gib": 0} == metrics | {"peak_gib": 0}


def test_more_steps_continue_a_finished_run(make: Make) -> None:
    """At a constant rate, 4 steps and 4 more are 8 steps."""
    whole = make(folder="whole", max_steps=8, schedule="constant")
    whole.fit()
    make(max_steps=4, schedule="constant").fit()
    longer = make(max_steps=8, schedule="constant", resume=True)
    longer.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(longer), strict=True))
    assert [line["step"] for line in records(longer)] == list(range(1, 9))


def test_a_stop_during_an_evaluation_is_made_up_for(make: Make) -> None:
    """The evaluation ends at once; the resumed run makes it, and all metrics are the same."""

    class StopInEvaluation(Squares):
        trainer: Any = None
        batches = 0

        def batch(self, indices: IntArray, epochs: IntArray) -> Pair:
            self.batches += 1
            if self.trainer is not None and self.trainer.state.step == 6:
                self.trainer.stop.signum = 2
            return super().batch(indices, epochs)

    common: dict[str, Any] = {"max_steps": 9, "batch_size": 4, "eval_every": 3}
    whole = make(folder="whole", validation=Squares(20), **common)
    whole.fit()
    validation = StopInEvaluation(20)
    validation.trainer = stopped = make(validation=validation, **common)
    with pytest.raises(Interrupted) as raised:
        stopped.fit()
    assert raised.value.exit_code == 130
    assert validation.batches == 5 + 1  # one whole evaluation, and one batch of the second
    resumed = make(resume=True, validation=Squares(20), **common)
    resumed.fit()
    assert deterministic(resumed) == deterministic(whole)
    assert resumed.state.best_step == whole.state.best_step


def test_a_stop_in_the_last_evaluation_is_not_taken_for_the_end(make: Make) -> None:
    """The run is interrupted, so that nobody reports it without its final evaluation."""

    class Stopping(Squares):
        trainer: Any = None

        def batch(self, indices: IntArray, epochs: IntArray) -> Pair:
            if self.trainer is not None:
                self.trainer.stop.signum = 15
            return super().batch(indices, epochs)

    validation = Stopping(20)
    validation.trainer = stopped = make(max_steps=3, validation=validation)
    with pytest.raises(Interrupted):
        stopped.fit()
    assert "val_loss" in make(max_steps=3, validation=Squares(20), resume=True).fit()


def test_the_evaluation_made_after_a_resume_is_saved_with_its_step(make: Make) -> None:
    """Otherwise another resume would make and log it a second time."""

    class Stopping(Squares):
        trainer: Any = None

        def batch(self, indices: IntArray, epochs: IntArray) -> Pair:
            if self.trainer.state.step == 4:
                self.trainer.stop.signum = 15
            return super().batch(indices, epochs)

    class Worse(Callback):
        def on_evaluation(self, trainer: Trainer[Any], _values: dict[str, float]) -> None:
            trainer.state.best_value = -1.0  # so that this evaluation is not the best

    validation = Stopping(20)
    common: dict[str, Any] = {"max_steps": 8, "eval_every": 4}
    validation.trainer = make(validation=validation, **common)
    with pytest.raises(Interrupted):
        validation.trainer.fit()
    resumed = make(resume=True, validation=Squares(20), callbacks=(Worse(), StopAt(5)), **common)
    with pytest.raises(Interrupted):
        resumed.fit()
    saved = open_checkpoint(resumed.checkpoints.folder / "step-00000004").state()
    assert saved["trainer"]["evaluated_step"] == 4


def test_case_07_a_worse_evaluation_leaves_the_best_checkpoint_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best evaluation keeps its checkpoint through worse ones, a resume and retention."""
    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: math.nan, 10: 9.0}
    measure = "shared.callbacks.mean_validation_loss"
    monkeypatch.setattr(measure, lambda trainer: losses[trainer.state.step])
    common: dict[str, Any] = {"eval_every": 2, "checkpoint_every": 2, "keep_checkpoints": 1}
    first = make(max_steps=10, validation=Squares(20), callbacks=(StopAt(5),), **common)
    with pytest.raises(Interrupted):
        first.fit()
    resumed = make(max_steps=10, resume=True, validation=Squares(20), **common)
    metrics = resumed.fit()
    best, newest = resumed.checkpoints.best(), resumed.checkpoints.newest()
    assert best is not None
    assert newest is not None
    assert (best.step, newest.step) == (4, 10)
    assert (metrics["best_val_loss"], metrics["val_loss"]) == (3.0, 9.0)
    assert resumed.checkpoints.steps() == [4, 10]


def test_case_23_a_kill_before_the_best_is_marked_does_not_lose_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run marks it, so that retention keeps it."""

    class Killed(BaseException):
        pass

    def kill(point: str, reached: list[str] = []) -> None:  # noqa: B006 - counts the calls
        reached.append(point)
        if point == "save:before-best" and reached.count(point) == 2:
            raise Killed

    losses = {2: 5.0, 4: 3.0, 6: 4.0, 8: 9.0}
    measure = "shared.callbacks.mean_validation_loss"
    monkeypatch.setattr(measure, lambda trainer: losses[trainer.state.step])
    monkeypatch.setattr("shared.checkpoint.kill_point", kill)
    common: dict[str, Any] = {"max_steps": 8, "eval_every": 2, "keep_checkpoints": 1}
    killed = make(validation=Squares(20), **common)
    with pytest.raises(Killed):
        killed.fit()
    assert (killed.checkpoints.best_step(), killed.checkpoints.steps()) == (2, [2, 4])
    resumed = make(resume=True, validation=Squares(20), **common)
    resumed.fit()
    assert (resumed.checkpoints.best_step(), resumed.checkpoints.steps()) == (4, [4, 8])


def test_damaged_checkpoints_are_passed_over_and_none_left_is_refused(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest intact one is taken, to the same weights; with none a resume does not restart."""
    common: dict[str, Any] = {"checkpoint_every": 2, "keep_checkpoints": 5}
    whole = make(max_steps=8, **common)
    whole.fit()
    for step in (8, 6):
        folder = whole.checkpoints.folder / f"step-{step:08}"
        (folder / "state.pt").write_bytes(b"torn")
    torn = whole.checkpoints.begin(7).path  # what a save leaves that was killed
    resumed = make(max_steps=8, resume=True, **common)
    resumed.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert capsys.readouterr().err.count("not used: ") == 2
    assert not torn.exists()
    for folder in whole.checkpoints.folder.glob("step-*"):
        (folder / "state.pt").write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"no checkpoint in .* is intact"):
        make(max_steps=8, resume=True, **common).fit()


def test_resuming_with_other_data_or_an_indivisible_batch_is_refused(make: Make) -> None:
    """Either would change which examples come next."""
    make(max_steps=4, batch_size=8).fit()
    with pytest.raises(ArtefactError, match="drawn with examples 64, now it is 65"):
        make(None, examples=Squares(65), max_steps=6, batch_size=8, resume=True).fit()
    with pytest.raises(ArtefactError, match="drawn with seed 0, now it is 1"):
        make(max_steps=6, batch_size=8, seed=1, resume=True).fit()
    with pytest.raises(UsageError, match="choose a --batch-size that divides 8"):
        make(max_steps=6, batch_size=3, resume=True).fit()


def test_a_smaller_batch_size_continues_with_the_same_steps(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The global batch belongs to the run: 8 examples become two passes of 4, and that is said."""
    whole = make(folder="whole", max_steps=8, batch_size=8)
    whole.fit()
    first = make(folder="parts", max_steps=8, batch_size=8, callbacks=(StopAt(3),))
    with pytest.raises(Interrupted):
        first.fit()
    second = make(folder="parts", max_steps=8, batch_size=4, resume=True)
    second.fit()
    assert second.grad_accum_steps == 2
    assert "--grad-accum-steps is 2, not 1: " in capsys.readouterr().err
    make(folder="parts", max_steps=8, batch_size=4, grad_accum_steps=2, resume=True).fit()
    assert "--grad-accum-steps" not in capsys.readouterr().err
    for ours, theirs in zip(weights(second), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# -- bad steps -----------------------------------------------------------------------------------


def poison(examples: Squares, *, steps: range, batch_size: int) -> None:
    """Put a NaN into one example of each of these steps."""
    for step in steps:
        indices, _ = Sampler(len(examples), 0).draw(step * batch_size, batch_size)
        examples.x[int(indices[0])] = math.nan


def test_a_non_finite_step_is_skipped_counted_and_logged_with_its_examples(make: Make) -> None:
    """The weights after it are those before it; the next steps go on."""
    examples = Squares()
    poison(examples, steps=range(3, 4), batch_size=4)
    seen: list[list[Tensor]] = []

    class Watch(Callback):
        def on_boundary(self, trainer: Trainer[Any]) -> None:
            seen.append(weights(trainer))

    trainer = make(None, examples=examples, max_steps=6, batch_size=4, callbacks=(Watch(),))
    trainer.fit()
    changed = [
        any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in pairwise(seen)
    ]
    assert changed == [True, True, True, False, True, True]
    (record,) = records(trainer, "skip")
    expected, _ = Sampler(64, 0).draw(12, 4)
    assert (record["step"], record["examples"]) == (4, expected.tolist())
    assert math.isnan(record["loss"])
    assert record["reason"] == "non-finite loss or gradient"
    assert [line["skipped"] for line in records(trainer)] == [0, 0, 0, 1, 1, 1]


def test_case_27_bad_steps_in_a_row_roll_back_once_then_end_with_a_replay(make: Make) -> None:
    """Three in a row take the last good weights, three more exit 6; the replay shows the NaN."""
    examples = Squares()
    poison(examples, steps=range(4, 10), batch_size=4)
    rolled: list[tuple[int, list[Tensor]]] = []

    class Watch(Callback):
        def on_roll_back(self, trainer: Trainer[Any], good: Any) -> None:
            rolled.append((good.step, weights(trainer)))

    trainer = make(
        None,
        examples=examples,
        max_steps=12,
        batch_size=4,
        checkpoint_every=3,
        callbacks=(Watch(),),
    )
    with pytest.raises(
        NumericalError, match=r"is step 10; last good checkpoint: .*step-"
    ) as raised:
        trainer.fit()
    assert raised.value.exit_code == 6
    ((step, tensors),) = rolled
    saved = list(open_checkpoint(trainer.checkpoints.folder / f"step-{step:08}").tensors().values())
    assert (step, len(saved)) == (3, len(tensors))  # not step 6, amid the bad ones
    assert all(any(torch.equal(a, b) for b in saved) for a in tensors)
    assert [line["step"] for line in records(trainer, "roll_back")] == [7]
    assert len(records(trainer, "skip")) == 6

    path = trainer.run.folder / "replay-rank0.pt"
    assert path.name in str(raised.value)
    replay = torch.load(path, weights_only=True)
    module = network()
    module.load_state_dict(replay["model"])
    torch.manual_seed(replay["rng_seed"])
    assert math.isnan(squared_error(module, replay["batches"][0]).item())
    expected, _ = Sampler(64, 0).draw(36, 4)
    assert replay["step"] == 10
    assert replay["examples"].tolist() == expected.tolist()


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_case_27_a_roll_back_takes_what_was_saved_while_healthy(make: Make, stop: int) -> None:
    """Not what a signal or a new best saved since: with and without a stop, the same run."""
    examples = Squares()
    poison(examples, steps=range(4, 7), batch_size=4)
    common: dict[str, Any] = {
        "examples": examples,
        "validation": Squares(20),
        "max_steps": 9,
        "batch_size": 4,
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "eval_every": 5,
    }
    whole = make(folder="whole", **common)
    whole.fit()
    (back,) = records(whole, "roll_back")
    assert (back["step"], back["checkpoint"]) == (7, "step-00000003")
    stopped = make(callbacks=(StopAt(stop),), **common)
    with pytest.raises(Interrupted):
        stopped.fit()
    newest = stopped.checkpoints.newest()
    assert newest is not None
    assert newest.step == stop + 1  # a resume goes on there all the same
    resumed = make(resume=True, **common)
    resumed.fit()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert deterministic(resumed) == deterministic(whole)


def test_case_28_a_loss_spike_is_skipped_and_logged_with_its_examples(make: Make) -> None:
    """One batch with a loss far above the running mean changes nothing."""
    spikes: list[int] = []

    def loss(module: nn.Module, batch: Pair) -> Tensor:
        value = squared_error(module, batch)
        return value + 1000 if trainer.state.step == 60 else value

    class Watch(Callback):
        def on_skip(self, trainer: Trainer[Any], verdict: Verdict) -> None:
            assert verdict is Verdict.SPIKE
            spikes.append(trainer.state.step)

    trainer = make(None, loss, max_steps=62, batch_size=4, callbacks=(Watch(),))
    trainer.fit()
    (record,) = records(trainer, "skip")
    expected, _ = Sampler(64, 0).draw(240, 4)
    assert spikes == [60]
    assert (record["step"], record["reason"]) == (61, "loss spike")
    assert record["examples"] == expected.tolist()
    assert record["loss"] > 1000


@pytest.mark.parametrize("where", ["weight", "buffer"])
def test_a_checkpoint_of_non_finite_weights_is_never_written(make: Make, where: str) -> None:
    """Weights that overflowed, or a batch norm that saw a NaN, end the run before the save."""
    first, norm = nn.Linear(8, 4), nn.BatchNorm1d(4)
    module = nn.Sequential(first, norm, nn.Linear(4, 1))
    mean = norm.running_mean
    assert mean is not None
    tensor = first.weight if where == "weight" else mean

    class Break(Callback):
        def on_step(self, trainer: Trainer[Any]) -> None:
            if trainer.state.step == 3:
                tensor.data[0] = math.inf if where == "weight" else math.nan

    trainer = make(module, max_steps=5, checkpoint_every=1, callbacks=(Break(),))
    with pytest.raises(NumericalError, match=r"after step 3.*last checkpoint: step 2"):
        trainer.fit()
    newest = trainer.checkpoints.newest()
    assert newest is not None
    assert newest.step == 2


def test_infinite_masks_among_the_buffers_are_no_fault(make: Make) -> None:
    """A causal mask of -inf is saved as it is."""
    module = network()
    module.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    make(module, max_steps=2).fit()


def test_an_error_before_the_first_step_is_the_one_that_is_told(make: Make) -> None:
    """Closing what was never opened hides nothing."""

    class Missing(Callback):
        def on_start(self, _trainer: Trainer[Any]) -> None:
            raise UsageError("wandb is not installed")

    with pytest.raises(UsageError, match="wandb is not installed"):
        make(max_steps=2, callbacks=(Missing(),)).fit()


def test_all_callbacks_are_closed_when_one_fails_at_it(make: Make) -> None:
    """In their order, and the failure is told."""
    closed: list[int] = []

    class Close(Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_close(self, _trainer: Trainer[Any]) -> None:
            closed.append(self.number)
            if self.number == 2:
                raise UsageError("cannot be closed")

    with pytest.raises(UsageError, match="cannot be closed"):
        make(max_steps=1, callbacks=(Close(1), Close(2), Close(3))).fit()
    assert closed == [1, 2, 3]


@pytest.mark.parametrize("why", ["no steps", "no file"])
def test_a_run_without_a_loss_to_draw_ends_well(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    """A line says that there is no plot."""

    class Lose(Callback):
        def on_end(self, trainer: Trainer[Any]) -> None:
            if why == "no file":
                (trainer.run.folder / "metrics.jsonl").unlink()

    monkeypatch.setattr("shared.callbacks.plot_loss", plot_loss)
    trainer = make(max_steps=2 * (why == "no file"), callbacks=(Lose(),))
    trainer.fit()
    assert "no loss.png: " in capsys.readouterr().err
    assert not (trainer.run.folder / "loss.png").exists()
    assert open_checkpoint(trainer.run.folder).step == trainer.config.max_steps


def test_settings_that_cannot_work_are_refused() -> None:
    """Each error names the field and the value."""
    bad: list[tuple[str, Any]] = [
        ("batch_size", 0),
        ("max_steps", -1),
        ("beta1", 1.0),
        ("final_lr_fraction", 1.5),
        ("dist_timeout", math.nan),
        ("dist_timeout", math.inf),
        ("dist_timeout", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("seed", -1),
        ("seed", 2**64),
    ]
    for name, value in bad:
        with pytest.raises(ValueError, match=f"{name}={value}"):
            TrainerConfig(**{name: value})
    assert TrainerConfig(max_steps=0, seed=2**64 - 1).max_steps == 0


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto is bf16 where the device has units for it; what it cannot autocast is refused."""
    from shared.trainer import choose_precision

    for units, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("shared.trainer.has_bf16_units", lambda _, answer=units: answer)
        assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    with pytest.raises(UsageError, match="--precision bf16: not available on meta"):
        choose_precision("bf16", torch.device("meta"))

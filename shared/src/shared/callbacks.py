"""What happens around the steps: evaluation, logging, profiling, checkpoints, as callbacks.

The hooks in the order in which a run reaches them:

    on_start                    once, after a resume
    on_boundary                 between two steps, where everything may be read and saved
        on_evaluation           inside it, after an evaluation
        on_checkpoint           inside it, after a save
    on_step | on_skip (then on_step), on_roll_back
    on_end                      once, when max_steps are done
    on_close                    always last, also after an error or a signal
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shared.errors import DataError
from shared.faults import kill_point
from shared.metrics import Console, JsonLines, Metrics, Sink, TensorBoard, Wandb
from shared.parallel import to_device
from shared.plots import plot_loss
from shared.profiling import Profiler, peak_memory_gib

if TYPE_CHECKING:
    from shared.checkpoint import Checkpoint
    from shared.health import Verdict
    from shared.trainer import Trainer


class Callback:
    """Does nothing at every hook; a subclass overrides those it wants."""

    def on_start(self, trainer: Trainer[Any]) -> None:
        """Run before the first step of this process."""

    def on_boundary(self, trainer: Trainer[Any]) -> None:
        """Run between two steps, before the first and after the last."""

    def on_evaluation(self, trainer: Trainer[Any], values: dict[str, float]) -> None:
        """Run after an evaluation, on every rank; may add to `values` what follows from them."""

    def on_checkpoint(self, trainer: Trainer[Any], checkpoint: Checkpoint) -> None:
        """Run on the main process after a save."""

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Run after each step; `trainer.state.metrics` has its loss and gradient norm."""

    def on_skip(self, trainer: Trainer[Any], verdict: Verdict) -> None:
        """Run when a step leaves the weights alone."""

    def on_roll_back(self, trainer: Trainer[Any], good: Checkpoint) -> None:
        """Run when the weights of a checkpoint were taken after non-finite steps."""

    def on_end(self, trainer: Trainer[Any]) -> None:
        """Run after the last step's boundary."""

    def on_close(self, trainer: Trainer[Any]) -> None:
        """Run when the loop is left for whatever reason."""


def standard_callbacks(trainer: Trainer[Any], extra: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks of every run, with a package's own ones after the evaluation."""
    evaluation: list[Callback] = [] if trainer.validation is None else [Evaluation()]
    talking = [Logging(), Profiling()] if trainer.world.is_main else []
    return [*evaluation, *extra, *talking, Checkpointing()]


def due(step: int, every: int) -> bool:
    """Say whether something that happens every `every` steps (0: never) happens at `step`."""
    return every > 0 and step > 0 and step % every == 0


class Evaluation(Callback):
    """Measures the mean validation loss, and remembers the best one."""

    def on_boundary(self, trainer: Trainer[Any]) -> None:
        """Evaluate if it is time and this step was not evaluated before a resume."""
        config, state = trainer.config, trainer.state
        last = state.step == config.max_steps
        if state.evaluated_step == state.step or not (due(state.step, config.eval_every) or last):
            return
        loss = mean_validation_loss(trainer)
        if loss is None:  # a signal came: the state says "not evaluated", a resume makes up for it
            return
        values = {"val_loss": loss}
        for callback in trainer.callbacks:
            callback.on_evaluation(trainer, values)
        state.evaluated_step = state.step
        # NaN is not below anything, so a broken model never becomes the best one.
        if loss < state.best_value:
            state.best_value, state.best_step = loss, state.step
        metrics = trainer.state.metrics
        for name, value in values.items():  # losses and their like: less is better
            best = metrics.get(f"best_{name}", math.inf)
            metrics[name], metrics[f"best_{name}"] = value, value if value < best else best
        trainer.metrics.log(state.step, values, kind="val")


@torch.no_grad()
def mean_validation_loss(trainer: Trainer[Any]) -> float | None:
    """Return the weighted mean loss over all validation examples, divided among processes.

    None when a signal to stop arrived on any process meanwhile.
    """
    examples, world = trainer.validation, trainer.world
    assert examples is not None
    size = trainer.config.eval_batch_size or trainer.config.batch_size
    loss_sum = weight_sum = 0.0
    trainer.module.eval()
    for first in range(world.rank * size, len(examples), world.size * size):
        if trainer.stop.signum:
            break
        indices = torch.arange(first, min(first + size, len(examples))).numpy()
        batch = examples.batch(indices, indices * 0)
        weight = examples.weight(batch)
        with trainer.autocast():
            loss = trainer.loss(trainer.compiled_module, to_device(batch, world.device))
        loss_sum += float(loss) * weight
        weight_sum += weight
        trainer.watchdog.beat()
        kill_point("evaluation")
    trainer.module.train()
    asked = [float(trainer.stop.signum == signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    report = torch.tensor([loss_sum, weight_sum, *asked], dtype=torch.float64)
    loss_sum, weight_sum, interrupt, terminate = world.sum(report).tolist()
    trainer.note_signals(interrupt > 0, terminate > 0)
    return None if trainer.stopping else loss_sum / max(weight_sum, 1e-12)


class Checkpointing(Callback):
    """Saves at its interval, at a new best, at the end and when a signal asks to stop."""

    def __init__(self) -> None:
        self.saved = -1, -1  # step and evaluated step of the newest checkpoint
        self.best_saved = -1

    def on_start(self, trainer: Trainer[Any]) -> None:
        """Take note of what the run has saved already."""
        if trainer.run.resumed and trainer.state.step > 0:
            self.saved = trainer.state.step, trainer.state.evaluated_step
            # Not best_step: a kill may have come between the writing of `latest` and of `best`.
            # Rank 0 tells what it found, as it may write `best` before another one reads it.
            best = trainer.world.broadcast_text(str(trainer.checkpoints.best_step()))
            self.best_saved = int(best)

    def on_boundary(self, trainer: Trainer[Any]) -> None:
        """Save if there is a reason to."""
        config, state = trainer.config, trainer.state
        last = state.step == config.max_steps
        best = state.best_step == state.step and self.best_saved != state.step
        # Amid bad steps the weights are under suspicion: a roll-back should not return to them.
        healthy = state.health.non_finite_in_a_row == 0
        wanted = (healthy and due(state.step, config.checkpoint_every)) or last or best
        planned = healthy and wanted
        # A resumed run may only now make the evaluation that a signal cut short.
        stale = self.saved != (state.step, state.evaluated_step)
        if best or (stale and (wanted or trainer.stopping or self.saved[0] == state.step)):
            self.save(trainer, best, planned)

    def save(self, trainer: Trainer[Any], best: bool, planned: bool) -> None:
        """Write a checkpoint on the main process; all processes learn whether it worked.

        A roll-back may return to one that was `planned`: not to one amid bad steps, nor to one
        that is there only because of a signal, as an uninterrupted run would not have it.
        """
        trainer.require_finite_weights()
        if planned:
            trainer.state.healthy_step = trainer.state.step
        state = trainer.checkpoint_state()
        if trainer.world.is_main:
            with trainer.world.main_only():
                pending = trainer.checkpoints.begin(trainer.state.step)
                pending.write_tensors("model.safetensors", trainer.module.state_dict())
                pending.write_state("state.pt", state)
                pending.write_json("config.json", trainer.description)
                checkpoint = trainer.checkpoints.commit(
                    pending, best=best, also_keep=trainer.state.healthy_step
                )
                for callback in trainer.callbacks:
                    callback.on_checkpoint(trainer, checkpoint)
        else:
            trainer.world.follow_main()
        self.saved = trainer.state.step, trainer.state.evaluated_step
        if best:
            self.best_saved = trainer.state.step
        trainer.watchdog.beat()


class Logging(Callback):
    """Writes metrics.jsonl, TensorBoard and the console's progress, and at the end loss.png."""

    def on_start(self, trainer: Trainer[Any]) -> None:
        """Open the sinks; drop what was logged after the checkpoint that the run resumes from."""
        config, run, step = trainer.config, trainer.run, trainer.state.step
        self.lines = JsonLines(run.folder / "metrics.jsonl")
        # A kill may have come between an evaluation and the checkpoint that would remember it.
        evaluated = trainer.state.evaluated_step == step
        self.lines.truncate_after(step, remade=() if evaluated else ("val",))
        board = TensorBoard(run.folder / "tensorboard", purge_step=step + 1)
        board.log(step, {})  # imports TensorBoard now: in a step it would count as that step's time
        sinks: list[Sink] = [board]
        if config.wandb:
            sinks.append(Wandb(run.folder, run.package, trainer.description, run.folder.name))
        console = Console(config.max_steps, first_step=step)
        trainer.say = console.print
        trainer.metrics = Metrics([self.lines, *sinks, console])

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Log every `log_every` steps: loss, gradient norm, learning rate and speed."""
        step, metrics = trainer.state.step, trainer.state.metrics
        if step % trainer.config.log_every and step != trainer.config.max_steps:
            return
        speed = trainer.timer.window()
        metrics.update(speed)
        values = {
            "loss": metrics["train_loss"],
            "grad_norm": metrics["grad_norm"],
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "skipped": trainer.state.health.skipped,
            **speed,
        }
        trainer.metrics.log(step, values, kind="train")

    def on_skip(self, trainer: Trainer[Any], verdict: Verdict) -> None:
        """Say which step was skipped and why; metrics.jsonl also names its examples."""
        step, metrics = trainer.state.step + 1, trainer.state.metrics
        loss, norm = metrics["train_loss"], metrics["grad_norm"]
        trainer.say(f"step {step}: skipped, {verdict.value} ({loss=:.4g}, {norm=:.4g})")
        indices, _ = trainer.sampler.draw(trainer.next_draw, trainer.state.global_batch)
        record: dict[str, Any] = {"loss": loss, "grad_norm": norm, "reason": verdict.value}
        self.lines.log(step, {**record, "examples": indices.tolist()}, kind="skip")

    def on_roll_back(self, trainer: Trainer[Any], good: Checkpoint) -> None:
        """Say that the run went back."""
        step, name = trainer.state.step + 1, good.path.name
        trainer.say(f"step {step}: back to the weights of {name}, on with new data")
        event: dict[str, Any] = {"checkpoint": name}
        self.lines.log(step, event, kind="roll_back")

    def on_end(self, trainer: Trainer[Any]) -> None:
        """Draw the loss; a run without one to draw ends well all the same."""
        folder: Path = trainer.run.folder
        try:
            plot_loss(folder / "metrics.jsonl", folder / "loss.png", title=trainer.run.package)
        except (DataError, FileNotFoundError) as error:
            trainer.say(f"no loss.png: {error}")

    def on_close(self, trainer: Trainer[Any]) -> None:
        """Close the sinks."""
        trainer.metrics.close()


class Profiling(Callback):
    """Says after 20 steps where the time goes, and writes a trace when asked to."""

    def __init__(self) -> None:
        self.profiler = Profiler(None)  # something to close, even if the run never starts

    def on_start(self, trainer: Trainer[Any]) -> None:
        """Prepare the trace."""
        folder = trainer.run.folder / "profile" if trainer.config.profile else None
        self.profiler = Profiler(folder)

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Pass the step on to the trace; print the line when the timer has seen enough."""
        self.profiler.step()
        if trainer.timer.line_due:
            trainer.say(trainer.timer.line())

    def on_end(self, trainer: Trainer[Any]) -> None:
        """Note the peak memory."""
        trainer.state.metrics["peak_gib"] = peak_memory_gib(trainer.world.device)

    def on_close(self, trainer: Trainer[Any]) -> None:  # noqa: ARG002 - the hook's signature
        """Finish the trace."""
        self.profiler.close()

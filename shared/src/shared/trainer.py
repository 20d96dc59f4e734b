"""The one training loop. Start at `Trainer.fit`; what it calls follows in the order it is called.

    boundary   callbacks: evaluate, save, stop; everything on disk belongs to a boundary
    train_step next batches -> forward, backward -> gradient norm -> all processes agree
               -> update (or skip) -> step + 1

The weights after step s depend on the configuration, the data and s alone: the order of examples
and the randomness of a step are functions of (seed, step), and all other state is in the
checkpoint. That is why a killed and resumed run ends with the same bits (on one CPU process).
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from signal import SIGINT, SIGTERM
from typing import Any, Generic

import torch
from torch import Tensor, nn

from shared import parallel
from shared.callbacks import Callback, standard_callbacks
from shared.checkpoint import Checkpoint, Checkpoints
from shared.config import Precision, TrainerConfig
from shared.errors import ArtefactError, Interrupted, NumericalError, UsageError
from shared.faults import kill_point
from shared.files import read_json, write_file
from shared.health import Health, Verdict
from shared.metrics import Metrics
from shared.optim import has_bf16_units, make_optimizers, trainable
from shared.parallel import Watchdog, World, to_device
from shared.profiling import StepTimer, cpu_seconds, peak_flops
from shared.runs import CONFIG, Run
from shared.sampler import Batch, Examples, Sampler, first_draw
from shared.schedules import make_schedule
from shared.signals import StopRequest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LossFunction = Callable[[nn.Module, Batch], Tensor]


@dataclass
class TrainState:
    """Where a run stands: plain numbers, saved in every checkpoint.

    `healthy_step` is the step of the checkpoint that a roll-back takes; steps are -1 for none.
    """

    step: int = 0
    evaluated_step: int = 0
    global_batch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best_value: float = math.inf
    best_step: int = -1
    healthy_step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    health: Health = field(default_factory=Health)


class Trainer(Generic[Batch]):
    """Train `module` on `examples` so that `loss(module, batch)` falls.

    `loss` returns the mean over a batch as a scalar tensor. It must call the module it is given
    (which may be wrapped) and not a method of the original. `examples` and `validation` number
    the data and build batches of them; tensors in a batch are moved to the device here. `run` is
    the folder that everything is written into, opened by `shared.runs.Run.open`. With
    `flops_per_example`, the model FLOPs of a step per example, speed is reported as MFU too.
    Callbacks run between evaluation and logging, in their order.

    Raises `UsageError` for settings that cannot work, `ArtefactError` for a run that cannot be
    resumed, `ResourceError` for a full disk, `NumericalError` when training diverges,
    `Interrupted` after a signal, `DistributedError` when another process is lost.
    """

    def __init__(
        self,
        config: TrainerConfig,
        module: nn.Module,
        loss: LossFunction[Batch],
        examples: Examples[Batch],
        *,
        run: Run,
        world: World,
        validation: Examples[Batch] | None = None,
        flops_per_example: float = 0.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.world, self.run = config, world, run
        self.loss, self.examples, self.validation = loss, examples, validation
        self.module = module.to(world.device)
        self.compiled_module: nn.Module = self.module  # with --compile, from running() on
        self.wrapped: nn.Module = self.module  # that, made to average gradients over processes
        if not config.threads:
            count = sum(p.numel() for p in module.parameters())
            torch.set_num_threads(parallel.default_threads(count))
        self.precision = choose_precision(config.precision, world.device)
        self.dtype = DTYPES[self.precision]
        # The loss scale that fp16 needs is raised after 200 clean steps instead of torch's 2000,
        # so that short runs leave the cautious start behind too.
        self.scaler = torch.amp.GradScaler(
            world.device.type, enabled=self.precision == "fp16", growth_interval=200
        )
        self.optimizers = make_optimizers(
            self.module,
            name=config.optimizer,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.schedule = make_schedule(
            config.schedule,
            max_steps=config.max_steps,
            warmup_steps=config.warmup_steps,
            final_fraction=config.final_lr_fraction,
            decay_fraction=config.decay_fraction,
        )
        self.parameters: list[Tensor] = [p for _, p in trainable(self.module)]
        self.sampler = Sampler(len(examples), config.seed)
        self.checkpoints = Checkpoints(run.checkpoints, keep=config.keep_checkpoints)
        self.state = TrainState()
        # What the clocks of the state count from: wall and CPU, and the CPU time before a resume.
        self.started: tuple[float, float] = 0.0, 0.0
        self.cpu_before = 0.0
        self.grad_accum_steps = config.grad_accum_steps
        self.flops_per_example = flops_per_example
        self.timer = StepTimer(
            world.device,
            peak=peak_flops(world.device, self.dtype) if flops_per_example else None,
        )
        self.stop, self.stopping = StopRequest(), 0
        self.metrics = Metrics([])
        self.say: Callable[[str], None] = partial(print, file=sys.stderr)
        self.description: dict[str, Any] = read_json(run.folder / CONFIG) if world.is_main else {}
        self.batches: list[Batch] = []
        self.callbacks = standard_callbacks(self, callbacks)
        self.watchdog = Watchdog(config.dist_timeout, run.folder / f"stack-rank{world.rank}.txt")

    # -- the loop --------------------------------------------------------------------------------

    def fit(self) -> dict[str, float]:
        """Train from where the run stands to `max_steps`; return the final and best metrics."""
        with self.running():
            self.call("on_start")
            while True:
                self.call("on_boundary")
                self.leave_if_asked()
                if self.state.step >= self.config.max_steps:
                    break
                self.train_step()
                self.call("on_step")
                self.timer.end()
            self.call("on_end")
        return self.state.metrics

    def train_step(self) -> None:
        """Make one update from `grad_accum_steps` micro-batches on every process."""
        self.timer.start()
        self.seed_step()
        with parallel.communicating():
            loss = self.forward_backward()
        grad_norm = self.gradient_norm()
        self.timer.mark("backward")
        mean_loss, norm = self.agree(loss, grad_norm)
        verdict = self.state.health.judge(mean_loss, norm, self.config.spike_sigma)
        self.state.metrics.update(train_loss=mean_loss, grad_norm=norm)
        if verdict is Verdict.UPDATE:
            self.update(norm)
        else:
            self.skip(verdict)
        for parameter in self.parameters:
            parameter.grad = None  # zero_grad() does the same, but also reports to the profiler
        self.state.step += 1
        self.timer.mark("optimizer")
        self.stop.at_once = False
        self.watchdog.beat()
        kill_point("step")

    def forward_backward(self) -> Tensor:
        """Accumulate the gradients of this step; return this process's mean loss, detached."""
        losses, parts = [], self.grad_accum_steps
        self.batches = []
        for micro in range(parts):
            batch = self.next_batch(micro)
            self.timer.mark("data")
            last = micro == parts - 1
            with nullcontext() if last else parallel.without_sync(self.wrapped):
                with self.autocast():
                    loss = self.loss(self.wrapped, batch)
                loss = loss / parts if parts > 1 else loss
                self.timer.mark("forward")
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.timer.mark("backward")
            losses.append(loss.detach())
        return torch.stack(losses).sum() if parts > 1 else losses[0]

    def next_batch(self, micro: int) -> Batch:
        """Build this process's micro-batch `micro` of the current step, on the device."""
        first = first_draw(
            self.state.step,
            micro,
            self.world.rank,
            batch_size=self.config.batch_size,
            grad_accum_steps=self.grad_accum_steps,
            world_size=self.world.size,
        )
        indices, epochs = self.sampler.draw(first, self.config.batch_size)
        # The sampler's arrays are read-only views of its cache; a package may do what it likes.
        batch = self.examples.batch(indices.copy(), epochs.copy())
        if not self.timer.tokens_per_step:  # later batches are taken to weigh the same
            self.timer.tokens_per_step = round(
                self.examples.weight(batch) * self.grad_accum_steps * self.world.size
            )
        batch = to_device(batch, self.world.device)
        self.batches.append(batch)
        return batch

    def gradient_norm(self) -> Tensor:
        """Return the global gradient norm, the same on every process, before any clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        # What torch.nn.utils.get_total_norm does, in a third of its time for a small model.
        norms = torch._foreach_norm(self.gradients())
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total

    def gradients(self) -> list[Tensor]:
        """Return the gradients that this step has."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def agree(self, loss: Tensor, grad_norm: Tensor) -> tuple[float, float]:
        """Return the mean loss over all processes and the norm; learn of a stop asked anywhere.

        Gradients are averaged already, and a non-finite loss on one process makes the sum
        non-finite on all: so every process judges the step by the same two numbers.
        """
        if self.world.size > 1:
            asked = [float(self.stop.signum == signum) for signum in (SIGINT, SIGTERM)]
            report = torch.cat([loss.view(1), torch.tensor(asked, device=loss.device)])
            total, interrupt, terminate = self.world.sum(report).tolist()
            self.note_signals(interrupt > 0, terminate > 0)
            return total / self.world.size, float(grad_norm)
        self.stopping = self.stop.signum
        if loss.device.type == "cpu":
            return float(loss), float(grad_norm)
        mean_loss, norm = torch.stack([loss, grad_norm]).tolist()  # waits for the device once
        return mean_loss, norm

    def update(self, norm: float) -> None:
        """Clip, set the learning rate of this step, and let the optimizers step."""
        clip = self.config.grad_clip
        if clip and norm > clip:
            torch._foreach_mul_(self.gradients(), clip / norm)
        factor = self.schedule(self.state.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            self.scaler.step(optimizer)
        self.scaler.update()

    def skip(self, verdict: Verdict) -> None:
        """Leave the weights as they are, tell the callbacks, and give up when it goes on."""
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            if verdict is Verdict.NON_FINITE and scale > 1:
                # The usual overflow while fp16's loss scale is being found: halve it and go on.
                scale /= 2
                self.state.health.non_finite_in_a_row = 0
            self.scaler.update(scale)
        self.call("on_skip", verdict)
        if self.state.health.non_finite_in_a_row >= self.config.max_bad_steps:
            self.roll_back()

    def roll_back(self) -> None:
        """Take the weights of the last good checkpoint and go on with new data, but only once.

        A newer one may be there, saved amid the bad steps because of a signal or as the best.
        """
        health, good = self.state.health, self.newest_checkpoint(self.state.healthy_step)
        if good is not None and not health.rolled_back:
            self.load_weights(good)
            health.rolled_back, health.non_finite_in_a_row = True, 0
            self.call("on_roll_back", good)
            return
        replay, last_good = self.write_replay(good), good.path if good else "none"
        # torchrun ends all processes with the first: let each finish its replay file before.
        self.world.sum(torch.zeros(1))
        raise NumericalError(
            f"non-finite loss or gradient in {health.non_finite_in_a_row} steps in a row, the last "
            f"is step {self.state.step + 1}; last good checkpoint: {last_good}; "
            f"its batches are in {replay}; try a smaller --learning-rate or --precision fp32"
        )

    # -- starting, stopping, resuming ------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold what exists only while training: the wrapped module, signals, watchdog, sinks."""
        with ExitStack() as stack:
            stack.enter_context(self.stop)
            if self.world.size > 1:
                stack.enter_context(self.watchdog)
            self.resume()
            self.compiled_module = self.compiled()
            self.wrapped = parallel.wrap(self.compiled_module, self.world)
            self.started = time.monotonic() - self.state.seconds, cpu_seconds()
            self.cpu_before = self.state.cpu_seconds
            stack.callback(self.close)
            self.module.train()
            yield

    def close(self) -> None:
        """Let the callbacks finish their files, whatever ended the loop; one's failure or not."""
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):  # the last one pushed is called first
                stack.callback(callback.on_close, self)

    def compiled(self) -> nn.Module:
        """Return the module as it is trained; compiling happens at its first call."""
        if not self.config.compile:
            return self.module
        self.stop.at_once = True  # until the first step is done
        return torch.compile(self.module)  # type: ignore[return-value]  # a module for a module

    def call(self, hook: str, *args: object) -> None:
        """Call one hook of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def note_signals(self, interrupt: bool, terminate: bool) -> None:
        """Decide to stop at the next boundary because some process got a signal.

        A signal itself arrives on different processes at different times; all of them must learn
        of it in the same exchange, or some would leave while others wait for them.
        """
        self.stopping = SIGINT if interrupt else SIGTERM if terminate else 0

    def leave_if_asked(self) -> None:
        """Raise `Interrupted` if a signal came; the boundary before has saved everything."""
        if self.stopping:
            raise Interrupted(
                f"stopped after step {self.state.step}, saved; continue with --resume "
                f"--out {self.run.folder}",
                self.stopping,
            )

    def tick(self) -> None:
        """Bring the clocks of the state up to now."""
        begin, cpu_begin = self.started
        self.state.seconds = time.monotonic() - begin
        self.state.cpu_seconds = self.cpu_before + cpu_seconds() - cpu_begin

    def resume(self) -> None:
        """Load the newest checkpoint that verifies, if the run has one; start fresh otherwise."""
        config, world = self.config, self.world
        self.state.global_batch = config.batch_size * config.grad_accum_steps * world.size
        found = self.newest_checkpoint() if self.run.resumed else None
        if found is None:
            torch.manual_seed(config.seed)
        else:
            state = found.state("state.pt")
            health = Health(**state["trainer"].pop("health"))
            self.state = TrainState(**state["trainer"], health=health)
            self.load_weights(found)
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
            self.keep_order(state["sampler"])
        per_step = config.batch_size * self.grad_accum_steps
        self.timer.flops_per_step = self.flops_per_example * per_step

    def newest_checkpoint(self, last_step: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, the same one on every process.

        With `last_step`, none of a later step. None if the run has saved none yet. Raises
        `ArtefactError` if it has, but none verifies.
        """
        if not self.world.is_main:
            step = self.world.follow_main()
            return self.checkpoints.at(step) if step >= 0 else None
        with self.world.main_only() as answer:
            self.checkpoints.discard_leftovers()
            found = self.checkpoints.newest(last_step)
            for reason in self.checkpoints.refused:
                self.say(f"not used: {reason}")
            if found is None and self.checkpoints.refused:
                raise ArtefactError(
                    f"no checkpoint in {self.checkpoints.folder} is intact; give another --out "
                    "to start anew"
                )
            answer.append(found.step if found else -1)
        return found

    def keep_order(self, saved: dict[str, int]) -> None:
        """Refuse to resume where the order of samples would change.

        Else divide the run's global batch among the processes of today.
        """
        for name, now in self.sampler_state().items():
            if name != "next_draw" and saved[name] != now:
                raise ArtefactError(
                    f"the run's samples were drawn with {name} {saved[name]}, now it is {now}: "
                    "other data or another seed; resume with what it was started with"
                )
        self.grad_accum_steps = self.divided_global_batch()
        asked, used = self.config.grad_accum_steps, self.grad_accum_steps
        if asked != used and self.world.is_main:
            self.say(
                f"--grad-accum-steps is {used}, not {asked}: the steps of this run have "
                f"{self.state.global_batch} examples, here {used} x --batch-size "
                f"{self.config.batch_size} x {self.world.size} processes"
            )

    def divided_global_batch(self) -> int:
        """Return the micro-batches per step that make up the run's global batch here."""
        size, processes, wanted = self.config.batch_size, self.world.size, self.state.global_batch
        if wanted % (size * processes) == 0:
            return wanted // (size * processes)
        if wanted % processes:
            remedy = f"the number of processes must divide {wanted}"
        else:
            remedy = f"choose a --batch-size that divides {wanted // processes}"
        raise UsageError(
            f"the run's steps have {wanted} examples, which {processes} processes of --batch-size "
            f"{size} cannot divide without changing the order of samples; {remedy}"
        )

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Load the weights and the optimizers' state of `checkpoint`."""
        self.module.load_state_dict(checkpoint.tensors())
        states = checkpoint.state("state.pt")["optimizers"]
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def checkpoint_state(self) -> dict[str, Any]:
        """Return everything but the weights, in types that `weights_only` loading accepts."""
        self.tick()
        return {
            "trainer": asdict(self.state),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "sampler": self.sampler_state(),
            "schedule": {"step": self.state.step, "factor": self.schedule(self.state.step)},
            "rng": torch.get_rng_state(),
        }

    def sampler_state(self) -> dict[str, int]:
        """Return what decides which examples come next."""
        return {
            "seed": self.sampler.seed,
            "examples": self.sampler.n_samples,
            "next_draw": self.next_draw,
        }

    def require_finite_weights(self) -> None:
        """Raise `NumericalError` rather than let a checkpoint of broken weights be written.

        A finite gradient can still overflow a weight, and a batch of NaNs spoils the running
        means of a batch norm while its update is skipped. Buffers may hold infinities: masks do.
        """
        whole = bool(torch.stack(torch._foreach_norm(self.parameters)).isfinite().all())
        if not whole or any(bool(buffer.isnan().any()) for buffer in self.module.buffers()):
            newest = self.checkpoints.steps()
            raise NumericalError(
                f"weights or buffers are not finite after step {self.state.step}, so they are not "
                f"saved; last checkpoint: step {max(newest) if newest else 'none'}; try a smaller "
                "--learning-rate"
            )

    @property
    def next_draw(self) -> int:
        """The first draw of the current step's global batch (see `shared.sampler`)."""
        return self.state.step * self.state.global_batch

    def seed_step(self) -> None:
        """Make dropout and the like a function of (seed, step, rank), whatever came before."""
        seed = self.rng_seed
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every back end: 0.1 ms
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.world.device.type == "mps":
            torch.mps.manual_seed(seed)

    @property
    def rng_seed(self) -> int:
        """The seed of everything random in the current step on this process."""
        seed = (self.config.seed * 1_000_003 + self.state.step) * 65_537 + self.world.rank
        return seed & (2**63 - 1)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the forward pass runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def write_replay(self, good: Checkpoint | None) -> str:
        """Write what is needed to compute the bad step again; return the file's name.

        `torch.load(path, weights_only=True)` gives the step as metrics.jsonl counts, its metrics,
        the weights, the batches of this process, the seed to set before the first of them, the
        numbers of all examples, and the last good checkpoint.
        """
        path = self.run.folder / f"replay-rank{self.world.rank}.pt"
        indices, epochs = self.sampler.draw(self.next_draw, self.state.global_batch)
        content = {
            "step": self.state.step + 1,
            "checkpoint": good.path.name if good else None,
            "metrics": self.state.metrics,
            "model": self.module.state_dict(),
            "batches": self.batches,
            "rng_seed": self.rng_seed,
            "examples": torch.from_numpy(indices.copy()),
            "epochs": torch.from_numpy(epochs.copy()),
        }
        write_file(path, partial(torch.save, content))
        return path.name


def choose_precision(wanted: Precision, device: torch.device) -> str:
    """Resolve "auto": bf16 on a GPU or CPU that has units for it, else fp32.

    Raises `UsageError` for fp16 or bf16 where the device has no autocast.
    """
    if wanted == "auto":
        return "bf16" if has_bf16_units(device) else "fp32"
    if wanted != "fp32" and not torch.amp.is_autocast_available(device.type):
        raise UsageError(f"--precision {wanted}: not available on {device.type}; use fp32")
    return wanted

"""Work a list of commands off, a few processes at a time, and show how far they are.

Small models train fastest on one thread, so that several cores are best used by as many
processes. Each writes to a log of its own. The longest task goes first: begun last, it would keep
one core busy while the others wait.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.errors import ArtefactError, Failure, Interrupted
from shared.metrics import format_value, read_metrics
from shared.parallel import usable_cores
from shared.profiling import cpu_seconds
from shared.runs import RESULT
from shared.signals import StopRequest

POLL_SECONDS, DRAW_SECONDS = 0.05, 0.5
GRACE_SECONDS = 30.0  # to finish a step and save it, after which a worker is killed
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Task(Protocol):
    """What a worker is given to do."""

    @property
    def name(self) -> str:
        """How it is called on the screen."""

    @property
    def log(self) -> Path:
        """The file that takes what its commands print."""

    @property
    def cost(self) -> float:
        """A guess of the seconds it takes; only the ratios between tasks matter."""

    def commands(self) -> list[list[str]]:
        """Return the words after `python` of each command, to be run one after another."""

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, 0 to 1, and what there is to say about it."""

    def outcome(self) -> str:
        """Say in a few words what came of it, once all commands have ended well."""


class RunTask(ABC):
    """A command that fills a run folder of its own; what every `Task` of that kind has in common.

    A final class adds the field `folder`, and `words`, `name`, `cost`, `progress` and `outcome`.
    """

    folder: Path
    """The run folder."""

    @abstractmethod
    def words(self) -> list[str]:
        """Return the words after `python -m` that do it, for a reader to repeat."""

    @property
    def log(self) -> Path:
        """What it prints; beside the run folder, which has to be empty at the start."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def done(self) -> bool:
        """Whether it ended well before."""
        return (self.folder / RESULT).exists()

    def commands(self) -> list[list[str]]:
        """Do it; what was begun is continued."""
        resume = ["--resume"] if self.folder.exists() else []
        return [["-m", *self.words(), "--out", str(self.folder), *resume]]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of a command that makes many runs: how often, how long, and how many at a time."""

    seeds: int = 3
    """Runs of each model that is trained, with seeds 0, 1, ...; from two on there are intervals."""
    max_steps: int | None = None
    """At most so many updates a run, to try things out; nothing is judged then."""
    workers: int = 0
    """Processes at a time, each on one thread; 0 takes the usable cores."""
    out: Path | None = None
    """Run folder; runs/<package>-<command>/<start time> if not given."""
    resume: bool = False
    """Continue in --out, or what was started last; finished runs are kept."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, least in (("seeds", 1), ("workers", 0), ("max_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")

    @property
    def processes(self) -> int:
        """Count the processes at a time."""
        return self.workers or usable_cores()

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the numbers: not where, and how many at a time."""
        values = asdict(self)
        for name in ("out", "resume", "workers"):
            del values[name]
        return values

    def plan(self, jobs: int, done: int) -> dict[str, str]:
        """Say what is about to be done, for `cli.print_settings`."""
        return {
            "jobs": f"{jobs}, of which {done} are done",
            "seeds": ", ".join(str(seed) for seed in range(self.seeds)),
            "workers": f"{self.processes} processes of one thread",
        }


class Running:
    """A task that a process is working on."""

    def __init__(self, task: Task) -> None:
        self.task, self.left = task, task.commands()
        self.started = time.monotonic()
        self.log = task.log.open("ab")
        self.process = self._next()

    def poll(self) -> int | None:
        """Return None while there is work; then 0, or the exit code of the command that failed."""
        code = self.process.poll()
        if code == 0 and self.left:
            self.process, code = self._next(), None
        return code

    def seconds(self) -> float:
        """Return the wall time since its start."""
        return time.monotonic() - self.started

    def _next(self) -> subprocess.Popen[bytes]:
        """Start the next command, out of reach of a Ctrl-C at the terminal: we pass that on."""
        return subprocess.Popen(
            [sys.executable, *self.left.pop(0)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD},
            process_group=0,
        )


class Failed(Exception):
    """A task that ended badly: its name, the last line it said and its exit code."""

    def __init__(self, task: Task, code: int) -> None:
        said = task.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        self.exit_code = code if code > 0 else 128 - code  # negative: the signal that ended it
        reason = said[-1].removeprefix("error: ")
        super().__init__(f"{task.name}: {reason} (exit code {self.exit_code}, log: {task.log})")


def work_off(tasks: Sequence[Task], workers: int, remedy: str = "") -> list[Failed]:
    """Do all tasks, `workers` at a time; return those that failed, which hinder no other.

    SIGINT and SIGTERM let every process save what it has; then `Interrupted` is raised, its
    message ending with `remedy`.
    """
    waiting, running = sorted(tasks, key=lambda task: -task.cost), list[Running]()
    failed: list[Failed] = []
    with Board(waiting, workers) as board, StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(Running(waiting.pop(0)))
                    board.say(f"started {running[-1].task.name}", only_plain=True)
                time.sleep(POLL_SECONDS)
                if stop.signum:
                    name = signal.Signals(stop.signum).name
                    raise Interrupted(f"{name}: what was done is kept{remedy}", stop.signum)
                for each in [each for each in running if each.poll() is not None]:
                    running.remove(each)
                    each.log.close()
                    if code := each.process.returncode:
                        failed.append(Failed(each.task, code))
                        board.say(f"error: {failed[-1]}")
                    else:
                        with contextlib.suppress(Failure):  # said again when its files are read
                            board.done(each)
                board.draw(running, waiting)
        finally:
            end(running)
    return failed


def refuse_failed(failed: Sequence[Failed], count: int, remedy: str = "") -> None:
    """Raise a Failure with the exit code of the first task that failed, if any of `count` did."""
    if failed:
        error = Failure(f"{len(failed)} of {count} jobs failed, the first: {failed[0]}{remedy}")
        error.exit_code = failed[0].exit_code
        raise error


def make_clocks(started: float, training: Sequence[float], kept: int) -> dict[str, float]:
    """Return what many runs took, for a file: seconds, rounded to tenths.

    `started` is the time.monotonic() of this command's start, `training` the CPU seconds of every
    run that is done, `kept` how many of them were done before this command.
    """
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu_seconds(), 1),
        "training_cpu_seconds": round(sum(training), 1),
        "jobs_of_before": kept,
    }


def told_clocks(clocks: Mapping[str, float]) -> dict[str, str]:
    """Put the times of `make_clocks` into words."""
    kept = f" ({clocks['jobs_of_before']} jobs were done before)" * bool(clocks["jobs_of_before"])
    return {
        "this command": f"{clocks['seconds']:,.0f} s, {clocks['cpu_seconds']:,.0f} CPU s{kept}",
        "all training": f"{clocks['training_cpu_seconds']:,.0f} CPU s",
    }


def training_progress(folder: Path, steps: int) -> tuple[float, str]:
    """Return how far a `Trainer`'s run of so many steps is, 0 to 1, and the losses last heard of.

    Read from its metrics.jsonl; before there is one, a run is starting.
    """
    latest: dict[str, float] = {}
    with contextlib.suppress(OSError, ArtefactError):  # not there yet
        for record in read_metrics(folder / "metrics.jsonl"):
            latest |= record
    if not steps or "step" not in latest:
        return 0.0, "starting"
    said = f"step {latest['step']:,}/{steps:,}"
    for label, key in (("loss", "loss"), ("val", "val_loss")):
        said += f"  {label} {format_value(latest[key])}" if key in latest else ""
    return min(latest["step"] / steps, 1.0), said


def end(running: Sequence[Running]) -> None:
    """Ask the processes to save and go, and see that they do."""
    # SIGTERM, as a process whose parent ignores SIGINT (`nohup ... &`) may ignore it as well.
    for each in running:
        each.process.terminate()
    for each in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(GRACE_SECONDS)
        each.process.kill()
        each.process.wait()
        each.log.close()


class Board:
    """Shows on stderr what runs: redrawn in place on a terminal, else a line an event."""

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        self.total, self.workers, self.finished = len(tasks), workers, 0
        self.cost_done = self.seconds_done = 0.0
        self.console = Console(stderr=True, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.started = time.monotonic()
        self.drawn = -DRAW_SECONDS

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, line: str, only_plain: bool = False) -> None:
        """Print a line that stays; `only_plain` lines are left out where there is a display."""
        if not (only_plain and self.console.is_terminal):
            self.console.print(line, markup=False, highlight=False)

    def done(self, each: Running) -> None:
        """Tell what came of a task that ended well."""
        self.finished += 1
        self.cost_done += each.task.cost
        self.seconds_done += each.seconds()
        self.say(
            f"{self.finished:>{len(str(self.total))}}/{self.total}  {each.task.name}: "
            f"{each.task.outcome()}, {_clock(each.seconds())}"
        )

    def draw(self, running: Sequence[Running], waiting: Sequence[Task]) -> None:
        """Redraw the display if the last drawing is old enough."""
        if not self.console.is_terminal or time.monotonic() - self.drawn < DRAW_SECONDS:
            return
        self.drawn = time.monotonic()
        table = Table.grid(padding=(0, 2))
        parts = []
        for each in running:
            part, said = each.task.progress()
            parts.append(part)
            texts = (each.task.name, f"{part:4.0%}", said, _clock(each.seconds()))
            table.add_row(*(Text(text) for text in texts))
        left = self.seconds_left(running, parts, waiting)
        table.add_row(
            Text(f"{self.finished} of {self.total} done"),
            Text(""),
            Text(f"{len(waiting)} waiting, about {_clock(left)} left" if left else ""),
            Text(_clock(time.monotonic() - self.started)),
            style="bold",
        )
        self.live.update(table, refresh=True)

    def seconds_left(
        self, running: Sequence[Running], parts: Sequence[float], waiting: Sequence[Task]
    ) -> float:
        """Guess the wall time left: costs at the speed so far, shared among the workers."""
        shares = list(zip(running, parts, strict=True))
        cost = self.cost_done + sum(each.task.cost * part for each, part in shares)
        seconds = self.seconds_done + sum(each.seconds() for each in running)
        if not cost:
            return 0.0
        left = [each.task.cost * (1 - part) for each, part in shares]
        left += [task.cost for task in waiting]
        return max(sum(left) / self.workers, *left, 0.0) * seconds / cost


def _clock(seconds: float) -> str:
    """Write a time: `75 -> "1:15"`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"

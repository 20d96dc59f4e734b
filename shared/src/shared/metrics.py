"""Where the numbers of a run go: metrics.jsonl, the console, TensorBoard, Weights & Biases.

Each sink takes `log(step, values, kind)` and `close()`; `Metrics` hands every call to all of them.
`kind` says what the numbers describe ("train", "val", "skip", ...). Cost of a call with six values
on one busy core, in microseconds: JsonLines 8, Console 9, TensorBoard 55 and 0.2 s at first.

    metrics = Metrics([JsonLines(folder / "metrics.jsonl"), Console(total_steps=2000)])
    metrics.log(10, {"loss": 3.21, "tok_per_sec": 37300.0})
    # {"step": 10, "kind": "train", "loss": 3.21, "tok_per_sec": 37300.0}

Progress goes to stderr, so that stdout holds results only.
"""

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared import files
from shared.errors import ArtefactError, UsageError

# JSON has no such numbers; as strings they survive, and float() reads them back.
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_REDRAW_SECONDS = 0.2  # between drawings of the bar; one costs about 2 ms


class Sink(Protocol):
    """A place that numbers go to."""

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Record the values of one step."""

    def close(self) -> None:
        """Write what is still held back; further calls of `log` are errors."""


class Metrics:
    """Hand every record to all sinks, in order; a context manager that closes them."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Record the values of one step in every sink."""
        for sink in self.sinks:
            sink.log(step, values, kind)

    def close(self) -> None:
        """Close every sink, also where one fails; the first failure is raised at the end."""
        with contextlib.ExitStack() as stack:
            for sink in self.sinks:
                stack.callback(sink.close)
        self.sinks = []

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class JsonLines:
    """Append records to a file, one JSON object a line: `{"step": 3, "kind": "train", ...}`.

    Each record is one write to the file, so a killed process loses none; only the last line can
    be torn, and opening the file again cuts a torn line off. Numbers that JSON lacks are written
    as the strings "nan", "inf" and "-inf". Raises `ResourceError` when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Append one record; values are numbers, or anything that `float` takes."""
        record = {"step": step, "kind": kind, **values}
        try:
            line = json.dumps(record, allow_nan=False, default=float)
        except ValueError:
            line = json.dumps({name: _jsonable(value) for name, value in record.items()})
        self._append(line.encode() + b"\n")

    def truncate_after(self, step: int, remade: Collection[str] = ()) -> None:
        """Drop the records later than `step`, as a resumed run makes them again.

        Those of the kinds `remade` are dropped at `step` itself too. Every other line stays as it
        is to the byte. Raises `ArtefactError` for a line that is no record of ours.
        """
        kept = [
            line
            for line, record in _lines(self.path)
            if record["step"] < step
            or (record["step"] == step and record.get("kind") not in remade)
        ]
        content = b"".join(line + b"\n" for line in kept)
        if len(content) != self.path.stat().st_size:
            self._file.close()
            files.write_file(self.path, content)
            self._file = self._open()

    def close(self) -> None:
        """Close the file and make it last through a power cut."""
        if not self._file.closed:
            with files.disk_errors(self.path), self._file:
                os.fsync(self._file.fileno())

    def _open(self) -> Any:
        """Open the file for unbuffered appending, without the torn line it may end in."""
        with files.disk_errors(self.path):
            file = self.path.open("ab+", buffering=0)
            size = file.seek(0, os.SEEK_END)
            if size and _last_byte(file) != b"\n":
                whole = self.path.read_bytes().rfind(b"\n") + 1
                file.truncate(whole)
        return file

    def _append(self, line: bytes) -> None:
        """Write a line, in as many pieces as a nearly full disk takes it."""
        with files.disk_errors(self.path):
            files._operation("write", self.path)  # lets the fault harness fail this write
            written = self._file.write(line)
            while written < len(line):
                line = line[written:]
                written = self._file.write(line)


class Console:
    """Show progress on stderr: a bar in a terminal, plain lines elsewhere.

    In a terminal, records of kind "train" move the bar, which shows step, loss, validation loss,
    tokens per second and the time left; all other records are lines above it. Elsewhere every
    record is one line, as often as the caller logs. `total_steps` is the step the run ends at,
    `first_step` the one it starts or resumes from.
    """

    def __init__(self, total_steps: int, first_step: int = 0, stream: TextIO | None = None) -> None:
        self.total_steps, self.first_step = total_steps, first_step
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._drawn = -math.inf
        self._progress: Progress | None = None
        console = rich.console.Console(file=self._stream, highlight=False)
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._progress = _progress_bar(console)
            self._task = self._progress.add_task(
                "", total=total_steps, completed=first_step, loss="-", val_loss="-", speed=""
            )
            self._progress.start()

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Move the bar, or print a line."""
        if self._progress is None or kind != "train":
            label = "" if kind == "train" else f"{kind}: "
            shown = "  ".join(f"{name} {format_value(value)}" for name, value in values.items())
            eta = f"  eta {self._eta(step)}" if kind == "train" else ""
            width = len(f"{self.total_steps:,}")
            self.print(f"step {step:{width},}/{self.total_steps:,}  {label}{shown}{eta}")
        if self._progress is not None:
            self._move(step, values, kind)

    def print(self, line: str) -> None:
        """Print a line, above the bar where there is one; it is never wrapped or styled."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, soft_wrap=True)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Draw the bar a last time and leave it on the screen."""
        if self._progress is not None:
            self._progress.stop()

    def _move(self, step: int, values: Mapping[str, float], kind: str) -> None:
        """Update the bar, and draw it if the last drawing is old enough."""
        assert self._progress is not None
        fields = {}
        if "loss" in values and kind == "train":
            fields["loss"] = format_value(values["loss"])
        if "tok_per_sec" in values:
            fields["speed"] = f"{values['tok_per_sec']:,.0f} tok/s"
        val_loss = values.get("val_loss", values.get("loss") if kind == "val" else None)
        if val_loss is not None:
            fields["val_loss"] = format_value(val_loss)
        self._progress.update(self._task, completed=step, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        if now - self._drawn > _REDRAW_SECONDS:
            self._drawn = now
            self._progress.refresh()

    def _eta(self, step: int) -> str:
        """Return the time left at the speed so far, as minutes and seconds."""
        done = step - self.first_step
        if done <= 0:
            return "-"
        left = (time.monotonic() - self._started) / done * (self.total_steps - step)
        minutes, seconds = divmod(round(max(left, 0.0)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class TensorBoard:
    """Write scalars named `kind/name` into a folder that TensorBoard shows.

    `purge_step` hides what an earlier run wrote from that step on: give the first step that a
    resumed run logs. Nothing is imported or written before the first record.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder, self.purge_step = folder, purge_step
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Write one event with all values, which costs an eighth of an `add_scalar` for each."""
        if self._writer is None:
            self._start()
        scalars = [
            self._summary.Value(tag=f"{kind}/{name}", simple_value=float(value))
            for name, value in values.items()
        ]
        self._writer.file_writer.add_summary(self._summary(value=scalars), step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start(self) -> None:
        """Import TensorBoard, which takes a third of a second, and open the event file."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        with files.disk_errors(self.folder):
            self._writer = SummaryWriter(
                str(self.folder),
                purge_step=self.purge_step,
                flush_secs=10,  # torch's 120 would lose two minutes to a kill
            )


class Wandb:
    """Send records to Weights & Biases, as `kind/name`.

    `WANDB_MODE` decides where it is set. Else the run is online if the user is logged in, and
    offline otherwise, or when the server cannot be reached: then it is kept under `folder`, for
    `wandb sync`. Raises `UsageError` when wandb is not installed.
    """

    def __init__(
        self, folder: Path, project: str, config: Mapping[str, object], name: str | None = None
    ) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise UsageError(
                "Weights & Biases is not installed; `pip install wandb`, or leave out --wandb"
            ) from error
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in(wandb) else "offline")
        settings = {"project": project, "name": name, "dir": str(folder), "config": dict(config)}
        try:
            self._run = wandb.init(mode=mode, **settings)
        except Exception as error:
            if mode == "offline":
                raise
            print(f"wandb: {type(error).__name__}; going on offline", file=sys.stderr)
            self._run = wandb.init(mode="offline", **settings)

    def log(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Queue the values of one step."""
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Finish the run, waiting for what is queued."""
        self._run.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in order, without a torn last line.

    "nan", "inf" and "-inf" become floats again. Raises `ArtefactError` naming the file and line
    for a line that is no record of ours.
    """
    return [record for _, record in _lines(path)]


def format_value(value: float) -> str:
    """Write a number as a person would: 3.2104, 37,300, 3.00e-04, 12."""
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.4f}"


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each whole line of a metrics.jsonl, without its newline, and the record in it."""
    *whole, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        try:
            record = json.loads(line)
            record["step"] + 0  # a record has a step, and it is a number
        except (ValueError, TypeError, KeyError) as error:
            raise ArtefactError(
                f"{path}:{number}: not a record of metrics; remove the line or the file"
            ) from error
        yield (
            line,
            {
                name: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                for name, value in record.items()
            },
        )


def _jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it, non-finite numbers as strings."""
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last


def _progress_bar(console: rich.console.Console) -> Progress:
    """Return the bar; it is drawn by `log`, as a drawing thread would take time from training."""
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
        TextColumn("loss [bold]{task.fields[loss]}[/]"),
        TextColumn("val [bold]{task.fields[val_loss]}[/]"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),  # rich would move piped results to stderr
        speed_estimate_period=120.0,
    )


def _logged_in(wandb: Any) -> bool:
    """Tell whether wandb has a key, without asking for one."""
    try:
        return bool(wandb.api.api_key)
    except Exception:
        return False

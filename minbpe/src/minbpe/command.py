"""What the command lines share: flags, exit codes, progress bars, figures.

    def parse(argv: Sequence[str] | None) -> argparse.Namespace: ...
    def run(args: argparse.Namespace) -> None: ...
    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(run, parse, argv)

A mistake of the user's is one line on stderr and an exit code; `--debug` adds the traceback.

| code | meaning                                                              |
|------|----------------------------------------------------------------------|
| 0    | done                                                                 |
| 1    | a defect of ours: the traceback is shown                             |
| 2-5  | the `exit_code` of the error (`minbpe.errors`); 5: disk or memory    |
| 130  | Ctrl-C                                                               |
| 141  | the reader of our output has gone (`| head`), said silently          |
| 143  | SIGTERM; like Ctrl-C, it leaves no half-written file                 |
"""

import argparse
import difflib
import errno
import io
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from minbpe.base import Tokenizer
from minbpe.errors import ResourceError, TokenizerError, UsageError
from minbpe.files import WRONG_PATHS, record_written, shorten
from minbpe.workers import MAX_WORKERS

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOMEM, errno.EAGAIN}
"""What the machine refuses, whatever the flags: exit code 5."""


# --- Flags ----------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, with the flag that was perhaps meant.

    It has `--debug`. Flags are written in full: a prefix that is unique today is not tomorrow.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message of argparse on one line."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        near = difflib.get_close_matches(unknown[1], flags, n=1, cutoff=0.5) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{message}{hint} (--help lists the flags)")


def add_tokenizer(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add `--tokenizer NAME|FILE`, required; with `several` it may be repeated or left out."""
    told = (
        "a .model file, a rank file (.tiktoken, encoder.json, tokenizer.json), or the name of a "
        "published tokenizer, such as cl100k_base"
    )
    if several:
        told += "; may be repeated"
        parser.add_argument("--tokenizer", action="append", metavar="NAME|FILE", help=told)
    else:
        parser.add_argument("--tokenizer", required=True, metavar="NAME|FILE", help=told)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON instead of a table"
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers N`, None where it is not given."""
    parser.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help=f"processes (default: one a CPU), at most {MAX_WORKERS}; 0 is this one",
    )


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text[:9]) > MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 (none) to {MAX_WORKERS}")
    return int(text)


def load_tokenizer(source: str) -> Tokenizer:
    """Return the tokenizer that `--tokenizer` names.

    Raises UsageError when there is none such, TokenizerFileError when its file is torn.
    """
    from minbpe import gpt  # here, so that train does without the published tokenizers

    try:
        return gpt.load_tokenizer(source)
    except UsageError as error:
        if Path(f"{source}.model").is_file():  # what `train --out SOURCE` wrote
            raise UsageError(f"{error}; did you mean {source}.model?") from None
        raise


# --- The program ----------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    """SIGTERM came; unwinds like Ctrl-C, so that the same clean-up runs."""


def run_command(
    run: Callable[[argparse.Namespace], None],
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    argv: Sequence[str] | None = None,
) -> int:
    """Do what the command line says (`sys.argv` for None); return the exit code of the table above.

    Errors are printed, none is raised. `--help` raises SystemExit(0), as argparse does.
    """
    words = sys.argv[1:] if argv is None else argv
    written: list[str] = []
    try:
        with _terminable(), record_written() as written:
            _check_stdout()
            run(parse(argv))
            sys.stdout.flush()  # a reader that has gone shows here, not in the shutdown
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            _drop_stdout()
            return 141  # 128 + SIGPIPE, what a shell reports of a program that `head` cut off
        message, code = _explain(error)
        if code == 1 or "--debug" in words:
            traceback.print_exception(error)
        return _complain(run, message, code)
    except Terminated:
        return _complain(run, f"terminated{_told(written)}", 143)
    except KeyboardInterrupt:
        return _complain(run, f"interrupted{_told(written)}", 130)
    return 0


def _told(written: Sequence[str]) -> str:
    """Say what an interrupted program has written: `["a", "b"] -> " after writing a, b"`."""
    return f" after writing {', '.join(written)}" if written else ", nothing was written"


def _check_stdout() -> None:
    """Raise UsageError when stdout is closed; let it escape what its encoding lacks."""
    if sys.stdout is None:
        raise UsageError("stdout is closed; send it to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _complain(run: Callable[..., None], message: str, code: int) -> int:
    """Print one line, `minbpe.encode: message`, and return the code."""
    name = run.__module__
    if name == "__main__":  # run by `python -m`
        name = getattr(sys.modules[name].__spec__, "name", "minbpe")
    if sys.stderr is not None:  # or print would take stdout
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message and exit code of an error; 1 for a defect."""
    if isinstance(error, TokenizerError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; use fewer --workers or a smaller file", ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", ResourceError.exit_code
    if isinstance(error, OSError) and error.filename and error.errno in WRONG_PATHS:
        name = shorten(os.fsdecode(error.filename))
        return f"{name} cannot be used: {error.strerror}", UsageError.exit_code
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "the system refuses another thread: it has too many", ResourceError.exit_code
    return f"{type(error).__name__}: {error} (a defect of minbpe, please report it)", 1


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM within the block; a second SIGTERM ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def terminate(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_stdout() -> None:
    """Point stdout to nowhere, or the interpreter complains once more when it flushes at exit."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # no real file, as under pytest
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


# --- Progress and results -------------------------------------------------------------------------


class Advance(Protocol):
    """Moves a progress bar to `done` of its total, with a note behind it."""

    def __call__(self, done: int, note: str = "", /) -> None:
        """Show it."""


def _no_bar(_done: int, _note: str = "", /) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(
    label: str, total: int | None, *, in_bytes: bool = False, hidden: bool = False
) -> Iterator[Advance]:
    """Yield what moves a bar on stderr; it shows nothing where stderr is no terminal.

    A `total` of None (the length of a pipe) is a bar that only pulses. `in_bytes` counts in MB.
    """
    console = Console(stderr=True)
    if hidden or not console.is_terminal:
        yield _no_bar
        return
    columns: list[ProgressColumn] = [
        TextColumn(label, markup=False),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, note="")

        def advance(done: int, note: str = "", /) -> None:
            bar.update(task, completed=done, note=note)

        yield advance


class Meter:
    """What the work since its making took: wall and CPU seconds, and peak memory.

    CPU seconds are of this process and of the worker processes that have ended.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def results(self) -> dict[str, float]:
        """Return the figures by name, unit in the name; memory only where the system tells it."""
        figures = {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": _cpu_seconds() - self._cpu,
        }
        for name, mib in zip(("peak_mib", "largest_worker_peak_mib"), _peak_mib(), strict=False):
            figures[name] = mib
        return figures


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak_mib() -> list[float]:
    """Return the largest resident size of this process, then of its largest ended child."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return [peak / unit for w in who if (peak := resource.getrusage(w).ru_maxrss)]


class Out(Console):
    """A console on stdout; when its reader has gone, that is BrokenPipeError (exit code 141)."""

    def on_broken_pipe(self) -> None:
        """Say so, where rich would exit with code 1."""
        raise BrokenPipeError


def print_results(results: dict[str, Any], title: str, *, as_json: bool) -> None:
    """Print figures by name: as JSON, or as a table of two columns under a title."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), Text(shown(value)))  # Text: "[/b]" is no markup
    Out().print(table)


def shown(value: object) -> str:
    """Render a figure for human eyes: `1234567 -> "1,234,567"`, `0.12345 -> "0.123"`."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if type(value) is int else str(value)

"""What the command lines share: flags, one line for a mistake, exit codes, folders.

| code | meaning                                                                      |
|------|------------------------------------------------------------------------------|
| 0    | done                                                                         |
| 2-6  | the `exit_code` of the error (`micrograd.errors`); 5 also for full memory    |
| 130  | Ctrl-C                                                                       |
| 141  | the reader of our output has gone (`| head`); said silently, when all is done |
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from micrograd.errors import MicrogradError, ResourceError, UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage."""
        raise UsageError(f"{message} (--help lists the flags)")


def path(text: str) -> Path:
    """Return the path that a flag names; an empty one would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty, as an unset variable's would be")
    return Path(text)


class Output:
    """Standard output that cannot stop a run: after its first failure, kept in `error`, it is mute.

    So a training whose output nobody reads any more, or whose log is on a full disk, is saved.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write to the stream."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._try(self._stream.flush)

    def close_up(self) -> None:
        """Flush; after a failure, point the stream to nowhere, or Python would complain at exit."""
        self.flush()
        if self.error:
            with contextlib.suppress(OSError, ValueError):  # ValueError: no real file, as in pytest
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def _try(self, function: Callable[..., Any], *args: Any) -> None:
        if self.error:
            return
        try:
            function(*args)
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], None],
    name: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command line; return its exit code (see above).

    A mistake of the user's is one line on stderr, the traceback only comes with `--debug`.
    """
    output: Any = Output(sys.stdout or io.StringIO())  # None where it is closed (`>&-`)
    with contextlib.redirect_stdout(output):
        try:
            code = _attempt(parse, run, name, argv)
        finally:
            output.close_up()
    if code or not output.error:
        return code
    if isinstance(output.error, BrokenPipeError):
        return 141  # 128 + SIGPIPE, what a shell reports of a program that `head` cut off
    return _complain(name, f"standard output: {output.error.strerror}", ResourceError.exit_code)


def _attempt(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], None],
    name: str,
    argv: Sequence[str] | None,
) -> int:
    """Do what the command line says; return the exit code, after a line on what went wrong."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        run(parse(argv))
    except KeyboardInterrupt:
        return _complain(name, "interrupted", 130)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except (MicrogradError, OSError, MemoryError) as error:
        if debug:
            raise
        return _complain(name, *_explain(error))
    return 0


def _explain(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, MicrogradError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; make the network or the batch smaller", ResourceError.exit_code
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return f"{where}{getattr(error, 'strerror', None) or error}", ResourceError.exit_code


def _complain(name: str, message: str, code: int) -> int:
    """Print one line, if there is a place for it, and return the code."""
    with contextlib.suppress(OSError):
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code


def open_folder(path: Path) -> Path:
    """Return the folder, made where it is missing, after a test that it can be written.

    Raises ResourceError before any work is done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"--out {path} cannot be written: {error.strerror}") from None
    return path

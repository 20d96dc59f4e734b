"""What the command lines share: flags, one line for a mistake, exit codes, folders."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from micrograd.errors import MicrogradError, ResourceError, UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage."""
        raise UsageError(f"{message} (--help lists the flags)")


def main(
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], None],
    name: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command line; return its exit code.

    A mistake of the user's is one line on stderr, the traceback only comes with `--debug`.
    """
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        run(parse(argv))
    except MicrogradError as error:
        if debug:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


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

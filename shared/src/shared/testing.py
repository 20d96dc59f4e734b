"""What the tests of several packages need: calling a command in this process."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from shared import cli


@dataclass(frozen=True)
class Ended:
    """The exit code of a command and what it printed on each stream."""

    code: int
    out: str
    error: str

    @property
    def said(self) -> str:
        """The last line of the errors."""
        return self.error.splitlines()[-1]


def call(
    verb: cli.Verb, flags: Sequence[object], program: str, defaults: cli.Defaults | None = None
) -> Ended:
    """Run a command with `flags` as its words, as `python -m program` would, and keep the output.

    `verb` and `defaults` are what `cli.run` takes. A process of its own would take seconds.
    """
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = cli.execute(verb, [str(flag) for flag in flags], f"python -m {program}", defaults)
    return Ended(code, out.getvalue(), error.getvalue())

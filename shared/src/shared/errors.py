"""What can go wrong for a user, each with the exit code that a script can act on.

`shared.cli` prints such an error as one line on stderr and exits with its `exit_code`; everything
else is a defect of ours and keeps its traceback.
"""

import signal


class Failure(Exception):
    """A failure that a user can understand and act on; its message says how."""

    exit_code = 1


class UsageError(Failure, ValueError):
    """A flag, name or configuration that cannot work (exit code 2)."""

    exit_code = 2


class DataError(Failure, ValueError):
    """Input data that cannot be used (exit code 3)."""

    exit_code = 3


class ArtefactError(Failure, ValueError):
    """A file of ours that is torn, altered, foreign or does not fit (exit code 4)."""

    exit_code = 4


class ResourceError(Failure):
    """No disk space, no memory, no permission, or a folder in use (exit code 5)."""

    exit_code = 5


class NumericalError(Failure, ArithmeticError):
    """Training produced non-finite numbers again and again (exit code 6)."""

    exit_code = 6


class DistributedError(Failure):
    """A process of a distributed run died or hangs (exit code 7)."""

    exit_code = 7


class Interrupted(Failure):
    """SIGINT or SIGTERM ended the run after a safe save (exit codes 130 and 143)."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum

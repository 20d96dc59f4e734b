"""The errors of this package, each with the exit code of a command that ends by it."""


class MicrogradError(Exception):
    """Anything that micrograd refuses; `exit_code` is what a command line ends with."""

    exit_code = 1


class UsageError(MicrogradError, ValueError):
    """A wrong argument or setting (exit code 2)."""

    exit_code = 2


class DataError(MicrogradError, ValueError):
    """Data that cannot be used: NaN, ragged rows, the wrong number of inputs (exit code 3)."""

    exit_code = 3


class ArtefactError(MicrogradError, ValueError):
    """A saved model that is torn, altered or of another shape (exit code 4)."""

    exit_code = 4


class ResourceError(MicrogradError, OSError):
    """A file that cannot be written: disk full, no permission (exit code 5)."""

    exit_code = 5


class NumericalError(MicrogradError, ArithmeticError):
    """A result that is no finite number: log(0), 0 ** -1, an overflow (exit code 6)."""

    exit_code = 6

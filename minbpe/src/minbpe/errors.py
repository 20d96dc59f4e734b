"""What can go wrong for a user, each with the exit code that a script can act on.

The command line prints such an error as one line on stderr and exits with its `exit_code`;
everything else is a defect of ours and keeps its traceback.
"""


class TokenizerError(Exception):
    """A failure that a user can understand and act on; its message says how."""

    exit_code = 1


class UsageError(TokenizerError, ValueError):
    """An argument that cannot work: a vocabulary below 256, a missing file (exit code 2)."""

    exit_code = 2


class DataError(TokenizerError, ValueError):
    """Text or ids that cannot be used: an empty corpus, an id out of range (exit code 3)."""

    exit_code = 3


class TokenizerFileError(TokenizerError, ValueError):
    """A file that is not what it should be (exit code 4).

    A tokenizer or token shards that are torn, altered, newer or impossible, or a data set whose
    digest is not the one it is known by.
    """

    exit_code = 4


class ResourceError(TokenizerError):
    """A file that cannot be written: disk full, no permission (exit code 5)."""

    exit_code = 5

"""Files that are whole or not there: write beside it, flush, fsync, rename, fsync the folder.

A rename within a folder is atomic, so a reader sees the old file or the new one, never a torn one.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minbpe.errors import ResourceError, UsageError

_records: list[list[str]] = []


@contextmanager
def record_written() -> Iterator[list[str]]:
    """Yield a list that names, as it grows, all that is written within the block.

    It is for what is told of an interrupted program.
    """
    written: list[str] = []
    _records.append(written)
    try:
        yield written
    finally:
        _records.remove(written)


def note_written(what: str) -> None:
    """Add something to the list of `record_written`, once."""
    for written in _records:
        if what not in written:
            written.append(what)


WRONG_PATHS = {
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.ELOOP,
}
"""What is wrong with a path rather than with the disk."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a failing device into ResourceError.

    A path that can't be (a name too long, a folder that is none) is UsageError.
    """
    try:
        yield
    except OSError as error:
        kind = UsageError if error.errno in WRONG_PATHS else ResourceError
        raise kind(f"{shorten(str(path))} cannot be written: {error.strerror}") from error


def shorten(name: str) -> str:
    """Return a name, or the ends of one that is too long for a message."""
    return name if len(name) <= 200 else f"{name[:60]}...{name[-60:]}"


def check_writable(path: Path) -> None:
    """Raise, before any work is done, what `whole_file` would raise after it."""
    with disk_errors(path):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the name of a file")
        temporary = temporary_path(path)
        temporary.touch()
        temporary.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; it gets its name when the block ends, and is gone after an error.

    Raises ResourceError when the disk is full or refuses, UsageError for a path that can't be.
    """
    temporary = temporary_path(path)
    try:
        with disk_errors(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            note_written(str(path))
            fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder, and journals names itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_path(path: Path) -> Path:
    """Name a temporary file beside `path` that nobody else uses: `.NAME.*.tmp`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")

"""Files that are whole or not there: write beside it, flush, fsync, rename, fsync the folder.

A rename within a folder is atomic, so a reader sees the old file or the new one, never a torn one.
"""

import contextlib
import os
import secrets
from pathlib import Path

from micrograd.errors import ResourceError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write `content`, text as UTF-8, to the file `path`, in place of what was there.

    Raises ResourceError, with nothing changed, where the disk is full or refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ResourceError(f"{path} cannot be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder, and journals names itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

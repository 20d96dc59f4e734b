"""Files that are either whole or not there: temp, write, flush, fsync, rename, fsync the folder.

A rename within a folder is atomic, so a reader sees the old file or the new one and never a torn
one. The file is synced before it is renamed, as a power cut could otherwise leave the new name on
empty blocks; the folder is synced after it, as the new name itself lives there.

Every primitive operation first calls `_operation`, so that `shared.faults` can count the
operations of any piece of code and make the n-th one fail.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared.errors import ArtefactError, ResourceError

Observer = Callable[[str, Path], None]

# What the machine refuses, whatever the program does: reported as exit code 5.
_RESOURCE_ERRNOS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
        *(errno.EROFS, errno.EACCES, errno.EPERM),  # no permission
        *(errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),  # a failing disk, no memory
    }
)
# A JSON file of ours holds settings or a few numbers; more is not a file of ours.
MAX_JSON_BYTES = 64 * 2**20
_CHUNK = 2**20  # bytes; large enough that hashing, not the loop, is the cost

_observers: list[Observer] = []
_counter = itertools.count()


def _operation(kind: str, path: Path) -> None:
    """Announce an operation that is about to happen; an observer fails it by raising."""
    for observer in _observers:
        observer(kind, path)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer(kind, path)` before each operation in the block (see `shared.faults`).

    Kinds: open, write, fsync, rename, fsync_folder, mkdir, unlink, rmtree.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def _errno_of(error: BaseException | None) -> int | None:
    """Find the errno behind an error, also where a library has wrapped it.

    safetensors puts it into the message ("... (os error 28)"); torch.save raises a RuntimeError
    of its own while the OSError of the Python file under it is being handled.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, missing permission or failing device into a ResourceError naming `path`.

    Other errors pass unchanged: they are defects, and keep their traceback.
    """
    try:
        yield
    except ResourceError:
        raise
    except Exception as error:
        number = _errno_of(error)
        if number not in _RESOURCE_ERRNOS:
            raise
        raise ResourceError(f"cannot write {path}: {os.strerror(number)}") from error


def make_folder(path: Path) -> None:
    """Create a folder and the ones above it, surviving a power cut; an existing one is fine.

    Raises ResourceError when the disk refuses.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with disk_errors(path):
        _operation("mkdir", path)
        path.mkdir(exist_ok=True)
    fsync_folder(path.parent)


def make_new_folder(path: Path) -> None:
    """Create a folder in an existing one; of several processes at once only one succeeds.

    Raises FileExistsError when something has that name, ResourceError when the disk refuses.
    """
    with disk_errors(path):
        _operation("mkdir", path)
        path.mkdir()
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises ResourceError when the disk refuses.
    """
    with disk_errors(path):
        _operation("fsync_folder", path)
        if os.name == "nt":  # Windows cannot open a folder, and journals names itself
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems know no fsync of a folder; there is nothing else to call.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder, replacing a file (or an empty folder) at `target`; then sync.

    Both must be on the same file system. Raises ResourceError when the disk refuses.
    """
    with disk_errors(target):
        _operation("rename", target)
        source.replace(target)
    fsync_folder(target.parent)


def remove_file(path: Path) -> None:
    """Delete a file; a missing one is fine. Raises ResourceError when the disk refuses."""
    with disk_errors(path):
        _operation("unlink", path)
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Delete a folder with all in it; a missing one is fine.

    Raises ResourceError when the disk refuses.
    """
    with disk_errors(path):
        _operation("rmtree", path)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def temporary_path(path: Path) -> Path:
    """Name a temporary file beside `path` that no other process or thread uses: `.NAME.*.tmp`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_counter)}.tmp")


def write_file(path: Path, data: bytes | Callable[[Path], None]) -> None:
    """Write a whole file, or leave what was there before.

    A callable gets the temporary path and writes it by itself, as safetensors' `save_file` does.
    On any failure the temporary file is removed. Raises ResourceError naming the file and the
    reason when the disk is full, read-only or refuses.
    """
    temporary = temporary_path(path)
    try:
        with disk_errors(path):
            _write_synced(temporary, data)
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError, ResourceError):  # the first failure is the one to tell
            remove_file(temporary)
        raise


def _write_synced(path: Path, data: bytes | Callable[[Path], None]) -> None:
    _operation("open", path)
    with path.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode
        _operation("write", path)
        if not callable(data):
            file.write(data)
    if callable(data):
        data(path)
        # safetensors renames a file of its own into place, which nobody else may read.
        path.chmod(stat.S_IMODE(mode))
    with path.open("rb+") as file:
        _operation("fsync", path)
        os.fsync(file.fileno())


def discard_temporaries(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder` (not below it).

    Only for a folder in which nobody is writing. Raises ResourceError when the disk refuses.
    """
    for path in sorted(folder.glob(".*.tmp")):
        if path.is_file():
            remove_file(path)


def _plain(value: object) -> Any:
    """Turn what configurations hold into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a JSON file: {value!r}")


def json_bytes(value: object) -> bytes:
    """Render a value as indented JSON, the same bytes for equal values.

    Takes dataclasses, paths, sets and NumPy or torch scalars too. Raises ValueError for NaN and
    infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return (text + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, whole or not at all.

    Raises ValueError for NaN and infinity, ResourceError when the disk refuses.
    """
    write_file(path, json_bytes(value))


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises ArtefactError when it is missing, torn, not JSON or larger than `MAX_JSON_BYTES`.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ArtefactError(f"{path}: larger than {MAX_JSON_BYTES} bytes, not a file of ours")
        return json.loads(path.read_bytes())
    except ArtefactError:
        raise
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: missing") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not valid JSON ({error})") from error


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Digest of a file as 64 hex digits, read in pieces of 1 MiB.

    `progress` is told the number of bytes of each piece, to move a progress bar.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()

"""Token ids on disk, in the format of `shared.tokens`, which maps them into memory for training.

A set of tokens called `train` is `train-00000.tokens`, `train-00001.tokens`, ... and `train.json`,
which lists them with their digests and is written last: without it there is no set. A shard is

    bytes 0 to 1023   the header, for `head -c 1024`: the line `mle-tokens`, then JSON, then spaces
    from byte 1024    the ids, little-endian uint16 or (above 65,536 ids) uint32

minbpe stands alone, so the format is written and read here once more; a test in the workspace
holds the two equal, byte by byte.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from minbpe.errors import DataError, ResourceError, TokenizerFileError, UsageError
from minbpe.files import disk_errors, fsync_folder, note_written, temporary_path

MAGIC = b"mle-tokens\n"
SCHEMA = 1
HEADER_BYTES = 1024
SHARD_TOKENS = 2**27
"""Ids of each shard but the last: 256 or 512 MiB."""
MAX_INDEX_BYTES = 64 * 2**20
READ_BYTES = 2**20
"""Read at a time; a multiple of both id sizes."""

DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def dtype_for(vocab_size: int) -> str:
    """Return the smallest type that holds every id: `uint16` up to 65,536 ids, else `uint32`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def index_path(folder: Path, name: str) -> Path:
    """Return where the index of the set `name` lies."""
    return folder / f"{name}.json"


# --- Writing --------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ResourceError(f"{folder}: another process is writing tokens there") from None
    finally:
        os.close(handle)


class ShardWriter:
    """Writes a set of tokens as they come, holding next to nothing; a context manager.

    Shards and index have temporary names until all of them are on disk; then the older set of
    that name gets names aside (`.train.json.old`), and the new one its own. An error, Ctrl-C or
    SIGTERM leaves the folder as it was, an error between those renames included.

    SIGKILL or a power cut leaves temporary files, which the next writer of the set removes. As
    shards have fixed names, the renames of two sets can't be one step: a kill *between them*
    leaves the folder without an index, never with a mixed set that could be read, and all of the
    older set aside or in place, which the next writer puts back before it begins.

    Args:
        folder: where the files go; made when missing.
        name: the set's name, such as `train`: letters, digits, `_`, `.` and `-`.
        vocab_size: number of ids; each id must be below it.
        tokenizer_sha256: `Tokenizer.digest()` of what made the ids.
        shard_tokens: ids of each shard but the last.
        replace: whether a set of that name may be there already.

    Raises UsageError for a bad name or a set that is there already, ResourceError when the disk
    is full or refuses, or another process writes to the folder.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        vocab_size: int,
        tokenizer_sha256: str,
        shard_tokens: int = SHARD_TOKENS,
        replace: bool = False,
    ) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"{name!r} cannot name a set of tokens: use letters, digits, _ . -")
        if shard_tokens < 1:
            raise UsageError(f"shard_tokens={shard_tokens} must be at least 1")
        self.folder, self.name, self.replace = folder, name, replace
        self.shard_tokens = shard_tokens
        self.count = 0  # ids so far, over all shards
        self.kind: dict[str, Any] = {
            "schema": SCHEMA,
            "dtype": dtype_for(vocab_size),
            "vocab_size": vocab_size,
            "tokenizer_sha256": tokenizer_sha256,
        }
        self._shards: list[_OpenShard] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        index = index_path(self.folder, self.name)
        with disk_errors(index), contextlib.ExitStack() as stack:
            if self.folder.exists() and not self.folder.is_dir():
                raise UsageError(f"--out {self.folder} is a file; token shards need a folder")
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                stack.callback(self._remove_if_empty)
            stack.enter_context(_locked(self.folder))
            with contextlib.suppress(FileNotFoundError):  # raises for a name that is too long
                temporary_path(self.folder / f"{self.name}-00000.tokens").stat()
            self._restore()  # what a killed writer left
            if index.exists() and not self.replace:
                raise UsageError(
                    f"{index} exists: give another --out or --name, or --force to replace that set"
                )
            self._discard()
            self._stack = stack.pop_all()
        return self

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            try:
                if error is None:
                    self._publish()
            finally:
                for shard in self._shards:
                    shard.close()
                self._discard()

    def append(self, ids: NDArray[Any]) -> None:
        """Write more ids, (n,), in order; raises DataError for one outside the vocabulary."""
        if len(ids) and int(ids.max()) >= self.kind["vocab_size"]:
            raise DataError(f"id {ids.max()} is not below vocab_size={self.kind['vocab_size']}")
        array = ids.astype(DTYPES[self.kind["dtype"]], copy=False)
        while len(array):
            if not self._shards or self._shards[-1].count == self.shard_tokens:
                self._finish_shard()
                name = f"{self.name}-{len(self._shards):05d}.tokens"
                self._shards.append(_OpenShard(self.folder / name))
            now = array[: self.shard_tokens - self._shards[-1].count]
            self._shards[-1].write(now)
            self.count += len(now)
            array = array[len(now) :]

    def _finish_shard(self) -> None:
        if self._shards:
            self._shards[-1].finish(self.kind)

    def _publish(self) -> None:
        """Put the new set, all of it on disk, in the place of the old one; an error undoes it."""
        self._finish_shard()
        index = index_path(self.folder, self.name)
        new = [(shard.temporary, shard.path) for shard in self._shards]
        with disk_errors(index):
            new.append((temporary_path(index), index))
            with new[-1][0].open("xb") as file:
                file.write(self._index())
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(self.folder)
            try:
                self._set_aside()
                for temporary, path in new:  # the index last
                    temporary.replace(path)
                fsync_folder(self.folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    for temporary, path in reversed(new):
                        if not temporary.exists():
                            path.unlink(missing_ok=True)
                    self._restore()
                raise
        note_written(str(index))
        with contextlib.suppress(OSError):  # the next writer removes them
            self._restore()

    def _set_aside(self) -> None:
        """Rename the old set, its index first: from then on there is none."""
        index = index_path(self.folder, self.name)
        shards = self._files(r"{}-\d{{5,}}\.tokens")
        for path in [index, *shards] if index.exists() else shards:
            path.replace(path.with_name(f".{path.name}.old"))
        fsync_folder(self.folder)

    def _restore(self) -> None:
        """Put back what is aside, the index last; remove it where a whole set took its place."""
        whole = index_path(self.folder, self.name).exists()
        for path in sorted(self._files(r"\.{}(-\d{{5,}}\.tokens|\.json)\.old")):
            if whole:
                path.unlink()
            else:
                path.replace(path.with_name(path.name[1:].removesuffix(".old")))

    def _index(self) -> bytes:
        listed = [
            {"file": shard.path.name, "count": shard.count, "sha256": shard.digest.hexdigest()}
            for shard in self._shards
        ]
        value = {"format": "mle-tokens"} | self.kind | {"count": self.count, "shards": listed}
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

    def _discard(self) -> None:
        """Remove the temporary files of this set; those of other sets are not ours."""
        for path in self._files(r"\.{}(-\d{{5,}}\.tokens|\.json)\.[0-9a-f]+\.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _files(self, pattern: str) -> list[Path]:
        compiled = re.compile(pattern.format(re.escape(self.name)))
        return [path for path in self.folder.iterdir() if compiled.fullmatch(path.name)]


class _OpenShard:
    """A shard under a temporary name; its header is written when its digest is known."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, temporary_path(path)
        self.count = 0
        self.digest = hashlib.sha256()
        with disk_errors(path):
            self._file = self.temporary.open("xb")
            self._file.write(b" " * HEADER_BYTES)

    def write(self, ids: NDArray[Any]) -> None:
        data = ids.tobytes()
        with disk_errors(self.path):
            self._file.write(data)
        self.digest.update(data)
        self.count += len(ids)

    def finish(self, kind: dict[str, Any]) -> None:
        fields = kind | {"count": self.count, "sha256": self.digest.hexdigest()}
        text = MAGIC + json.dumps(fields, indent=1).encode()
        with disk_errors(self.path):
            self._file.seek(0)
            self._file.write(text.ljust(HEADER_BYTES - 1) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk makes even closing fail
            self._file.close()


# --- Reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardSet:
    """A set of tokens whose index and headers have been checked.

    Attributes: `count` ids in all, each below `vocab_size`; `tokenizer_sha256` of what made them;
    `shards` as (path, ids, sha256).
    """

    vocab_size: int
    tokenizer_sha256: str
    count: int
    shards: tuple[tuple[Path, int, str], ...]

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Check a set's index, and each shard's header and size.

        Raises UsageError when there is no such set, TokenizerFileError when anything is wrong.
        """
        path = index_path(folder, name)
        value = _read_index(path)
        shards = []
        listed = value.get("shards")
        for number, entry in enumerate(listed if isinstance(listed, list) else [None]):
            fields = entry if isinstance(entry, dict) else {}
            shard = folder / f"{name}-{number:05d}.tokens"
            count, sha256 = fields.get("count"), fields.get("sha256")
            # The name is compared, never followed: an index can't point outside its folder.
            wrong = fields.get("file") != shard.name or not isinstance(sha256, str)
            if wrong or not isinstance(count, int) or count < 1:
                raise TokenizerFileError(f"{path}: its entry for shard {number} is wrong")
            shards.append((shard, count, str(sha256)))
        if value["count"] != sum(count for _, count, _ in shards):
            raise TokenizerFileError(f"{path}: its shards do not add up to {value['count']} ids")
        for shard, count, sha256 in shards:
            _check_shard(shard, value | {"count": count, "sha256": sha256})
        return cls(value["vocab_size"], value["tokenizer_sha256"], value["count"], tuple(shards))

    def arrays(self) -> Iterator[NDArray[Any]]:
        """Yield the ids in order, some 100,000 at a time.

        Raises TokenizerFileError at the end of a shard that was altered since it was written.
        """
        dtype = DTYPES[dtype_for(self.vocab_size)]
        for path, _, sha256 in self.shards:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                file.seek(HEADER_BYTES)
                while data := file.read(READ_BYTES):
                    digest.update(data)
                    yield np.frombuffer(data, dtype)
            if digest.hexdigest() != sha256:
                raise TokenizerFileError(f"{path}: altered since it was written (its sha256)")


def set_names(folder: Path) -> list[str]:
    """List the complete sets of tokens in a folder, by name."""
    names = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(TokenizerFileError):
            _read_index(path)
            names.append(path.stem)
    return sorted(names)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise TokenizerFileError(f"{path}: too large to be an index of token shards")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerFileError):
            raise
        raise TokenizerFileError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format") != "mle-tokens":
        raise TokenizerFileError(f"{path}: not an index of token shards")
    return _checked_kind(path, value)


def _checked_kind(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Check what the index and each header say alike."""
    schema = value.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise TokenizerFileError(
            f"{path}: written by a newer version (schema {schema}, this one reads {SCHEMA})"
        )
    right = {
        "schema": schema == SCHEMA,
        "vocab_size": type(v := value.get("vocab_size")) is int and 1 <= v <= 2**32,
        "count": type(c := value.get("count")) is int and c >= 0,
        "tokenizer_sha256": isinstance(value.get("tokenizer_sha256"), str),
    }
    right["dtype"] = right["vocab_size"] and value.get("dtype") == dtype_for(value["vocab_size"])
    for field, ok in right.items():
        if not ok:
            raise TokenizerFileError(f"{path}: its field {field} is missing or wrong")
    return value


def _check_shard(path: Path, expected: dict[str, Any]) -> None:
    """Check a shard's header against the index, and its size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise TokenizerFileError(f"{path} cannot be read: {error.strerror}") from None
    if not head.startswith(MAGIC):
        raise TokenizerFileError(f"{path}: not a token shard (it begins with {head[:12]!r})")
    try:
        fields = json.loads(head[len(MAGIC) :])
    except (ValueError, RecursionError):
        raise TokenizerFileError(f"{path}: its header is torn") from None
    fields = _checked_kind(path, fields if isinstance(fields, dict) else {})
    for field in ("tokenizer_sha256", "vocab_size", "count", "sha256"):
        if fields.get(field) != expected[field]:
            raise TokenizerFileError(f"{path}: its {field} is not the one its set's index lists")
    right = HEADER_BYTES + fields["count"] * DTYPES[fields["dtype"]].itemsize
    if size != right:
        what = "truncated" if size < right else "too long"
        raise TokenizerFileError(f"{path}: {what}, {size} bytes where {right} were written")

"""Token ids on disk: checked, memory-mapped shards, and the windows that models train on.

    with ShardWriter(folder, "train", vocab_size=512, tokenizer_sha256=digest) as writer:
        for text in texts:
            writer.append(tokenizer.encode(text))
    tokens = Tokens.open(folder, "train", vocab_size=512, tokenizer_sha256=digest)

A set of tokens called `train` is `train-00000.tokens`, `train-00001.tokens`, ... and `train.json`,
which lists them and is written last. A shard is

    bytes 0 to 1023   the header, for `head -c 1024`: the line `mle-tokens`, then JSON, then spaces
    from byte 1024    the ids, little-endian uint16 or (above 65,536 ids) uint32

`python -m shared.tokens verify FOLDER` tells everything that is wrong with the sets in a folder,
`python -m shared.tokens info FOLDER` what they are.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from shared import cli, files
from shared.errors import ArtefactError, DataError, UsageError
from shared.sampler import IntArray, epoch_keys

IdArray: TypeAlias = npt.NDArray[Any]
"""Token ids, uint16 or uint32."""
TokenBatch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""(idx, targets), both (B, T) int64 on the CPU; targets of -100 are ignored."""

MAGIC = b"mle-tokens\n"
SCHEMA = 1
HEADER_BYTES = 1024  # over twice what is needed; a multiple of every alignment a CPU asks for
IGNORED = -100  # the target that PyTorch's cross_entropy leaves out

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_READ = 4 * 2**20  # bytes read at a time
_APPEND = 2**18  # ids converted at a time, 2 MiB as Python's or NumPy's integers
_FILE = re.compile(r"(?P<name>.+)-\d{5,}\.tokens")
Progressed: TypeAlias = Callable[[int], None]
"""Told the number of bytes of each piece that has been read."""


def dtype_for(vocab_size: int) -> str:
    """Return the smallest type that holds every id: `uint16` up to 65,536 ids, else `uint32`."""
    if not 1 <= vocab_size <= 2**32:
        raise UsageError(f"vocab_size={vocab_size} must be from 1 to 2**32")
    return "uint16" if vocab_size <= 2**16 else "uint32"


def index_path(folder: Path, name: str) -> Path:
    """Return where the index of the set `name` lies; the set is complete once it exists."""
    return folder / f"{name}.json"


def shard_path(folder: Path, name: str, number: int) -> Path:
    """Return where shard `number`, counted from 0, of the set `name` lies."""
    return folder / f"{name}-{number:05d}.tokens"


# --- Writing ------------------------------------------------------------------------------------


class ShardWriter:
    """Writes a set of tokens as they come, holding a few MiB whatever the length.

    A context manager. It removes an older set of that name first, so that a set cut off by a kill
    has no index and can't be mistaken for a whole one. Leaving the block by an error removes what
    was written. One writer a set at a time: the caller locks the folder.

    Args:
        folder: where the files go; made when missing.
        name: the set's name, such as `train`; letters, digits, `_`, `.` and `-`.
        vocab_size: number of ids; each id must be below it.
        tokenizer_sha256: digest of the tokenizer that made the ids.
        shard_tokens: tokens of each shard but the last.

    Raises UsageError for a bad argument, ResourceError when the disk is full or refuses.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        vocab_size: int,
        tokenizer_sha256: str,
        shard_tokens: int = 2**27,
    ) -> None:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"{name!r} cannot name a set of tokens: use letters, digits, _ . -")
        if shard_tokens < 1:
            raise UsageError(f"shard_tokens={shard_tokens} must be at least 1")
        self.folder = folder
        self.name = name
        self.shard_tokens = shard_tokens
        self.count = 0  # tokens so far, over all shards
        self._kind: dict[str, Any] = {
            "schema": SCHEMA,
            "dtype": dtype_for(vocab_size),
            "vocab_size": vocab_size,
            "tokenizer_sha256": tokenizer_sha256,
        }
        self._shards: list[dict[str, Any]] = []
        self._open: _OpenShard | None = None

    def __enter__(self) -> Self:
        files.make_folder(self.folder)
        self._remove()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self.close()
                return
            except BaseException:
                self._discard()
                raise
        self._discard()

    def append(self, ids: Sequence[int] | npt.NDArray[Any]) -> None:
        """Write more ids, (n,), in order.

        Raises DataError naming the first id that is not a whole number in [0, vocab_size), and
        ResourceError when the disk is full; end the block then, and nothing is kept.
        """
        for start in range(0, len(ids), _APPEND):
            checked = self._checked(ids[start : start + _APPEND])
            while len(checked):
                if self._open is None:
                    path = shard_path(self.folder, self.name, len(self._shards))
                    self._open = _OpenShard(path)
                now = checked[: self.shard_tokens - self._open.count]
                self._open.write(now)
                self.count += len(now)
                checked = checked[len(now) :]
                if self._open.count == self.shard_tokens:
                    self._finish_shard()

    def close(self) -> None:
        """Finish the last shard and write the index; leaving the block does it."""
        self._finish_shard()
        index = self._kind | {"count": self.count, "shards": self._shards}
        files.write_json(index_path(self.folder, self.name), {"format": "mle-tokens"} | index)

    def _checked(self, ids: Sequence[int] | npt.NDArray[Any]) -> IdArray:
        array = np.asarray(ids)
        vocab_size = self._kind["vocab_size"]
        if array.ndim != 1 or array.dtype.kind not in "iuO":
            raise DataError(
                f"ids must be a flat list of whole numbers, got {array.dtype} {array.shape}"
            )
        # Python integers beyond 64 bits arrive as objects and compare as such.
        outside = np.flatnonzero((array < 0) | (array >= vocab_size))
        if len(outside):
            place = self.count + int(outside[0])
            raise DataError(
                f"id {array[outside[0]]} at token {place} of {self.name} is outside the "
                f"vocabulary of 0 to {vocab_size - 1}"
            )
        return array.astype(_DTYPES[str(self._kind["dtype"])])

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.finish(self._kind))
            self._open = None

    def _discard(self) -> None:
        if self._open is not None:
            self._open.discard()
            self._open = None
        with contextlib.suppress(Exception):  # the first failure is the one to tell
            self._remove()

    def _remove(self) -> None:
        """Delete the set, its index first: from then on nobody takes the rest for a set."""
        files.remove_file(index_path(self.folder, self.name))
        # A killed writer of this set may have left its temporary files; other sets are not ours.
        left = re.compile(rf"\.{re.escape(self.name)}(-\d{{5,}}\.tokens|\.json)\..*\.tmp")
        found = [path for path in self.folder.glob(".*.tmp") if left.fullmatch(path.name)]
        for path in found + _shard_files(self.folder, self.name):
            files.remove_file(path)


class _OpenShard:
    """A shard being written under a temporary name; its header comes when its digest is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._digest = hashlib.sha256()
        self._temporary = files.temporary_path(path)
        with files.disk_errors(path):
            self._file: BinaryIO = self._temporary.open("wb", buffering=2**20)
            self._file.write(b" " * HEADER_BYTES)

    def write(self, ids: IdArray) -> None:
        data = ids.tobytes()
        with files.disk_errors(self.path):
            self._file.write(data)
        self._digest.update(data)
        self.count += len(ids)

    def finish(self, kind: dict[str, Any]) -> dict[str, Any]:
        """Write the header, give the file its name, and return its line of the index."""
        sha256 = self._digest.hexdigest()
        with files.disk_errors(self.path):
            self._file.seek(0)
            self._file.write(header_bytes(kind | {"count": self.count, "sha256": sha256}))
            self._file.close()
        files.write_file(self.path, lambda target: _move(self._temporary, target))
        return {"file": self.path.name, "count": self.count, "sha256": sha256}

    def discard(self) -> None:
        """Close the file, for the writer to remove."""
        with contextlib.suppress(Exception):  # a full disk makes even closing fail
            self._file.close()


def _move(source: Path, target: Path) -> None:
    source.replace(target)


def header_bytes(fields: dict[str, Any]) -> bytes:
    """Render a shard's header, `HEADER_BYTES` long.

    Raises UsageError when the fields do not fit.
    """
    text = MAGIC + json.dumps(fields, indent=1).encode()
    if len(text) >= HEADER_BYTES:
        raise UsageError(f"tokenizer_sha256={fields['tokenizer_sha256'][:80]!r}... is too long")
    return text.ljust(HEADER_BYTES - 1) + b"\n"


def _shard_files(folder: Path, name: str) -> list[Path]:
    """List the files that look like shards of a set, in order."""
    pattern = re.compile(re.escape(name) + r"-\d{5,}\.tokens")
    return sorted(path for path in folder.glob("*.tokens") if pattern.fullmatch(path.name))


# --- Checking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What the index and each shard's header say alike."""

    schema: int
    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    count: int

    @classmethod
    def parse(cls, path: Path, value: Any) -> Self:
        """Check the fields of untrusted JSON; raises ArtefactError naming the file."""
        if not isinstance(value, dict):
            raise ArtefactError(f"{path}: holds no fields")
        schema = value.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise ArtefactError(
                f"{path}: written by a newer version (schema {schema}, this one reads {SCHEMA}); "
                "update this package or write the tokens again"
            )
        whole = ("vocab_size", "count")
        wrong = [field for field in whole if type(value.get(field)) is not int or value[field] < 0]
        wrong += [f for f in ("dtype", "tokenizer_sha256") if not isinstance(value.get(f), str)]
        wrong += ["schema"] if schema != SCHEMA else []
        if wrong:
            raise ArtefactError(f"{path}: its field {wrong[0]} is missing or wrong")
        kind = cls(**{field: value[field] for field in cls.__dataclass_fields__})
        if not 1 <= kind.vocab_size <= 2**32:
            raise ArtefactError(f"{path}: impossible vocab_size {kind.vocab_size}")
        if kind.dtype != (right := dtype_for(kind.vocab_size)):
            raise ArtefactError(
                f"{path}: wrong dtype {kind.dtype!r}; {kind.vocab_size} ids are kept as {right}"
            )
        return kind


@dataclass(frozen=True)
class _Index:
    """A set's index, checked: its shards as (path, count, sha256)."""

    path: Path
    kind: _Kind
    shards: tuple[tuple[Path, int, str], ...]

    @classmethod
    def read(cls, folder: Path, name: str) -> Self:
        """Read and check an index; raises ArtefactError naming it."""
        path = index_path(folder, name)
        if not path.exists():
            raise ArtefactError(f"{path}: missing; these tokens were never written to the end")
        value = files.read_json(path)
        if not isinstance(value, dict) or value.get("format") != "mle-tokens":
            raise ArtefactError(f"{path}: not an index of token shards")
        kind = _Kind.parse(path, value)
        shards = []
        listed = value.get("shards")
        for number, entry in enumerate(listed if isinstance(listed, list) else [None]):
            shard = shard_path(folder, name, number)
            fields = entry if isinstance(entry, dict) else {}
            count, sha256 = fields.get("count"), fields.get("sha256")
            # The name is compared, never followed: an index can't point outside its folder.
            wrong_name = fields.get("file") != shard.name
            if wrong_name or type(count) is not int or count < 1 or not isinstance(sha256, str):
                raise ArtefactError(f"{path}: its entry for shard {number} is wrong")
            shards.append((shard, count, sha256))
        if kind.count != sum(count for _, count, _ in shards):
            raise ArtefactError(f"{path}: its shards do not add up to its {kind.count} tokens")
        return cls(path, kind, tuple(shards))


def _check_shard(index: _Index, number: int) -> None:
    """Check a shard's header and size; raises ArtefactError naming it."""
    path, count, sha256 = index.shards[number]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: missing, though {index.path.name} lists it") from error
    if not head.startswith(MAGIC):
        raise ArtefactError(f"{path}: not a token shard (it begins with {head[:12]!r})")
    try:
        fields = json.loads(head[len(MAGIC) :])
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: its header is torn") from error
    kind = _Kind.parse(path, fields)
    expected = HEADER_BYTES + kind.count * _DTYPES[kind.dtype].itemsize
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise ArtefactError(f"{path}: {what}, {size} bytes where {expected} were written")
    if kind.tokenizer_sha256 != index.kind.tokenizer_sha256:
        raise ArtefactError(
            f"{path}: made by another tokenizer than the rest "
            f"({kind.tokenizer_sha256[:12]}, not {index.kind.tokenizer_sha256[:12]})"
        )
    found = (kind.vocab_size, kind.count, fields.get("sha256"))
    if found != (index.kind.vocab_size, count, sha256):
        raise ArtefactError(f"{path}: not the shard that {index.path.name} lists")


def _check_payload(index: _Index, number: int, progress: Progressed | None) -> None:
    """Check a shard's digest and ids, 4 MiB at a time; raises ArtefactError naming it."""
    path, _, sha256 = index.shards[number]
    dtype = _DTYPES[index.kind.dtype]
    digest, largest = hashlib.sha256(), 0
    buffer = bytearray(_READ)
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while size := file.readinto(buffer):
            piece = memoryview(buffer)[:size]
            digest.update(piece)
            largest = max(largest, int(np.frombuffer(piece, dtype=dtype).max()))
            if progress is not None:
                progress(size)
    if digest.hexdigest() != sha256:
        raise ArtefactError(
            f"{path}: altered since it was written (sha256 {digest.hexdigest()[:12]}, "
            f"not {sha256[:12]})"
        )
    if largest >= index.kind.vocab_size:
        raise ArtefactError(
            f"{path}: holds id {largest}, outside the vocabulary of 0 to "
            f"{index.kind.vocab_size - 1}"
        )


def _set_problems(
    folder: Path, name: str, verify: bool, progress: Progressed | None = None
) -> Iterator[str]:
    """Give each problem of one set, one for each file at most."""
    try:
        index = _Index.read(folder, name)
    except ArtefactError as error:
        yield str(error)
        return
    for number in range(len(index.shards)):
        try:
            _check_shard(index, number)
            if verify:
                _check_payload(index, number, progress)
        except ArtefactError as error:
            yield str(error)


def set_names(folder: Path) -> list[str]:
    """List the sets of tokens in a folder, also those that lack their index or all their shards.

    Raises UsageError when there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    names = {found["name"] for p in folder.glob("*.tokens") if (found := _FILE.fullmatch(p.name))}
    for path in folder.glob("*.json"):
        with contextlib.suppress(ArtefactError):  # torn, but then its shards tell of the set
            value = files.read_json(path)
            if isinstance(value, dict) and value.get("format") == "mle-tokens":
                names.add(path.stem)
    return sorted(names)


def verify_shards(
    folder: Path, name: str | None = None, progress: Progressed | None = None
) -> list[str]:
    """Return every problem of the set `name`, or of all sets in a folder; none is an empty list.

    Each is a line that begins with the file's path. Reads every byte once. Shards that no index
    lists are problems too. Raises UsageError when there is no such folder.
    """
    names = set_names(folder)
    if name is not None:
        names = [name]
    problems = [] if names else [f"{folder}: holds no token shards"]
    for one in names:
        problems += _set_problems(folder, one, verify=True, progress=progress)
        with contextlib.suppress(ArtefactError):  # told above
            listed = {path for path, _, _ in _Index.read(folder, one).shards}
            extra = [path for path in _shard_files(folder, one) if path not in listed]
            problems += [f"{path}: not listed in {one}.json" for path in extra]
    return problems


# --- Reading ------------------------------------------------------------------------------------


class Tokens:
    """A set of tokens, read-only and memory-mapped: only what is looked at is read from disk.

    `len(tokens)` is the number of tokens over all shards. Made by `Tokens.open`.
    """

    def __init__(self, index: _Index) -> None:
        self.vocab_size = index.kind.vocab_size
        self.tokenizer_sha256 = index.kind.tokenizer_sha256
        self.dtype = _DTYPES[index.kind.dtype]
        counts = np.array([count for _, count, _ in index.shards], dtype=np.int64)
        self._ends = np.cumsum(counts)  # of each shard, in tokens of the whole set
        self._starts = self._ends - counts
        self._shards: list[npt.NDArray[Any]] = [
            np.memmap(path, self.dtype, "r", HEADER_BYTES, (count,)).view(np.ndarray)
            for path, count, _ in index.shards
        ]
        self._windows: dict[tuple[int, int], npt.NDArray[Any]] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        *,
        vocab_size: int | None = None,
        tokenizer_sha256: str | None = None,
        verify: bool = True,
    ) -> "Tokens":
        """Check a set of tokens and map it.

        Args:
            folder: where it lies.
            name: its name, such as `train`.
            vocab_size: ids that the model knows; the set's vocabulary must not be larger.
            tokenizer_sha256: the tokenizer that the set must have been made by.
            verify: read everything once, to check the digests and every id. Without it, headers
                and sizes are still checked.

        Raises ArtefactError naming the file that is missing, truncated, too long, altered, of
        another tokenizer, of a newer version or not of this kind, or that holds an id outside the
        vocabulary.
        """
        index = _Index.read(folder, name)
        found = index.kind
        if tokenizer_sha256 not in (None, found.tokenizer_sha256):
            raise ArtefactError(
                f"{index.path}: made by another tokenizer ({found.tokenizer_sha256[:12]}, not "
                f"{str(tokenizer_sha256)[:12]}); encode the text again"
            )
        if vocab_size is not None and found.vocab_size > vocab_size:
            raise ArtefactError(
                f"{index.path}: made for a vocabulary of {found.vocab_size} ids, more than the "
                f"{vocab_size} asked for; encode the text again"
            )
        problems = list(_set_problems(folder, name, verify))
        if problems:
            others = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
            raise ArtefactError(problems[0] + others)
        return cls(index)

    def __len__(self) -> int:
        """Count the tokens of all shards."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> IdArray:
        """Return tokens start ... start + count - 1, (count,); read-only within one shard.

        Raises IndexError when some of them do not exist.
        """
        stop = start + count
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        parts = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            offset = start - int(self._starts[number])
            parts.append(self._shards[number][offset : offset + stop - start])
            start += len(parts[-1])
            number += 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.zeros(0, self.dtype), *parts])

    def gather(self, starts: IntArray, width: int) -> IdArray:
        """Return a copy of the windows that begin at `starts` (n,), as (n, width) ids.

        Raises IndexError when a window does not lie within the tokens.
        """
        if len(starts) and (starts.min() < 0 or starts.max() + width > len(self)):
            raise IndexError(f"windows of {width} beyond the {len(self)} tokens")
        if len(self._shards) == 1 and len(starts):
            rows: IdArray = self._view(0, width)[starts]  # for nearly every data set: one gather
            return rows
        out = np.empty((len(starts), width), dtype=self.dtype)
        shards = np.searchsorted(self._ends, starts, side="right")
        inside = starts + width <= self._ends[np.minimum(shards, len(self._ends) - 1)]
        for number in np.unique(shards[inside]):
            rows = np.flatnonzero(inside & (shards == number))
            out[rows] = self._view(int(number), width)[starts[rows] - self._starts[number]]
        for row in np.flatnonzero(~inside):  # the few that lie across the edge of a shard
            out[row] = self.read(int(starts[row]), width)
        return out

    def _view(self, number: int, width: int) -> npt.NDArray[Any]:
        """Return all windows of a shard, (its tokens - width + 1, width), without copying any."""
        key = (number, width)
        if key not in self._windows:
            view = np.lib.stride_tricks.sliding_window_view(self._shards[number], width)
            self._windows[key] = view
        return self._windows[key]


# --- Windows ------------------------------------------------------------------------------------


def count_targets(batch: TokenBatch) -> float:
    """Return the number of targets in a batch that are not ignored."""
    return float((batch[1] != IGNORED).sum())


class TokenWindows:
    """Training examples: an epoch cuts the tokens into windows of `block_size` next to each other.

    Example i of an epoch has the inputs i * block_size + offset and on, and as targets the tokens
    one later. Without a `jitter_seed` the offset is 0; with one it is drawn anew for each epoch
    from [0, block_size), so that epochs cut the text at different places. It is a pure function
    of (jitter_seed, epoch), so resuming needs no state.

        tokens 0 ... 9, block_size 3, offset 1:   idx 1 2 3   4 5 6
                                              targets 2 3 4   5 6 7

    With jitter, an epoch leaves the tokens before its offset and after its last window out.
    Implements `shared.sampler.Examples`. Raises DataError when there are not block_size + 1 tokens.
    """

    def __init__(self, tokens: Tokens, block_size: int, *, jitter_seed: int | None = None) -> None:
        _check_block(tokens, block_size, block_size + 1)
        self.tokens = tokens
        self.block_size = block_size
        self.jitter_seed = jitter_seed
        if jitter_seed is None:
            self._n_samples = (len(tokens) - 1) // block_size
        else:  # as many as fit behind every offset; for very few tokens, fewer offsets
            self._n_samples = max(1, len(tokens) // block_size - 1)
        self._n_offsets = min(block_size, len(tokens) - self._n_samples * block_size)
        self._last = (-1, 0)  # (epoch, its offset), as a batch rarely spans two epochs

    def __len__(self) -> int:
        """Count the windows of an epoch."""
        return self._n_samples

    def offset(self, epoch: int) -> int:
        """Return the place of an epoch's first window, in [0, block_size)."""
        if self.jitter_seed is None:
            return 0
        last, offset = self._last
        if last != epoch:
            # Another constant than in the sampler, as one seed may serve both.
            seed = (self.jitter_seed ^ 0x6A69747465720000) % 2**64
            word = int(epoch_keys(seed, np.array([epoch], dtype=np.uint64))[0])
            offset = word * self._n_offsets >> 64
            self._last = (epoch, offset)
        return offset

    def batch(self, indices: IntArray, epochs: IntArray) -> TokenBatch:
        """Return (idx, targets), each (n, block_size) int64, of windows `indices` (n,)."""
        starts = indices * self.block_size
        if self.jitter_seed is not None and len(epochs):
            first, last = int(epochs[0]), int(epochs[-1])
            if first == last and (epochs == first).all():
                starts += self.offset(first)
            else:
                starts += [self.offset(int(epoch)) for epoch in epochs]
        rows = self.tokens.gather(starts, self.block_size + 1)
        idx = torch.from_numpy(rows[:, :-1].astype(np.int64))
        return idx, torch.from_numpy(rows[:, 1:].astype(np.int64))

    def weight(self, batch: TokenBatch) -> float:
        """Return the number of targets in a batch."""
        return count_targets(batch)


class EvalWindows:
    """Evaluation examples: windows next to each other that hold every target exactly once.

    The targets are all tokens but the first. The last window is padded: idx with 0, targets with
    -100. Epochs are all alike.

        tokens 0 ... 5, block_size 3:   idx 0 1 2    3 4  0
                                    targets 1 2 3    4 5 -100

    Implements `shared.sampler.Examples`. Raises DataError when there are fewer than 2 tokens.
    """

    def __init__(self, tokens: Tokens, block_size: int) -> None:
        _check_block(tokens, block_size, 2)
        self.tokens = tokens
        self.block_size = block_size

    def __len__(self) -> int:
        """Count the windows."""
        return -(-(len(self.tokens) - 1) // self.block_size)

    def batch(self, indices: IntArray, epochs: IntArray) -> TokenBatch:  # noqa: ARG002
        """Return (idx, targets), each (n, block_size) int64, of windows `indices` (n,)."""
        B, T = len(indices), self.block_size
        starts = indices * T
        whole = starts + T < len(self.tokens)
        idx = torch.zeros(B, T, dtype=torch.int64)
        targets = torch.full((B, T), IGNORED)
        rows = torch.from_numpy(self.tokens.gather(starts[whole], T + 1).astype(np.int64))
        inside = torch.from_numpy(whole)
        idx[inside], targets[inside] = rows[:, :-1], rows[:, 1:]
        for row in np.flatnonzero(~whole):  # the last window, when it is not full
            start = int(starts[row])
            rest = self.tokens.read(start, len(self.tokens) - start).astype(np.int64)
            idx[row, : len(rest) - 1] = torch.from_numpy(rest[:-1])
            targets[row, : len(rest) - 1] = torch.from_numpy(rest[1:])
        return idx, targets

    def weight(self, batch: TokenBatch) -> float:
        """Return the number of targets in a batch that are not ignored."""
        return count_targets(batch)


def _check_block(tokens: Tokens, block_size: int, needed: int) -> None:
    if block_size < 1:
        raise UsageError(f"block_size={block_size} must be at least 1")
    if len(tokens) < needed:
        raise DataError(
            f"{len(tokens)} tokens are too few for one window of block_size={block_size}, which "
            f"takes {needed}; use more text or a smaller block_size"
        )


# --- The command line -----------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderConfig:
    """Where the tokens are."""

    folder: tyro.conf.Positional[Path]
    """The folder with the shards."""


def verify(config: FolderConfig) -> None:
    """Check every shard in a folder and print a line for each problem; exit 4 if there is one."""
    total = sum(path.stat().st_size for path in config.folder.glob("*.tokens"))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying", total=total)
        problems = verify_shards(config.folder, progress=lambda size: bar.advance(task, size))
    for problem in problems:
        print(problem)
    if problems:
        raise ArtefactError(f"{config.folder}: {len(problems)} problems, listed above")
    print(f"{config.folder}: all {len(set_names(config.folder))} sets are as they were written")


def info(config: FolderConfig) -> None:
    """Print what each set of tokens in a folder holds, from its index alone."""
    table = Table("set", "tokens", "shards", "type", "vocabulary", "tokenizer")
    for name in set_names(config.folder):
        try:
            index = _Index.read(config.folder, name)
        except ArtefactError as error:
            table.add_row(name, str(error))
            continue
        kind = index.kind
        numbers = (f"{kind.count:,}", f"{len(index.shards):,}", kind.dtype, f"{kind.vocab_size:,}")
        table.add_row(name, *numbers, kind.tokenizer_sha256[:12])
    Console().print(table)


if __name__ == "__main__":
    cli.run({"verify": verify, "info": info})

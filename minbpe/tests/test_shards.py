"""Token shards: the layout, whole or not there, and every way to be torn."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minbpe.errors import DataError, ResourceError, TokenizerFileError, UsageError
from minbpe.shards import HEADER_BYTES, ShardSet, ShardWriter, dtype_for, set_names

DIGEST = "ab" * 32


def write(folder: Path, ids: list[int], *, vocab_size: int = 300, replace: bool = False) -> None:
    """Write a set called `train`, five ids a shard."""
    with ShardWriter(
        folder,
        "train",
        vocab_size=vocab_size,
        tokenizer_sha256=DIGEST,
        shard_tokens=5,
        replace=replace,
    ) as writer:
        for start in range(0, len(ids), 3):
            writer.append(np.array(ids[start : start + 3]))


def read(folder: Path) -> list[int]:
    """Return the ids of the set called `train`."""
    return [i for array in ShardSet.open(folder, "train").arrays() for i in array.tolist()]


def files(folder: Path) -> dict[str, bytes]:
    """Return all that is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ids_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Over several shards; none at all is a set too."""
    for ids in (list(range(289, 300)), list(range(10)), []):
        folder = tmp_path / str(len(ids))
        write(folder, ids)
        tokens = ShardSet.open(folder, "train")
        assert (tokens.count, tokens.vocab_size, tokens.tokenizer_sha256) == (len(ids), 300, DIGEST)
        assert [count for _, count, _ in tokens.shards] == [5] * (len(ids) // 5) + (
            [len(ids) % 5] if len(ids) % 5 else []
        )
        assert read(folder) == ids
        assert set_names(folder) == ["train"]


def test_the_layout_is_that_of_shared_tokens(tmp_path: Path) -> None:
    """Byte by byte: 1 KiB of header that `head -c` shows, then little-endian ids."""
    write(tmp_path, [1, 256, 299])
    data = (tmp_path / "train-00000.tokens").read_bytes()
    assert data[1024:] == bytes([1, 0, 0, 1, 43, 1])
    assert data[:11] == b"mle-tokens\n"
    assert data[1022:1024] == b" \n"
    sha256 = hashlib.sha256(data[1024:]).hexdigest()
    kind = {"schema": 1, "dtype": "uint16", "vocab_size": 300, "tokenizer_sha256": DIGEST}
    assert json.loads(data[11:1024]) == kind | {"count": 3, "sha256": sha256}
    shard = {"file": "train-00000.tokens", "count": 3, "sha256": sha256}
    index = {"format": "mle-tokens"} | kind | {"count": 3, "shards": [shard]}
    assert (tmp_path / "train.json").read_text() == json.dumps(index, indent=2) + "\n"


def test_the_type_is_the_smallest_that_holds_every_id(tmp_path: Path) -> None:
    """Two bytes up to 65,536 ids."""
    assert [dtype_for(n) for n in (1, 2**16, 2**16 + 1)] == ["uint16", "uint16", "uint32"]
    write(tmp_path, [65536, 0], vocab_size=2**16 + 1)
    data = (tmp_path / "train-00000.tokens").read_bytes()
    assert data[1024:] == bytes([0, 0, 1, 0, 0, 0, 0, 0])
    assert read(tmp_path) == [65536, 0]


def test_a_set_that_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    """And then wholly: shards that the new set does not have go too."""
    write(tmp_path, list(range(12)))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"train.json exists.*--force"):
        write(tmp_path, [1])
    assert files(tmp_path) == before
    write(tmp_path, [1], replace=True)
    assert sorted(files(tmp_path)) == ["train-00000.tokens", "train.json"]
    assert read(tmp_path) == [1]


def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """An older set is still whole, a new folder is gone, no temporary file is left."""
    folder = tmp_path / "old"
    write(folder, list(range(12)))
    before = files(folder)
    with pytest.raises(DataError, match="id 300 is not below vocab_size=300"):
        write(folder, [*range(20), 300], replace=True)
    assert files(folder) == before
    with pytest.raises(DataError):
        write(tmp_path / "new", [*range(20), 300])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failing", range(6))
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever sync before the index is in place is the one to fail; exit code 5."""
    synced, calls = os.fsync, iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="cannot be written: No space left on device"):
        write(tmp_path / "new", list(range(12)))
    assert not (tmp_path / "new").exists()


OLD, NEW = list(range(12)), list(range(100, 108))
"""Three shards, and two that take the place of them."""


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, fail: Callable[[], None]) -> list[str]:
    """Call `fail` instead of one of the operations on the disk; return what was called."""
    called: list[str] = []

    def wrapped(name: str, operation: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            called.append(name)
            if len(called) == number:
                fail()
            operation(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "unlink"):
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    return called


def no_space() -> None:
    """Be a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def ctrl_c() -> None:
    """Be an impatient user."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [no_space, ctrl_c])
def test_an_error_at_any_moment_leaves_the_old_set_or_the_new_one(
    tmp_path: Path, fail: Callable[[], None]
) -> None:
    """Whole, and nothing else; an error that is told leaves the old one."""
    write(tmp_path / "whole", NEW)
    whole = files(tmp_path / "whole")
    outcomes = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        write(folder, OLD)
        before = files(folder)
        with pytest.MonkeyPatch.context() as patch:
            called = fail_at(patch, number, fail)
            try:
                write(folder, NEW, replace=True)
                told = False
            except (ResourceError, KeyboardInterrupt):
                told = True
        after = {name: data for name, data in files(folder).items() if not name.endswith(".old")}
        assert after == (before if told and before == after else whole)
        if fail is no_space:
            assert (after == before) == told
        outcomes.append(told)
        if len(called) < number:
            break
    assert sum(outcomes) >= 12
    assert outcomes[-1] is False


def test_a_kill_at_any_moment_leaves_a_set_that_the_next_writer_puts_back(tmp_path: Path) -> None:
    """No mixture of two sets can be read; a set without an index is the old one's parts."""
    read_after = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        write(folder, OLD)
        if not (child := os.fork()):
            with pytest.MonkeyPatch.context() as patch:
                fail_at(patch, number, lambda: os._exit(9))
                write(folder, NEW, replace=True)
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if (folder / INDEX).exists():
            read_after.append(read(folder))
        with pytest.raises(UsageError, match=r"train.json exists"):
            write(folder, [1])
        assert read(folder) in (OLD, NEW)
        with pytest.raises(DataError):
            write(folder, [300], replace=True)
        names = [FIRST, SECOND, INDEX] + ["train-00002.tokens"] * (read(folder) == OLD)
        assert set(names) <= set(files(folder))
        assert not [name for name in files(folder) if name.startswith(".")]
        if code == 0:
            break
    assert code == 0
    assert OLD in read_after
    assert read_after[-1] == NEW
    assert all(ids in (OLD, NEW) for ids in read_after)


def test_a_set_is_put_back_index_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a second kill, while it is put back, leaves no index either."""
    write(tmp_path, OLD)
    for path in list(tmp_path.iterdir()):
        path.replace(path.with_name(f".{path.name}.old"))
    listed = sorted(tmp_path.iterdir(), reverse=True)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    replace, put_back = os.replace, list[str]()

    def noted(source: Path, target: Path) -> None:
        put_back.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with pytest.raises(UsageError, match=r"train.json exists"):
        write(tmp_path, NEW)
    assert put_back == [FIRST, SECOND, "train-00002.tokens", INDEX]
    assert read(tmp_path) == OLD


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    """Those of this set only, and first of all, as they may fill the disk."""
    stale = [".train-00000.tokens.12ab34cd.tmp", ".train.json.00ff00ff.tmp"]
    others = [".val-00000.tokens.12ab34cd.tmp", ".train-x-00000.tokens.12ab34cd.tmp"]
    for name in stale + others:
        (tmp_path / name).touch()
    with ShardWriter(tmp_path, "train", vocab_size=9, tokenizer_sha256=DIGEST):
        assert sorted(files(tmp_path)) == sorted(others)
    assert sorted(files(tmp_path)) == sorted([*others, "train.json"])


def test_two_writers_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told; the first goes on."""
    with ShardWriter(tmp_path, "a", vocab_size=9, tokenizer_sha256=DIGEST) as writer:
        with pytest.raises(ResourceError, match="another process is writing tokens there"):
            write(tmp_path, [1])
        writer.append(np.array([8]))
    assert set_names(tmp_path) == ["a"]
    write(tmp_path, [1])
    assert set_names(tmp_path) == ["a", "train"]


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file for a folder, a name with a slash, shards of nothing."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file; token shards need a folder"):
        write(tmp_path / "file", [1])
    for name in ("../train", "", ".train"):
        with pytest.raises(UsageError, match="cannot name a set of tokens"):
            ShardWriter(tmp_path, name, vocab_size=9, tokenizer_sha256=DIGEST)
    with pytest.raises(UsageError, match="shard_tokens=0 must be at least 1"):
        ShardWriter(tmp_path, "a", vocab_size=9, tokenizer_sha256=DIGEST, shard_tokens=0)


def change(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes that are there; the size of a shard's header is kept."""
    data = path.read_bytes()
    assert old in data
    data = data.replace(old, new, 1)
    if path.suffix == ".tokens" and len(old) < len(new):
        data = data.replace(b" " * (len(new) - len(old)), b"", 1)
    path.write_bytes(data)


FIRST, SECOND, INDEX = "train-00000.tokens", "train-00001.tokens", "train.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: os.truncate(d / SECOND, HEADER_BYTES + 8), "00001.tokens: truncated, 1032 byt"),
        (lambda d: os.truncate(d / FIRST, 100), "00000.tokens: its header is torn"),
        (lambda d: os.truncate(d / FIRST, 0), "00000.tokens: not a token shard"),
        (lambda d: (d / SECOND).unlink(), "00001.tokens cannot be read: No such file"),
        (lambda d: change(d / FIRST, b"\x01\x00\x02\x00", b"\x01\x00\x03\x00"), "altered since"),
        (lambda d: (d / FIRST).replace(d / SECOND), "cannot be read: No such file"),
        (lambda d: (d / SECOND).write_bytes((d / FIRST).read_bytes()), "its sha256 is not the one"),
        (lambda d: change(d / FIRST, b'": 300', b'": 301'), "its vocab_size is not the one"),
        (lambda d: change(d / FIRST, b'"abab', b'"bbab'), "its tokenizer_sha256 is not the one"),
        (lambda d: change(d / FIRST, b"uint16", b"uint32"), "field dtype is missing or wrong"),
        (lambda d: change(d / FIRST, b'a": 1', b'a": 2'), "written by a newer version .schema 2"),
        (lambda d: os.truncate(d / INDEX, 100), "train.json: not valid JSON"),
        (lambda d: (d / INDEX).write_text("[" * 100_000), "train.json: not valid JSON"),
        (lambda d: (d / INDEX).write_text("{}"), "train.json: not an index of token shards"),
        (lambda d: os.truncate(d / INDEX, 2**27), "train.json: too large"),
        (lambda d: change(d / INDEX, b"train-00001", b"../x"), "its entry for shard 1 is wrong"),
        (lambda d: change(d / INDEX, b'"count": 10', b'"count": 11'), "do not add up to 11 ids"),
        (lambda d: change(d / INDEX, b'"count": 10', b'"count": -1'), "field count is missing or"),
        (lambda d: change(d / INDEX, b'": 300', b'": 2.5'), "field vocab_size is missing or"),
        (lambda d: change(d / INDEX, b'a": 1', b'a": 2'), "written by a newer version .schema 2"),
        (lambda d: change(d / INDEX, b'"shards": [', b'"shards": 1, "x": ['), "entry for shard 0"),
    ],
)
def test_a_torn_set_is_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Whatever is wrong with it; exit code 4."""
    write(tmp_path, list(range(10)))
    damage(tmp_path)
    with pytest.raises(TokenizerFileError, match=message):
        read(tmp_path)


def test_a_set_without_its_index_is_none(tmp_path: Path) -> None:
    """The index is written last, so this is a set that was never finished."""
    write(tmp_path, [1])
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / INDEX).unlink()
    assert set_names(tmp_path) == []
    with pytest.raises(UsageError, match=r"train.json cannot be read"):
        read(tmp_path)

"""Token shards: what is written is read, what is damaged is refused, windows cover the text."""

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared import cli, faults, files, tokens
from shared.errors import ArtefactError, DataError, ResourceError, UsageError
from shared.sampler import Sampler
from shared.tokens import (
    HEADER_BYTES,
    MAGIC,
    EvalWindows,
    ShardWriter,
    Tokens,
    TokenWindows,
    dtype_for,
    header_bytes,
    verify_shards,
)

DIGEST = "ab" * 32
IDS = np.random.default_rng(0).integers(0, 500, size=250)


def write(
    folder: Path,
    ids: npt.ArrayLike = IDS,
    name: str = "train",
    vocab_size: int = 512,
    shard_tokens: int = 100,
) -> Tokens:
    """Write a set of tokens, three shards by default, and open it."""
    with ShardWriter(
        folder, name, vocab_size=vocab_size, tokenizer_sha256=DIGEST, shard_tokens=shard_tokens
    ) as writer:
        writer.append(np.asarray(ids))
    return Tokens.open(folder, name)


def append_all(writer: ShardWriter, *pieces: Any) -> None:
    for piece in pieces:
        writer.append(piece)


def change_header(path: Path, **fields: object) -> None:
    """Rewrite fields of a shard's header."""
    data = path.read_bytes()
    header = json.loads(data[len(MAGIC) : HEADER_BYTES])
    path.write_bytes(header_bytes(header | fields) + data[HEADER_BYTES:])


def change_index(folder: Path, fields: dict[str, object]) -> None:
    """Rewrite fields of an index."""
    path = folder / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- Writing and reading


@given(
    ids=st.lists(st.integers(0, 299), max_size=80),
    shard_tokens=st.integers(1, 90),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    vocab_size=st.sampled_from([300, 2**16, 2**16 + 1, 2**32]),
    span=st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
@example(ids=list(range(10)), shard_tokens=4, cuts=[3], vocab_size=300, span=(2, 9))
@settings(deadline=None, max_examples=60)
def test_reading_gives_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[int],
    shard_tokens: int,
    cuts: list[int],
    vocab_size: int,
    span: tuple[int, int],
) -> None:
    """Any span equals the same span of the list, whatever the shards and the appended pieces."""
    folder = tmp_path_factory.mktemp("tokens")
    with ShardWriter(
        folder, "x", vocab_size=vocab_size, tokenizer_sha256=DIGEST, shard_tokens=shard_tokens
    ) as writer:
        edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
        for start, stop in itertools.pairwise(edges):
            writer.append(ids[start:stop])
    read = Tokens.open(folder, "x", vocab_size=vocab_size, tokenizer_sha256=DIGEST)
    start, stop = sorted(edge % (len(ids) + 1) for edge in span)
    assert len(read) == len(ids)
    assert read.read(start, stop - start).tolist() == ids[start:stop]
    assert read.read(0, len(ids)).dtype == (np.uint16 if vocab_size <= 2**16 else np.uint32)
    assert len(list(folder.glob("*.tokens"))) == -(-len(ids) // shard_tokens)
    assert verify_shards(folder) == []


@pytest.mark.parametrize("shard_tokens", [7, 50, 100, 250, 1000])
def test_gather_equals_reading_each_window(tmp_path: Path, shard_tokens: int) -> None:
    """Rows within shards and across their edges hold the tokens from their start on."""
    read = write(tmp_path, shard_tokens=shard_tokens)
    random = np.random.default_rng(shard_tokens)
    for n in [0, 1, 2, 12] * 5:
        width = int(random.integers(1, 11))
        starts = random.integers(0, 251 - width, size=n)
        rows = read.gather(starts, width)
        assert rows.tolist() == [IDS[start : start + width].tolist() for start in starts]


def test_a_person_can_read_the_header(tmp_path: Path) -> None:
    """The first 1024 bytes are text: the kind of file, then its fields as JSON."""
    write(tmp_path)
    head = (tmp_path / "train-00002.tokens").read_bytes()[:1024].decode("ascii")
    assert head.startswith("mle-tokens\n{")
    assert head.endswith(" \n")
    fields = json.loads(head.removeprefix("mle-tokens\n"))
    assert (fields["dtype"], fields["count"], fields["vocab_size"]) == ("uint16", 50, 512)
    assert fields["tokenizer_sha256"] == DIGEST


def test_ids_are_stored_little_endian(tmp_path: Path) -> None:
    """The file is the same on any machine."""
    write(tmp_path, [1, 258])
    assert (tmp_path / "train-00000.tokens").read_bytes()[1024:] == b"\x01\x00\x02\x01"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")]
)
def test_the_smallest_type_is_chosen(vocab_size: int, dtype: str) -> None:
    """65,536 ids fit two bytes; one more does not."""
    assert dtype_for(vocab_size) == dtype


@pytest.mark.parametrize("vocab_size", [0, 2**32 + 1])
def test_an_impossible_vocabulary_is_refused(vocab_size: int, tmp_path: Path) -> None:
    """There must be an id, and 32 bits must hold them all."""
    with pytest.raises(UsageError, match=f"vocab_size={vocab_size} must be"):
        ShardWriter(tmp_path, "x", vocab_size=vocab_size, tokenizer_sha256=DIGEST)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    """A set's name becomes file names, so it can't be a path."""
    with pytest.raises(UsageError, match="cannot name a set of tokens"):
        ShardWriter(tmp_path, name, vocab_size=9, tokenizer_sha256=DIGEST)


def test_bad_sizes_of_shard_and_header_are_refused(tmp_path: Path) -> None:
    """A shard holds at least one token, and a header's fields must fit it."""
    with pytest.raises(UsageError, match="shard_tokens=0"):
        ShardWriter(tmp_path, "x", vocab_size=9, tokenizer_sha256=DIGEST, shard_tokens=0)
    with (
        pytest.raises(UsageError, match="is too long"),
        ShardWriter(tmp_path, "x", vocab_size=9, tokenizer_sha256="x" * 1000) as writer,
    ):
        writer.append([1])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 512], "id 512 at token 5 of train is outside the vocabulary of 0 to 511"),
        ([-1], "id -1 at token 3"),
        ([1, 2**70], f"id {2**70} at token 4"),
        (np.array([2**64 - 1], dtype=np.uint64), "id 18446744073709551615 at token 3"),
        ([1.5], "flat list of whole numbers, got float64"),
        ([[1], [2]], r"flat list of whole numbers, got int64 \(2, 1\)"),
        (["a"], "flat list of whole numbers"),
    ],
)
def test_an_id_that_is_none_is_refused_when_written(tmp_path: Path, ids: Any, message: str) -> None:
    """The message says which id and where; nothing of the set is kept."""
    writer = ShardWriter(tmp_path, "train", vocab_size=512, tokenizer_sha256=DIGEST, shard_tokens=2)
    with pytest.raises(DataError, match=message), writer:
        append_all(writer, [1, 2, 3], ids)
    assert list(tmp_path.iterdir()) == []


def test_writing_and_reading_take_bounded_memory(tmp_path: Path) -> None:
    """8 million ids (16 MB) pass through in less than 10 MB, written, checked and read."""
    piece = np.arange(2**22) % 2**16
    write(tmp_path / "warm")  # imports and caches
    tracemalloc.start()
    try:
        with ShardWriter(tmp_path, "x", vocab_size=2**16, tokenizer_sha256=DIGEST) as writer:
            for _ in range(2):
                writer.append(piece)
        read = Tokens.open(tmp_path, "x")
        assert read.read(2**20, 3).tolist() == [0, 1, 2]
        assert len(read.read(0, len(read))) == 2**23
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    """The mapping is read-only, so no bug can alter the files."""
    with pytest.raises(ValueError, match="read-only"):
        write(tmp_path).read(0, 5)[0] = 1


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 251), (251, 0), (5, -1)])
def test_reading_beyond_the_tokens_is_refused(tmp_path: Path, start: int, count: int) -> None:
    """A span must lie within the set."""
    with pytest.raises(IndexError, match="of 250"):
        write(tmp_path).read(start, count)


@pytest.mark.parametrize("start", [-1, 246])
@pytest.mark.parametrize("shard_tokens", [100, 1000])
def test_gathering_beyond_the_tokens_is_refused(
    tmp_path: Path, start: int, shard_tokens: int
) -> None:
    """Every window must lie within the set; a negative start does not count from the end."""
    read = write(tmp_path, shard_tokens=shard_tokens)
    assert read.gather(np.array([245]), 5).tolist() == [IDS[245:].tolist()]
    with pytest.raises(IndexError, match="beyond the 250 tokens"):
        read.gather(np.array([0, start]), 5)


def test_a_set_is_replaced_whole(tmp_path: Path) -> None:
    """A shorter set under the same name leaves no shard of the longer one, nor of a killed one."""
    write(tmp_path)
    write(tmp_path, name="train-a")
    leftover = tmp_path / ".train-00003.tokens.1-1.tmp"
    other = tmp_path / ".train-a-00003.tokens.1-1.tmp"
    for path in (leftover, other):
        path.touch()
    assert len(write(tmp_path, IDS[:150])) == 150
    assert sorted(path.name for path in tmp_path.glob("train-0*")) == [
        "train-00000.tokens",
        "train-00001.tokens",
    ]
    assert not leftover.exists()
    assert other.exists()
    assert len(Tokens.open(tmp_path, "train-a")) == 250


def test_a_failure_at_any_operation_leaves_no_set_or_a_whole_one(tmp_path: Path) -> None:
    """Each write, fsync and rename failing in turn gives ResourceError and an unusable name."""
    failed = 0
    while True:
        folder = tmp_path / str(failed)
        try:
            with faults.fail_nth(failed + 1, OSError(28, "No space left on device")):
                write(folder)
        except ResourceError:
            left = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
            # The last operation only makes the finished index safe from a power cut.
            assert left == [] or Tokens.open(folder, "train").read(0, 250).tolist() == IDS.tolist()
            failed += 1
        else:
            break
    assert failed > 15


def test_a_full_disk_while_appending_is_a_resource_error(tmp_path: Path) -> None:
    """The system's own refusal, met in the middle of a shard, removes what was written."""
    resource = pytest.importorskip("resource", reason="limits of a process are a Unix matter")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*train-00000\.tokens"):
            write(tmp_path, np.zeros(2**21, dtype=np.int64), shard_tokens=2**27)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_set_cut_off_by_a_kill_is_no_set(tmp_path: Path) -> None:
    """Shards without the index, which comes last, are refused and reported."""
    write(tmp_path)
    (tmp_path / "train.json").unlink()
    with pytest.raises(ArtefactError, match=r"train\.json: missing; these tokens were never"):
        Tokens.open(tmp_path, "train")
    (problem,) = verify_shards(tmp_path)
    assert "train.json: missing" in problem


# --- Damage

SHARD = "train-00001.tokens"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda folder: truncate(folder / SHARD, 1),
        "truncated, 1223 bytes where 1224 were written",
    ),
    "cut within the header": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:300]),
        "truncated, 300 bytes where 1224",
    ),
    "empty": (lambda folder: (folder / SHARD).write_bytes(b""), "not a token shard"),
    "longer": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes() + b"\0"),
        "too long, 1225 bytes where 1224 were written",
    ),
    "missing": (
        lambda folder: (folder / SHARD).unlink(),
        "missing, though train.json lists it",
    ),
    "foreign": (
        lambda folder: (folder / SHARD).write_bytes(b"PK\3\4" + bytes(1220)),
        "not a token shard .it begins with b'PK",
    ),
    "torn header": (
        lambda folder: (folder / SHARD).write_bytes(MAGIC + b"{" + bytes(1212)),
        "its header is torn",
    ),
    "nested header": (
        lambda folder: (folder / SHARD).write_bytes(MAGIC + b"[" * 1213),
        "its header is torn",
    ),
    "header without fields": (
        lambda folder: (folder / SHARD).write_bytes(MAGIC + b"[]".ljust(1213)),
        "holds no fields",
    ),
    "wrong dtype": (
        lambda folder: change_header(folder / SHARD, dtype="uint32"),
        "wrong dtype 'uint32'; 512 ids are kept as uint16",
    ),
    "unknown dtype": (
        lambda folder: change_header(folder / SHARD, dtype="float16"),
        "wrong dtype 'float16'",
    ),
    "newer schema": (
        lambda folder: change_header(folder / SHARD, schema=2),
        r"written by a newer version \(schema 2, this one reads 1\)",
    ),
    "no schema": (lambda folder: change_header(folder / SHARD, schema=0), "its field schema"),
    "negative count": (
        lambda folder: change_header(folder / SHARD, count=-1),
        "its field count is missing or wrong",
    ),
    "impossible vocabulary": (
        lambda folder: change_header(folder / SHARD, vocab_size=0),
        "impossible vocab_size 0",
    ),
    "another vocabulary": (
        lambda folder: change_header(folder / SHARD, vocab_size=513),
        "not the shard that train.json lists",
    ),
    "another tokenizer": (
        lambda folder: change_header(folder / SHARD, tokenizer_sha256="cd" * 32),
        r"made by another tokenizer than the rest \(cdcdcdcdcdcd, not abababababab\)",
    ),
    "swapped": (
        lambda folder: (folder / SHARD).write_bytes((folder / "train-00000.tokens").read_bytes()),
        "not the shard that train.json lists",
    ),
    "altered": (lambda folder: flip(folder / SHARD, 1100), "altered since it was written"),
}


def truncate(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_case_26_a_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    """Opening raises ArtefactError (exit 4) that names the shard and says what is wrong."""
    write(tmp_path)
    harm, message = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(ArtefactError, match=rf"train-00001\.tokens: {message}") as caught:
        Tokens.open(tmp_path, "train")
    assert caught.value.exit_code == 4
    assert verify_shards(tmp_path, "train") == [str(caught.value)]
    if damage != "altered":  # headers and sizes are checked in any case
        with pytest.raises(ArtefactError, match=rf"train-00001\.tokens: {message}"):
            Tokens.open(tmp_path, "train", verify=False)


def test_case_26_an_id_outside_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    """A shard whose digest holds but whose writer knew another vocabulary names its largest id."""
    ids = IDS.copy()
    ids[130] = 511
    write(tmp_path, ids)
    for number in range(3):
        change_header(tmp_path / f"train-0000{number}.tokens", vocab_size=511)
    change_index(tmp_path, {"vocab_size": 511})
    message = r"train-00001\.tokens: holds id 511, outside the vocabulary of 0 to 510"
    with pytest.raises(ArtefactError, match=message):
        Tokens.open(tmp_path, "train")
    assert len(Tokens.open(tmp_path, "train", verify=False)) == 250


def test_case_26_verify_finds_all_in_one_pass(tmp_path: Path) -> None:
    """Damage to several shards, sets and indexes is told together, a line each."""
    write(tmp_path)
    for name in ("a", "b", "c"):
        write(tmp_path, name=name)
    write(tmp_path, [1, 2, 3], name="fine")
    (tmp_path / "config.json").write_text('{"seed": 1}')  # no set of tokens, nobody's problem
    truncate(tmp_path / "train-00000.tokens", 2)
    change_header(tmp_path / "train-00001.tokens", dtype="uint32")
    (tmp_path / "train-00002.tokens").unlink()
    (tmp_path / "a.json").write_text('{"torn')
    for path in tmp_path.glob("b-*.tokens"):
        path.unlink()
    (tmp_path / "c-00003.tokens").touch()
    assert [
        problem.removeprefix(str(tmp_path))[1:][:30] for problem in verify_shards(tmp_path)
    ] == [
        "a.json: not valid JSON (Unterm",
        "b-00000.tokens: missing, thoug",
        "b-00001.tokens: missing, thoug",
        "b-00002.tokens: missing, thoug",
        "c-00003.tokens: not listed in ",
        "train-00000.tokens: truncated,",
        "train-00001.tokens: wrong dtyp",
        "train-00002.tokens: missing, t",
    ]
    with pytest.raises(ArtefactError, match=r"00000\.tokens: truncated.* \(and 2 more files\)"):
        Tokens.open(tmp_path, "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "not an index of token shards"),
        ({"schema": 9}, "written by a newer version"),
        ({"count": 249}, "its shards do not add up to its 249 tokens"),
        ({"shards": []}, "its shards do not add up to its 250 tokens"),
        ({"shards": None}, "its entry for shard 0 is wrong"),
        ({"shards": [{"file": "../x", "count": 250, "sha256": ""}]}, "its entry for shard 0"),
        ({"shards": [{"file": "train-00000.tokens", "count": 0, "sha256": ""}]}, "its entry"),
        ({"shards": [{"file": "train-00000.tokens", "count": 1}]}, "its entry for shard 0"),
        ({"vocab_size": True}, "its field vocab_size is missing or wrong"),
        ({"tokenizer_sha256": None}, "its field tokenizer_sha256 is missing or wrong"),
    ],
)
def test_a_damaged_index_is_refused(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    """An index is checked field by field, and its files can't lie elsewhere."""
    write(tmp_path)
    change_index(tmp_path, fields)
    with pytest.raises(ArtefactError, match=rf"train\.json: {message}"):
        Tokens.open(tmp_path, "train")


@given(place=st.integers(0, 1024 + 199), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=100)
def test_case_26_any_flipped_bit_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    """A flip anywhere in a shard is refused, or (in the header's padding) changes no token."""
    folder = tmp_path_factory.mktemp("tokens")
    write(folder)
    data = bytearray((folder / SHARD).read_bytes())
    data[place] ^= 1 << bit
    (folder / SHARD).write_bytes(data)
    problems = verify_shards(folder)
    if problems:
        assert len(problems) == 1
        assert SHARD in problems[0]
    else:
        assert place < HEADER_BYTES
        assert Tokens.open(folder, "train").read(0, 250).tolist() == IDS.tolist()


def test_case_22_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    """A digest mismatch is told as such (exit 4), not as an index out of range in training."""
    write(tmp_path)
    assert len(Tokens.open(tmp_path, "train", tokenizer_sha256=DIGEST)) == 250
    with pytest.raises(ArtefactError, match=r"another tokenizer \(abab.*, not cdcd.*\); encode"):
        Tokens.open(tmp_path, "train", tokenizer_sha256="cd" * 32, verify=False)


def test_case_22_tokens_of_a_larger_vocabulary_are_refused(tmp_path: Path) -> None:
    """A model may know more ids than the tokenizer (padding), never fewer."""
    write(tmp_path)
    assert len(Tokens.open(tmp_path, "train", vocab_size=576)) == 250
    with pytest.raises(ArtefactError, match="a vocabulary of 512 ids, more than the 511 asked"):
        Tokens.open(tmp_path, "train", vocab_size=511, verify=False)


# --- Windows


def test_windows_lie_next_to_each_other(tmp_path: Path) -> None:
    """Example i has block_size inputs from i * block_size on, and the targets one token later."""
    windows = TokenWindows(write(tmp_path, range(10)), 3)
    assert len(windows) == 3
    idx, targets = windows.batch(np.array([2, 0]), np.array([0, 7]))
    assert idx.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert targets.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert idx.dtype == targets.dtype == torch.int64
    assert idx.is_contiguous()
    assert targets.is_contiguous()
    assert windows.weight((idx, targets)) == 6


@given(
    n=st.integers(5, 250),
    block_size=st.integers(1, 40),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    epoch=st.integers(0, 2**53),
)
@settings(deadline=None, max_examples=50)
def test_every_window_of_every_epoch_lies_inside(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    block_size: int,
    seed: int | None,
    epoch: int,
) -> None:
    """An epoch's windows are next to each other from its offset on and leave little out."""
    block_size = min(block_size, n - 1)
    ids = np.arange(n)
    windows = TokenWindows(
        write(tmp_path_factory.mktemp("tokens"), ids), block_size, jitter_seed=seed
    )
    count, offset = len(windows), windows.offset(epoch)
    idx, targets = windows.batch(np.arange(count), np.full(count, epoch))
    assert 0 <= offset < block_size
    assert idx.flatten().tolist() == list(range(offset, offset + count * block_size))
    assert torch.equal(targets, idx + 1)
    assert n - count * block_size < 2 * block_size + 1


def test_jitter_moves_each_epoch_and_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    """All offsets come equally often; each is the same whenever and with whomever it is asked."""
    read = write(tmp_path)
    windows = TokenWindows(read, 8, jitter_seed=5)
    epochs = np.arange(4000)
    offsets = windows.batch(np.zeros(4000, dtype=np.int64), epochs)[0][:, 0]
    first = {int(token): i for i, token in reversed(list(enumerate(IDS[:8].tolist())))}
    assert len(first) == 8
    found = np.array([first[int(token)] for token in offsets])
    assert np.bincount(found, minlength=8).min() > 400
    assert np.bincount(found[1:] * 8 + found[:-1], minlength=64).min() > 30
    again = TokenWindows(read, 8, jitter_seed=5)
    assert [again.offset(int(e)) for e in epochs[::-1]] == found[::-1].tolist()
    other = TokenWindows(read, 8, jitter_seed=6)
    assert [other.offset(int(e)) for e in epochs[:50]] != found[:50].tolist()


def test_jitter_is_independent_of_the_sampler_with_the_same_seed(tmp_path: Path) -> None:
    """One seed may serve both: an epoch's offset says nothing about its first example."""
    windows = TokenWindows(write(tmp_path), 8, jitter_seed=5)
    sampler = Sampler(8, seed=5)
    pairs = [windows.offset(e) * 8 + sampler.draw(e * 8, 1)[0][0] for e in range(6400)]
    assert np.bincount(pairs, minlength=64).min() > 60
    assert np.bincount(pairs, minlength=64).max() < 150


def test_the_order_of_offsets_never_changes_between_versions(tmp_path: Path) -> None:
    """Golden values: other offsets would make old checkpoints resume on other text."""
    windows = TokenWindows(write(tmp_path), 100, jitter_seed=1)
    assert [windows.offset(epoch) for epoch in range(5)] == [71, 89, 94, 82, 50]


@given(n=st.integers(2, 250), block_size=st.integers(1, 300), batch=st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_evaluation_sees_every_target_once(
    tmp_path_factory: pytest.TempPathFactory, n: int, block_size: int, batch: int
) -> None:
    """Targets are all tokens but the first, each with the token before it; the rest is padding."""
    windows = EvalWindows(write(tmp_path_factory.mktemp("tokens"), IDS[:n]), block_size)
    pairs: list[tuple[int, int]] = []
    weight = 0.0
    for start in range(0, len(windows), batch):
        indices = np.arange(start, min(start + batch, len(windows)))
        idx, targets = windows.batch(indices, np.zeros_like(indices))
        assert idx.shape == targets.shape == (len(indices), block_size)
        assert (idx[targets == -100] == 0).all()
        real = targets != -100
        pairs += zip(idx[real].tolist(), targets[real].tolist(), strict=True)
        weight += windows.weight((idx, targets))
    assert pairs == list(zip(IDS[: n - 1].tolist(), IDS[1:n].tolist(), strict=True))
    assert weight == n - 1


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    """The message says how many are there and how many it takes."""
    read = write(tmp_path, range(8))
    with pytest.raises(DataError, match="8 tokens are too few for one window of block_size=8"):
        TokenWindows(read, 8)
    with pytest.raises(DataError, match=r"1 tokens are too few .* takes 2"):
        EvalWindows(write(tmp_path, [1]), 8)
    with pytest.raises(UsageError, match="block_size=0"):
        TokenWindows(read, 0)
    assert len(TokenWindows(read, 7, jitter_seed=1)) == 1


# --- The command line


def test_case_26_the_command_tells_every_problem_and_exits_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` prints a line for each problem, and 0 and a line when all is well."""
    write(tmp_path)
    verbs = {"verify": tokens.verify, "info": tokens.info}
    assert cli.execute(verbs, ["verify", str(tmp_path)]) == 0
    assert "all 1 sets are as they were written" in capsys.readouterr().out
    truncate(tmp_path / "train-00000.tokens", 2)
    (tmp_path / "train-00002.tokens").unlink()
    assert cli.execute(verbs, ["verify", str(tmp_path)]) == 4
    out, err = capsys.readouterr()
    assert [line.split(": ")[1].split(",")[0] for line in out.splitlines()] == [
        "truncated",
        "missing",
    ]
    assert "2 problems" in err
    assert cli.execute(verbs, ["verify", str(tmp_path / "nowhere")]) == 2
    empty = tmp_path / "empty"
    files.make_folder(empty)
    assert cli.execute(verbs, ["verify", str(empty)]) == 4
    assert "holds no token shards" in capsys.readouterr().out


def test_info_is_a_command_that_describes_each_set(tmp_path: Path) -> None:
    """`python -m shared.tokens info` shows size, type and tokenizer, and what can't be read."""
    write(tmp_path)
    (tmp_path / "other-00000.tokens").touch()
    done = subprocess.run(
        [sys.executable, "-m", "shared.tokens", "info", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "300"},
    )
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if "│" in line}
    for word in ("250", "3", "uint16", "512", "abababababab"):
        assert word in lines["train"]
    assert "missing" in lines["other"]

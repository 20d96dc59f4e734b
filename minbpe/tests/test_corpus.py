"""Counting pre-tokens: from texts and files of any size, in any number of processes."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from minbpe import corpus, counting, probe
from minbpe.corpus import count_words, list_files
from minbpe.counting import BatchCounter, WordCounter
from minbpe.datasets import DATA_SETS, find_corpus
from minbpe.errors import DataError, ResourceError, TokenizerFileError, UsageError
from minbpe.pretokens import PATTERNS, Splitter
from minbpe.probe import check_pattern

BITS = (
    *("a", "Ab", "it's", "12345", "!", "?/", ".", ",", "_", "'", " ", " ", "  ", "\n", "\n\n"),
    *("\t", "\r\n", "é", "ß", "中文。", "日本、", "한국", "\u3000", "\x1c", "e\u0301", "²", "😀"),
)


def random_text(rng: random.Random, size: int) -> str:
    """Draw words, punctuation and every kind of space."""
    return "".join(rng.choices(BITS, k=size))


def write(path: Path, text: str) -> Path:
    """Write UTF-8 with the line ends as they are."""
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", PATTERNS)
def test_counts_and_order_are_those_of_the_whole_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the parts that a file is read, cut and counted in."""
    monkeypatch.setattr(counting, "BLOCK", 8)
    rng = random.Random(name)
    for number in range(300):
        text = random_text(rng, rng.choice((5, 50, 300)))
        monkeypatch.setattr(corpus, "BATCH", rng.choice((1, 40)))
        monkeypatch.setattr(counting, "MAX_PIECES", rng.choice((0, 5, 1000)))
        monkeypatch.setattr("minbpe.documents.READ_BYTES", rng.choice((1, 7, 100)))
        expected = list(Counter(Splitter(PATTERNS[name]).split(text)).items())
        assert list(count_words(text, PATTERNS[name]).items()) == expected, (number, text)
        path = write(tmp_path / "text", text)
        assert list(count_words(path, PATTERNS[name]).items()) == expected, (number, text)


def test_a_text_without_spaces_is_cut_at_ends_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chinese has neither spaces nor short lines; it must not be read whole."""
    monkeypatch.setattr(corpus, "BATCH", 100)
    monkeypatch.setattr("minbpe.documents.READ_BYTES", 300)
    path = write(tmp_path / "text", "第一，第二。" * 5000)
    batches = list(corpus._batches([path], corpus._cutter(PATTERNS["gpt4"]), None))
    assert max(len(text) for batch in batches for text in batch) < 5000


@pytest.mark.parametrize("pattern", [PATTERNS["o200k"], r"\w+|\s+(?=\d)", None])
def test_the_number_of_workers_does_not_matter(
    pattern: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to the counts nor to the order of first appearance."""
    monkeypatch.setattr(corpus, "BATCH", 500)
    rng = random.Random(1)
    sources: list[str | Path] = [random_text(rng, 300) for _ in range(10)]
    sources.insert(3, write(tmp_path / "text", random_text(rng, 4000)))
    expected = list(count_words(sources, pattern).items())
    for workers in (1, 3):
        assert list(count_words(sources, pattern, workers).items()) == expected


def test_files_are_texts_of_their_own_packed_or_json_lines(tmp_path: Path) -> None:
    """No pre-token spans two; a folder is read in order, without what is hidden or empty."""
    texts = [f"number {k} of" for k in range(6)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(texts[0].encode()))
    (tmp_path / "b.bz2").write_bytes(bz2.compress(texts[1].encode()))
    (tmp_path / "c.gz").write_bytes(gzip.compress(texts[2].encode()))
    write(tmp_path / "d.jsonl", f'{{"text": "{texts[3]}"}}\n\n{{"text": "{texts[4]}", "id": 1}}\n')
    write(tmp_path / "sub" / "e.txt", texts[5])
    write(tmp_path / ".hidden", "hidden")
    (tmp_path / "empty.txt").touch()
    listed = ["a.txt.xz", "b.bz2", "c.gz", "d.jsonl", "e.txt"]
    assert [path.name for path in list_files(tmp_path)] == listed
    expected = Counter(word for text in texts for word in Splitter(PATTERNS["gpt2"]).split(text))
    for workers in (0, 2):
        counts = count_words(tmp_path, PATTERNS["gpt2"], workers)
        assert list(counts.items()) == list(expected.items())


def test_a_users_pattern_sees_a_text_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may look anywhere; text that it leaves unmatched is kept."""
    monkeypatch.setattr(corpus, "BATCH", 10)
    text = "b" + "a b. " * 500 + "end"
    path = write(tmp_path / "text", text)
    for pattern in (r"(a)( b)(?= [^$]*end\Z)", "a.{500}", "|b"):
        assert count_words(path, pattern) == Counter(Splitter(pattern).split(text)), pattern


def test_a_text_that_may_not_be_cut_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the message says what to do; a named pattern has none."""
    monkeypatch.setattr(corpus, "BATCH", 10)
    monkeypatch.setattr("minbpe.documents.MAX_WHOLE", 100)
    path = write(tmp_path / "text", "a b " * 100)
    with pytest.raises(DataError, match=r"has more than 100 characters.*make it several files"):
        count_words(path, r"\w+|\W")
    counts = count_words(path, PATTERNS["gpt2"])
    assert counts == {"a": 1, " b": 100, " a": 99, " ": 1}


def test_a_packed_file_of_nothing_has_no_words(tmp_path: Path) -> None:
    """Not even an empty one."""
    (tmp_path / "a.xz").write_bytes(lzma.compress(b""))
    assert count_words(tmp_path, None) == {}


def test_lone_surrogates_become_replacement_characters(tmp_path: Path) -> None:
    """As in tiktoken; JSON can spell them."""
    path = write(tmp_path / "text.jsonl", '{"text": "a\\ud800"}')
    assert count_words([path, "a\udc00"], None) == {"a\ufffd": 2}


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a megabyte is counted in less than a third of that."""
    monkeypatch.setattr(corpus, "BATCH", 1 << 12)
    monkeypatch.setattr("minbpe.documents.READ_BYTES", 1 << 12)
    path = write(tmp_path / "text", "The cat sat on the mat.\n" * (1 << 14))
    tracemalloc.start()
    try:
        counts = count_words(path, PATTERNS["gpt4"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts[" cat"] == 1 << 14
    assert peak < 1 << 17


def test_memory_for_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are many different ones they become pre-tokens, and are forgotten."""
    monkeypatch.setattr(counting, "MAX_PIECES", 10)
    counter = WordCounter(PATTERNS["gpt4"])
    for number in range(100):
        counter.add([f"a{number} b"])
        assert len(counter._pieces) <= 10
    assert counter.result()["a"] == 100


def test_progress_ends_at_the_size_of_the_files(tmp_path: Path) -> None:
    """In bytes as they lie on disk, rising."""
    packed = tmp_path / "a.xz"
    packed.write_bytes(lzma.compress(b"packed " * 1000))
    plain = write(tmp_path / "b", "plain " * 1000)
    heard: list[int] = []
    count_words([packed, plain], PATTERNS["gpt4"], progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == packed.stat().st_size + plain.stat().st_size


def torn_xz(path: Path) -> None:
    """Write half of a packed file."""
    packed = lzma.compress(random.Random(0).randbytes(1000).hex().encode())
    path.write_bytes(packed[: len(packed) // 2])


@pytest.mark.parametrize(
    ("name", "write_it", "kind", "message"),
    [
        ("none.txt", Path.exists, UsageError, "none.txt cannot be read: No such file"),
        ("empty.txt", Path.touch, DataError, "empty.txt is empty"),
        ("folder", Path.mkdir, DataError, "folder holds no text files"),
        ("nul", lambda path: path.write_bytes(b"a\0b\0"), DataError, "nul holds NUL bytes"),
        ("latin", lambda path: path.write_bytes(b"ab\ncaf\xe9"), DataError, "line 2: byte 6 .0xe9"),
        ("torn.xz", torn_xz, DataError, "torn.xz cannot be unpacked: Compressed file ended"),
        ("no.gz", lambda path: path.write_bytes(b"text"), DataError, "no.gz cannot be unpacked"),
        ("no.bz2", lambda path: path.write_bytes(b"text"), DataError, "no.bz2 cannot be unpacked"),
        ("a.jsonl", lambda path: path.write_bytes(b'{"a": 1}'), DataError, "line 1: has no text"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_case_15_what_is_no_text_is_refused_by_name(
    tmp_path: Path,
    workers: int,
    name: str,
    write_it: Callable[[Path], object],
    kind: type[Exception],
    message: str,
) -> None:
    """With workers too."""
    write_it(tmp_path / name)
    with pytest.raises(kind, match=message):
        count_words(tmp_path / name, PATTERNS["gpt4"], workers)


def test_a_file_that_may_not_be_read_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions, too, are one line."""

    def refused(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        list_files(tmp_path)


def test_a_killed_worker_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the system is short of memory."""

    def die(self: BatchCounter, texts: list[str]) -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    monkeypatch.setattr(BatchCounter, "__call__", die)
    with pytest.raises(ResourceError, match="worker process was killed"):
        count_words(["text"] * 3, PATTERNS["gpt4"], 2)


# ---- Data sets


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a folder with one data set as $MLE_DATA."""
    path = write(tmp_path / "tinyshakespeare.txt", "to be")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entries = [{"name": "x", "file": "tinyshakespeare.txt", "sha256": digest}]
    write(tmp_path / "manifest-text.json", json.dumps(entries))
    monkeypatch.setenv("MLE_DATA", str(tmp_path))
    return tmp_path


def test_a_data_set_is_found_by_its_name(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under $MLE_DATA, and never taken for a path; other names are paths."""
    monkeypatch.chdir(data_folder)
    Path("shakespeare").touch()
    assert find_corpus("shakespeare") == [data_folder / "tinyshakespeare.txt"]
    assert find_corpus("./shakespeare") == [Path("shakespeare")]


def test_a_data_set_that_was_altered_is_refused(data_folder: Path) -> None:
    """With both digests; exit code 4."""
    write(data_folder / "tinyshakespeare.txt", "not to be")
    with pytest.raises(TokenizerFileError, match=r"its SHA-256 is [0-9a-f]{64}, and the manifest"):
        find_corpus("shakespeare")
    write(data_folder / "manifest-text.json", "[1]")
    with pytest.raises(TokenizerFileError, match="is no list of files"):
        find_corpus("shakespeare")


def test_a_data_set_that_is_not_there_says_what_to_do(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such file, no manifest, no $MLE_DATA, or a name that is nearly one."""
    with pytest.raises(UsageError, match=r"does not have names.txt of the data set 'names'"):
        find_corpus("names")
    with pytest.raises(UsageError, match="did you mean the data set shakespeare"):
        find_corpus("shakespear")
    (data_folder / "manifest-text.json").unlink()
    with pytest.raises(UsageError, match=r"where no manifest-text.json or"):
        find_corpus("shakespeare")
    monkeypatch.delenv("MLE_DATA")
    with pytest.raises(UsageError, match="MLE_DATA, which is not set: set it to the folder"):
        find_corpus("shakespeare")


@pytest.mark.skipif("MLE_DATA" not in os.environ, reason="needs the data sets under $MLE_DATA")
def test_every_data_set_is_text_that_can_be_counted() -> None:
    """Names, places and digests agree with the manifests."""
    for name in DATA_SETS:
        first = find_corpus(name)[0]
        batches = corpus._batches([first], corpus._cutter(PATTERNS["gpt4"]), None)
        assert BatchCounter(PATTERNS["gpt4"])(next(batches)[:20]), name


# ---- Patterns


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(x+x+)+y", "(a|aa)+$", "(á|á)+b"])
def test_case_12_a_catastrophic_pattern_is_found_before_training(pattern: str) -> None:
    """By small texts; the message shows the pattern and the remedy."""
    with pytest.raises(DataError, match=r"limit of 0.2 s on .* times .* a") as caught:
        check_pattern(pattern, 0.2)
    assert repr(pattern) in str(caught.value)


def test_case_12_a_probe_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would where the library does not look at the clock."""
    monkeypatch.setattr(probe, "STARTUP_S", -0.19)
    with pytest.raises(DataError, match=r"'a\+b' ran longer than its limit of 0.2 s"):
        check_pattern("a+b", 0.2)


def test_case_12_a_pattern_that_exhausts_memory_is_data_not_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe dies alone."""
    done = subprocess.CompletedProcess([], -9, probe.READY)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(DataError, match=r"'a\+b' crashes the regex library"):
        check_pattern("a+b")


def test_good_patterns_pass_and_named_ones_are_not_even_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pattern that does not compile is a usage error."""
    check_pattern(r"\w+|[^\w\s]+|\s+")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("tried"))
    for pattern in PATTERNS.values():
        check_pattern(pattern)
    with pytest.raises(UsageError, match="does not compile"):
        check_pattern("(")


def test_where_no_process_can_be_had_the_limit_while_splitting_must_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No Python, one that does not start, one that lacks minbpe, a program with Python inside."""
    for executable in (None, "none/python"):
        check_pattern.cache_clear()
        monkeypatch.setattr(sys, "executable", executable)
        check_pattern("(b+)+$", 0.1)
    monkeypatch.setattr(sys, "executable", "python")
    failed = subprocess.CompletedProcess([], 1, b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    check_pattern("(b+)+$", 0.2)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    check_pattern("(b+)+$", 0.3)


@pytest.mark.parametrize("workers", [0, 1])
def test_case_12_a_pattern_that_is_catastrophic_on_the_corpus_alone_is_stopped(
    workers: int,
) -> None:
    """The check knows no Greek; the limit while splitting holds all the same."""
    pattern, text = r"(\p{Greek}+)+$", "fine, " + "α" * 3000 + "!"
    check_pattern(pattern, 0.5)
    with pytest.raises(DataError, match=r"limit of 0.2 s on the text, after") as caught:
        count_words(["fine", text], pattern, workers, 0.2)
    assert repr(pattern) in str(caught.value)

"""`python -m minbpe.decode`: the bytes that were encoded, or a reason why not."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minbpe import BasicTokenizer, decode, encode
from minbpe.decode import cut_range, read_numbers
from minbpe.errors import DataError
from minbpe.gpt import load_tokenizer

TEXT = "The theory, of  the\n\n thaw;\nnaïve\r\ncafé's 1234567 😀 times\x00\n" * 9


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a set of tokens called `train` in `out`, two ids a shard read."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_bytes(TEXT.encode())
    assert encode.main(["corpus.txt", "--tokenizer", str(model), "--out", "out"]) == 0
    return tmp_path


def run(model: Path, *flags: str) -> int:
    """Run the command with the tokenizer."""
    return decode.main([*flags, "--tokenizer", str(model)])


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Put data on stdin."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_set_of_tokens_becomes_the_bytes_that_were_encoded(
    folder: Path, model: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """On stdout, or whole in a file."""
    capsysbinary.readouterr()
    assert run(model, "out") == 0
    captured = capsysbinary.readouterr()
    assert captured.out == TEXT.encode()
    assert captured.err == b""
    assert run(model, "out", "--name", "train", "--out", "back.txt") == 0
    assert capsysbinary.readouterr().out == b""
    assert Path("back.txt").read_bytes() == TEXT.encode()


@pytest.mark.parametrize(
    ("flags", "start", "stop"),
    [(["--first", "5"], 0, 5), (["--skip", "3"], 3, None), (["--skip", "3", "--first", "4"], 3, 7)],
)
def test_a_range_of_ids(
    folder: Path,
    model: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    start: int,
    stop: int | None,
) -> None:
    """Over the edges of what is read at a time."""
    monkeypatch.setattr("minbpe.shards.READ_BYTES", 4)
    tokenizer = load_tokenizer(model)
    ids = tokenizer.encode_ordinary(TEXT)
    capsysbinary.readouterr()
    assert run(model, "out", *flags) == 0
    assert capsysbinary.readouterr().out == tokenizer.decode_bytes(ids[start:stop])
    for nothing in (["--first", "0"], ["--skip", "100000"]):
        assert run(model, "out", *nothing) == 0
        assert capsysbinary.readouterr().out == b""


def test_a_range_stops_reading_when_it_ends() -> None:
    """What follows may be terabytes, or torn."""

    def endless() -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        yield np.arange(4)
        yield np.arange(4, 8)
        pytest.fail("read on")

    parts = list(cut_range(endless(), 2, 6))
    assert np.concatenate(parts).tolist() == [2, 3, 4, 5, 6, 7]


def test_pieces_to_decode_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the shard."""
    monkeypatch.setattr(decode, "IDS_AT_ONCE", 3)
    assert [p.tolist() for p in cut_range([np.arange(7)], 0, None)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_numbers_in_text_are_ids(
    folder: Path,
    model: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a file or stdin, with commas and brackets, cut anywhere by a read, in any character."""
    ids = [*load_tokenizer(model).encode_ordinary(TEXT), 300]
    capsysbinary.readouterr()
    for n_bytes in (1, 2, 7, 2**20):
        monkeypatch.setattr(decode, "READ_BYTES", n_bytes)
        for text in (json.dumps(ids), "\n".join(map(str, ids)), ",".join(map(str, ids)) + "\n"):
            feed(monkeypatch, text.encode())
            assert run(model, "-") == 0
            assert capsysbinary.readouterr().out == TEXT.encode() + b"<|endoftext|>"
    Path("ids.txt").write_text("195\n")
    assert run(model, "ids.txt") == 0
    assert capsysbinary.readouterr().out == b"\xc3"
    assert [n for a in read_numbers(io.BytesIO(b""), "f") for n in a.tolist()] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1 2\n3 x 4", "stdin, line 2: 'x' is no id; ids are 0 to 1114111"),
        (b"1\n-2", "stdin, line 2: '-2' is no id"),
        (b"1.5", "stdin, line 1: '1.5' is no id"),
        (b"1\n\n" + b"9" * 2**20, f"stdin, line 3: '{'9' * 40}' is no id"),
        (b"\xff", "stdin, line 1: '\\xff' is no id"),
        (b"[104, 105, 300, 299]", "position 3: id 299 does not exist in this vocabulary of 302"),
        (b"104 1000000", "position 1: id 1000000 does not exist"),
    ],
)
def test_what_is_no_id_is_named_with_its_place(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    message: str,
) -> None:
    """Exit code 3, one line."""
    feed(monkeypatch, data)
    assert run(model, "-") == 3
    err = capsys.readouterr().err
    assert err.startswith(f"minbpe.decode: {message}")
    assert err.count("\n") == 1


def test_an_endless_number_is_not_read_to_its_end() -> None:
    """Memory would end before it."""

    class Endless(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            if self.reads > 3:
                pytest.fail("read on")
            return b"9" * (size or 1)

    with pytest.raises(DataError, match="is no id"):
        list(read_numbers(Endless(), "f"))


def test_the_position_counts_from_the_first_id_of_all(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not from the piece decoded, nor from what was skipped."""
    monkeypatch.setattr(decode, "IDS_AT_ONCE", 2)
    feed(monkeypatch, b"104 105 104 105 104 299")
    assert run(model, "-", "--skip", "1") == 3
    assert "position 5: id 299" in capsys.readouterr().err


def test_tokens_of_another_tokenizer_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4: every id would exist, and the text be nonsense."""
    capsys.readouterr()
    other = BasicTokenizer()
    other.train(TEXT, 300)
    other.register_special_tokens({"<|endoftext|>": 300, "<|pad|>": 301})
    other.save("other")
    assert run(Path("other.model"), "out") == 4
    captured = capsys.readouterr()
    assert "these tokens were made by another tokenizer" in captured.err
    assert captured.out == ""


def test_an_altered_shard_leaves_no_file(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4; its digest is known to be wrong only at its end."""
    with Path("out/train-00000.tokens").open("rb+") as file:
        file.seek(1024)
        file.write(b"a\x00")
    assert run(model, "out", "--out", "back.txt") == 4
    assert "altered since it was written" in capsys.readouterr().err
    assert not Path("back.txt").exists()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["none"], "none cannot be read: No such file or directory"),
        (["empty"], "empty holds no tokens"),
        (["two"], "two holds several sets (train, val); choose one by --name"),
        (["out", "--name", "val"], "val.json cannot be read: No such file"),
        (["out/train-00000.tokens"], "is one shard of a set of tokens; give the folder"),
        (["out", "--skip", "-1"], "--skip -1 must not be negative"),
        (["out", "--first", "-1"], "--first -1 must not be negative"),
        (["out", "--out", "none/back.txt"], "none/back.txt: the folder none does not exist"),
        (["out", "--out", "two"], "two is a folder; give the name of a file"),
        (["x" * 300], "x cannot be used: File name too long"),
        (["out", "--tokeniser", "x"], "did you mean --tokenizer?"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """Exit code 2, nothing on stdout, nothing written."""
    Path("empty").mkdir()
    corpus = ["corpus.txt", "--tokenizer", str(model), "--out", "two"]
    assert encode.main(corpus) == encode.main([*corpus, "--name", "val"]) == 0
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert run(model, *flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minbpe.decode: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_leaves_nothing(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 5, and an older file of that name is untouched."""
    Path("back.txt").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert run(model, "out", "--out", "back.txt") == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "back.txt cannot be written: File too large" in capsys.readouterr().err
    assert Path("back.txt").read_text() == "old"
    assert len(list(folder.iterdir())) == 3


def test_it_undoes_what_encode_prints(folder: Path, model: Path) -> None:
    """As programs, with a pipe between them."""
    parts = ["--tokenizer", str(model)]
    ids = subprocess.run(
        [sys.executable, "-m", "minbpe.encode", "corpus.txt", *parts],
        capture_output=True,
        check=True,
    ).stdout
    done = subprocess.run(
        [sys.executable, "-m", "minbpe.decode", "-", *parts],
        input=ids,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == TEXT.encode()

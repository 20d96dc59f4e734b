"""`python -m minbpe.encode`: what it writes, prints and refuses."""

import hashlib
import io
import json
import lzma
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minbpe import RegexTokenizer, encode
from minbpe.documents import PIECE, STDIN, Piece, read_pieces, total_bytes
from minbpe.encode import Batch, BatchEncoder, Encoded, batches
from minbpe.gpt import load_tokenizer
from minbpe.pretokens import PATTERNS, Splitter
from minbpe.shards import ShardSet
from minbpe.workers import Workers

TEXT = "The theory, of  the\n\n thaw;\nnaïve\r\ncafé's 1234567 <|endoftext|> times\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a small corpus."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_bytes((TEXT * 20).encode())
    Path("lines.jsonl").write_text('{"text": "the den"}\n{"text": ""}\n{"text": "the dew"}\n')
    return tmp_path


def run(model: Path, *flags: str) -> int:
    """Run the command with the tokenizer."""
    return encode.main([*flags, "--tokenizer", str(model)])


def written(name: str = "train") -> list[int]:
    """Return the ids in the folder `out`."""
    return [i for array in ShardSet.open(Path("out"), name).arrays() for i in array.tolist()]


def test_the_ids_are_those_of_the_library(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tokenizer's digest, and figures as JSON."""
    assert run(model, "corpus.txt", "lines.jsonl", "--out", "out", "--json") == 0
    tokenizer = load_tokenizer(model)
    texts = [TEXT * 20, "the den", "the dew"]
    ids = [i for text in texts for i in tokenizer.encode_ordinary(text)]
    assert written() == ids
    captured = capsys.readouterr()
    assert captured.err == ""
    results = json.loads(captured.out)
    n_bytes = len("".join(texts).encode())
    assert results["documents"] == 4
    assert results["bytes"] == n_bytes
    assert results["tokens"] == len(ids)
    assert results["bytes_per_token"] == n_bytes / len(ids)
    assert results["workers"] == 0
    tokens = ShardSet.open(Path("out"), "train")
    assert tokens.tokenizer_sha256 == results["tokenizer_sha256"] == tokenizer.digest()
    assert tokens.vocab_size == 302


def test_the_table_is_for_people(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes per token, time and memory."""
    assert run(model, "corpus.txt", "--out", "out", "--name", "val") == 0
    out = capsys.readouterr().out
    assert "wrote val in out" in out
    for line in ("bytes per token", "seconds", "cpu seconds", "peak mib", "mb per second"):
        assert line in out


@pytest.mark.parametrize("flags", [[], ["--special", "all"], ["--append", "<|pad|>"]])
def test_any_number_of_workers_writes_the_same(folder: Path, model: Path, flags: list[str]) -> None:
    """Byte by byte, from several pieces a file."""
    Path("long.txt").write_text(TEXT * 20_000)
    shards = []
    for workers in ("0", "1", "3"):
        out = ["--out", workers, "--workers", workers]
        assert run(model, "long.txt", "lines.jsonl", *out, *flags) == 0
        shards.append((folder / workers / "train-00000.tokens").read_bytes())
    assert shards[0] == shards[1] == shards[2]
    ids = np.concatenate(list(ShardSet.open(folder / "3", "train").arrays()))
    assert (ids == 301).sum() == (4 if "--append" in flags else 0)
    assert len(TEXT * 20_000) > PIECE * 2


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("special", [False, True])
def test_pieces_do_not_change_the_ids(folder: Path, model: Path, size: int, special: bool) -> None:
    """However small, and also where special tokens with spaces about them are ids."""
    tokenizer = load_tokenizer(model)
    text = (TEXT.replace(" <|end", "  <|end") + "the  <|pad|>  <|endoftext|>\n<|pad|>x\ny  ") * 30
    Path("a.txt").write_bytes(text.encode())
    pieces = list(read_pieces(["a.txt"], tokenizer.find_cut, size=size))
    assert len(pieces) > 10
    with Workers(BatchEncoder(tokenizer, special, None), 0) as workers:
        parts = [one.ids for one in workers.map(batches(pieces, size))]
    assert np.concatenate(parts).tolist() == tokenizer.encode(text, "all" if special else "none")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_text_without_spaces_is_cut_too(folder: Path, pattern: str) -> None:
    """After words, so that pre-tokens are whole."""
    text = "人人生而自由，在尊严和权利上一律平等。\n他们赋有理性和良心！\n１２、_。" * 30
    Path("a.txt").write_bytes(text.encode())
    pieces = list(read_pieces(["a.txt"], RegexTokenizer(pattern).find_cut, size=1))
    assert len(pieces) > 90
    split = Splitter(pattern).split
    assert [word for piece in pieces for word in split(piece.text)] == split(text)


def test_a_users_pattern_allows_no_cut(folder: Path) -> None:
    """It may look anywhere."""
    pieces = read_pieces(["corpus.txt"], RegexTokenizer(r"(?s).+").find_cut, size=7)
    assert [piece.text for piece in pieces] == [TEXT * 20]


def test_batches_hold_a_size_at_least() -> None:
    """Short documents go to a worker together."""
    pieces = [Piece("ab", True, 5), Piece("cd", False, 3), Piece("e", True, 2)]
    assert list(batches(pieces, 3)) == [
        Batch(["ab", "cd"], [True, False], 8),
        Batch(["e"], [True], 2),
    ]


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base"])
def test_pieces_of_published_tokenizers_do_not_change_the_ids(folder: Path, name: str) -> None:
    """Their patterns allow cuts; needs their files."""
    if "MLE_DATA" not in os.environ:
        pytest.skip("needs the rank files in $MLE_DATA/tokenizers")
    tokenizer = load_tokenizer(name)
    pieces = list(read_pieces(["corpus.txt"], tokenizer.find_cut, size=20))
    assert len(pieces) > 10
    ids = [i for piece in pieces for i in tokenizer.encode_ordinary(piece.text)]
    assert ids == tokenizer.encode_ordinary(TEXT * 20)


def test_case_14_special_tokens_are_text_unless_allowed(folder: Path, model: Path) -> None:
    """And `--append` puts one after each document, empty ones included."""
    tokenizer = load_tokenizer(model)
    assert run(model, "corpus.txt", "--out", "out") == 0
    assert 300 not in written()
    assert run(model, "corpus.txt", "--out", "out", "--special", "all", "--force") == 0
    assert written() == tokenizer.encode(TEXT * 20, "all")
    assert written().count(300) == 20
    beside = "the  <|pad|>" * 60_000
    Path("beside.txt").write_text(beside)
    assert len(beside) > PIECE
    assert run(model, "beside.txt", "--out", "out", "--special", "all", "--force") == 0
    assert written() == tokenizer.encode(beside, "all")
    flags = ["--out", "out", "--force", "--append", "<|pad|>"]
    assert run(model, "lines.jsonl", *flags) == 0
    den, dew = map(tokenizer.encode_ordinary, ("the den", "the dew"))
    assert written() == [*den, 301, 301, *dew, 301]


def test_ids_are_printed_a_document_a_line(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From stdin too; nothing else is printed, nothing written."""
    tokenizer = load_tokenizer(model)
    den, dew = ([*tokenizer.encode_ordinary(t), 301] for t in ("the den", "the dew"))
    assert run(model, "lines.jsonl", "--append", "<|pad|>", "--ids") == 0
    lines = [" ".join(map(str, ids)) for ids in (den, [301], dew)]
    captured = capsys.readouterr()
    assert captured.out.splitlines() == lines
    assert captured.err == ""
    stdin = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(model, "-") == 0
    assert list(map(int, capsys.readouterr().out.split())) == tokenizer.encode_ordinary(TEXT)
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.txt", "lines.jsonl"]


def test_printed_ids_of_a_document_in_pieces_are_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line ends with its document only."""
    ids = np.arange(4, dtype=np.uint32)
    encode.print_ids(
        [Encoded(ids, [], 0, 0), Encoded(ids, [1, 1, 4], 0, 0), Encoded(ids, [], 0, 0)]
    )
    assert capsys.readouterr().out == "0 1 2 3 0\n\n1 2 3\n0 1 2 3"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["none.txt", "--out", "o"], 2, "none.txt cannot be read: No such file or directory"),
        (["hidden", "--out", "o"], 3, "the folder hidden holds no text files"),
        (["x" * 300, "--out", "o"], 2, "x cannot be read: File name too long"),
        (["corpus.txt", "--out", "x" * 300], 2, "x/train.json cannot be written: File name"),
        (
            ["corpus.txt", "--out", "o", "--name", "x" * 245],
            2,
            "x.json cannot be written: File name",
        ),
        (["corpus.txt", "--out", "o", "--workers", "-1"], 2, "-1 must be from 0 (none) to 256"),
        (["corpus.txt", "--out", "o", "--workers", "257"], 2, "257 must be from 0 (none) to 256"),
        (["wide.txt", "--out", "o"], 3, "wide.txt holds NUL bytes all over: is it UTF-16?"),
        (["corpus.txt", "--out", "o", "--ids"], 2, "not allowed with argument --out"),
        (["corpus.txt", "--json"], 2, "--json tells of a set of tokens; it needs --out"),
        (["corpus.txt", "--out", "corpus.txt"], 2, "corpus.txt is a file; token shards need a"),
        (["corpus.txt", "--out", "full"], 2, "train.json exists"),
        (["corpus.txt", "--out", "o", "--name", "a/b"], 2, "'a/b' cannot name a set of tokens"),
        (["corpus.txt", "--out", "o", "--append", "<e>"], 2, "has '<|endoftext|>', '<|pad|>'"),
        (["corpus.txt", "--tokeniser", "x"], 2, "did you mean --tokenizer?"),
        (["corpus.txt", "latin.txt", "--out", "o"], 3, "latin.txt, line 2: byte 6 (0xe9) is not"),
        (["image.png", "--out", "o"], 3, "image.png, line 1: byte 0 (0x89) is not UTF-8; is it a"),
        (["empty.txt", "--out", "o"], 3, "there is nothing to encode: empty.txt is empty"),
        (["bad.jsonl", "--out", "o"], 3, "bad.jsonl, line 1: not JSON"),
        (["lines.jsonl", "--out", "o", "--field", "x"], 3, "has no text in 'x' (it has: text)"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    message: str,
) -> None:
    """Nothing on stdout, nothing written, with workers or without."""
    Path("latin.txt").write_bytes(b"ab\ncaf\xe9")
    Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("empty.txt").touch()
    Path("bad.jsonl").write_text("{")
    Path("wide.txt").write_bytes("wide".encode("utf-16-le"))
    Path("hidden").mkdir()
    Path("full").mkdir()
    Path("full/train.json").touch()
    before = sorted(folder.rglob("*"))
    for workers in ("0", "1"):
        assert run(model, "--workers", workers, *flags) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("minbpe.encode: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert sorted(folder.rglob("*")) == before


def test_a_torn_tokenizer_file_is_refused(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4, before anything is read or written."""
    Path("torn.model").write_bytes(model.read_bytes()[:-100])
    assert run(Path("torn.model"), "corpus.txt", "--out", "out") == 4
    assert capsys.readouterr().err.startswith("minbpe.encode: torn.model, line ")
    assert run(Path("none.model"), "corpus.txt", "--out", "out") == 2
    assert not Path("out").exists()


def test_a_full_disk_leaves_nothing(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 5. A limit on the size of files fails the writes as a full disk does."""
    assert run(model, "lines.jsonl", "--out", "out") == 0
    before = written()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        assert run(model, "corpus.txt", "--out", "out", "--force") == 5
        assert run(model, "corpus.txt", "--out", "new") == 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "train-00000.tokens cannot be written: File too large" in capsys.readouterr().err
    assert written() == before
    assert len(list(Path("out").iterdir())) == 2
    assert not Path("new").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_signal_leaves_nothing(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    workers: str,
) -> None:
    """In the middle of the work: one line, and the folder is as it was."""
    parent, call = os.getpid(), BatchEncoder.__call__

    def signalled(self: BatchEncoder, batch: Batch) -> Encoded:
        os.kill(parent, number)
        return call(self, batch)

    monkeypatch.setattr(BatchEncoder, "__call__", signalled)
    assert run(model, "corpus.txt", "--out", "out", "--workers", workers) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("nothing was written\n")
    assert captured.err.count("\n") == 1
    assert not Path("out").exists()


def test_a_killed_worker_ends_the_run(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 5, as it is the kernel that kills, for want of memory."""

    def killed(self: BatchEncoder, batch: Batch) -> Encoded:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(BatchEncoder, "__call__", killed)
    assert run(model, "corpus.txt", "--out", "out", "--workers", "1") == 5
    assert "a worker process was killed" in capsys.readouterr().err
    assert not Path("out").exists()


def test_workers_start_for_much_text_only(folder: Path) -> None:
    """And for stdin, whose length nobody knows."""
    size = total_bytes([Path("corpus.txt"), Path("lines.jsonl")])
    assert size == len(TEXT.encode()) * 20 + Path("lines.jsonl").stat().st_size
    assert encode.default_workers(size) == 0
    assert encode.default_workers(encode.SMALL) >= 1
    assert total_bytes([Path("corpus.txt"), STDIN]) is None
    assert encode.default_workers(None) >= 1


def test_it_reads_what_train_reads(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, compressed files, data sets by name, pipes."""
    Path("more/sub").mkdir(parents=True)
    Path("more/b.txt").write_text("the den")
    Path("more/sub/c.jsonl.xz").write_bytes(lzma.compress(b'{"text": "the dew"}'))
    Path("names.txt").write_text("the thaw")
    digest = hashlib.sha256(b"the thaw").hexdigest()
    Path("manifest-text.json").write_text(json.dumps([{"file": "names.txt", "sha256": digest}]))
    monkeypatch.setenv("MLE_DATA", ".")
    os.mkfifo("pipe")
    feed = threading.Thread(target=lambda: Path("pipe").write_text("the end"), daemon=True)
    feed.start()
    assert run(model, "more", "names", "pipe", "--out", "out") == 0
    texts = ["the den", "the dew", "the thaw", "the end"]
    tokenizer = load_tokenizer(model)
    assert written() == [i for text in texts for i in tokenizer.encode_ordinary(text)]


def test_nul_is_a_character_like_any_other(folder: Path, model: Path) -> None:
    """A text may hold some."""
    Path("nul.txt").write_bytes(b"a\0b")
    assert run(model, "nul.txt", "--out", "out") == 0
    assert load_tokenizer(model).decode(written()) == "a\0b"


def test_a_tokenizer_without_its_ending_is_hinted_at(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train --out sh` writes sh.model."""
    assert run(model.with_suffix(""), "corpus.txt") == 2
    assert f"did you mean {model}?" in capsys.readouterr().err


def test_what_was_printed_is_told_after_an_interrupt(
    folder: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids on stdout can't be taken back."""
    call = BatchEncoder.__call__
    done: list[Batch] = []

    def interrupted(self: BatchEncoder, batch: Batch) -> Encoded:
        if done:
            raise KeyboardInterrupt
        done.append(batch)
        return call(self, batch)

    monkeypatch.setattr(BatchEncoder, "__call__", interrupted)
    monkeypatch.setattr(encode.batches, "__defaults__", (1,))
    assert run(model, "lines.jsonl") == 130
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err == "minbpe.encode: interrupted after writing ids to stdout, not all\n"


def test_it_runs_as_a_program(folder: Path, model: Path) -> None:
    """Ids of stdin on stdout; a reader that has gone is no error."""
    command = [sys.executable, "-m", "minbpe.encode", "-", "--tokenizer", str(model)]
    done = subprocess.run(command, input=b"the den", capture_output=True, check=False)
    ids = RegexTokenizer()
    ids.load(model)
    assert done.stdout.decode() == " ".join(map(str, ids.encode_ordinary("the den"))) + "\n"
    assert (done.returncode, done.stderr) == (0, b"")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command,
        input=b"the den",
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")

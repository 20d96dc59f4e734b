"""`python -m minbpe.compare`: measures that can be checked by hand, in a table or as JSON."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minbpe import RegexTokenizer, compare
from minbpe.compare import Row, bar, count_words, totals
from minbpe.errors import UsageError

DATA = os.environ.get("MLE_DATA", "")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two tokenizers: bytes alone, and one that knows "the" and " the"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLE_DATA", raising=False)
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    tokenizer = RegexTokenizer()
    tokenizer.save("bytes")
    tokenizer.train(["the the the"], 259)
    assert tokenizer.vocab[258] == b" the"
    tokenizer.save("the")
    Path("a.txt").write_text("the the 12 é")
    return tmp_path


def rows(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, object]]:
    """Run the command and return what it prints as JSON."""
    assert compare.main([*flags, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: list[dict[str, object]] = json.loads(captured.out)
    return found


def test_the_measures_are_those_counted_by_hand(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`the| the| |1|2| |é` is 12 characters, 13 bytes and, with é in two bytes, 8 tokens."""
    flags = ["a.txt", "--tokenizer", "the.model", "--tokenizer", "bytes.model", "--only"]
    ours, plain = rows(capsys, *flags)
    del ours["cpu_seconds"], plain["cpu_seconds"]
    assert ours == {
        "text": "a.txt",
        "tokenizer": "the.model",
        "vocab_size": 259,
        "tokens": 8,
        "bytes": 13,
        "characters": 12,
        "words": 3,
        "one_token_words": 2,
        "bytes_per_token": 13 / 8,
        "tokens_per_character": 8 / 12,
        "tokens_per_word": 8 / 3,
        "one_token_word_share": 2 / 3,
    }
    assert (plain["tokens"], plain["one_token_words"]) == (13, 0)


def test_words_are_runs_of_letters_and_marks_with_the_space_before() -> None:
    """In any script."""
    counts = count_words(["the cat's 1st", "the हिन्दी भाषा"])
    assert dict(counts) == {"the": 2, " cat": 1, "s": 1, "st": 1, " हिन्दी": 1, " भाषा": 1}


def test_several_texts_have_a_sum(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of which the ratios are taken anew; a text without words has ratios too."""
    Path("b.txt").write_text("1234")
    found = rows(capsys, "a.txt", "b.txt", "--tokenizer", "the.model", "--only")
    assert [row["text"] for row in found] == ["a.txt", "b.txt", "all texts"]
    assert [row["tokens"] for row in found] == [8, 4, 12]
    assert found[1]["tokens_per_word"] == found[1]["one_token_word_share"] == 0.0
    assert found[2]["bytes_per_token"] == 17 / 12
    assert found[2]["one_token_word_share"] == 2 / 3
    row = Row("t", "x", 9, 1, 2, 3, 4, 5, 0.5)
    other = Row("u", "y", 9, 1, 2, 3, 4, 5, 0.5)
    assert list(totals([row, other, row])) == [
        Row("all texts", "x", 9, 2, 4, 6, 8, 10, 1.0),
        Row("all texts", "y", 9, 1, 2, 3, 4, 5, 0.5),
    ]


def test_lines_of_jsonl_are_grouped_by_a_field(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or are one text together; stdin is a text."""
    lines = [("en", "the"), ("de", "der"), ("en", " the")]
    text = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in lines)
    Path("a.jsonl").write_text(text)
    flags = ["--tokenizer", "the.model", "--only"]
    found = rows(capsys, "a.jsonl", "--by", "id", *flags)
    assert [(row["text"], row["tokens"]) for row in found] == [
        ("en", 2),
        ("de", 3),
        ("all texts", 5),
    ]
    assert [row["tokens"] for row in rows(capsys, "a.jsonl", *flags)] == [5]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the")))
    assert [row["text"] for row in rows(capsys, "-", *flags)] == ["stdin"]


def test_the_table_has_bars(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest for the most bytes per token, within the terminal's width."""
    monkeypatch.setenv("COLUMNS", "80")
    flags = ["--tokenizer", "the.model", "--tokenizer", "bytes.model", "--only"]
    assert compare.main(["a.txt", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("a.txt (13 bytes, 3 words)" in line for line in lines)
    ours, plain = (next(n for n in lines if n.startswith(t)) for t in ("the.model", "bytes.model"))
    assert ours.count("█") == 11
    assert plain.count("█") == 6
    assert "66.7%" in ours
    assert "1.62" in ours
    Path("b.txt").write_text("1234")
    assert compare.main(["b.txt", *flags]) == 0
    assert capsys.readouterr().out.split().count("-") == 4


def test_a_bar_is_drawn_in_eighths() -> None:
    """So that near values differ."""
    assert [bar(share, 3) for share in (1, 0.5, 1 / 24, 0)] == ["███", "█▌", "▏", ""]
    assert [bar(share, 3, blocks=False) for share in (1, 0.5, 0)] == ["###", "##", ""]


def test_the_table_is_plain_where_the_terminal_knows_ascii_only(folder: Path) -> None:
    """Also what is named in another script."""
    Path("é.txt").write_text("the")
    done = subprocess.run(
        [sys.executable, "-m", "minbpe.compare", "é.txt", "--tokenizer", "the.model", "--only"],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"##" in done.stdout
    assert b"\\xe9.txt" in done.stdout


def test_folders_and_compressed_files_are_texts_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As train and encode read them; a file that is named twice counts once."""
    Path("more").mkdir()
    Path("more/b.txt.gz").write_bytes(gzip.compress(b"the the"))
    found = rows(capsys, "more", "more/b.txt.gz", "--tokenizer", "the.model", "--only")
    assert [(row["text"], row["bytes"]) for row in found] == [("more/b.txt.gz", 7)]


def test_a_published_tokenizer_whose_file_is_torn_is_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a note, as nobody asked for it; one that was asked for ends the run."""
    cache = Path("cache/tokenizers")
    cache.mkdir(parents=True)
    (cache / "cl100k_base.tiktoken").write_text("torn")
    monkeypatch.setenv("MLE_DATA", "cache")
    assert compare.main(["a.txt", "--tokenizer", "the.model", "--json"]) == 0
    captured = capsys.readouterr()
    assert "cl100k_base" not in [row["tokenizer"] for row in json.loads(captured.out)]
    assert captured.err.startswith("minbpe.compare: cl100k_base is left out: cache/tokenizers/cl")
    assert compare.main(["a.txt", "--tokenizer", "cl100k_base"]) == 4


def test_the_published_tokenizers_that_are_here_come_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are given, or not wanted; needs GPT-2's files."""
    if not DATA:
        pytest.skip("needs the rank files in $MLE_DATA/tokenizers")
    monkeypatch.setenv("MLE_DATA", DATA)
    found = rows(capsys, "a.txt", "--tokenizer", "the.model")
    names = [row["tokenizer"] for row in found]
    assert names[0] == "gpt2"
    assert "cl100k_base" in names
    assert names[-1] == "the.model"
    assert found[0]["tokens"] == 4
    found = rows(capsys, "a.txt", "--tokenizer", "gpt2")
    assert [row["tokenizer"] for row in found].count("gpt2") == 1
    assert found[-1]["tokenizer"] == "gpt2"
    assert len(rows(capsys, "a.txt", "--tokenizer", "the.model", "--only")) == 1


def test_nothing_is_downloaded_for_a_comparison(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not on this machine is left out."""
    asked = []

    def absent(name: str, *, download: bool = True) -> None:
        asked.append((name, download))
        raise UsageError("not here")

    monkeypatch.setattr("minbpe.published.load_ranks", absent)
    assert compare.main(["a.txt"]) == 2
    assert "no published tokenizer is on this machine" in capsys.readouterr().err
    assert ("cl100k_base", False) in asked
    assert not any(download for _, download in asked)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["none.txt"], 2, "none.txt cannot be read: No such file or directory"),
        (["a.txt", "--tokenizer", "none.model"], 2, "none.model"),
        (["a.txt", "--only"], 2, "--only leaves no tokenizer"),
        (["a.txt", "--tokeniser", "x"], 2, "did you mean --tokenizer?"),
        (["empty.txt"], 3, "there is nothing to compare on: empty.txt is empty"),
        (["latin.txt"], 3, "latin.txt, line 1: byte 3 (0xe9) is not UTF-8"),
        (["a.jsonl", "--by", "id"], 3, "a.jsonl, line 1: has no text in 'id' (it has: text)"),
        (["a.txt", "--tokenizer", "torn.model"], 4, "torn.model, line "),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    """Nothing on stdout."""
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("a.jsonl").write_text('{"text": "a"}')
    Path("torn.model").write_bytes(Path("the.model").read_bytes()[:-100])
    assert compare.main(flags) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minbpe.compare: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_reader_of_the_table_that_has_gone_is_no_error(folder: Path) -> None:
    """As with `| head`: exit code 141, nothing said."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "minbpe.compare", "a.txt", "--tokenizer", "the.model", "--only"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")

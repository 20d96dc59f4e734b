"""The command line: what it writes, prints and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minbpe import GPT2_SPLIT_PATTERN, RegexTokenizer
from minbpe import train as command

TEXT = "the theory of the thaw: the den, the dew\n" * 4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write a small corpus."""
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def test_it_writes_the_tokenizer_it_describes(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a pattern by name, special tokens behind the merges, and figures as JSON."""
    out = corpus.parent / "small"
    flags = ["--vocab-size", "262", "--pattern", "gpt2", "--special", "<e>", "--special", "<f>"]
    assert command.main([str(corpus), "--out", str(out), "--json", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    results = json.loads(captured.out)
    tokenizer = RegexTokenizer()
    tokenizer.load(f"{out}.model")
    assert tokenizer.pattern == GPT2_SPLIT_PATTERN
    assert tokenizer.special_tokens == {"<e>": 262, "<f>": 263}
    assert results["digest"] == tokenizer.digest()
    assert results["vocab_size"] == 264
    n_tokens = len(tokenizer.encode_ordinary(TEXT))
    assert results["bytes_per_token"] == len(TEXT) / n_tokens
    longest = max(tokenizer.vocab.values(), key=len)
    assert len(json.loads(results["longest_tokens"][0])) == len(longest)


def test_it_trains_as_the_library_does(corpus: Path, tmp_path: Path) -> None:
    """Several files are several texts; the tie-break is passed on."""
    other = tmp_path / "other.txt"
    other.write_bytes("naïve\r\ncafé".encode())
    for rule in ("smallest", "minbpe"):
        argv = [str(other), str(corpus), "--vocab-size", "275", "--tie-break", rule]
        assert command.main([*argv, "--out", str(tmp_path / rule)]) == 0
        tokenizer = RegexTokenizer()
        tokenizer.train(["naïve\r\ncafé", TEXT], 275, tie_break=rule)
        loaded = RegexTokenizer()
        loaded.load(tmp_path / f"{rule}.model")
        assert loaded.merges == tokenizer.merges


def test_the_table_shows_tokens_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token that looks like the table's markup is no markup."""
    path = tmp_path / "corpus.txt"
    path.write_text("[/b][/b]")
    flags = ["--vocab-size", "300", "--pattern", ".+", "--out", str(tmp_path / "t")]
    assert command.main([str(path), *flags]) == 0
    out = capsys.readouterr().out
    assert '"[/b][/b]"' in out
    assert "bytes per token" in out


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["none.txt"], 2, "none.txt cannot be read: No such file or directory"),
        (["."], 2, "cannot be read: Is a directory"),
        (["corpus.txt", "--vocab-size", "255"], 2, "vocab_size=255 must be from 256"),
        (["corpus.txt", "--vocab-size", "many"], 2, "invalid int value: 'many'"),
        (["corpus.txt", "--vocabulary", "300"], 2, "unrecognized arguments: --vocabulary 300"),
        (["corpus.txt", "--pattern", "("], 2, "the split pattern '(' does not compile"),
        (["corpus.txt", "--out", "none/t"], 2, "the folder none does not exist"),
        (["corpus.txt", "--special", ""], 2, "special token '' must be a text"),
        ([], 2, "the following arguments are required: corpus"),
        (["empty.txt"], 3, "empty.txt is empty"),
        (["latin.txt"], 3, "latin.txt, line 2: byte 6 (0xe9) is not UTF-8"),
    ],
)
def test_case_15_bad_input_is_one_line_and_an_exit_code(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    message: str,
) -> None:
    """Nothing on stdout, nothing written."""
    monkeypatch.chdir(corpus.parent)
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"ab\ncaf\xe9")
    before = sorted(Path().iterdir())
    assert command.main(flags) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minbpe.train: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(Path().iterdir()) == before


def test_case_15_too_small_a_corpus_is_trained_as_far_as_it_goes(tmp_path: Path) -> None:
    """Exit code 0, the size reached on stderr; run as a program of its own."""
    (tmp_path / "corpus.txt").write_text("hi hi")
    done = subprocess.run(
        [sys.executable, "-m", "minbpe.train", "corpus.txt", "--out", "t", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == "the corpus has too few pairs for a vocabulary of 4096: stopped at 258\n"
    assert json.loads(done.stdout)["vocab_size"] == 258


def test_an_output_that_cannot_be_written_is_noticed_before_the_work(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for a training whose result has no place; exit code 5 where the disk refuses."""

    def trained(*args: object, **kwargs: object) -> None:
        pytest.fail("trained")

    monkeypatch.setattr(RegexTokenizer, "train", trained)
    assert command.main([str(corpus), "--out", str(corpus.parent / "none" / "t")]) == 2

    def refused(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refused)
    assert command.main([str(corpus), "--out", str(corpus.parent / "t")]) == 5
    assert "cannot be written: Read-only file system" in capsys.readouterr().err


def test_debug_keeps_the_traceback(tmp_path: Path) -> None:
    """For a report of a defect."""
    with pytest.raises(ValueError, match="cannot be read"):
        command.main([str(tmp_path / "none.txt"), "--debug"])


def test_the_bar_shows_merges_and_the_newest_token_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is nothing at all elsewhere."""
    with command.progress_bar(2) as report:
        assert report is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with command.progress_bar(2) as report:
        assert report is not None
        report(104, 105, 7)
        report(32, 256, 6)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert '" hi" x 6' in shown


def test_an_interrupt_writes_nothing(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is exit code 130 and one line."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RegexTokenizer, "train", interrupted)
    assert command.main([str(corpus), "--out", str(corpus.parent / "t")]) == 130
    assert capsys.readouterr().err == "minbpe.train: interrupted, nothing was written\n"
    assert not (corpus.parent / "t.model").exists()

"""The command line: what it writes, prints and refuses."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
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
    """Files and folders are several texts; the tie-break is passed on; workers do not matter."""
    other = tmp_path / "other.txt"
    other.write_bytes("naïve\r\ncafé".encode())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "last.txt").write_text("the end")
    texts = ["naïve\r\ncafé", TEXT, "the end"]
    for rule in ("smallest", "minbpe"):
        argv = [str(other), str(corpus), str(tmp_path / "folder"), "--tie-break", rule]
        tokenizer = RegexTokenizer()
        tokenizer.train(texts, 275, tie_break=rule)
        for workers in ("0", "2"):
            out = str(tmp_path / rule) + workers
            flags = ["--vocab-size", "275", "--workers", workers, "--out", out]
            assert command.main([*argv, *flags]) == 0
            loaded = RegexTokenizer()
            loaded.load(f"{out}.model")
            assert loaded.merges == tokenizer.merges


def test_a_data_set_trains_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From $MLE_DATA, with figures that count it once."""
    data = tmp_path / "names.txt"
    data.write_text("emma\nolivia\nemma")
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    (tmp_path / "manifest-text.json").write_text(
        json.dumps([{"file": "names.txt", "sha256": digest}])
    )
    monkeypatch.setenv("MLE_DATA", str(tmp_path))
    flags = ["--vocab-size", "259", "--out", str(tmp_path / "t"), "--json"]
    assert command.main(["names", *flags]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["corpus_bytes"] == 16
    assert (results["corpus_words"], results["distinct_words"]) == (5, 3)
    tokenizer = RegexTokenizer()
    tokenizer.load(tmp_path / "t.model")
    assert results["corpus_tokens"] == len(tokenizer.encode_ordinary("emma\nolivia\nemma"))
    assert results["seconds"] > 0
    assert results["peak_mib"] > 10


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
        (["hidden"], 3, "the folder hidden holds no text files"),
        (["shakespear"], 2, "did you mean the data set shakespeare?"),
        (["corpus.txt", "--workers", "-1"], 2, "-1 must be from 0 (none) to 256"),
        (["corpus.txt", "--workers", "257"], 2, "257 must be from 0 (none) to 256"),
        (["corpus.txt", "--time-limit", "0"], 2, "--time-limit 0 must be more than 0 seconds"),
        (["corpus.txt", "--time-limit", "inf"], 2, "--time-limit inf must be more than 0 seconds"),
        (["corpus.txt", "--time-limit", "nan"], 2, "--time-limit nan must be more than 0 seconds"),
        (["x" * 300], 2, "x cannot be read: File name too long"),
        (["socket"], 2, "socket cannot be read: No such device or address"),
        (["corpus.txt", "--pattern", "(x+x+)+y", "--time-limit", ".2"], 3, "'(x+x+)+y' ran longer"),
        (["corpus.txt", "--vocab-size", "255"], 2, "vocab_size=255 must be from 256"),
        (["corpus.txt", "--vocab-size", "many"], 2, "invalid int value: 'many'"),
        (["corpus.txt", "--vocabulary", "300"], 2, "unrecognized arguments: --vocabulary 300"),
        (["corpus.txt", "--pattern", "("], 2, "the split pattern '(' does not compile"),
        (["corpus.txt", "--out", "none/t"], 2, "the folder none does not exist"),
        (["corpus.txt", "--special", ""], 2, "special token '' must be a text"),
        ([], 2, "the following arguments are required: corpus"),
        (["empty.txt"], 3, "empty.txt is empty"),
        (["latin.txt"], 3, "latin.txt, line 2: byte 6 (0xe9) is not UTF-8"),
        (["binary"], 3, "binary holds NUL bytes"),
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
    Path("binary").write_bytes(b"\x7fELF\0\0\0")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    Path("hidden").mkdir()
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

    monkeypatch.setattr(command, "count", trained)
    monkeypatch.chdir(corpus.parent)
    Path("folder.model").mkdir()
    for flags, message in [
        (["--out", "none/t"], "none/t.model: the folder none does not exist"),
        (["--out", "folder"], "folder.model is a folder"),
        (["--out", "x" * 245], "File name too long"),
        (["--special", ""], "special token '' must be a text"),
        (["--special", "\udcff"], r"special token '\udcff' must be a text"),
    ]:
        assert command.main([str(corpus), *flags]) == 2
        assert message in capsys.readouterr().err

    def refused(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refused)
    assert command.main([str(corpus), "--out", str(corpus.parent / "t")]) == 5
    assert "cannot be written: Read-only file system" in capsys.readouterr().err


def test_two_trainings_may_write_to_one_place(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tries the place has a name of its own, or one would remove the other's."""
    touched: list[Path] = []
    touch = Path.touch

    def noted(path: Path) -> None:
        touched.append(path)
        touch(path)

    monkeypatch.setattr(Path, "touch", noted)
    for _ in range(2):
        assert command.main([str(corpus), "--vocab-size", "260", "--out", str(corpus)]) == 0
    assert len(set(touched)) == 2


def test_it_reads_stdin_and_pipes(corpus: Path) -> None:
    """Which have no length and no position; as `-` or by their path."""
    for number, name in enumerate(["corpus.txt", "-", "/dev/stdin"]):
        flags = [name, "--vocab-size", "262", "--workers", "0", "--out", str(number)]
        done = subprocess.run(
            [sys.executable, "-m", "minbpe.train", *flags],
            cwd=corpus.parent,
            input=TEXT.encode(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    models = [(corpus.parent / f"{number}.model").read_bytes() for number in range(3)]
    assert models[0] == models[1] == models[2]


def test_an_interrupt_after_the_file_was_saved_says_so(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the results are printed."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "print_results", interrupted)
    out = corpus.parent / "t"
    assert command.main([str(corpus), "--vocab-size", "260", "--out", str(out)]) == 130
    err = capsys.readouterr().err
    assert err == f"minbpe.train: interrupted after writing {out}.model\n"


def test_case_12_a_catastrophe_that_only_the_corpus_shows_is_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check when training starts has passed; with and without workers."""
    path = tmp_path / "corpus.txt"
    path.write_text("α" * 3000 + "!", encoding="utf-8")
    pattern = r"(\p{Greek}+)+$"
    for workers in ("0", "1"):
        flags = ["--pattern", pattern, "--time-limit", "0.3", "--workers", workers]
        assert command.main([str(path), "--out", str(tmp_path / "t"), *flags]) == 3
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert f"{pattern!r} ran longer than its limit of 0." in captured.err
        assert "on the text, after ''" in captured.err
    assert not (tmp_path / "t.model").exists()


def test_debug_keeps_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a report of a defect."""
    assert command.main([str(tmp_path / "none.txt"), "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_bars_show_bytes_and_the_newest_token_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing at all elsewhere."""
    path = tmp_path / "corpus.txt"
    path.write_text("hi " * 1000)
    flags = [str(path), "--vocab-size", "258", "--out", str(tmp_path / "t")]
    assert command.main(flags) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert command.main(flags) == 0
    shown = capsys.readouterr().err
    assert "3.0/3.0 kB" in shown
    assert "2/2" in shown
    assert '" hi" x 999' in shown


def test_an_interrupt_ends_the_workers_and_writes_nothing(tmp_path: Path) -> None:
    """Ctrl-C is exit code 130 and one line, and no process is left behind."""
    path = tmp_path / "corpus.txt"
    path.write_text("x" * (1 << 20))
    program = "import sys; from minbpe.train import main; sys.exit(main())"
    slow = ["--pattern", r"x{1,9}", "--time-limit", "100", "--workers", "2", "--out", "t"]
    running = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", program, *["corpus.txt"] * 999, *slow],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.kill()
        pytest.skip("needs Linux's list of child processes")
    while running.poll() is None and len(children.read_text().split()) < 2:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    try:
        out, err = running.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGABRT)  # faulthandler then shows where it hangs
        pytest.fail(f"the interrupt did not end it:\n{running.communicate()[1]}")
    assert (running.returncode, out) == (130, "")
    assert err == "minbpe.train: interrupted, nothing was written\n"
    assert not (tmp_path / "t.model").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)

"""What the command lines share: one line for a mistake, exit codes, bars and tables."""

import argparse
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from minbpe.command import (
    Meter,
    Parser,
    Terminated,
    add_tokenizer,
    print_results,
    progress_bar,
    run_command,
    shown,
)
from minbpe.documents import STDIN, no_cut, read_pieces
from minbpe.errors import DataError, TokenizerFileError, UsageError
from minbpe.files import whole_file


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("python -m minbpe.test", "A test.")
    parser.add_argument("--vocab-size", type=int)
    return parser.parse_args(argv)


def raising(error: BaseException) -> Callable[[argparse.Namespace], None]:
    """Return a command that raises."""

    def run(args: argparse.Namespace) -> None:
        raise error

    run.__module__ = "minbpe.test"
    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--vocab-sise", "3"],
            "unrecognized arguments: --vocab-sise 3; did you mean --vocab-size",
        ),
        (["--quite-other"], "unrecognized arguments: --quite-other (--help lists the flags)"),
        (["--vocab", "3"], "unrecognized arguments: --vocab 3; did you mean --vocab-size?"),
        (["--vocab-size", "x"], "argument --vocab-size: invalid int value: 'x' (--help lists"),
    ],
)
def test_a_wrong_flag_is_one_line_with_the_one_meant(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefixes of flags are wrong too."""
    assert run_command(raising(KeyError()), parse, flags) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"minbpe.test: {message}")
    assert err.count("\n") == 1


def test_a_tokenizer_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Once, or as often as one likes."""
    parser = Parser("test", "A test.")
    add_tokenizer(parser)
    assert parser.parse_args(["--tokenizer", "gpt2"]).tokenizer == "gpt2"
    with pytest.raises(UsageError, match="the following arguments are required: --tokenizer"):
        parser.parse_args([])
    parser = Parser("test", "A test.")
    add_tokenizer(parser, several=True)
    assert parser.parse_args(["--tokenizer", "a", "--tokenizer", "b"]).tokenizer == ["a", "b"]
    assert parser.parse_args([]).tokenizer is None


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("a\n  b"), 2, "a b"),
        (DataError("no text"), 3, "no text"),
        (TokenizerFileError("torn"), 4, "torn"),
        (MemoryError(), 5, "out of memory; use fewer --workers or a smaller file"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 5, "f: No space left on device"),
        (OSError(errno.EAGAIN, "Resource temporarily"), 5, "Resource temporarily"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "f"), 2, "f cannot be used: File name"),
        (RuntimeError("can't start new thread"), 5, "the system refuses another thread"),
        (KeyboardInterrupt(), 130, "interrupted, nothing was written"),
        (Terminated(), 143, "terminated, nothing was written"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else is printed."""
    assert run_command(raising(error), parse, []) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"minbpe.test: {line}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interrupt_tells_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file once; of an earlier command nothing."""

    def run(args: argparse.Namespace) -> None:
        for name in ("a", "b", "b"):
            with whole_file(tmp_path / name) as file:
                file.write(b"x")
        raise KeyboardInterrupt

    assert run_command(run, parse, []) == 130
    err = capsys.readouterr().err
    assert err.endswith(f"interrupted after writing {tmp_path / 'a'}, {tmp_path / 'b'}\n")
    assert run_command(raising(Terminated()), parse, []) == 143
    assert capsys.readouterr().err.endswith(" terminated, nothing was written\n")


def test_a_closed_stream_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `>&-` and `<&-` leave them."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert run_command(lambda _: [*read_pieces([STDIN], no_cut)].clear(), parse, []) == 2
        assert "stdin (-) is closed" in capsys.readouterr().err
        patch.setattr(sys, "stdout", None)
        assert run_command(lambda _: pytest.fail("ran"), parse, []) == 2
        assert "stdout is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert run_command(raising(DataError("no text")), parse, []) == 3
    assert capsys.readouterr().out == ""


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """And changes nothing else."""
    assert run_command(raising(DataError("no text")), parse, ["--debug"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("\nminbpe.test: no text\n")


def test_a_defect_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """It is not for the user to mend."""
    assert run_command(raising(KeyError("k")), parse, []) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "a defect of minbpe" in err


def test_a_reader_that_has_gone_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As with `| head`: exit code 141, nothing said."""
    assert run_command(raising(BrokenPipeError()), parse, []) == 141
    assert capsys.readouterr().err == ""


def test_sigterm_unwinds_like_ctrl_c_and_a_second_one_ends_at_once() -> None:
    """Clean-up runs; during it SIGTERM has its own meaning again, and afterwards the old one."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run(args: argparse.Namespace) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            seen.append(signal.getsignal(signal.SIGTERM))

    assert run_command(run, parse, []) == 143
    assert seen == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_bar_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted, with its note; not where it is hidden."""
    with progress_bar("encoding", 7) as advance:
        advance(3, "note")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("encoding", 7) as advance:
        advance(3, "[a note]")
    err = capsys.readouterr().err
    assert "encoding" in err
    assert "3/7" in err
    assert "[a note]" in err
    with progress_bar("encoding", 2_000_000, in_bytes=True) as advance:
        advance(1_000_000)
    assert "1.0/2.0 MB" in capsys.readouterr().err
    with progress_bar("encoding", 7, hidden=True) as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_the_meter_counts_work_and_memory() -> None:
    """CPU seconds are of processes, not of the wall clock."""
    meter = Meter()
    start = time.process_time()
    while time.process_time() - start < 0.05:
        pass
    time.sleep(0.05)
    figures = meter.results()
    assert figures["cpu_seconds"] >= 0.03  # the clock behind it ticks every 0.01 s
    assert figures["seconds"] >= 0.1
    assert figures["peak_mib"] > 10


def test_results_are_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The table reads numbers out for people, and takes no value for markup."""
    results = {"n_tokens": 1234567, "share": 0.12345, "longest": ["[/b]", "x"]}
    print_results(results, "wrote [b]", as_json=True)
    assert json.loads(capsys.readouterr().out) == results
    print_results(results, "wrote [b]", as_json=False)
    out = capsys.readouterr().out
    assert "wrote [b]" in out
    assert "[/b] x" in out
    assert "n tokens" in out
    assert "1,234,567" in out


def test_figures_for_human_eyes() -> None:
    """Thousands apart, three decimals, texts as they are."""
    assert [shown(v) for v in (1234567, 0.12345, "a", True, [1000, "b"])] == [
        "1,234,567",
        "0.123",
        "a",
        "True",
        "1,000 b",
    ]

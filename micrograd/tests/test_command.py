"""What all command lines do when output, disk or memory fail: finish, save, one line, a code."""

import argparse
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from micrograd import command
from micrograd.errors import NumericalError

QUICK = ["-m", "micrograd.player", "--out"]


def parse(_: Sequence[str] | None) -> argparse.Namespace:
    return argparse.Namespace()


def fail(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def run(_: argparse.Namespace) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NumericalError("too\nlarge"), 6, "too large"),
        (MemoryError(), 5, "out of memory; make the network or the batch smaller"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), 5, "a/b: No space left"),
        (OSError("odd"), 5, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback."""
    assert command.main(parse, fail(error), "name", []) == code
    assert capsys.readouterr().err == f"name: {line}\n"


def test_debug_lets_errors_of_memory_and_disk_through() -> None:
    """With their traceback."""
    for error in (MemoryError(), OSError("odd")):
        with pytest.raises(type(error)):
            command.main(parse, fail(error), "name", ["--debug"])


class Broken(io.StringIO):
    """A standard output that fails at the first write."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, _: str) -> int:
        """Fail."""
        self.writes += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, "No space left"), 5, "name: standard output: No space left\n"),
    ],
)
def test_a_standard_output_that_fails_does_not_stop_the_work(
    error: OSError,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run goes on to its end, and its code tells, unless it has a worse one."""
    done = []

    def run(_: argparse.Namespace) -> None:
        print("settings")
        print("results", flush=True)
        done.append("saved")

    broken = Broken(error)
    monkeypatch.setattr("sys.stdout", broken)
    assert command.main(parse, run, "name", []) == code
    assert done == ["saved"]
    assert broken.writes == 1
    assert capsys.readouterr().err == line

    def worse(args: argparse.Namespace) -> None:
        run(args)
        raise NumericalError("worse")

    assert command.main(parse, worse, "name", []) == 6


def test_standard_output_is_put_back() -> None:
    """Also after an error."""
    before = sys.stdout
    command.main(parse, fail(MemoryError()), "name", [])
    assert sys.stdout is before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device_is_one_line_and_the_page_is_written(unbuffered: str, tmp_path: Path) -> None:
    """Python itself says nothing more when it ends."""
    page = tmp_path / "page.html"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = run_player(page, unbuffered, full)
    assert done.returncode == 5
    assert done.stderr == "micrograd.player: standard output: No space left on device\n"
    assert page.exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_not_missed(unbuffered: str, tmp_path: Path) -> None:
    """Exit code 141 without a word, and the page is written."""
    page = tmp_path / "page.html"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = run_player(page, unbuffered, gone)
    assert (done.returncode, done.stderr) == (141, "")
    assert page.exists()


def test_a_closed_standard_output_is_fine(tmp_path: Path) -> None:
    """`>&-` is no failure: nobody wanted it."""
    page = tmp_path / "page.html"
    code = "import sys; sys.stdout = None; from micrograd.player import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--out", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert page.exists()


def run_player(page: Path, unbuffered: str, stdout: Any) -> subprocess.CompletedProcess[str]:
    """Run a quick command of ours with this standard output."""
    return subprocess.run(
        [sys.executable, *QUICK, str(page)],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

"""The harness itself: a fault that does not happen would make every other test pass."""

import errno
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from shared import files
from shared.errors import ResourceError
from shared.faults import corrupt, count_operations, fail_nth, run_and_kill

_PROGRAM = """
import sys
from shared.faults import kill_point
for round in range(3):
    for name in ("save:begin", "save:end"):
        print(round, name, flush=True)
        kill_point(name)
"""


def _run(**settings: object) -> "subprocess.CompletedProcess[str]":
    return run_and_kill([sys.executable, "-c", _PROGRAM], **settings)  # type: ignore[arg-type]


def test_without_a_setting_a_kill_point_does_nothing() -> None:
    """A shipped program runs through all of them."""
    done = _run()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


@pytest.mark.parametrize(
    ("at", "last"), [("save:end", "0 save:end"), ("save:begin:3", "2 save:begin")]
)
def test_a_kill_point_kills_at_the_named_place_and_count(at: str, last: str) -> None:
    """Names may hold a colon; a number at the end counts."""
    done = _run(at=at)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.splitlines()[-1] == last


def test_another_signal_can_be_sent_at_a_kill_point() -> None:
    """SIGTERM in the middle of a save is a case of its own."""
    done = _run(at="save:begin", signum=signal.SIGTERM)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "0 save:begin\n"


def test_only_the_named_rank_is_killed() -> None:
    """One worker of several dies, which is what others have to notice."""
    assert _run(at="save:end", rank=1, env={"RANK": "0"}).returncode == 0
    assert _run(at="save:end", rank=1, env={"RANK": "1"}).returncode == -signal.SIGKILL


def test_a_restarted_worker_is_not_killed_again() -> None:
    """Otherwise no restart by torchrun could ever finish."""
    assert _run(at="save:end", env={"TORCHELASTIC_RESTART_COUNT": "1"}).returncode == 0
    first = _run(at="save:end", env={"TORCHELASTIC_RESTART_COUNT": "0"})
    assert first.returncode == -signal.SIGKILL


def test_killing_by_time_ends_the_grandchildren_too() -> None:
    """A launcher's workers must not outlive the test that killed it."""
    sleep = "import time; time.sleep(600)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    # The grandchild holds our pipes: if it lived on, waiting for their end would time out.
    done = run_and_kill([sys.executable, "-c", program], after=2, timeout=30)
    assert done.returncode == -signal.SIGKILL


def test_a_command_that_hangs_ends_at_the_time_limit() -> None:
    """A hang fails the test and leaves no process behind."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_and_kill([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)


def test_counting_changes_nothing_and_sees_only_its_block(tmp_path: Path) -> None:
    """Operations before and after the block are not counted."""
    files.write_file(tmp_path / "x", b"1")
    with count_operations() as operations, count_operations(kinds={"rename"}) as renames:
        files.write_file(tmp_path / "x", b"2")
    files.write_file(tmp_path / "x", b"3")
    assert operations.count == 5
    assert renames.seen == [("rename", tmp_path / "x")]
    assert operations.failed == 0


def test_the_nth_operation_fails_once_or_from_then_on(tmp_path: Path) -> None:
    """A full disk stays full; a hiccup does not."""
    for lasting in (False, True):
        with fail_nth(1, kinds={"write"}, lasting=lasting) as operations:
            with pytest.raises(ResourceError, match="No space left"):
                files.write_file(tmp_path / "x", b"1")
            if lasting:
                with pytest.raises(ResourceError):
                    files.write_file(tmp_path / "x", b"2")
            else:
                files.write_file(tmp_path / "x", b"2")
        assert operations.failed == 1 + lasting
    files.write_file(tmp_path / "x", b"3")  # outside the block all is well again


def test_the_injected_error_is_the_one_asked_for(tmp_path: Path) -> None:
    """An errno that is no lack of resources passes as it is, with the path."""
    with (
        fail_nth(1, OSError(errno.ELOOP, "Too many links")),
        pytest.raises(OSError, match="Too many links") as caught,
    ):
        files.write_file(tmp_path / "x", b"1")
    assert caught.value.errno == errno.ELOOP
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("how", ["truncate", "flip", "swap", "extend"])
@pytest.mark.parametrize("seed", range(20))
def test_corruption_always_changes_the_file_and_as_named(
    tmp_path: Path, how: Literal["truncate", "flip", "swap", "extend"], seed: int
) -> None:
    """A corruption that changed nothing would hold no test to anything."""
    before = bytes(range(50)) * 4
    path = tmp_path / "x"
    path.write_bytes(before)
    corrupt(path, how, seed)
    after = path.read_bytes()
    different = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if how == "truncate":
        assert len(after) < len(before)
        assert not different
    elif how == "extend":
        assert len(after) > len(before)
        assert not different
    elif how == "flip":
        assert len(after) == len(before)
        assert [(before[i] ^ after[i]).bit_count() for i in different] == [1]
    else:
        assert sorted(after) == sorted(before)
        assert len(different) == 2
    path.write_bytes(before)
    corrupt(path, how, seed)
    assert path.read_bytes() == after  # the same seed, the same damage


@pytest.mark.parametrize("how", ["truncate", "flip", "swap"])
def test_what_cannot_be_corrupted_says_so(
    tmp_path: Path, how: Literal["truncate", "flip", "swap"]
) -> None:
    """Nothing to cut, flip or swap in an empty file, nothing to swap among equal bytes."""
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: nothing to"):
        corrupt(tmp_path / "x", how)
    (tmp_path / "x").write_bytes(b"aaaa")
    with pytest.raises(ValueError, match="nothing to swap"):
        corrupt(tmp_path / "x", "swap")


def test_truncating_cuts_at_least_one_byte(tmp_path: Path) -> None:
    """Of a file of one byte nothing can be left."""
    for seed in range(8):
        (tmp_path / "x").write_bytes(b"x")
        corrupt(tmp_path / "x", "truncate", seed)
        assert (tmp_path / "x").read_bytes() == b""

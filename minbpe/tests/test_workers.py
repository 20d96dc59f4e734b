"""Worker processes change nothing but the time."""

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minbpe.errors import DataError, ResourceError, UsageError
from minbpe.workers import AHEAD, Workers, usable_cpus


def square(number: int) -> int:
    """Take longer for some, so that results come out of order."""
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number


def refuse(number: int) -> int:
    if number == 3:
        raise DataError("three")
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("number", [0, 1, 3])
def test_results_come_in_order(number: int) -> None:
    """For any number of workers."""
    with Workers(square, number) as workers:
        assert list(workers.map(range(10))) == [n * n for n in range(10)]


def test_few_items_are_taken_ahead() -> None:
    """So that memory stays bounded however long the stream is."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with Workers(square, 2) as workers:
        results = workers.map(items())
        assert next(results) == 0
        assert len(taken) == 2 * (1 + AHEAD) + 1


def test_an_error_in_a_worker_is_the_callers() -> None:
    """With its type and message."""
    with Workers(refuse, 2) as workers, pytest.raises(DataError, match="three"):
        list(workers.map(range(9)))


def test_a_killed_worker_is_a_lack_of_memory() -> None:
    """The kernel kills the largest process; waiting for it would be for ever."""
    with (
        Workers(die, 1) as workers,
        pytest.raises(ResourceError, match="a worker process was killed"),
    ):
        list(workers.map(range(3)))


def write_twice(path: Path) -> None:
    path.with_suffix(".begun").touch()
    time.sleep(5)
    path.touch()


@pytest.mark.parametrize("kind", [DataError, KeyboardInterrupt])
def test_an_error_ends_all_workers_at_once(tmp_path: Path, kind: type[BaseException]) -> None:
    """Whatever they are at, and Ctrl-C too."""
    path = tmp_path / "late"

    def items() -> Iterator[Path]:
        yield path
        while not path.with_suffix(".begun").exists():
            time.sleep(0.01)
        raise kind

    before = set(multiprocessing.active_children())
    with pytest.raises(kind), Workers(write_twice, 2) as workers:
        list(workers.map(items()))
    assert set(multiprocessing.active_children()) <= before
    assert not path.exists()


def own_pid(_: int) -> int:
    return os.getpid()


def test_ctrl_c_is_left_to_the_parent() -> None:
    """It reaches every process of the terminal; a worker would end with a traceback."""
    with Workers(own_pid, 1) as workers:
        (pid,) = workers.map([0])
        os.kill(pid, signal.SIGINT)
        assert list(workers.map([0])) == [pid]


@pytest.mark.parametrize("number", [-1, 257])
def test_a_number_that_makes_no_sense_is_refused(number: int) -> None:
    """Fewer than none, or so many that they would only fill the memory."""
    with pytest.raises(UsageError, match=rf"workers={number} must be from 0 \(none\) to 256"):
        Workers(square, number)
    assert usable_cpus() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_system_that_refuses_a_process_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The workers that were started are not left behind."""
    fork, started = os.fork, list[int]()

    def refusing() -> int:
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(fork())
        return started[-1]

    monkeypatch.setattr(os, "fork", refusing)
    with (
        pytest.raises(ResourceError, match=r"3 worker processes cannot be started \(.*unavailable"),
        Workers(square, 3),
    ):
        pytest.fail("started")
    for pid in started:
        with contextlib.suppress(ChildProcessError):  # multiprocessing may have waited for it
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


ORPHANS = """
import os, signal, time
from minbpe.workers import Workers

with Workers(lambda n: os.getpid(), 2) as workers:
    print(*set(workers.map(range(20))), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a lambda can't be pickled for spawn")
def test_workers_end_with_a_killed_parent() -> None:
    """None is left behind to hold memory."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, check=False
    )  # returns once no worker holds the pipe any more
    assert done.returncode == -signal.SIGKILL
    for pid in map(int, done.stdout.split()):
        for _ in range(200):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"worker {pid} still runs")

"""Tasks worked off by processes: order, failures, interrupts, and what is told meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared import cli
from shared.errors import Failure, Interrupted
from shared.workers import (
    Board,
    Running,
    RunTask,
    SweepConfig,
    make_clocks,
    refuse_failed,
    told_clocks,
    training_progress,
    work_off,
)


@dataclass
class Script:
    """A task of small Python programs."""

    name: str
    log: Path
    scripts: Sequence[str]
    cost: float = 1.0

    def commands(self) -> list[list[str]]:
        """Return a command a program."""
        return [["-S", "-c", script] for script in self.scripts]

    def progress(self) -> tuple[float, str]:
        """Return half, always."""
        return 0.5, "at work"

    def outcome(self) -> str:
        """Return what it printed."""
        return self.log.read_text().strip().replace("\n", " ")


def test_tasks_run_the_longest_first_and_their_commands_in_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With one worker the order is that of the costs."""
    tasks = [
        Script("short", tmp_path / "1.log", ["print('a')", "print('b')"], cost=1),
        Script("long", tmp_path / "2.log", ["print('c')"], cost=9),
    ]
    assert work_off(tasks, 1) == []
    lines = [line for line in capfd.readouterr().err.splitlines() if "started" not in line]
    assert [line.rpartition(",")[0] for line in lines] == ["1/2  long: c", "2/2  short: a b"]


def test_a_failing_task_hinders_no_other_and_keeps_its_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its last line is shown, its later commands are not run, and the code is carried on."""
    never = tmp_path / "never"
    bad = [
        "import sys; print('much'); print('error: no room'); sys.exit(5)",
        f"open({str(never)!r}, 'w')",
    ]
    tasks = [
        Script("bad", tmp_path / "bad.log", bad, cost=9),
        Script("killed", tmp_path / "k.log", ["import os; os.kill(os.getpid(), 9)"], cost=5),
        Script("good", tmp_path / "good.log", ["print('fine')"]),
    ]
    first, second = work_off(tasks, 1)
    assert (first.exit_code, second.exit_code) == (5, 137)
    assert str(first).startswith("bad: no room (exit code 5, log: ")
    error = capfd.readouterr().err
    assert "error: bad: no room" in error
    assert "good: fine" in error
    assert not never.exists()
    refuse_failed([], 3)
    with pytest.raises(Failure, match="2 of 3 jobs failed, the first: bad: no room") as caught:
        refuse_failed([first, second], 3)
    assert cli.explain(caught.value) is not None
    assert cli.explain(caught.value)[1] == 5  # type: ignore[index]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_workers_save(tmp_path: Path, signum: signal.Signals) -> None:
    """Each gets one SIGTERM and the time to save; nothing new is begun."""
    saving = """if True:
        import pathlib, signal, sys, time
        folder = pathlib.Path(sys.argv[1])
        def save(*_):
            (folder / "saved").write_text("")
            sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (folder / "ready").write_text("")
        time.sleep(60)"""
    task = Script("saver", tmp_path / "1.log", [saving])
    task.commands = lambda: [["-S", "-c", saving, str(tmp_path)]]  # type: ignore[method-assign]
    never = Script("never", tmp_path / "2.log", ["print('begun')"], cost=0.5)

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="what was done is kept; go on") as caught:
        work_off([task, never], 1, "; go on")
    assert caught.value.exit_code == 128 + signum
    assert (tmp_path / "saved").exists()
    assert not never.log.exists()


def test_the_time_left_follows_the_speed_so_far(tmp_path: Path) -> None:
    """Half of 10 took 20 s, so that a unit takes 4 s: 5 + 10 units, shared by two workers."""
    tasks = [Script(name, tmp_path / name, ["pass"], cost=10.0) for name in ("a", "b")]
    board, running = Board(tasks, 2), Running(tasks[0])
    running.process.wait()
    running.log.close()
    running.started = time.monotonic() - 20
    left = board.seconds_left([running], [0.5], [tasks[1]])
    assert left == pytest.approx(40, rel=0.05)  # the one that waits takes longer than half of all
    assert board.seconds_left([running], [0.0], [tasks[1]]) == 0


def test_the_times_of_many_runs_are_told() -> None:
    """The command's own and those of all training, also of what was done before."""
    clocks = make_clocks(time.monotonic() - 5000, [1000.0, 234.56], kept=2)
    assert clocks["seconds"] == pytest.approx(5000, abs=9)
    assert 0 < clocks["cpu_seconds"] == round(clocks["cpu_seconds"], 1)
    assert (clocks["training_cpu_seconds"], clocks["jobs_of_before"]) == (1234.6, 2)
    assert told_clocks({**clocks, "seconds": 5000.2, "cpu_seconds": 7.1}) == {
        "this command": "5,000 s, 7 CPU s (2 jobs were done before)",
        "all training": "1,235 CPU s",
    }
    assert "before" not in told_clocks({**clocks, "jobs_of_before": 0})["this command"]


def test_progress_is_that_of_the_runs_last_records(tmp_path: Path) -> None:
    """The step of the newest record, with the last training and validation loss of any."""
    assert training_progress(tmp_path, 40) == (0.0, "starting")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 20, "kind": "val", "val_loss": 2.5}\n'
        '{"step": 30, "kind": "train", "loss": 2.25}\n'
    )
    part, said = training_progress(tmp_path, 40)
    assert part == 0.75
    assert said.split() == ["step", "30/40", "loss", "2.2500", "val", "2.5000"]
    assert training_progress(tmp_path, 20)[0] == 1.0  # a run that was asked for fewer


@dataclass(frozen=True)
class Climb(RunTask):
    """A command that fills a folder."""

    folder: Path

    def words(self) -> list[str]:
        """Return what it runs."""
        return ["climb", "--rung", "3"]


def test_a_run_that_was_begun_is_continued_and_one_with_a_result_is_done(tmp_path: Path) -> None:
    """Its log lies beside its folder, which must be empty when it begins."""
    task = Climb(tmp_path / "three")
    command = ["-m", "climb", "--rung", "3", "--out", str(task.folder)]
    assert (task.commands(), task.done) == ([command], False)
    assert task.log == tmp_path / "three.log"
    task.folder.mkdir()
    assert (task.commands(), task.done) == ([[*command, "--resume"]], False)
    (task.folder / "result.json").write_text("{}")
    assert task.done


@pytest.mark.parametrize(
    ("name", "value", "least"), [("seeds", 0, 1), ("workers", -1, 0), ("max_steps", 0, 1)]
)
def test_a_sweep_refuses_what_makes_no_run(name: str, value: int, least: int) -> None:
    """Saying what is wrong and what is allowed."""
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name}={value} must be at least {least}"):
        SweepConfig(**settings)


def test_where_a_sweep_runs_does_not_decide_its_numbers(tmp_path: Path) -> None:
    """Nor how many processes there are at a time: of those the plan tells."""
    config = SweepConfig(seeds=2, max_steps=5, workers=3, out=tmp_path, resume=True)
    assert config.deciding() == {"seeds": 2, "max_steps": 5}
    plan = config.plan(jobs=6, done=4)
    assert plan["jobs"] == "6, of which 4 are done"
    assert (plan["seeds"], plan["workers"]) == ("0, 1", "3 processes of one thread")
    assert SweepConfig().processes >= 1

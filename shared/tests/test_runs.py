"""A run folder belongs to one run, is known to be writable, and says what was done in it."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from shared import runs
from shared.errors import ArtefactError, ResourceError, UsageError
from shared.faults import count_operations, fail_nth
from shared.runs import Run, config_diff, saved_config

_CONFIG: dict[str, Any] = {"model": {"n_layer": 4}, "seed": 1337}

# Holds a run folder until told to go on, and says how it was left.
_HOLD = """
import sys
from pathlib import Path
from shared.runs import Run
with Run.open("gpt2", Path(sys.argv[1]), resume="--resume" in sys.argv, config={}) as run:
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def plain_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, as a process that no launcher has started."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TORCHELASTIC_") or name in ("RANK", "WORLD_SIZE", "GROUP_WORLD_SIZE"):
            monkeypatch.delenv(name)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the folder `held`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


def _open(out: Path | None, resume: bool = False, **settings: Any) -> Path:
    """Open and close a run; return its folder."""
    settings = {"config": _CONFIG} | settings
    with Run.open("gpt2", out, resume=resume, **settings) as run:
        return run.folder


def _result(run: Run, **metrics: float | None) -> dict[str, Any]:
    return run.write_result(
        seed=1337,
        device="cpu",
        data_name="words",
        data_sha256="0" * 64,
        parameters=10,
        steps=3,
        metrics=metrics,
    )


# The folder


def test_a_run_without_out_gets_a_folder_named_after_its_start(tmp_path: Path) -> None:
    """Under runs/<package>, relative to where the command was typed."""
    folder = _open(None)
    assert folder.parent == Path("runs/gpt2")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", folder.name)
    assert json.loads((tmp_path / folder / "config.json").read_text()) == _CONFIG


def test_two_runs_of_the_same_second_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is -2, the third -3."""
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    names = [_open(None).name for _ in range(3)]
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """Exit code 2 with the two remedies, and nothing of ours is left in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match=r"thesis\.txt.*--resume.*--out") as caught:
        _open(tmp_path / "mine")
    assert caught.value.exit_code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    used = _open(tmp_path / "run")
    with pytest.raises(UsageError, match=r"config\.json"):
        _open(used)


def test_a_run_killed_before_it_began_does_not_block_its_folder(tmp_path: Path) -> None:
    """A lock file, its owner and half a config are no run yet."""
    folder = _open(tmp_path / "run")
    (folder / "config.json").rename(folder / ".config.json.1-1.tmp")
    assert sorted(path.name for path in _open(folder).iterdir()) == [
        *("config.json", "owner.json", "run.lock")
    ]


def test_out_must_be_a_place_for_a_folder(tmp_path: Path) -> None:
    """A file, a file among the parents, a name too long: exit code 2."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        _open(tmp_path / "file")
    with pytest.raises(UsageError, match=r"--out .*(Not a directory|exists)"):
        _open(tmp_path / "file" / "run")
    with pytest.raises(UsageError, match=r"--out .*too long"):
        _open(tmp_path / "parent" / ("x" * 300))


def test_resume_takes_the_folder_as_it_is(tmp_path: Path) -> None:
    """With its files in place, and only if there is one."""
    with pytest.raises(UsageError, match=r"--resume: .*run does not exist"):
        _open(tmp_path / "run", resume=True)
    folder = _open(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / ".metrics.jsonl.7-1.tmp").write_text("half")
    with Run.open("gpt2", folder, resume=True, config=_CONFIG) as run:
        assert run.resumed
        assert run.checkpoints == folder / "checkpoints"
    assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert not (folder / ".metrics.jsonl.7-1.tmp").exists()


def test_resume_without_out_takes_the_run_started_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the clock was set back in between; by name when the note is lost or leads away."""
    with pytest.raises(UsageError, match="holds no run"):
        _open(None, resume=True)
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    early = _open(None)
    monkeypatch.setattr(time, "time", lambda: 1.6e9)
    late = _open(None)
    assert late.name < early.name
    assert _open(None, resume=True) == late
    for note in ("", "..", "../../elsewhere", "absent"):
        Path("runs/gpt2/newest").write_text(note)
        assert _open(None, resume=True) == early
        Path("runs/gpt2/newest").unlink(missing_ok=True)
    assert _open(None, resume=True) == early


def test_resume_without_out_passes_over_runs_that_saved_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start that failed at once does not hide the run that has something to resume."""
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    folders = [_open(None, config={"n": n}) for n in range(3)]
    assert saved_config("gpt2", ["--resume"]) == {"n": 2}  # none has saved: the one started last
    for n, folder in enumerate(folders):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "latest").touch()
        assert saved_config("gpt2", ["--resume"]) == {"n": n}
    assert _open(None, resume=True, config={"n": 2}) == folders[2]


# Two runs in one folder


def test_case_40_the_second_run_in_one_folder_is_refused_with_the_owner(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """Exit code 5 naming process, host and start, with --resume as without; nothing is written."""
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "held").iterdir())
    for resume in (False, True):
        with pytest.raises(
            ResourceError, match=rf"in use .*process {holder.pid} on \S+, started 2"
        ):
            _open(tmp_path / "held", resume=resume, config={"other": 1})
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "held").iterdir()) == before


@pytest.mark.parametrize("owner", ["", "[]", "{}", None])
def test_a_lost_note_of_the_owner_does_not_hide_the_refusal(
    tmp_path: Path, holder: subprocess.Popen[str], owner: str | None
) -> None:
    """The lock decides; the note only tells."""
    note = tmp_path / "held" / "owner.json"
    note.unlink() if owner is None else note.write_text(owner)
    with pytest.raises(ResourceError, match="is in use by another run"):
        _open(tmp_path / "held", resume=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_a_run_that_ended_frees_its_folder_however_it_ended(
    tmp_path: Path, holder: subprocess.Popen[str], how: signal.Signals | None
) -> None:
    """No lock outlives its process, so no user has to delete one."""
    if how is None:
        holder.communicate("go on\n")
        assert holder.returncode == 0
    else:
        holder.send_signal(how)
        assert holder.wait() == -how
    assert _open(tmp_path / "held", resume=True, config={}) == tmp_path / "held"


def test_the_lock_is_freed_when_the_block_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook or a test the process goes on after a run has failed."""
    locks = []  # kept, so that the garbage collector frees none
    take = runs._lock

    def kept(folder: Path) -> filelock.BaseFileLock:
        locks.append(take(folder))
        return locks[-1]

    monkeypatch.setattr(runs, "_lock", kept)
    with pytest.raises(ZeroDivisionError), Run.open("x", tmp_path / "a", resume=False, config={}):
        raise ZeroDivisionError
    _open(tmp_path / "a", resume=True, config={})
    with pytest.raises(ArtefactError):
        _open(tmp_path / "a", resume=True, config={"n": 1})
    _open(tmp_path / "a", resume=True, config={})


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    """A sweep in one process with one --out is the same mistake."""
    with Run.open("x", tmp_path / "a", resume=False, config={}), pytest.raises(ResourceError):
        _open(tmp_path / "a", resume=True, config={})


# A folder that cannot be written


def test_case_40_a_folder_that_cannot_be_written_is_refused_before_the_run_begins(
    tmp_path: Path,
) -> None:
    """Fail each operation of opening a run, for a read-only and for a full disk: exit code 5.

    Injected, as permissions do not bind the root user that continuous integration runs as.
    """
    for number in (errno.EROFS, errno.ENOSPC):
        n = 0
        while True:
            n += 1
            began = False
            with fail_nth(n, OSError(number, os.strerror(number)), lasting=True) as operations:
                error = None
                try:
                    with Run.open("x", tmp_path / f"{number}-{n}", resume=False, config={}):
                        began = True
                except ResourceError as caught:
                    error = caught
            if error is None:
                break
            assert not began
            assert error.exit_code == 5
            assert os.strerror(number) in str(error)
            assert str(tmp_path) in str(error)
        assert began
        assert operations.failed == 0
        assert n > 10


def test_case_40_a_disk_with_hardly_any_room_is_refused_before_the_run_begins(
    tmp_path: Path,
) -> None:
    """Room for a lock file is not room for a run; a limit on file sizes stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            _open(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_case_40_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    """The same with real permissions, for who is not root."""
    folder = _open(tmp_path / "run")
    folder.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="Permission denied"):
            _open(folder, resume=True)
        with pytest.raises(ResourceError, match="Permission denied"):
            _open(folder / "below")
    finally:
        folder.chmod(0o700)


# Clocks


def test_case_40_durations_do_not_follow_the_wall_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock set back by a year during the run gives no negative seconds."""
    with Run.open("x", tmp_path / "run", resume=False, config={}) as run:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        monkeypatch.setattr(time, "perf_counter", lambda: run.started + 1.5)
        monkeypatch.setattr(time, "process_time", lambda: run.cpu_started + 1.25)
        result = _result(run)
    assert result["seconds"] == 1.5
    assert result["cpu_seconds"] == 1.25


# Ranks


def test_other_ranks_name_the_same_folder_and_write_nothing(tmp_path: Path) -> None:
    """Only rank 0 makes, locks and writes."""
    with count_operations() as operations:
        with Run.open("gpt2", tmp_path / "run", resume=False, config=_CONFIG, rank=1) as run:
            result = _result(run, val_loss=1.0)
        assert operations.count == 0
    assert run.folder == tmp_path / "run"
    assert result["val_loss"] == 1.0
    assert not (tmp_path / "run").exists()


def test_under_torchrun_all_ranks_and_restarts_share_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name comes from the launcher, so no rank has to ask another."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    folder = _open(None)
    assert folder.name.endswith(f"-{os.getppid()}")
    assert _open(None, rank=1) == folder
    monkeypatch.setattr(time, "time", lambda: 0.0)  # what a rank's own clock says has no part
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with Run.open("gpt2", None, resume=False, config=_CONFIG) as run:
        assert run.folder == folder
        assert run.resumed
    # The wall clock was set, and with it what the launcher's start time reads as.
    monkeypatch.setattr(runs, "_time_name", lambda _: "1999-12-31T23-59-59")
    assert _open(None) == folder
    assert _open(None, rank=1) == folder


def test_a_restart_before_the_first_config_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies at once has made no folder; its successor is no user with a typo."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (_open(tmp_path / "run") / "config.json").exists()


def test_ranks_that_cannot_agree_on_a_folder_ask_for_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launcher, or several nodes, each with a clock of its own."""
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="--out is needed"):
        _open(None, rank=1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--out is needed on several nodes"):
        _open(None, rank=1)


# Configurations


def test_a_changed_configuration_is_refused_field_by_field(tmp_path: Path) -> None:
    """Exit code 4 with each difference; what was there stays as it was."""
    folder = _open(tmp_path / "run")
    changed = {"model": {"n_layer": 6}, "max_steps": 10}
    with pytest.raises(ArtefactError) as caught:
        _open(folder, resume=True, config=changed)
    for line in ("model.n_layer: 4 -> 6", "max_steps: (absent) -> 10", "seed: 1337 -> (absent)"):
        assert line in str(caught.value)
    assert caught.value.exit_code == 4
    assert json.loads((folder / "config.json").read_text()) == _CONFIG
    longer = _CONFIG | {"max_steps": 10}
    _open(folder, resume=True, config=longer, may_change=["max_steps"])
    assert json.loads((folder / "config.json").read_text()) == longer
    (folder / "config.json").write_text("{torn")
    with pytest.raises(ArtefactError, match=r"config\.json: not valid JSON"):
        _open(folder, resume=True)


def test_config_diff_compares_as_json_and_lets_groups_through() -> None:
    """Tuples are lists, paths are text; a group's name allows all its fields, and no others."""
    old = {"betas": [0.9, 0.95], "data": "x.txt", "trainer": {"a": 1, "b": {"c": 2}}, "none": None}
    new = {"betas": (0.9, 0.95), "data": Path("x.txt"), "trainer": {"a": 5, "b": {"c": 6}}}
    assert config_diff(old, new | {"none": None}, ["trainer"]) == []
    assert config_diff(old, new, ["trainer.b", "none"]) == ["trainer.a: 1 -> 5"]
    assert config_diff(old, new, ["train", "a", "c"]) == [
        *("none: None -> (absent)", "trainer.a: 1 -> 5", "trainer.b.c: 2 -> 6")
    ]


# Results


def test_a_result_has_the_same_fields_for_every_package(tmp_path: Path) -> None:
    """Flat, with the metrics by their names; what is not a number is null."""
    with Run.open("gpt2", tmp_path / "run", resume=False, config=_CONFIG) as run:
        result = _result(run, val_loss=1.5, best_val_loss=float("nan"), mfu=None)
    assert list(result) == [
        *("command", "commit", "seed", "device", "data", "parameters", "steps", "seconds"),
        *("cpu_seconds", "val_loss", "best_val_loss", "mfu"),
    ]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["data"] == {"name": "words", "sha256": "0" * 64}
    assert (result["val_loss"], result["best_val_loss"], result["mfu"]) == (1.5, None, None)
    assert result["seconds"] >= 0
    with pytest.raises(ValueError, match=r"\['steps'\]"):
        _result(run, steps=3.0)


def test_a_resumed_run_can_count_the_time_before(tmp_path: Path) -> None:
    """Seconds given replace those of this process."""
    with Run.open("gpt2", tmp_path / "run", resume=False, config={}) as run:
        result = run.write_result(
            seed=1,
            device="cpu",
            data_name="words",
            data_sha256="",
            parameters=1,
            steps=1,
            metrics={},
            seconds=100.0,
            cpu_seconds=200.0,
        )
    assert (result["seconds"], result["cpu_seconds"]) == (100.0, 200.0)


def _command_of(argv: list[str], cwd: Path, **env: str) -> str:
    """Run a process that prints its own command."""
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_command_is_what_a_person_would_type(tmp_path: Path) -> None:
    """For a module, a package, a script and under torchrun; no path of this machine slips in."""
    say = "from shared.runs import command\nprint(command())\n"
    (tmp_path / "tool").mkdir()
    for name in ("tool/train.py", "tool/__main__.py", "script.py"):
        (tmp_path / name).write_text(say)
    module = ["-m", "tool.train", "--prompt", "To be"]
    assert _command_of(module, tmp_path) == "python -m tool.train --prompt 'To be'"
    assert _command_of(["-m", "tool"], tmp_path) == "python -m tool"
    assert _command_of(["script.py", "-x"], tmp_path) == "python script.py -x"
    assert _command_of([str(tmp_path / "script.py")], tmp_path) == "python script.py"
    assert _command_of([str(tmp_path / "script.py")], tmp_path / "tool") == "python script.py"
    launched = _command_of(module, tmp_path, TORCHELASTIC_RUN_ID="none", LOCAL_WORLD_SIZE="2")
    assert launched == "torchrun --nproc-per-node=2 -m tool.train --prompt 'To be'"


def test_paths_are_shown_relative_or_by_name(tmp_path: Path) -> None:
    """A result file is read on other machines."""
    assert runs.shown(tmp_path / "data" / "x.txt") == "data/x.txt"
    assert runs.shown(Path("data/x.txt")) == "data/x.txt"
    assert runs.shown(tmp_path.parent / "x.txt") == "x.txt"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_our_source_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked when code was edited; not that of a repository we are merely installed in."""

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    source = tmp_path / "src" / "runs.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    monkeypatch.setattr(runs, "__file__", str(source))
    assert runs.source_commit() is None
    git("init", "-q")
    (tmp_path / "notes.txt").write_text("1")
    git("add", "notes.txt")
    git("commit", "-qm", "not ours")
    assert runs.source_commit() is None
    git("add", ".")
    git("commit", "-qm", "ours")
    head = git("rev-parse", "HEAD")
    assert runs.source_commit() == head
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "absent"))
    assert runs.source_commit() == head
    monkeypatch.delenv("GIT_DIR")
    (tmp_path / "notes.txt").write_text("2")  # a result file that a run rewrites is no code
    assert runs.source_commit() == head
    (tmp_path / "scratch.py").touch()  # nothing imports it
    (tmp_path / "src" / "notes.txt").touch()
    assert runs.source_commit() == head
    new = tmp_path / "src" / "part" / "new.py"
    new.parent.mkdir()
    new.touch()
    assert runs.source_commit() == f"{head}-dirty"
    (new.with_suffix(".toml")).touch()
    new.unlink()
    assert runs.source_commit() == f"{head}-dirty"
    (tmp_path / ".git" / "info" / "exclude").write_text("part/\n")
    assert runs.source_commit() == head
    source.write_text("x = 2\n")
    assert runs.source_commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.source_commit() is None


def test_a_resumed_command_line_takes_the_settings_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --resume, of --out or of the run started last; without it, nothing is read."""
    monkeypatch.chdir(tmp_path)
    with Run.open("demo", None, resume=False, config={"n": 1}) as first:
        pass
    with Run.open("demo", tmp_path / "other", resume=False, config={"n": 2}):
        pass
    assert saved_config("demo", ["--resume"]) == {"n": 1}
    assert saved_config("demo", ["--resume", "--out", "other", "--seed", "3"]) == {"n": 2}
    assert saved_config("demo", ["--out", str(first.folder)]) is None
    assert saved_config("demo", ["--resume", "--out", "absent"]) is None
    with pytest.raises(UsageError, match="holds no run"):
        saved_config("another", ["--resume"])


def test_what_a_start_killed_in_its_probe_leaves_is_no_used_folder(tmp_path: Path) -> None:
    """Whatever file of an opening a kill leaves behind, another start still works."""
    with (
        count_operations(kinds=("open",)) as operations,
        Run.open("gpt2", tmp_path / "first", resume=False, config={}),
    ):
        pass
    left = [path.name for _, path in operations.seen]
    assert any("probe" in name for name in left)
    second = tmp_path / "second"
    second.mkdir()
    for name in left:
        (second / name).touch()
    with Run.open("gpt2", second, resume=False, config={}) as run:
        assert run.folder == second

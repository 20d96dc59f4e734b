"""The run folder: made, probed and locked before any compute; `config.json`, `result.json`.

runs/gpt2/2025-01-31T09-30-00/
  config.json        what the run was asked to do
  metrics.jsonl, checkpoints/, plots
  result.json        what came of it, flat and the same for every package
  run.lock           held by the process that writes here; freed by the system when it dies
  owner.json         who that is, for the message to whoever comes second
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import psutil

from shared import files
from shared.errors import ArtefactError, ResourceError, UsageError

CONFIG = "config.json"
RESULT = "result.json"
LOCK = "run.lock"
OWNER = "owner.json"
PROBE_BYTES = 2**20  # enough for config, logs and plots; a save of weights asks for itself
_RUN_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(-\d+)?")
_NEWEST = "newest"  # beside the run folders: the name of the one started last


@dataclasses.dataclass
class Run:
    """A run's folder, and the clocks that started with it.

    Only rank 0 creates, locks and writes; on other ranks it just names the folder.
    """

    package: str
    folder: Path
    resumed: bool
    rank: int = 0
    commit: str | None = None  # of the source, read at the start: the code may be edited meanwhile
    started: float = dataclasses.field(default_factory=time.perf_counter)
    cpu_started: float = dataclasses.field(default_factory=time.process_time)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        package: str,
        out: Path | None,
        *,
        resume: bool,
        config: Mapping[str, Any],
        may_change: Collection[str] = (),
        rank: int = 0,
    ) -> Iterator["Run"]:
        """Take a folder for a run and hold it for the block.

        Without `out` it is `runs/<package>/<start time>` under the working folder, and with
        `resume` the one of these started last, of those with a checkpoint if there are any. After
        a restart by `torchrun --max-restarts` the run is resumed unasked. `may_change` names the
        fields of `config` (see `config_diff`) that a resumed run may have different.

        Raises UsageError for a folder that is in use for something else, or absent on resume;
        ArtefactError when the configuration of the run resumed differs; ResourceError when
        another process holds the folder or the disk is full or read-only. All before any
        compute is spent.
        """
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        folder = out if out is not None else _default_folder(Path("runs") / package, resume)
        if rank != 0:
            yield cls(package, folder, resume or restarted, rank)
            return
        with _held(folder, resume=resume, restarted=restarted):
            run = cls(package, folder, resume or restarted, rank, source_commit())
            run._write_config(config, may_change)
            if out is None:
                files.write_file(folder.parent / _NEWEST, f"{folder.name}\n".encode())
            yield run

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints (see `shared.checkpoint`)."""
        return self.folder / "checkpoints"

    def elapsed(self) -> tuple[float, float]:
        """Wall and CPU seconds of this process since the run was opened, by monotonic clocks."""
        return time.perf_counter() - self.started, time.process_time() - self.cpu_started

    def write_result(
        self,
        *,
        seed: int,
        device: str,
        data_name: str,
        data_sha256: str,
        parameters: int,
        steps: int,
        metrics: Mapping[str, float | None],
        seconds: float | None = None,
        cpu_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Write `result.json` and return what it holds; does nothing but return on other ranks.

        `metrics` are the final and best values by name (`val_loss`, `best_val_loss`, ...), a
        non-finite one becoming null. `seconds` and `cpu_seconds` are those of this process
        unless given, as by a resumed run that counts the time before. Raises ValueError for a
        metric named like a fixed field.
        """
        wall, cpu = self.elapsed()
        result: dict[str, Any] = {
            "command": command(),
            "commit": self.commit,
            "seed": seed,
            "device": device,
            "data": {"name": data_name, "sha256": data_sha256},
            "parameters": parameters,
            "steps": steps,
            "seconds": round(wall if seconds is None else seconds, 3),
            "cpu_seconds": round(cpu if cpu_seconds is None else cpu_seconds, 3),
        }
        if taken := result.keys() & metrics.keys():
            raise ValueError(f"metrics named like fields of a result: {sorted(taken)}")
        result |= {name: _finite(value) for name, value in metrics.items()}
        if self.rank == 0:
            files.write_json(self.folder / RESULT, result)
        return result

    def _write_config(self, config: Mapping[str, Any], may_change: Collection[str]) -> None:
        path = self.folder / CONFIG
        before = files.read_json(path) if path.exists() else config
        if changes := config_diff(before, config, may_change):
            raise ArtefactError(
                f"{self.folder} was made with another configuration: " + "; ".join(changes)
            )
        files.write_json(path, config)


def saved_config(package: str, words: Sequence[str]) -> dict[str, Any] | None:
    """Read the config of the run that a command line with --resume continues; None without it.

    Its values are the defaults of the new command line (see `shared.cli.execute`), so that nobody
    has to repeat the flags of a run to continue it. None too where there is no such config, which
    `Run.open` then explains. Raises UsageError when no run was ever started, ArtefactError for a
    torn file.
    """
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    asked.add_argument("--resume", action="store_true")
    asked.add_argument("--out", type=Path)
    with contextlib.suppress(argparse.ArgumentError):  # a bad line is the real parser's to explain
        found, _ = asked.parse_known_args(list(words))
        if found.resume:
            folder = found.out or newest_folder(Path("runs") / package)
            if (folder / CONFIG).exists():
                config: dict[str, Any] = files.read_json(folder / CONFIG)
                return config
    return None


def config_diff(
    old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[str]:
    """Compare two configurations field by field.

    Returns a line for each field that differs, such as `model.n_layer: 4 -> 6`. `allowed` names
    fields that may: in full (`trainer.max_steps`), or a whole group (`trainer`). Values are
    compared as JSON knows them, so a tuple equals a list.
    """
    flat_old, flat_new = (_flat(json.loads(files.json_bytes(config))) for config in (old, new))
    changes = []
    for name in sorted(flat_old.keys() | flat_new.keys()):
        before, after = flat_old.get(name, "(absent)"), flat_new.get(name, "(absent)")
        parts = name.split(".")
        groups = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        if before != after and groups.isdisjoint(allowed):
            changes.append(f"{name}: {before} -> {after}")
    return changes


def command() -> str:
    """Give the command that started this process, as a person would type it again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words: list[str]
    if spec is not None:
        words = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        script = Path(sys.argv[0])
        words = ["python", shown(script)] if script.suffix == ".py" else [script.name]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        words = ["torchrun", f"--nproc-per-node={processes}", *words[1:]]
    return shlex.join([*words, *sys.argv[1:]])


def shown(path: Path) -> str:
    """Write a path for a file that others will read: relative where it is below this folder.

    Elsewhere only its name, as the rest is of no use on another machine.
    """
    absolute, here = path.resolve(), Path.cwd().resolve()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else path.name


def shown_data(name: str) -> str:
    """Write the name of a data set for a file that others will read; a path as `shown` has it."""
    return shown(Path(name)) if name and Path(name).exists() else name


def source_commit() -> str | None:
    """Git commit of the source tree that this module is in, "-dirty" if its code is another.

    That is: a tracked Python or TOML file was edited, or a new one lies below a folder `src`.
    None outside a checkout, as for an installed package, and without git.
    """
    source = Path(__file__).resolve()
    # A git hook that runs the tests would otherwise point us at another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words],
            cwd=source.parent,
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()

    try:
        # A virtual environment inside some other repository is not that repository's source.
        git("ls-files", "--error-unmatch", source.name)
        edited = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/*.toml")
        patterns = (":(top,glob)**/src/**/*.py", ":(top,glob)**/src/**/*.toml")
        added = git("ls-files", "--others", "--exclude-standard", "--", *patterns)
        return git("rev-parse", "HEAD") + ("-dirty" if edited or added else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _default_folder(parent: Path, resume: bool) -> Path:
    """Choose `parent/<start time>`, the same on every rank and after a restart by torchrun."""
    if resume:
        return newest_folder(parent)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if int(os.environ.get("RANK", "0")) > 0:
            raise UsageError("--out is needed when another launcher than torchrun starts ranks")
        return _unused_folder(parent, _time_name(time.time()))
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise UsageError("--out is needed on several nodes: their start times differ")
    launcher = os.getppid()
    folder = parent / f"{_time_name(psutil.Process(launcher).create_time())}-{launcher}"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and not folder.exists():
        # The wall clock was set since the start; the launcher is the same.
        folder = max(parent.glob(f"*-{launcher}"), default=folder)
    return folder


def _time_name(seconds: float) -> str:
    """Local time as a folder name: 2025-01-31T09-30-00 (colons are not allowed everywhere)."""
    local = datetime.datetime.fromtimestamp(seconds).astimezone()
    return local.strftime("%Y-%m-%dT%H-%M-%S")


def _unused_folder(parent: Path, name: str) -> Path:
    """Claim `name`, or `name-2`, `name-3`, ...: another run may have the same second.

    The folder is made here, as making it is what decides between two runs at once.
    """
    files.make_folder(parent)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            files.make_new_folder(folder)
            return folder
        number += 1


def newest_folder(parent: Path) -> Path:
    """Find the run started last: by the note it left, as the clock may have been set back.

    One that failed before its first checkpoint does not hide another that has something to resume.
    Raises UsageError when there is none.
    """
    found = [path for path in parent.glob("*") if _RUN_NAME.fullmatch(path.name) and path.is_dir()]
    if not found:
        raise UsageError(f"{parent} holds no run; name the folder of one")
    found = [path for path in found if (path / "checkpoints" / "latest").exists()] or found
    with contextlib.suppress(OSError, UnicodeDecodeError):
        noted = parent / (parent / _NEWEST).read_text().strip()
        if noted in found:
            return noted
    return max(found, key=lambda path: path.name)


@contextlib.contextmanager
def _held(folder: Path, *, resume: bool, restarted: bool) -> Iterator[None]:
    """Make, probe and lock a run folder, refusing one that does not fit."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give --out a folder")
    if resume and not restarted and not folder.is_dir():
        raise UsageError(f"--resume: {folder} does not exist")
    fresh = not (resume or restarted)
    if fresh and not (folder / LOCK).exists():
        _refuse_used(folder)  # and leave nothing of ours in a folder that is not ours
    try:
        files.make_folder(folder)
    except OSError as error:  # a file among its parents, a name too long
        raise UsageError(f"--out {folder}: {error.strerror}") from error
    probe = folder / f"{LOCK}.probe"  # its temporary counts as ours in _refuse_used
    with files.disk_errors(folder):
        files.write_file(probe, bytes(PROBE_BYTES))
        files.remove_file(probe)
        lock = _lock(folder)
    try:
        if fresh:
            _refuse_used(folder)
        files.discard_temporaries(folder)
        files.write_json(folder / OWNER, _owner())
        yield
    finally:
        lock.release()


def _refuse_used(folder: Path) -> None:
    """Refuse a folder with anything in it; what a killed start left of ours does not count."""
    if not folder.is_dir():
        return
    with files.disk_errors(folder):
        used = sorted(path.name for path in folder.iterdir())
    ours = (LOCK, OWNER, f".{LOCK}.", f".{OWNER}.", f".{CONFIG}.")  # the last three: temporaries
    used = [name for name in used if not name.startswith(ours)]
    if used:
        raise UsageError(
            f"{folder} is not empty (it holds {used[0]}); continue that run with --resume, or "
            "choose another --out"
        )


def _lock(folder: Path) -> filelock.BaseFileLock:
    """Take the folder's lock; the system frees it when this process dies, however it dies."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ResourceError(f"{folder} is in use by another run ({_told_owner(folder)})") from error
    return lock


def _owner() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _told_owner(folder: Path) -> str:
    try:
        owner = files.read_json(folder / OWNER)
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ArtefactError, OSError, KeyError, TypeError):
        return "its owner has just begun"


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"model": {"n_layer": 4}} to {"model.n_layer": 4}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

"""The fault harness: fail the n-th file operation, kill at a named point, corrupt a file.

It ships with the package, as every package's tests use it, and as a kill point must stand in the
code it kills. Without `MLE_KILL_AT` in the environment a kill point costs one comparison.

    MLE_KILL_AT       name of a kill point, or `name:count` for the count-th time it is reached
    MLE_KILL_SIGNAL   what to send instead of SIGKILL, for example SIGTERM, or SIGSTOP to hang
    MLE_KILL_RANK     only this rank of a distributed run

Under `torchrun --max-restarts` only the first incarnation is killed, so that a test can watch the
second one finish.
"""

import contextlib
import dataclasses
import errno
import os
import random
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from shared import files


@dataclasses.dataclass
class Operations:
    """What `fail_nth` and `count_operations` saw: each operation's kind and path, in order."""

    seen: list[tuple[str, Path]] = dataclasses.field(default_factory=list)
    failed: int = 0  # how many of them were made to fail

    @property
    def count(self) -> int:
        """The number of operations seen."""
        return len(self.seen)


@contextlib.contextmanager
def fail_nth(
    n: int,
    error: OSError | None = None,
    *,
    kinds: Collection[str] | None = None,
    lasting: bool = False,
) -> Iterator[Operations]:
    """Make the n-th operation (from 1) of `shared.files` in the block fail; 0 only counts.

    `kinds` restricts the count to some kinds of operation (see `shared.files.observed`);
    `lasting` fails the later ones too, as a disk that is full stays full. The default error is
    a full disk. Yields the record of what was seen.
    """
    error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    operations = Operations()

    def observe(kind: str, path: Path) -> None:
        if kinds is not None and kind not in kinds:
            return
        operations.seen.append((kind, path))
        if operations.count == n or (lasting and 0 < n < operations.count):
            operations.failed += 1
            raise OSError(error.errno, error.strerror, str(path))

    with files.observed(observe):
        yield operations


@contextlib.contextmanager
def count_operations(kinds: Collection[str] | None = None) -> Iterator[Operations]:
    """Count the file operations in the block without touching them."""
    with fail_nth(0, kinds=kinds) as operations:
        yield operations


def _kill_setting(environment: Mapping[str, str]) -> tuple[str | None, int]:
    """Read `MLE_KILL_AT`: the point's name (None: never) and how many times to let it pass."""
    setting = environment.get("MLE_KILL_AT")
    rank = environment.get("MLE_KILL_RANK")
    if not setting or environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return None, 0
    if rank is not None and rank != environment.get("RANK", "0"):
        return None, 0
    name, _, count = setting.rpartition(":")
    return (name, int(count)) if name and count.isdecimal() else (setting, 1)


_kill_name, _kills_left = _kill_setting(os.environ)


def kill_point(name: str) -> None:
    """Die here if the environment says so (see the top of this file)."""
    if _kill_name is None or name != _kill_name:
        return
    global _kills_left
    _kills_left -= 1
    if _kills_left == 0:
        os.kill(os.getpid(), signal.Signals[os.environ.get("MLE_KILL_SIGNAL", "SIGKILL")])


def run_and_kill(
    argv: Sequence[str],
    *,
    at: str | None = None,
    after: float | None = None,
    signum: signal.Signals = signal.SIGKILL,
    rank: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a command, send it `signum` at a kill point (`at`) or after a time, and wait for it.

    `at` is `name` or `name:count`; `after` is in seconds. With neither the command just runs.
    `env` is added to this process's environment. A return code of -9 says that SIGKILL hit; 0
    that the command ended before it. The command gets a session of its own, which is killed as
    a whole on SIGKILL by time and after `timeout` seconds (then subprocess.TimeoutExpired).
    """
    settings = {} if at is None else {"MLE_KILL_AT": at, "MLE_KILL_SIGNAL": signum.name}
    settings |= {} if rank is None else {"MLE_KILL_RANK": str(rank)}
    process = subprocess.Popen(
        list(argv),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        try:
            stdout, stderr = process.communicate(timeout=timeout if after is None else after)
        except subprocess.TimeoutExpired:
            if after is None:
                raise
            _signal_session(process, signum)
            stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        _signal_session(process, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)


def _signal_session(process: subprocess.Popen[str], signum: signal.Signals) -> None:
    """Send SIGKILL to all that the command started; other signals to the command alone."""
    with contextlib.suppress(ProcessLookupError):
        if signum == signal.SIGKILL:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)


def corrupt(path: Path, how: Literal["truncate", "flip", "swap", "extend"], seed: int = 0) -> None:
    """Damage a file in place, as a failing disk or a broken copy would.

    truncate cuts 1 to all bytes off its end, flip inverts one bit, swap exchanges two bytes that
    differ, extend appends 1 to 64 random bytes. Raises ValueError when the file is too small or
    too uniform for it.
    """
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    if how == "extend":
        data += rng.randbytes(rng.randint(1, 64))
    elif not data:
        raise ValueError(f"{path} is empty: nothing to {how}")
    elif how == "truncate":
        del data[rng.randrange(len(data)) :]
    elif how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        first = rng.randrange(len(data))
        others = [i for i, byte in enumerate(data) if byte != data[first]]
        if not others:
            raise ValueError(f"{path} holds one byte only, over and over: nothing to swap")
        second = rng.choice(others)
        data[first], data[second] = data[second], data[first]
    path.write_bytes(data)

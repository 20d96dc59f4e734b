"""What the tests of several packages need: calling a command, and what every package survives."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shared import cli
from shared.checkpoint import Checkpoints, open_checkpoint
from shared.faults import run_and_kill
from shared.files import sha256_of


@dataclass(frozen=True)
class Ended:
    """The exit code of a command and what it printed on each stream."""

    code: int
    out: str
    error: str

    @property
    def said(self) -> str:
        """The last line of the errors."""
        return self.error.splitlines()[-1]


def call(
    verb: cli.Verb, flags: Sequence[object], program: str, defaults: cli.Defaults | None = None
) -> Ended:
    """Run a command with `flags` as its words, as `python -m program` would, and keep the output.

    `verb` and `defaults` are what `cli.run` takes. A process of its own would take seconds.
    """
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = cli.execute(verb, [str(flag) for flag in flags], f"python -m {program}", defaults)
    return Ended(code, out.getvalue(), error.getvalue())


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in found}


def weights_digest(run: Path) -> str:
    """Return the digest of the weights in a run's newest checkpoint."""
    return sha256_of(open_checkpoint(run).file("model.safetensors"))


def refused(ended: Ended, code: int, said: str) -> None:
    """Fail unless a command ended with a code and one line of error, which has `said` in it."""
    assert (ended.code, ended.error.count("\n")) == (code, 1), ended
    assert said in ended.said, ended


def check_strangers_are_refused(run: Callable[[Path], Ended], folder: Path, trainer: str) -> None:
    """Have a command refuse folders that are no run of `trainer`: one line, and exit 2 or 4.

    `run` calls it on a folder: none at all, one without a checkpoint, another package's, a damaged
    one. `folder` is empty.
    """
    refused(run(folder / "nowhere"), 2, "nowhere: no such folder")
    refused(run(folder), 2, "holds no checkpoint yet")
    pending = Checkpoints(folder / "other" / "checkpoints").begin(1)
    pending.write_tensors("model.safetensors", {"wte.weight": torch.zeros(3, 3)})
    pending.write_json("config.json", {"model": {"vocab_size": 3}, "corpus": {}})
    checkpoint = Checkpoints(folder / "other" / "checkpoints").commit(pending)
    refused(run(folder / "other"), 4, f"not a run of {trainer}")
    (checkpoint.path / "model.safetensors").write_bytes(b"")
    refused(run(folder / "other"), 4, "model.safetensors")


def check_interrupt_loses_nothing(
    run: Callable[..., Ended], trainer: str, words: Sequence[object], step: int, folder: Path
) -> None:
    """Interrupt a training (Ctrl-C) after `step` updates: exit 130, and --resume ends in its bits.

    The real command, `python -m trainer` with `words`, in a process of its own; `run` calls it with
    flags in this one. `folder` is empty.
    """
    out = ["--out", str(folder / "run")]
    argv = [sys.executable, "-m", trainer, *map(str, words), *out]
    ended = run_and_kill(argv, at=f"step:{step}", signum=signal.SIGINT)
    assert ended.returncode == 130, ended.stderr
    assert f"stopped after step {step + 1}, saved; continue with --resume" in ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert not (folder / "run" / "result.json").exists(), "it was not interrupted, but ended"
    assert run("--resume", *out).code == 0, "it does not go on"
    assert run(*words, "--out", folder / "straight").code == 0, "it cannot run straight through"
    ends = [weights_digest(folder / name) for name in ("run", "straight")]
    assert ends[0] == ends[1], "the weights differ"

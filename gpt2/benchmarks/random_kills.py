"""A run killed a hundred times at random must end with the bits of a run that was never killed.

    python gpt2/benchmarks/random_kills.py --kills 100 --out gpt2/results

Starts `python -m gpt2.train` on a small text, kills it with SIGKILL after a random time or at a
random point (in a step, in an evaluation, at four places of a save), continues it with --resume,
and so on; then lets it finish and compares the sha256 of the weights, every deterministic number
in metrics.jsonl and the metrics in result.json with those of an undisturbed run. Exits with 1 if
anything differs. One life takes as long as the imports; 100 kills take about ten minutes
on a quiet core.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import files
from shared.checkpoint import Checkpoints
from shared.faults import run_and_kill
from shared.metrics import read_metrics

WORDS = ("the", "king", "and", "queen", "of", "a", "throne", "said", "to", "his", "lord", "blood")
SIZES = "--vocab-size 280 --block-size 16 --n-layer 1 --n-head 2 --n-embd 16 --batch-size 4"
EVERY = "--eval-every 20 --checkpoint-every 7 --log-every 1 --dropout 0.1 --sample-tokens 5"
OTHERS = "--eval-batch-size 4 --device cpu --threads 1 --precision fp32"
LONGEST = 40  # steps after which a life is killed at the latest, however fast the machine is
POINTS = {  # how often each is passed in a life before it kills, at most
    "step": 25,
    "evaluation": 10,
    "save:begin": 4,
    "save:before-rename": 4,
    "save:before-latest": 4,
    "save:end": 4,
}
TIMED_SHARE = 0.4  # of the kills, by the clock instead of at a point
TIMED = {"step_ms", "tok_per_sec", "mfu"}  # metrics that no two runs share
FINAL = ("train_loss", "grad_norm", "val_loss", "bits_per_byte", "best_val_loss")


@dataclass(frozen=True)
class End:
    """What a run ended with, less what is measured by the clock."""

    weights: str
    metrics: list[dict[str, Any]]
    result: dict[str, float]

    @classmethod
    def of(cls, out: Path) -> End:
        """Read it off a run folder."""
        newest = Checkpoints(out / "checkpoints").newest()
        assert newest is not None
        lines = read_metrics(out / "metrics.jsonl")
        result = files.read_json(out / "result.json")
        return cls(
            files.sha256_of(newest.path / "model.safetensors"),
            [{k: v for k, v in line.items() if k not in TIMED} for line in lines],
            {name: result[name] for name in FINAL},
        )


@dataclass
class Victim:
    """A run that gets killed, and a record of how."""

    command: list[str]
    out: Path
    steps: int
    rng: random.Random
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    from_checkpoint: int = 0  # lives that went on from a checkpoint of an earlier one
    lost_steps: int = 0  # steps made again by a later life
    durations: list[float] = field(default_factory=list)  # seconds of lives killed in training

    @property
    def saved_step(self) -> int:
        """The step that the next life begins at."""
        found = Checkpoints(self.out / "checkpoints").newest()
        return found.step if found else 0

    def live(self) -> bool:
        """Start or continue the run and kill it; say whether the kill came before its end."""
        words = [*self.command, *(["--resume"] if (self.out / "config.json").exists() else [])]
        at, after = self.choose()
        begin, saved = time.monotonic(), self.saved_step
        ended = run_and_kill(words, at=at, after=after)
        seconds = time.monotonic() - begin
        if ended.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"a life ended with {ended.returncode}: {ended.stderr}")
        if ended.returncode == 0:
            return False
        steps = len(re.findall(r"^step .* loss ", ended.stderr, re.MULTILINE))
        if steps:
            self.durations.append(seconds)
            self.from_checkpoint += saved > 0
            self.lost_steps += max(0, self.logged_step() - self.saved_step)
        timed = after is not None and steps < LONGEST
        self.kills[self.where(steps) if timed else f"at {at.rpartition(':')[0]}"] += 1
        return True

    def choose(self) -> tuple[str, float | None]:
        """Draw a kill point with a count, and perhaps a time in seconds that may come first."""
        if self.durations and self.rng.random() < TIMED_SHARE:
            after = self.rng.uniform(0.2, 1.3) * statistics.median(self.durations[-5:])
            return f"step:{LONGEST}", after
        name = self.rng.choice(["step", "evaluation", "save:"])
        name = self.rng.choice([point for point in POINTS if point.startswith(name)])
        return f"{name}:{self.rng.randint(1, POINTS[name])}", None

    def where(self, steps: int) -> str:
        """Say where a kill by the clock landed, as far as the folder and the steps tell."""
        if not steps:
            return "by the clock, before the first step"
        saving = any(self.out.glob("checkpoints/.*.tmp"))
        return f"by the clock, in {'a save' if saving else 'a step or an evaluation'}"

    def logged_step(self) -> int:
        """Return the last step that metrics.jsonl knows."""
        path = self.out / "metrics.jsonl"
        return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def train_command(folder: Path, out: Path, steps: int) -> list[str]:
    """Return the command line of the run."""
    words = f"{SIZES} {EVERY} --max-steps {steps} {OTHERS}".split()
    names = ["--data", str(folder / "text.txt"), "--out", str(out)]
    return [sys.executable, "-m", "gpt2.train", *names, *words]


def write_text(folder: Path) -> None:
    """Write a text of random words."""
    rng = random.Random(0)
    lines = (" ".join(rng.choice(WORDS) for _ in range(8)) for _ in range(150))
    (folder / "text.txt").write_text("\n".join(lines))


def torment(folder: Path, kills: int, seed: int) -> tuple[Victim, End, End]:
    """Make the undisturbed run and the killed one; return the victim and both ends."""
    write_text(folder)
    steps = LONGEST * kills + LONGEST  # so that the run outlives its kills
    ended = run_and_kill(train_command(folder, folder / "straight", steps), timeout=3600)
    if ended.returncode:
        raise SystemExit(f"the undisturbed run ended with {ended.returncode}: {ended.stderr}")
    command = train_command(folder, folder / "killed", steps)
    victim = Victim(command, folder / "killed", steps, random.Random(seed))
    while victim.kills.total() < kills:
        if not victim.live():
            raise SystemExit(f"the run ended after {victim.kills.total()} kills")
        done = victim.kills.total()
        if done % 10 == 0:
            print(f"{done} kills, at step {victim.saved_step}", file=sys.stderr, flush=True)
    ended = run_and_kill([*command, "--resume"], timeout=3600)
    if ended.returncode:
        raise SystemExit(f"the last life ended with {ended.returncode}: {ended.stderr}")
    return victim, End.of(folder / "straight"), End.of(folder / "killed")


def report(victim: Victim, straight: End, killed: End, seed: int, seconds: float) -> dict[str, Any]:
    """Return what is known after the last life."""
    return {
        "kills": victim.kills.total(),
        "seed": seed,
        "landed": dict(sorted(victim.kills.items())),
        "steps": victim.steps,
        "lives_from_a_checkpoint": victim.from_checkpoint,
        "steps_made_again": victim.lost_steps,
        "metrics_compared": len(straight.metrics),
        "weights": {"undisturbed": straight.weights, "killed": killed.weights},
        "same_weights": straight.weights == killed.weights,
        "same_metrics": straight.metrics == killed.metrics,
        "same_result": straight.result == killed.result,
        "result": killed.result,
        "seconds": round(seconds),
    }


def as_text(found: dict[str, Any]) -> str:
    """Put a report into lines a person can read."""
    lines = [f"{found['kills']} SIGKILLs (seed {found['seed']}) in a run of {found['steps']} steps"]
    lines += [f"  {count:4d}  {where}" for where, count in found["landed"].items()]
    lines += [
        f"{found['lives_from_a_checkpoint']} killed lives had gone on from a checkpoint of an "
        f"earlier one; {found['steps_made_again']} steps were lost and made again",
        f"weights, undisturbed  {found['weights']['undisturbed']}",
        f"weights, killed       {found['weights']['killed']}",
    ]
    for what in ("weights", "metrics", "result"):
        lines.append(f"{what}: {'the same' if found[f'same_{what}'] else 'DIFFERENT'}")
    lines.append(f"{found['metrics_compared']} records of metrics compared; {found['seconds']} s")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Torment a run, print and write what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times and points")
    parser.add_argument("--out", type=Path, help="folder for random_kills.json and .txt")
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        victim, straight, killed = torment(Path(name), args.kills, args.seed)
    found = report(victim, straight, killed, args.seed, time.monotonic() - begin)
    text = as_text(found)
    print(text, end="")
    if args.out:
        files.make_folder(args.out)
        files.write_json(args.out / "random_kills.json", found)
        files.write_file(args.out / "random_kills.txt", text.encode())
    return 0 if found["same_weights"] and found["same_metrics"] and found["same_result"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compare one process with one thread, one with two, and two with one each: speed and loss.

    python gpt2/benchmarks/processes.py --out gpt2/results

Trains the quickstart's model for a few steps in each of the three ways, in turn, and compares
steady throughput (tokens per second after the first steps) and the loss curves.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import files
from shared.metrics import read_metrics
from shared.profiling import cpu_seconds


@dataclass(frozen=True)
class Way:
    """A way to use two cores."""

    name: str
    processes: int
    threads: int


WAYS = (
    Way("1 process, 1 thread", 1, 1),
    Way("1 process, 2 threads", 1, 2),
    Way("2 processes, 1 thread each", 2, 1),
)
SKIPPED = 2  # log lines at the start: PyTorch picks kernels and allocates memory in them


def train(way: Way, batch: int, steps: int, flags: list[str]) -> dict[str, Any]:
    """Train in a fresh process or two; return the losses, tokens per second and CPU seconds."""
    command = [sys.executable, "-m"]
    if way.processes > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={way.processes}"]
        command += [*launcher, "-m"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command += ["gpt2.train", "--batch-size", str(batch // way.processes)]
        command += ["--threads", str(way.threads), "--max-steps", str(steps), "--eval-every", "0"]
        command += ["--checkpoint-every", "0", "--sample-tokens", "1", *flags, "--out", str(out)]
        before = cpu_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
        records = [r for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"]
        return {
            "losses": [record["loss"] for record in records],
            "tok_per_sec": statistics.median(r["tok_per_sec"] for r in records[SKIPPED:]),
            "cpu_seconds": cpu_seconds() - before,
        }


def report(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Render throughput, its ratio to one thread round by round, and the curves' distance."""
    base, lines = runs[WAYS[0].name], []
    lines.append("| way | tok/s | times one thread | CPU seconds | largest distance in loss |")
    lines.append("| --- | --- | --- | --- | --- |")
    for name, rounds in runs.items():
        pairs = list(zip(rounds, base, strict=True))
        ratios = sorted(a["tok_per_sec"] / b["tok_per_sec"] for a, b in pairs)
        apart = max(
            abs(x - y) / y for a, b in pairs for x, y in zip(a["losses"], b["losses"], strict=True)
        )
        lines.append(
            f"| {name} | {statistics.median(r['tok_per_sec'] for r in rounds):,.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {statistics.median(r['cpu_seconds'] for r in rounds):.0f} | {apart:.1e} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes together")
    parser.add_argument("--out", type=Path, help="folder for processes.txt and processes.json")
    parser.add_argument("flags", nargs="*", help="more flags for gpt2.train, after --")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {way.name: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            runs[way.name].append(train(way, args.batch_size, args.steps, args.flags))
    text = report(runs)
    print(text)
    if args.out:
        files.make_folder(args.out)
        files.write_file(args.out / "processes.txt", text.encode())
        files.write_json(args.out / "processes.json", runs)


if __name__ == "__main__":
    main()

"""Run the quickstart with several seeds and tell its spread: bits per byte, CPU and wall seconds.

    python gpt2/benchmarks/quickstart.py --out gpt2/results/quickstart
    python gpt2/benchmarks/quickstart.py --seeds 0 1 2 --out NAME -- --threads 1 --max-steps 1200

What follows `--` goes to `gpt2.train`. Every run begins with an empty cache, so that its figures
include training the tokenizer, and they are of the whole process, from the import of PyTorch to the
sample at the end. Writes NAME.txt and NAME.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared import files


def run(seed: int, flags: list[str]) -> dict[str, Any]:
    """Train once in a fresh process and return its result, with the seconds of the process."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "gpt2.train", "--seed", str(seed), *flags]
        env = os.environ | {"MLE_CACHE": str(Path(scratch) / "cache")}
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--out", str(out)], check=True, env=env, stdout=sys.stderr)
        wall = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: dict[str, Any] = json.loads((out / "result.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**result, "command": " ".join(["python", *command[1:]]), "wall": wall, "cpu": cpu}


def report(rows: list[dict[str, Any]]) -> str:
    """Render a row for each run and one for the mean and spread."""
    lines = ["| seed | bits per byte | nats per token | steps | CPU seconds | wall seconds |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        lines.append(
            f"| {row['seed']} | {row['bits_per_byte']:.4f} | {row['val_loss']:.4f} "
            f"| {row['steps']} | {row['cpu']:.0f} | {row['wall']:.0f} |"
        )
    if len(rows) > 1:
        cells = []
        for name, digits in (("bits_per_byte", 4), ("val_loss", 4), ("cpu", 0), ("wall", 0)):
            values = [row[name] for row in rows]
            mean, spread = statistics.mean(values), statistics.stdev(values)
            cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
        cells.insert(2, "")
        lines.append(f"| mean ± sd | {' | '.join(cells)} |")
    return "\n".join([f"{rows[0]['command']}", "", *lines, ""])


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="path of the results, without an ending")
    parser.add_argument("flags", nargs="*", help="flags for gpt2.train, after --")
    args = parser.parse_args()
    rows = [run(seed, args.flags) for seed in args.seeds]
    text = report(rows)
    print(text)
    if args.out:
        files.make_folder(args.out.parent)
        files.write_file(args.out.with_suffix(".txt"), text.encode())
        files.write_json(args.out.with_suffix(".json"), rows)


if __name__ == "__main__":
    main()

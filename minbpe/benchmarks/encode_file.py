"""Time `python -m minbpe.encode` on a large file, beside tiktoken; the ids must be tiktoken's.

    python minbpe/benchmarks/encode_file.py --mb 100 --workers 0 1 2 --rounds 3

The file is made of the texts in $MLE_DATA, over and over; each document goes in whole. Programs
run turn by turn, each as a process of its own from its start to the shard on disk: loading the
ranks, reading, encoding, writing. Ours holds a few pieces of the text at a time, tiktoken (one
thread) all of it, as its Python interface asks for.
"""

import argparse
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minbpe.shards import ShardSet

PEER = """
import sys
import numpy as np
import tiktoken
from minbpe.published import load_ranks

ranks = load_ranks(sys.argv[3], download=False)
peer = tiktoken.Encoding(
    ranks.name, pat_str=ranks.pattern, mergeable_ranks=ranks.ranks,
    special_tokens=ranks.special_tokens,
)
with open(sys.argv[1], encoding="utf-8", newline="") as file:
    ids = peer.encode_to_numpy(file.read(), disallowed_special=())
ids.astype(np.uint32).tofile(sys.argv[2])
"""


def texts(folder: Path) -> Iterator[str]:
    """Yield the documents of the data folder, novels, web pages and 46 languages, without end."""
    while True:
        for path in sorted(folder.glob("pretrain/*")) + sorted(folder.glob("multilingual/*")):
            opened = lzma.open if path.suffix == ".xz" else open
            with opened(path, "rt", encoding="utf-8", errors="ignore", newline="") as file:
                if ".jsonl" in path.name:
                    for line in file:
                        yield json.loads(line)["text"]
                else:
                    yield file.read()


def make_file(path: Path, folder: Path, n_bytes: int) -> None:
    """Write a text file of about `n_bytes`."""
    with path.open("wb") as file:
        for text in texts(folder):
            file.write(text.encode() + b"\n\n")
            if file.tell() >= n_bytes:
                return


def timed(command: list[str]) -> dict[str, Any]:
    """Run a program; return its wall and CPU seconds, workers included, memory and what it says."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 2**10,  # KiB on Linux
        "worker_peak_mib": json.loads(printed or "{}").get("largest_worker_peak_mib"),
    }


def check(shards: Path, expected: Path) -> int:
    """Return the number of ids; raise unless the shards hold those of tiktoken."""
    theirs = np.memmap(expected, np.uint32, "r")
    place = 0
    for ours in ShardSet.open(shards, "train").arrays():
        if not np.array_equal(ours, theirs[place : place + len(ours)]):
            raise AssertionError(f"an id within 2**18 of number {place} is not tiktoken's")
        place += len(ours)
    if place != len(theirs):
        raise AssertionError(f"{place} ids where tiktoken gives {len(theirs)}")
    return place


def measure(args: argparse.Namespace, work: Path, text: Path) -> dict[str, list[dict[str, Any]]]:
    """Run each program `args.rounds` times, turn by turn; check what the first round wrote."""
    peer_ids = work / "peer.bin"
    peer = [sys.executable, "-c", PEER, str(text), str(peer_ids), args.tokenizer]
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        runs.setdefault("tiktoken, one thread", []).append(timed(peer))
        for workers in args.workers:
            out = work / f"out{workers}"
            command = [sys.executable, "-m", "minbpe.encode", str(text), "--out", str(out)]
            command += ["--tokenizer", args.tokenizer, "--workers", str(workers), "--json"]
            runs.setdefault(f"minbpe, {workers} workers", []).append(timed([*command, "--force"]))
            if number == 0:
                print(f"workers {workers}: {check(out, peer_ids):,} ids are tiktoken's", flush=True)
            shutil.rmtree(out)
    return runs


def summary(runs: list[dict[str, Any]], n_bytes: int) -> dict[str, float | None]:
    """Return medians, and the largest memory of the program and of its largest worker."""
    seconds = [run["seconds"] for run in runs]
    cpu_seconds = statistics.median(run["cpu_seconds"] for run in runs)
    return {
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "median_cpu_seconds": cpu_seconds,
        "mb_per_second": n_bytes / 1e6 / statistics.median(seconds),
        "mb_per_cpu_second": n_bytes / 1e6 / cpu_seconds,
        "peak_mib": max(run["peak_mib"] for run in runs),
        "worker_peak_mib": max(run["worker_peak_mib"] or 0 for run in runs) or None,
    }


def main() -> None:
    """Measure, print a table, write JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--tokenizer", default="cl100k_base")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        make_file(text, Path(os.environ["MLE_DATA"]), int(args.mb * 1e6))
        n_bytes = text.stat().st_size
        runs = measure(args, Path(folder), text)
    results = {name: summary(own, n_bytes) for name, own in runs.items()}
    heads = ("wall s", "min", "max", "CPU s", "MB/s", "MB/CPU s", "peak MiB", "worker MiB")
    print(f"{'':22}" + "".join(f"{head:>11}" for head in heads))
    for name, row in results.items():
        shown = ("-" if value is None else f"{value:.1f}" for value in row.values())
        print(f"{name:22}" + "".join(f"{value:>11}" for value in shown))
    if args.out:
        about = {
            "command": "python " + " ".join(["minbpe/benchmarks/encode_file.py", *sys.argv[1:]]),
            "text_bytes": n_bytes,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "results": results,
        }
        args.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

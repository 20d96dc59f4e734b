"""Time training against Hugging Face's tokenizers and rustbpe, turn by turn.

    MLE_DATA=... python minbpe/benchmarks/train_speed.py --rounds 5 --out results.json

First our merges are held against the textbook's, by each rule for ties, and against rustbpe's.
Then, with GPT-4's pattern:

- tinyshakespeare in this process: CPU seconds, one thread each. karpathy's trainers take 94 s
  (RegexTokenizer, vocabulary 512) and 44 s (BasicTokenizer) on such a machine.
- 25,000,000 bytes of English at vocabulary 32768, each trainer in a process of its own, which also
  gives its peak memory: CPU seconds of one thread, and wall seconds of two processes or threads.
  The text is wikitext-2 (train), c4-a, c4-b, fineweb-edu, tinystories and the start of
  english-novels: see `write_english`. Peers get it line by line, which is their fastest way.

Wall seconds mean something only on a machine that does nothing else; its load is written down too.
"""

import argparse
import json
import lzma
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from minbpe import BasicTokenizer, RegexTokenizer
from minbpe.corpus import count_words
from minbpe.model_file import build_vocab
from minbpe.pretokens import GPT4_SPLIT_PATTERN, Splitter
from minbpe.textbook import train_textbook
from minbpe.trainer import train_words

ENGLISH_BYTES = 25_000_000
KARPATHY_S = {"RegexTokenizer, 512": 94.0, "BasicTokenizer, 512": 44.0}


def write_english(path: Path) -> None:
    """Write the 25 MB: the data sets in this order, JSON lines as texts two newlines apart."""
    folder = Path(os.environ["MLE_DATA"])

    def texts() -> Iterator[str]:
        yield lzma.decompress((folder / "wikitext-2/train.txt.xz").read_bytes()).decode()
        for name in ("c4_sample_a", "c4_sample_b"):
            with (folder / f"pretrain/{name}.jsonl").open(encoding="utf-8") as lines:
                yield "\n\n".join(json.loads(line)["text"] for line in lines)
        yield (folder / "pretrain/fineweb_edu_sample.txt").read_text(encoding="utf-8")
        yield (folder / "pretrain/tinystories_2mib.txt").read_text(encoding="utf-8")
        with lzma.open(
            folder / "pretrain/english_novels.jsonl.xz", "rt", encoding="utf-8"
        ) as lines:
            for line in lines:
                yield json.loads(line)["text"]

    data = b""
    for text in texts():
        data += text.encode()
        if len(data) >= ENGLISH_BYTES:
            break
    path.write_bytes(data[:ENGLISH_BYTES].decode(errors="ignore").encode())


# ---- The trainers


def ours(path: Path, vocab_size: int, workers: int = 0, tie_break: str = "smallest") -> None:
    """Count the file's pre-tokens and merge them."""
    counts = count_words(path, GPT4_SPLIT_PATTERN, workers)
    train_words(counts, vocab_size - 256, tie_break)


def hugging_face(texts: Iterable[str], vocab_size: int) -> Any:
    """Train Hugging Face's byte-level BPE with the same pattern."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT4_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    peer.train_from_iterator(texts, trainer)
    return peer


def rustbpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train karpathy's rustbpe."""
    import rustbpe as package  # type: ignore[import-untyped]

    peer = package.Tokenizer()
    peer.train_from_iterator(iter(texts), vocab_size, pattern=GPT4_SPLIT_PATTERN)
    return peer


def by_lines(train: Callable[[Iterable[str], int], Any], path: Path, vocab_size: int) -> Any:
    """Train a peer on the lines of a file, line ends untouched."""
    with path.open(encoding="utf-8", newline="") as lines:
        return train(lines, vocab_size)


TRAINERS: dict[str, tuple[int, Callable[[Path, int], Any]]] = {
    "minbpe": (1, ours),
    "tokenizers": (1, partial(by_lines, hugging_face)),
    "rustbpe": (1, partial(by_lines, rustbpe)),
    "minbpe, 2 workers": (2, partial(ours, workers=2)),
    "rustbpe, 2 threads": (2, partial(by_lines, rustbpe)),
}
"""Each with its threads, which the environment has to tell the peers before they start."""


def environment(n_threads: int) -> dict[str, str]:
    """Return the variables that hold the peers to a number of threads."""
    several = "true" if n_threads > 1 else "false"
    return {
        **os.environ,
        "RAYON_NUM_THREADS": str(n_threads),
        "TOKENIZERS_PARALLELISM": several,
        "OMP_NUM_THREADS": "1",
    }


# ---- Measuring


def check(text: str, n_merges: int) -> None:
    """Raise unless our merges are the textbook's by each rule, and rustbpe's by its own."""
    words = Splitter(GPT4_SPLIT_PATTERN).split(text)
    for rule in ("smallest", "minbpe"):
        tokenizer = RegexTokenizer()
        tokenizer.train(text, 256 + n_merges, tie_break=rule)
        if list(tokenizer.merges) != train_textbook(words, n_merges, rule):
            raise AssertionError(f"our merges differ from the textbook's by the rule {rule!r}")
    ranks = rustbpe([text], 4096).get_mergeable_ranks()
    tokenizer.train(text, 4096, tie_break="rustbpe")
    if {bytes(token): rank for token, rank in ranks} != {
        token: idx for idx, token in enumerate(build_vocab(list(tokenizer.merges)))
    }:
        raise AssertionError("our merges differ from rustbpe's")


def alternate(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each of the ways in turn, `rounds` times, and return what each call returned."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def cpu_seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that does the work and returns the CPU seconds of it."""

    def timed() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return timed


def small(rounds: int) -> dict[str, list[float]]:
    """Measure tinyshakespeare in this process."""
    path = Path(os.environ["MLE_DATA"]) / "tinyshakespeare.txt"
    text = path.read_text(encoding="utf-8")
    ways: dict[str, Callable[[], object]] = {}
    for size in (512, 4096):
        for rule in ("smallest", "minbpe"):
            ways[f"RegexTokenizer, {size}, {rule}"] = partial(
                RegexTokenizer().train, text, size, tie_break=rule
            )
        ways[f"tokenizers, {size}"] = partial(by_lines, hugging_face, path, size)
        ways[f"rustbpe, {size}"] = partial(by_lines, rustbpe, path, size)
    for rule in ("smallest", "minbpe"):
        ways[f"BasicTokenizer, 512, {rule}"] = partial(
            BasicTokenizer().train, text, 512, tie_break=rule
        )
    return alternate({name: cpu_seconds(way) for name, way in ways.items()}, rounds)


def one(name: str, path: Path, vocab_size: int) -> dict[str, float]:
    """Run one trainer here and return what it took."""
    train = TRAINERS[name][1]
    wall, cpu = time.perf_counter(), os.times()
    train(path, vocab_size)
    spent = os.times()
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": sum(spent[:4]) - sum(cpu[:4]),
        "peak_mib": peak_mib(),
        "largest_worker_peak_mib": workers.ru_maxrss / 1024,
    }


def peak_mib() -> float:
    """Return the peak memory of this process (`ru_maxrss` would start at that of its parent)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def large(path: Path, vocab_size: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure each trainer in processes of its own."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in TRAINERS}
    for _ in range(rounds):
        for name, (n_threads, _) in TRAINERS.items():
            command = [sys.executable, __file__, "--one", name, "--corpus", str(path)]
            done = subprocess.run(
                [*command, "--vocab-size", str(vocab_size)],
                env=environment(n_threads),
                stdout=subprocess.PIPE,
                check=True,
            )
            for key, value in json.loads(done.stdout).items():
                found[name].setdefault(key, []).append(value)
    return found


def spread(runs: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs)}


def show(rows: dict[str, list[float]], unit: str) -> None:
    """Print a table."""
    print(f"{unit:40} {'median':>8} {'min':>8} {'max':>8}")
    for name, runs in rows.items():
        print(f"{name:40} {statistics.median(runs):8.3f} {min(runs):8.3f} {max(runs):8.3f}")


def versions() -> dict[str, str]:
    """Return the versions of what was compared."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "regex", "tokenizers", "rustbpe"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def main() -> None:
    """Measure, print tables, write JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--textbook-merges", type=int, default=10)
    parser.add_argument("--vocab-size", type=int, default=32768, help="for the large corpus")
    parser.add_argument("--corpus", type=Path, help="the large corpus (default: the 25 MB)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.corpus, args.vocab_size)))
        return
    if os.environ.get("RAYON_NUM_THREADS") != "1":  # before the peers start their threads
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(1))
    check((Path(os.environ["MLE_DATA"]) / "tinyshakespeare.txt").read_text(), args.textbook_merges)
    print("checked: our merges are the textbook's and rustbpe's")
    by_name = small(args.rounds)
    show(by_name, "tinyshakespeare, CPU seconds")
    with tempfile.TemporaryDirectory() as folder:
        path = args.corpus or Path(folder) / "english.txt"
        if args.corpus is None:
            write_english(path)
        by_process = large(path, args.vocab_size, args.rounds)
        n_bytes = path.stat().st_size
    for key in ("cpu_s", "wall_s", "peak_mib", "largest_worker_peak_mib"):
        show({name: runs[key] for name, runs in by_process.items()}, f"{n_bytes:,} bytes, {key}")
    if args.out:
        about = {
            "command": " ".join(["python minbpe/benchmarks/train_speed.py", *sys.argv[1:]]),
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_1_5_15_min": os.getloadavg(),
            "rounds": args.rounds,
            "karpathy_cpu_seconds": KARPATHY_S,
            "tinyshakespeare_cpu_seconds": {name: spread(runs) for name, runs in by_name.items()},
            "large_corpus": {"bytes": n_bytes, "vocab_size": args.vocab_size},
            "large": {
                name: {key: spread(runs) for key, runs in rows.items()}
                for name, rows in by_process.items()
            },
        }
        args.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Time training: fast trainer, textbook trainer and Hugging Face's, turn by turn in one process.

    python minbpe/benchmarks/train_speed.py corpus.txt --vocab-size 4096 --rounds 5

CPU seconds of this process, all threads; the peer is held to one thread. The textbook trainer gets
a task of its own, the first `--textbook-merges` merges, as each takes it a pass over the corpus;
its time for the whole vocabulary is not extrapolated. Those first merges of the fast trainer must
be the textbook's, by both tie-break rules, or the script stops.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before the peer starts its threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np

from minbpe import RegexTokenizer
from minbpe.pretokens import GPT4_SPLIT_PATTERN, Splitter
from minbpe.textbook import train_textbook


def timed(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def train_ours(text: str, vocab_size: int, tie_break: str) -> RegexTokenizer:
    """Train the package's tokenizer with GPT-4's pattern."""
    tokenizer = RegexTokenizer()
    tokenizer.train(text, vocab_size, tie_break=tie_break)
    return tokenizer


def train_peer(text: str, vocab_size: int) -> Any:
    """Train Hugging Face's byte-level BPE with the same pattern; None when not installed."""
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        return None
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
    peer.train_from_iterator([text], trainer)
    return peer


def encodings(text: str, tokenizer: RegexTokenizer) -> dict[str, Callable[[], Any]]:
    """Return ways of encoding `text`; "cold" has yet to see its first word."""

    def cold() -> list[int]:
        fresh = RegexTokenizer()
        fresh._set_merges(tokenizer.merges)
        return fresh.encode_ordinary(text)

    ids = tokenizer.encode_array(text)
    return {
        "encode_ordinary, cold": cold,
        "encode_ordinary, warm": lambda: tokenizer.encode_ordinary(text),
        "encode_array, warm": lambda: tokenizer.encode_array(text),
        "decode": lambda: tokenizer.decode(ids),
    }


def check(text: str, n_merges: int) -> None:
    """Raise unless our first merges are the textbook's by both rules."""
    words = Splitter(GPT4_SPLIT_PATTERN).split(text)
    for rule in ("smallest", "minbpe"):
        ours = list(train_ours(text, 256 + n_merges, rule).merges)
        if ours != train_textbook(words, n_merges, rule):
            raise AssertionError(f"our merges differ from the textbook's by the rule {rule!r}")


def main() -> None:
    """Measure, print a table, write JSON where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--textbook-merges", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = args.corpus.read_text(encoding="utf-8")
    size, few = args.vocab_size, 256 + args.textbook_merges
    words = Splitter(GPT4_SPLIT_PATTERN).split(text)
    check(text, args.textbook_merges)
    ways: dict[str, Callable[[], Any]] = {
        f"fast trainer, {size}": lambda: train_ours(text, size, "smallest"),
        f"fast trainer, minbpe's ties, {size}": lambda: train_ours(text, size, "minbpe"),
        f"fast trainer, {few}": lambda: train_ours(text, few, "smallest"),
        f"textbook, {few}": lambda: train_textbook(words, args.textbook_merges),
    }
    if train_peer("warm up", 300) is not None:
        ways[f"Hugging Face tokenizers, {size}"] = lambda: train_peer(text, size)
    ways |= encodings(text, train_ours(text, size, "smallest"))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, work in ways.items():
            if not (name.startswith("textbook") and seconds[name]):  # once will do
                seconds[name].append(timed(work))
    results = {
        name: {
            "median_cpu_seconds": statistics.median(runs),
            "min": min(runs),
            "max": max(runs),
            "runs": len(runs),
        }
        for name, runs in seconds.items()
    }
    print(f"{'CPU seconds':42} {'median':>8} {'min':>8} {'max':>8} {'runs':>5}")
    for name, row in results.items():
        print(
            f"{name:42} {row['median_cpu_seconds']:8.3f} {row['min']:8.3f} {row['max']:8.3f} "
            f"{row['runs']:5}"
        )
    if args.out:
        about = {
            "command": f"python minbpe/benchmarks/train_speed.py {args.corpus.name} "
            f"--vocab-size {size} --rounds {args.rounds} --textbook-merges {args.textbook_merges}",
            "corpus_bytes": len(text.encode()),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "results": results,
        }
        args.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

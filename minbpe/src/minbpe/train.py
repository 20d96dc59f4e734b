"""Train a tokenizer on text: `python -m minbpe.train corpus.txt --vocab-size 4096 --out NAME`.

Takes files, folders, names of data sets and stdin (`-`), of any size; writes NAME.model and prints
what was learnt. A mistake of the user's is one line on stderr and an exit code: 2 usage, 3 a corpus
or a pattern that cannot be used, 4 a data set that is not what its name says, 5 no space,
permission or memory.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minbpe import trainer
from minbpe.command import (
    Advance,
    Meter,
    Parser,
    add_json,
    add_workers,
    print_results,
    progress_bar,
    run_command,
)
from minbpe.corpus import count_batches
from minbpe.counting import BatchCounter
from minbpe.datasets import DATA_SETS
from minbpe.documents import find_texts, total_bytes
from minbpe.errors import UsageError
from minbpe.files import check_writable
from minbpe.model_file import build_vocab, render_token
from minbpe.pretokens import PATTERNS, TIME_LIMIT
from minbpe.probe import check_pattern
from minbpe.regex import RegexTokenizer
from minbpe.workers import Workers, usable_cpus

SHOWN_EVERY = 64
"""Merges between two looks of the progress bar, which then cost nothing beside the training."""

SMALL = 8 << 20
"""Bytes up to which starting workers costs more than they save."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = Parser("python -m minbpe.train", "Train a byte-pair encoding.")
    add = parser.add_argument
    add(
        "corpus",
        nargs="+",
        help="files of UTF-8 text or .jsonl (field text), also .xz, .bz2 or .gz; folders of them; "
        f"- is stdin; or data sets in $MLE_DATA: {', '.join(DATA_SETS)}. No token spans two texts",
    )
    add("--vocab-size", type=int, default=4096, help="256 bytes + merges (default: 4096)")
    add("--out", default="tokenizer", help="write OUT.model (default: tokenizer)")
    named = ", ".join(PATTERNS)
    add("--pattern", default="gpt4", help=f"{named} or a regular expression (default: gpt4)")
    add_workers(parser)
    add(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="for your own pattern: CPU seconds for a mebibyte of text (default: %(default)g)",
    )
    add(
        "--special",
        action="append",
        default=[],
        metavar="TEXT",
        help="a special token, given the next id after the merges; may be repeated",
    )
    add(
        "--tie-break",
        choices=trainer.TIE_BREAKS,
        default="smallest",
        help="which of equally frequent pairs goes first: the one with the smallest ids, whatever "
        "the order of the text (default; rustbpe's rule too), or the first in the text, as "
        "karpathy's minbpe",
    )
    add_json(parser)
    return parser.parse_args(argv)


def count(args: argparse.Namespace, pattern: str) -> Mapping[str, int]:
    """Return how often each pre-token of the corpus occurs, with a progress bar in bytes."""
    files = find_texts(args.corpus)
    n_bytes = total_bytes(files)
    workers = args.workers
    if workers is None:
        workers = 0 if n_bytes is not None and n_bytes <= SMALL else usable_cpus()
    counter = BatchCounter(pattern, args.time_limit)
    with (
        Workers(counter, workers) as pool,
        progress_bar("reading", n_bytes, in_bytes=True) as advance,
    ):
        return count_batches(pool, files, pattern, advance)


def special_tokens(texts: Sequence[str], first: int) -> dict[str, int]:
    """Return the ids of special tokens, from `first` on; raises UsageError for what can be none."""
    numbered = {text: first + k for k, text in enumerate(dict.fromkeys(texts))}
    RegexTokenizer().register_special_tokens(numbered)
    return numbered


def show_merges(advance: Advance, n_merges: int) -> trainer.Progress:
    """Return a function that moves the bar and shows the newest token."""
    vocab = build_vocab([])

    def report(a: int, b: int, count: int) -> None:
        vocab.append(vocab[a] + vocab[b])
        done = len(vocab) - 256
        if done % SHOWN_EVERY == 0 or done == n_merges:
            advance(done, f"{render_token(vocab[-1])} x {count}")

    return report


def summary(tokenizer: RegexTokenizer, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the results by name, with the unit in the name."""
    n_bytes = sum(len(word.encode("utf-8")) * n for word, n in counts.items())
    n_tokens = tokenizer.count_tokens(counts)
    longest = sorted(tokenizer.vocab.values(), key=lambda token: (-len(token), token))[:10]
    return {
        "vocab_size": tokenizer.vocab_size,
        "requested_vocab_size": tokenizer.requested_vocab_size,
        "merges": len(tokenizer.merges),
        "special_tokens": list(tokenizer.special_tokens),
        "corpus_bytes": n_bytes,
        "corpus_words": sum(counts.values()),
        "distinct_words": len(counts),
        "corpus_tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
        "longest_tokens": [render_token(token) for token in longest],
        "digest": tokenizer.digest(),
    }


def run(args: argparse.Namespace) -> None:
    """Train as `args` say, write the file, print the results."""
    pattern = PATTERNS.get(args.pattern, args.pattern)
    tokenizer = RegexTokenizer(pattern)
    tokenizer.check_training(args.vocab_size, args.tie_break)
    if not 0 < args.time_limit < math.inf:
        raise UsageError(
            f"--time-limit {args.time_limit:g} must be more than 0 seconds, and finite"
        )
    special_tokens(args.special, args.vocab_size)
    check_writable(Path(f"{args.out}.model"))
    check_pattern(pattern, args.time_limit)
    meter = Meter()
    counts = count(args, pattern)
    n_merges = args.vocab_size - 256
    with progress_bar("merges", n_merges) as advance:
        tokenizer.train_counts(
            counts,
            args.vocab_size,
            tie_break=args.tie_break,
            progress=show_merges(advance, n_merges),
        )
    spent = meter.results()
    tokenizer.register_special_tokens(special_tokens(args.special, 256 + len(tokenizer.merges)))
    results = summary(tokenizer, counts) | spent
    tokenizer.save(args.out)
    print_results(results, f"wrote {args.out}.model", as_json=args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())

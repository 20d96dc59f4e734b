"""Train a tokenizer on text: `python -m minbpe.train corpus.txt --vocab-size 4096 --out NAME`.

Writes NAME.model and prints what was learnt. A mistake of the user's is one line on stderr and an
exit code: 2 usage, 3 bad corpus, 5 no space or permission.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from minbpe import trainer
from minbpe.errors import DataError, ResourceError, TokenizerError, UsageError
from minbpe.model_file import build_vocab, render_token
from minbpe.pretokens import PATTERNS
from minbpe.regex import RegexTokenizer

SHOWN_EVERY = 64
"""Merges between two looks of the progress bar, which then cost nothing beside the training."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = _Parser(prog="python -m minbpe.train", description="Train a byte-pair encoding.")
    add = parser.add_argument
    add("corpus", nargs="+", type=Path, help="text files in UTF-8; no token spans two of them")
    add("--vocab-size", type=int, default=4096, help="256 bytes + merges (default: 4096)")
    add("--out", default="tokenizer", help="write OUT.model (default: tokenizer)")
    add("--pattern", default="gpt4", help="gpt2, gpt4 or a regular expression (default: gpt4)")
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
        "the order of the text (default), or the first in the text, as karpathy's minbpe",
    )
    add("--json", action="store_true", help="print the results as JSON instead of a table")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def read_text(path: Path) -> str:
    """Return the file's text, line ends untouched. Raises UsageError, DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not data:
        raise DataError(f"{path} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; "
            "is it a text file? Convert it first"
        ) from None


def check_out(out: str) -> None:
    """Raise before any work is done when `out` cannot be written."""
    folder = Path(f"{out}.model").parent
    if not folder.is_dir():
        raise UsageError(f"--out {out}: the folder {folder} does not exist")
    try:
        probe = folder / f".{Path(out).name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"--out {out} cannot be written: {error.strerror}") from None


@contextmanager
def progress_bar(total: int) -> Iterator[trainer.Progress | None]:
    """Yield a function that shows each merge on a terminal; None where stderr is none."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = [
        TextColumn("merges"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[token]}", markup=False),
    ]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, token="")
        vocab = build_vocab([])

        def report(a: int, b: int, count: int) -> None:
            vocab.append(vocab[a] + vocab[b])
            done = len(vocab) - 256
            if done % SHOWN_EVERY == 0 or done == total:
                bar.update(task, completed=done, token=f"{render_token(vocab[-1])} x {count}")

        yield report


def summary(
    tokenizer: RegexTokenizer, texts: list[str], times: tuple[float, float]
) -> dict[str, Any]:
    """Return the results by name, with the unit in the name."""
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    n_tokens = sum(len(tokenizer.encode_array(text)) for text in texts)
    longest = sorted(tokenizer.vocab.values(), key=lambda token: (-len(token), token))[:10]
    return {
        "vocab_size": tokenizer.vocab_size,
        "requested_vocab_size": tokenizer.requested_vocab_size,
        "merges": len(tokenizer.merges),
        "special_tokens": list(tokenizer.special_tokens),
        "corpus_bytes": n_bytes,
        "corpus_tokens": n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
        "train_seconds": times[0],
        "train_cpu_seconds": times[1],
        "longest_tokens": [render_token(token) for token in longest],
        "digest": tokenizer.digest(),
    }


def show(results: dict[str, Any], path: str) -> None:
    """Print the results as a table."""
    table = Table(show_header=False, title=f"wrote {path}", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in results.items():
        if isinstance(value, list):
            value = " ".join(value)
        elif isinstance(value, float):
            value = f"{value:.3f}"
        table.add_row(name.replace("_", " "), Text(str(value)))  # Text: "[/b]" is no markup
    Console().print(table)


def run(args: argparse.Namespace) -> None:
    """Train as `args` say, write the file, print the results."""
    tokenizer = RegexTokenizer(PATTERNS.get(args.pattern, args.pattern))
    tokenizer.check_training(args.vocab_size, args.tie_break)
    check_out(args.out)
    texts = [read_text(path) for path in args.corpus]
    wall, cpu = time.perf_counter(), time.process_time()
    with progress_bar(args.vocab_size - 256) as report:
        tokenizer.train(texts, args.vocab_size, tie_break=args.tie_break, progress=report)
    times = (time.perf_counter() - wall, time.process_time() - cpu)
    first = 256 + len(tokenizer.merges)
    tokenizer.register_special_tokens(
        {text: first + k for k, text in enumerate(dict.fromkeys(args.special))}
    )
    tokenizer.save(args.out)
    results = summary(tokenizer, texts, times)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, f"{args.out}.model")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        run(parse(argv))
    except TokenizerError as error:
        if debug:
            raise
        print(f"minbpe.train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("minbpe.train: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare tokenizers on texts: `python -m minbpe.compare text.txt --tokenizer mine.model`.

Each text is encoded by every published tokenizer that is found on this machine and by those given.
The measures, of which fewer tokens for the same text is better:

- bytes per token, tokens per character, and tokens per word; a word is a run of letters and marks
- whole words: the share of the text's words that are one token, with the space before them if any
- seconds of CPU time, the first words included, and the vocabulary, which is the price

Exit codes: 2 usage, 3 text that is none, 4 a torn tokenizer file.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import regex
from rich import box
from rich.table import Table
from rich.text import Text

from minbpe.base import Tokenizer
from minbpe.command import (
    Out,
    Parser,
    add_json,
    add_tokenizer,
    load_tokenizer,
    progress_bar,
    run_command,
)
from minbpe.documents import STDIN, find_texts, is_json_lines, no_cut, read_pieces
from minbpe.errors import DataError, TokenizerFileError, UsageError

MIN_BAR, MAX_BAR = 6, 40
"""Characters of the longest bar, as the terminal's width allows."""

BESIDE_BAR = 69
"""Characters of the columns beside it."""

TOTAL = "all texts"

_WORD = regex.compile(r" ?[\p{L}\p{M}]+")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = Parser("python -m minbpe.compare", "Compare tokenizers on texts.")
    add = parser.add_argument
    add("text", nargs="+", help="what `encode` takes; of .jsonl files the lines' texts")
    add_tokenizer(parser, several=True)
    add("--only", action="store_true", help="leave out the published tokenizers not given")
    add("--by", metavar="FIELD", help="a text for each value of this field of .jsonl lines")
    add("--field", default="text", help="the field of .jsonl lines with the text (default: text)")
    add_json(parser)
    args = parser.parse_args(argv)
    if args.only and not args.tokenizer:
        raise UsageError("--only leaves no tokenizer; give one or more by --tokenizer")
    return args


# --- What is compared -----------------------------------------------------------------------------


def read_samples(sources: Iterable[str], field: str, by: str | None) -> dict[str, list[str]]:
    """Return the texts by name: a file's own, or the value of the field `by` of its lines."""
    samples: dict[str, list[str]] = {}
    for path in dict.fromkeys(find_texts(sources)):
        texts = [piece.text for piece in read_pieces([path], no_cut, field=field)]
        names = ["stdin" if path == STDIN else str(path)] * len(texts)
        if by is not None and is_json_lines(path):
            if not path.is_file():
                raise UsageError(f"--by reads twice, and {path} is a pipe; make it a file")
            names = [piece.text for piece in read_pieces([path], no_cut, field=by)]
        for name, text in zip(names, texts, strict=True):
            samples.setdefault(name, []).append(text)
    if not any(map(any, samples.values())):
        raise DataError(f"there is nothing to compare on: {', '.join(sources)[:200]} is empty")
    return {name: texts for name, texts in samples.items() if any(texts)}


def load_all(names: Sequence[str], only: bool) -> dict[str, Tokenizer]:
    """Return the tokenizers by name: the published ones that are here, unless `only`, and `names`.

    Raises what `load_tokenizer` raises for `names`; a published one that is not here is left out,
    and so is one whose file is torn, with a note on stderr.
    """
    from minbpe.gpt import RankTokenizer
    from minbpe.published import PUBLISHED, load_ranks

    found: dict[str, Tokenizer] = {}
    for name in PUBLISHED:
        if name in names or only:
            continue
        try:
            found[name] = RankTokenizer(load_ranks(name, download=False))
        except UsageError:
            continue
        except TokenizerFileError as error:
            print(f"minbpe.compare: {name} is left out: {error}", file=sys.stderr)
    return found | {name: load_tokenizer(name) for name in names}


# --- Measures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The measures of one tokenizer on one text; the sums are what the ratios are made of."""

    text: str
    tokenizer: str
    vocab_size: int
    tokens: int
    bytes: int
    characters: int
    words: int
    one_token_words: int
    cpu_seconds: float

    def ratios(self) -> dict[str, float]:
        """Return what rows are compared by; 0 where a text has no words."""
        words = max(self.words, 1)
        return {
            "bytes_per_token": self.bytes / self.tokens,
            "tokens_per_character": self.tokens / self.characters,
            "tokens_per_word": self.tokens / words if self.words else 0.0,
            "one_token_word_share": self.one_token_words / words,
        }


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs: `["the cat"] -> {"the": 1, " cat": 1}`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return counts


def measure(
    name: str, texts: Sequence[str], words: Mapping[str, int], label: str, tokenizer: Tokenizer
) -> Row:
    """Encode the texts of the sample `name`, whose `words` are counted."""
    start = time.process_time()
    tokens = sum(len(tokenizer.encode_array(text)) for text in texts)
    seconds = time.process_time() - start
    whole = sum(n for word, n in words.items() if len(tokenizer.encode_ordinary(word)) == 1)
    return Row(
        text=name,
        tokenizer=label,
        vocab_size=tokenizer.vocab_size,
        tokens=tokens,
        bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
        characters=sum(map(len, texts)),
        words=sum(words.values()),
        one_token_words=whole,
        cpu_seconds=seconds,
    )


def totals(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield for each tokenizer the sum of its rows."""
    for label in dict.fromkeys(row.tokenizer for row in rows):
        own = [row for row in rows if row.tokenizer == label]
        sums = {
            field: sum(getattr(row, field) for row in own)
            for field in ("tokens", "bytes", "characters", "words", "one_token_words")
        }
        seconds = sum(row.cpu_seconds for row in own)
        yield Row(TOTAL, label, own[0].vocab_size, **sums, cpu_seconds=seconds)


# --- The table ------------------------------------------------------------------------------------


def show(rows: Sequence[Row]) -> None:
    """Print a table a text, with a bar for the bytes per token: the longer, the better."""
    console = Out()
    best = max(row.ratios()["bytes_per_token"] for row in rows)
    for name, group in groupby(rows, key=lambda row: row.text):
        own = list(group)
        console.print()
        console.print(Text(name, style="bold"), f"({own[0].bytes:,} bytes, {own[0].words:,} words)")
        width = min(MAX_BAR, max(MIN_BAR, console.width - BESIDE_BAR))
        blocks = console.encoding.lower().startswith("utf")
        console.print(_table(own, best, width, blocks))


def _table(rows: Sequence[Row], best: float, width: int, blocks: bool) -> Table:
    """Return the rows of one text; `best` bytes per token are a bar of `width` characters."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("tokenizer", overflow="fold", min_width=12)
    for head in ("  vocab", "   tokens", "tokens/\nchar", "tokens/\nword", " whole\nwords"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in (" CPU s", "bytes/\ntoken"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=width)
    names = [Path(row.tokenizer).name for row in rows]
    for row, name in zip(rows, names, strict=True):
        of = row.ratios()
        table.add_row(
            Text(name if names.count(name) == 1 else row.tokenizer),
            f"{row.vocab_size:,}",
            f"{row.tokens:,}",
            f"{of['tokens_per_character']:.3f}",
            f"{of['tokens_per_word']:.2f}" if row.words else "-",
            f"{of['one_token_word_share']:.1%}" if row.words else "-",
            f"{row.cpu_seconds:.2f}",
            f"{of['bytes_per_token']:.2f}",
            bar(of["bytes_per_token"] / best, width, blocks=blocks),
        )
    return table


def bar(share: float, width: int, *, blocks: bool = True) -> str:
    """Draw a share of the width in eighths of a character: `bar(0.5, 3) -> "█▌"`.

    Without `blocks`, which ASCII lacks, in whole ones: `"##"`.
    """
    if not blocks:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def run(args: argparse.Namespace) -> None:
    """Compare as `args` say."""
    samples = read_samples(args.text, args.field, args.by)
    tokenizers = load_all(args.tokenizer or [], args.only)
    if not tokenizers:
        raise UsageError("no published tokenizer is on this machine; give one by --tokenizer")
    rows = []
    with progress_bar("encoding", len(samples) * len(tokenizers)) as advance:
        for name, texts in samples.items():
            words = count_words(texts)
            for label, tokenizer in tokenizers.items():
                rows.append(measure(name, texts, words, label, tokenizer))
                advance(len(rows), label)
    if len(samples) > 1:
        rows += totals(rows)
    if args.json:
        print(json.dumps([asdict(row) | row.ratios() for row in rows], indent=2))
    else:
        show(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())

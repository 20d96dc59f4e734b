"""Encode text: `python -m minbpe.encode corpus.txt --tokenizer NAME|FILE --out FOLDER`.

Writes a set of token shards (see `minbpe.shards`), from files of any size in bounded memory, by
several processes; the ids are the same for any number of them. Without `--out` it prints the ids,
a document a line: `echo hello | python -m minbpe.encode - --tokenizer cl100k_base`.

Exit codes: 2 usage, 3 text that is none, 4 a torn tokenizer file, 5 no space or memory. After an
error nothing is left in the folder, and a set of that name that was there is still whole.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minbpe.base import Tokenizer
from minbpe.command import (
    Meter,
    Parser,
    add_json,
    add_tokenizer,
    add_workers,
    load_tokenizer,
    print_results,
    progress_bar,
    run_command,
)
from minbpe.documents import PIECE, Piece, find_texts, read_pieces, total_bytes
from minbpe.errors import DataError, UsageError
from minbpe.files import note_written
from minbpe.shards import ShardWriter
from minbpe.workers import Workers, usable_cpus

SMALL = 4 * 2**20
"""Bytes up to which starting workers costs more than they save."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = Parser("python -m minbpe.encode", "Encode text files to token shards.")
    add = parser.add_argument
    add(
        "text",
        nargs="+",
        help="files in UTF-8, each a document; of .jsonl files each line is one; also .xz, .bz2 "
        "or .gz; folders of them; data sets in $MLE_DATA; - is stdin",
    )
    add_tokenizer(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FOLDER", help="write token shards here")
    where.add_argument(
        "--ids", action="store_true", help="print the ids, a document a line (without --out)"
    )
    add("--name", default="train", help="what to call the set of tokens (default: train)")
    add(
        "--force", action="store_true", help="replace a set of that name, once the new one is whole"
    )
    add(
        "--special",
        choices=("none", "all"),
        default="none",
        help="special tokens in the text are text like any other (default), or all are ids",
    )
    add("--append", metavar="TEXT", help="a special token to put after each document")
    add("--field", default="text", help="the field of .jsonl lines to encode (default: text)")
    add_workers(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    if args.json and args.out is None:
        raise UsageError("--json tells of a set of tokens; it needs --out")
    return args


# --- Text to ids ----------------------------------------------------------------------------------


@dataclass
class Batch:
    """Pieces of text for one call of a worker; `read` bytes of the sources went into it."""

    texts: list[str]
    ends: list[bool]
    read: int


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch (n,), where its documents end in them, and what it was made of."""

    ids: NDArray[np.uint32]
    ends: list[int]
    n_bytes: int
    read: int


@dataclass(frozen=True)
class BatchEncoder:
    """Encodes batches; `special` are ids where they occur, `append` comes after each document."""

    tokenizer: Tokenizer
    special: bool
    append: int | None

    def __call__(self, batch: Batch) -> Encoded:
        """Return the ids of the texts, one after the other."""
        parts: list[NDArray[np.uint32]] = []
        ends: list[int] = []
        count = n_bytes = 0
        for text, end in zip(batch.texts, batch.ends, strict=True):
            parts.append(self._ids(text))
            if end and self.append is not None:
                parts[-1] = np.append(parts[-1], np.uint32(self.append))
            count += len(parts[-1])
            if end:
                ends.append(count)
            n_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return Encoded(np.concatenate(parts), ends, n_bytes, batch.read)

    def _ids(self, text: str) -> NDArray[np.uint32]:
        if self.special and any(token in text for token in self.tokenizer.special_tokens):
            return np.array(self.tokenizer.encode(text, "all"), dtype=np.uint32)
        return self.tokenizer.encode_array(text)


def batches(pieces: Iterable[Piece], size: int = PIECE) -> Iterator[Batch]:
    """Put pieces together until they have `size` characters."""
    batch, length = Batch([], [], 0), 0
    for piece in pieces:
        batch.texts.append(piece.text)
        batch.ends.append(piece.ends)
        batch.read += piece.read
        length += len(piece.text)
        if length >= size:
            yield batch
            batch, length = Batch([], [], 0), 0
    if batch.texts:
        yield batch


def special_id(tokenizer: Tokenizer, token: str | None) -> int | None:
    """Return the id of the special token; raises UsageError when there is none such."""
    if token is None:
        return None
    if token not in tokenizer.special_tokens:
        listed = ", ".join(map(repr, tokenizer.special_tokens)) or "no special token"
        raise UsageError(f"--append {token!r}: the tokenizer has {listed}")
    return tokenizer.special_tokens[token]


# --- Where ids go ---------------------------------------------------------------------------------


def print_ids(encoded: Iterable[Encoded]) -> None:
    """Print the ids with spaces between them, a document a line."""
    gap = ""
    for one in encoded:
        note_written("ids to stdout, not all")
        bounds = pairwise([0, *one.ends, len(one.ids)])
        for number, (start, end) in enumerate(bounds):
            if end > start:
                sys.stdout.write(gap + " ".join(map(str, one.ids[start:end].tolist())))
                gap = " "
            if number < len(one.ends):
                sys.stdout.write("\n")
                gap = ""


def default_workers(n_bytes: int | None) -> int:
    """Return one worker a CPU, none where there is little text; None is an unknown amount."""
    return 0 if n_bytes is not None and n_bytes < SMALL else usable_cpus()


def write_shards(
    args: argparse.Namespace,
    encoder: BatchEncoder,
    found: Iterable[Batch],
    workers: int,
    total: int | None,
) -> dict[str, Any]:
    """Write the ids as a set of tokens; return what there was, by name.

    `total` is the bytes of the texts on disk, for the progress bar.

    Raises DataError for an input without a single id, and what `ShardWriter` raises.
    """
    tokenizer = encoder.tokenizer
    documents = n_bytes = read = 0
    with ExitStack() as stack:
        writer = stack.enter_context(
            ShardWriter(
                args.out,
                args.name,
                vocab_size=tokenizer.vocab_size,
                tokenizer_sha256=(digest := tokenizer.digest()),
                replace=args.force,
            )
        )
        pool = stack.enter_context(Workers(encoder, workers))
        advance = stack.enter_context(progress_bar("encoding", total, in_bytes=True))
        for encoded in pool.map(found):
            writer.append(encoded.ids)
            documents += len(encoded.ends)
            n_bytes += encoded.n_bytes
            read += encoded.read
            advance(read)
        if not writer.count:
            raise DataError(f"there is nothing to encode: {', '.join(args.text)[:200]} is empty")
    return {
        "documents": documents,
        "bytes": n_bytes,
        "tokens": writer.count,
        "bytes_per_token": n_bytes / writer.count,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": digest,
        "workers": workers,
    }


def run(args: argparse.Namespace) -> None:
    """Encode as `args` say; print the ids or, after writing them, the figures."""
    meter = Meter()
    files = find_texts(args.text)
    tokenizer = load_tokenizer(args.tokenizer)
    special = args.special == "all"
    encoder = BatchEncoder(tokenizer, special, special_id(tokenizer, args.append))
    found = batches(read_pieces(files, tokenizer.find_cut, field=args.field))
    if args.out is None:
        with Workers(encoder, args.workers or 0) as pool:
            print_ids(pool.map(found))
        return
    total = total_bytes(files)
    workers = default_workers(total) if args.workers is None else args.workers
    results = write_shards(args, encoder, found, workers, total)
    figures = meter.results()
    figures["mb_per_second"] = results["bytes"] / 1e6 / figures["seconds"]
    print_results(results | figures, f"wrote {args.name} in {args.out}", as_json=args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())

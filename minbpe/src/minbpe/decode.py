"""Turn ids back into bytes: `python -m minbpe.decode FOLDER --tokenizer NAME|FILE`.

The ids come from a set of token shards (see `minbpe.shards`), from a text file of numbers, or from
stdin (`-`). The bytes go to stdout or, whole or not at all, to the file `--out`. They are what was
encoded, byte for byte: nothing is replaced, also where ids end in the middle of a character.

Exit codes: 2 usage, 3 an id that does not exist (its position is named), 4 a shard that is torn
or was made by another tokenizer, 5 no space.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minbpe.base import Tokenizer
from minbpe.command import (
    Parser,
    add_tokenizer,
    load_tokenizer,
    progress_bar,
    run_command,
)
from minbpe.documents import check_file, open_stdin
from minbpe.errors import DataError, TokenizerFileError, UsageError
from minbpe.files import check_writable, note_written, whole_file
from minbpe.model_file import MAX_ID
from minbpe.shards import MAGIC, READ_BYTES, ShardSet, set_names

IDS_AT_ONCE = 2**16
"""Ids decoded at a time, so that memory does not grow with the input."""

_BLANKS = bytes.maketrans(b",[]", b"   ")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = Parser("python -m minbpe.decode", "Turn ids back into bytes.")
    add = parser.add_argument
    add(
        "ids",
        help="a folder of token shards, a file of numbers (spaces, commas and brackets between "
        "them), or - for numbers on stdin",
    )
    add_tokenizer(parser)
    add("--name", help="the set of tokens in the folder (default: the only one)")
    add("--skip", type=int, default=0, metavar="N", help="leave out the first N ids")
    add("--first", type=int, metavar="N", help="decode N ids only")
    add("--out", type=Path, metavar="FILE", help="write the bytes here, not to stdout")
    args = parser.parse_args(argv)
    for flag in ("skip", "first"):
        if (getattr(args, flag) or 0) < 0:
            raise UsageError(f"--{flag} {getattr(args, flag)} must not be negative")
    return args


# --- Where ids come from --------------------------------------------------------------------------


def open_shards(folder: Path, name: str | None, tokenizer: Tokenizer) -> ShardSet:
    """Return a checked set of tokens.

    Raises UsageError when there is none or one must be chosen, TokenizerFileError when it is torn
    or another tokenizer made it.
    """
    names = set_names(folder) if name is None else [name]
    if len(names) != 1:
        found = f"several sets ({', '.join(names)}); choose one by --name" if names else "no tokens"
        raise UsageError(f"{folder} holds {found}")
    tokens = ShardSet.open(folder, names[0])
    if tokens.tokenizer_sha256 != tokenizer.digest():
        raise TokenizerFileError(
            f"{folder}: these tokens were made by another tokenizer "
            f"({tokens.tokenizer_sha256[:12]}, not {tokenizer.digest()[:12]})"
        )
    return tokens


def read_numbers(file: BinaryIO, name: str) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of a text, a piece at a time.

    Raises DataError naming the line of anything else, UsageError for a shard.
    """
    line, rest = 1, b""
    while data := file.read(READ_BYTES):
        if line == 1 and not rest and data.startswith(MAGIC):
            raise UsageError(f"{name} is one shard of a set of tokens; give the folder")
        # The number that the piece may have cut in two waits for the next piece.
        text = rest + data
        end = max(map(text.rfind, (b" ", b"\n", b"\t", b"\r", b",", b"[", b"]"))) + 1
        yield _numbers(text[:end], name, line)
        line += text.count(b"\n", 0, end)
        rest = text[end:]
        if len(rest) > 40:
            break  # no number is as long, and what follows can't mend it
    yield _numbers(rest, name, line)


def _numbers(text: bytes, name: str, line: int) -> NDArray[np.int64]:
    words = text.translate(_BLANKS).split()
    for word in words:
        # No id has more than 7 digits, and int() takes for ever on a million of them.
        if not word.isdigit() or len(word) > 7:
            line += text.count(b"\n", 0, text.index(word))
            shown = repr(word[:40])[1:]
            raise DataError(f"{name}, line {line}: {shown} is no id; ids are 0 to {MAX_ID}")
    return np.array(list(map(int, words)), dtype=np.int64)


def cut_range(
    arrays: Iterable[NDArray[Any]], skip: int, first: int | None
) -> Iterator[NDArray[Any]]:
    """Yield the ids from number `skip` on, `first` of them or all, `IDS_AT_ONCE` at a time."""
    position, stop = 0, None if first is None else skip + first
    for array in arrays:
        kept = array[max(0, skip - position) : None if stop is None else stop - position]
        for start in range(0, len(kept), IDS_AT_ONCE):
            yield kept[start : start + IDS_AT_ONCE]
        position += len(array)
        if stop is not None and position >= stop:
            return


# --- Ids to bytes ---------------------------------------------------------------------------------


def decode_to(
    write: Callable[[bytes], object],
    arrays: Iterable[NDArray[Any]],
    tokenizer: Tokenizer,
    position: int = 0,
) -> Iterator[int]:
    """Write the bytes of the ids; yield after each array how many ids were done.

    Raises DataError naming the position (that of the first id is `position`) of an id that does
    not exist.
    """
    done = 0
    for ids in arrays:
        try:
            data = tokenizer.decode_bytes(ids)
        except DataError:
            for k, one in enumerate(ids.tolist()):
                try:
                    tokenizer.decode_bytes([one])
                except DataError as error:
                    raise DataError(f"position {position + done + k}: {error}") from None
            raise
        write(data)
        done += len(ids)
        yield done


def run(args: argparse.Namespace) -> None:
    """Decode as `args` say."""
    source = Path(args.ids)
    if args.out is not None:
        check_writable(args.out)
    tokenizer = load_tokenizer(args.tokenizer)
    with ExitStack() as stack:
        total = args.first
        arrays: Iterable[NDArray[Any]]
        if args.ids == "-":
            arrays = read_numbers(open_stdin(), "stdin")
        elif source.is_dir():
            tokens = open_shards(source, args.name, tokenizer)
            left = max(0, tokens.count - args.skip)
            total = left if args.first is None else min(left, args.first)
            arrays = tokens.arrays()
        else:
            check_file(source)
            arrays = read_numbers(stack.enter_context(source.open("rb")), str(source))
        out = stack.enter_context(whole_file(args.out)) if args.out else sys.stdout.buffer
        # The bar is on stderr, and would tear text on the same terminal.
        shown = args.out is not None or not sys.stdout.isatty()
        advance = stack.enter_context(progress_bar("decoding", total, hidden=not shown))
        arrays = cut_range(arrays, args.skip, args.first)
        for done in decode_to(out.write, arrays, tokenizer, args.skip):
            advance(done)
            if args.out is None:
                note_written("bytes to stdout, not all")
        out.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return run_command(run, parse, argv)


if __name__ == "__main__":
    sys.exit(main())

r"""Text files as they lie on disk: plain or compressed, whole or one JSON document a line.

    stream = open_plain(path)         # .xz, .bz2 and .gz files open as what is inside them
    for piece in read_chunks(stream, label): ...     # bounded pieces, in order
    for text in read_documents(stream, label): ...   # `{"text": "..."}` a line -> "..."

Everything streams: memory is bounded by `BLOCK` for plain text and by the longest line (at most
`MAX_LINE`) for JSON lines. What is not text is a `DataError` that names the file and the place.
"""

import bz2
import codecs
import contextlib
import gzip
import hashlib
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from shared.errors import DataError, ResourceError

BLOCK = 1 << 20
"""Bytes read at a time."""

MAX_LINE = 1 << 28
"""The longest JSON line taken, in bytes; a whole novel has a few million."""

COMPRESSED: Mapping[str, Callable[..., Any]] = {
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".gz": gzip.open,
}
"""File name endings that mean a compressed file, and what opens it."""

_TORN = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


def plain_name(name: str) -> str:
    """Return a file's name without its compression: `"train.txt.xz" -> "train.txt"`."""
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) if suffix in COMPRESSED else name


def is_json_lines(name: str) -> bool:
    """Tell whether a file holds one JSON document a line, going by its name."""
    return PurePath(plain_name(name)).suffix == ".jsonl"


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading as bytes, decompressing by its name's ending.

    Raises `ResourceError` where the file is there but may not be read.
    """
    with _reading(str(path)):
        return cast(BinaryIO, COMPRESSED.get(path.suffix, open)(path, "rb"))


def inspect(path: Path) -> tuple[str, int]:
    """Read a file once and return the sha256 and the number of bytes of its uncompressed content.

    Raises `DataError` if it is not UTF-8 or not what its compression says.
    """
    digest, size = hashlib.sha256(), 0

    def hashed(blocks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal size
        for block in blocks:
            digest.update(block)
            size += len(block)
            yield block

    with open_plain(path) as stream:
        for _ in _decode(hashed(_blocks(stream, str(path))), str(path)):
            pass
    return digest.hexdigest(), size


def read_chunks(stream: BinaryIO, label: str) -> Iterator[str]:
    """Yield the text of a stream in order, in pieces of at most two blocks.

    A piece ends after a newline unless a whole block has none, so that a tokenizer that works
    piece by piece splits few words.
    """
    rest = ""
    for text in _decode(_blocks(stream, label), label):
        head, newline, tail = text.rpartition("\n")
        if newline:
            yield rest + head + newline
            rest = tail
        else:
            if rest + text:
                yield rest + text
            rest = ""
    if rest:
        yield rest


def read_documents(stream: BinaryIO, label: str) -> Iterator[str]:
    """Yield the `text` field of each JSON object of a stream of JSON lines; blank lines are none.

    Raises `DataError` naming the line that is no such object.
    """
    for number in itertools.count(1):
        with _reading(label):
            line = stream.readline(MAX_LINE + 1)
        if not line:
            return
        where = f"{label}, line {number}"
        if len(line) > MAX_LINE:
            raise DataError(f"{where} is longer than {MAX_LINE:,} bytes")
        if line.strip():
            yield _document(line, where)


def _document(line: bytes, where: str) -> str:
    """Return the text of one JSON line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 text: byte 0x{line[error.start]:02x} at offset {error.start}"
            " of the line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error})") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where} is not an object with a string under "text"')
    try:
        text.encode()  # JSON can spell half of a surrogate pair, which no file can hold
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds a lone surrogate at character {error.start}") from error
    return text


def _blocks(stream: BinaryIO, label: str) -> Iterator[bytes]:
    """Yield a stream's bytes block by block."""
    while True:
        with _reading(label):
            block = stream.read(BLOCK)
        if not block:
            return
        yield block


def _decode(blocks: Iterable[bytes], label: str) -> Iterator[str]:
    """Yield the UTF-8 text of each block; a character cut in two goes with the later block."""
    pending, offset = b"", 0
    for block in blocks:
        data = pending + block
        text, used = _decode_block(data, offset, label, final=False)
        pending, offset = data[used:], offset + used
        yield text
    _decode_block(pending, offset, label, final=True)


def _decode_block(data: bytes, offset: int, label: str, final: bool) -> tuple[str, int]:
    """Return the text of the bytes at a file's offset and how many of them it took."""
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{label} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset"
            f" {offset + error.start} ({error.reason})"
        ) from error


@contextlib.contextmanager
def _reading(label: str) -> Iterator[None]:
    """Turn what goes wrong while reading into an error that names the file."""
    try:
        yield
    except _TORN as error:
        raise DataError(f"{label} cannot be decompressed: {error}") from error
    except OSError as error:
        if error.errno is None:  # bz2 says so of bytes that are not bz2
            raise DataError(f"{label} cannot be decompressed: {error}") from error
        raise ResourceError(f"{label} cannot be read: {error.strerror}") from error

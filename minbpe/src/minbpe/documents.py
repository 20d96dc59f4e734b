r"""Documents from files, in bounded memory: text, or `.jsonl` (a text field a line).

    for piece in read_pieces(find_texts(["novels", "web.jsonl.xz", "shakespeare", "-"]), cut): ...

A text is cut into pieces where no pre-token and no special token can reach across, so that the ids
of the pieces, one after the other, are the ids of the text.

Text is UTF-8, where NUL is a character like any other; but bytes of which two in five are NULs are
taken for what they must be, UTF-16 or no text at all, and refused.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minbpe.datasets import find_corpus
from minbpe.errors import DataError, UsageError
from minbpe.files import shorten

STDIN = Path("-")
"""Stands for stdin; a file of that name is `Path("-").absolute()`."""

COMPRESSED: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
"""What opens a compressed file, by the ending of its name."""

PIECE = 2**19
"""Characters in a piece, at least, but for the last one of a document."""

MAX_WHOLE = 2**28
"""Characters of a document without a place to cut it, at most: they are all held in memory."""

READ_BYTES = 2**18
"""Read at a time."""

Cut = Callable[[str, int], int | None]
"""From a text and a place in it to the next place where it may be cut, None when there is none.

A place is told only when what follows the text, should it go on, changes nothing: such are
`Tokenizer.find_cut` and `Splitter.find_cut`."""


def no_cut(_text: str, _start: int) -> None:
    """Cut nowhere, so that each piece is a document."""


@dataclass(frozen=True)
class Piece:
    """A part of a document; with `ends` it is its last."""

    text: str
    ends: bool
    read: int
    """Bytes of the source, as they lie on disk, read since the piece before it."""


# --- Which files ----------------------------------------------------------------------------------


def find_texts(names: Iterable[str]) -> list[Path]:
    """Return the files that are meant by paths, folders, names of data sets and `-` (stdin).

    Raises as `find_corpus` and `list_files` do.
    """
    found: list[Path] = []
    for name in names:
        if name == "-":
            found.append(STDIN)
            continue
        try:
            paths = find_corpus(name)
        except OSError as error:  # a name that is too long, say
            raise UsageError(f"{shorten(name)} cannot be read: {error.strerror}") from None
        for path in paths:
            found += list_files(path.absolute() if path == STDIN else path)
    return found


def list_files(path: Path) -> list[Path]:
    """Return the file, or the files of a folder and the folders in it, sorted, none hidden.

    Empty files of a folder are left out. Raises UsageError for a path that does not exist or may
    not be read, DataError for a folder without files.
    """
    try:
        if path == STDIN or not path.is_dir():
            check_file(path)
            return [path]
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p, path))
        listed = [p for p in found if p.stat().st_size]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not listed:
        raise DataError(f"the folder {path} holds no text files")
    return listed


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(folder).parts)


def check_file(path: Path) -> None:
    """Raise UsageError for an input that is missing, a folder, or may not be read.

    A pipe is left alone: opened and closed, it would be spent.
    """
    try:
        if path != STDIN and (stat.S_ISREG(path.stat().st_mode) or path.is_dir()):
            path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{shorten(str(path))} cannot be read: {error.strerror}") from None


def total_bytes(files: Iterable[Path]) -> int | None:
    """Return the size of files on disk; None where one is a pipe, whose length nobody knows."""
    size = 0
    for path in files:
        if path == STDIN or not path.is_file():
            return None
        size += path.stat().st_size
    return size


def open_stdin() -> BinaryIO:
    """Return stdin as bytes; raises UsageError when it is closed."""
    if sys.stdin is None:
        raise UsageError("stdin (-) is closed; give it a text, or name a file")
    return sys.stdin.buffer


# --- What they hold -------------------------------------------------------------------------------


def read_pieces(
    sources: Iterable[str | Path], cut: Cut, *, field: str = "text", size: int = PIECE
) -> Iterator[Piece]:
    """Yield the documents of files, `STDIN` among them; `.xz`, `.bz2` and `.gz` are unpacked.

    Each is one document, but for a `.jsonl` file, whose lines are one each, in the field `field`.
    Raises UsageError for what cannot be read, DataError for what is no text, naming the line.
    """
    for source in map(Path, sources):
        name = "stdin" if source == STDIN else shorten(str(source))
        unpack = COMPRESSED.get(source.suffix, io.BufferedReader)
        try:
            with closing(_Counted(source)) as counted, unpack(counted) as stream:
                done = 0
                for text, ends in (
                    ((text, True) for text in read_json_lines(stream, name, field))
                    if is_json_lines(source)
                    else text_pieces(stream, name, cut, size)
                ):
                    yield Piece(text, ends, counted.count - done)
                    done = counted.count
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{name} cannot be unpacked: {error}") from None
        except OSError as error:
            if error.errno is None:  # bz2 says so of bytes that are not bz2
                raise DataError(f"{name} cannot be unpacked: {error}") from None
            raise UsageError(f"{name} cannot be read: {error.strerror}") from None


def is_json_lines(path: Path) -> bool:
    """Return whether a file's lines are documents, packed or not."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix == ".jsonl"


class _Counted(io.RawIOBase):
    """A file, or stdin, that counts the bytes read of it: a pipe has no position to ask for."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._owned = path != STDIN
        self._file = path.open("rb") if self._owned else open_stdin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._owned:
            self._file.close()
        super().close()


def text_pieces(file: BinaryIO, name: str, cut: Cut, size: int) -> Iterator[tuple[str, bool]]:
    """Yield the text of a file in pieces of at least `size` characters, True with the last.

    Raises DataError for what is not UTF-8 and for `MAX_WHOLE` characters without a cut.
    """
    buffer, searched = "", size
    for chunk in read_text(file, name):
        buffer += chunk
        while len(buffer) > searched:
            end = cut(buffer, searched)
            if end is None:
                searched = len(buffer)
                if searched > MAX_WHOLE:
                    raise DataError(
                        f"{name} has more than {MAX_WHOLE:,} characters without a place to cut it "
                        "(with a pattern of your own, none is known): make it several files, or "
                        "a .jsonl of several texts"
                    )
                break
            yield buffer[:end], False
            buffer, searched = buffer[end:], size
    yield buffer, True


def read_text(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the text of a file a piece at a time, line ends untouched.

    Raises DataError naming line and byte of what is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    start, line, data = 0, 1, b"-"
    while data:
        data = file.read(READ_BYTES)
        if not start and 5 * data.count(0) >= 2 * max(len(data), 1):
            raise DataError(f"{name} holds NUL bytes all over: is it UTF-16? Convert it first")
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            waiting = len(error.object) - len(data)  # of a character that was cut in two
            line += error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise not_utf8(name, line, start - waiting + error.start, byte) from None
        line += data.count(b"\n")
        start += len(data)


def read_json_lines(file: BinaryIO, name: str, field: str) -> Iterator[str]:
    """Yield the text of each line; blank lines are none.

    Raises DataError naming the line that is not JSON or has no such text.
    """
    start = 0
    for number, line in enumerate(file, start=1):
        try:
            value = json.loads(line.decode("utf-8")) if line.strip() else {field: None}
        except UnicodeDecodeError as error:
            raise not_utf8(name, number, start + error.start, line[error.start]) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number}: not JSON ({error})") from None
        start += len(line)
        text = value.get(field) if isinstance(value, dict) else None
        if isinstance(text, str):
            yield text
        elif line.strip():
            fields = ", ".join(value)[:80] if isinstance(value, dict) else "no object"
            raise DataError(f"{name}, line {number}: has no text in {field!r} (it has: {fields})")


def not_utf8(name: str, line: int, place: int, byte: int) -> DataError:
    """Return the error that names the place of a byte that is no UTF-8."""
    return DataError(
        f"{name}, line {line}: byte {place} (0x{byte:02x}) is not UTF-8; is it a text file? "
        "Convert it first"
    )

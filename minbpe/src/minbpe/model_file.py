r"""The tokenizer file: text that can be read in an editor, and that cannot lie.

    minbpe v2
    pattern " ?\\p{L}+|\\s+"
    special_tokens 1
    258 "<|endoftext|>"
    merges 2
    256 104 117 "hu"
    257 256 103 "hug"
    sha256 56ac...

A merge line says: token 257 is token 256 followed by token 103, and stands for "hug". Strings are
JSON (a byte that is no UTF-8 is written \\xe4, and of a token over 64 bytes the start), `pattern
null` is a tokenizer that splits nothing, and the last line is the SHA-256 of all lines above it.

A tokenizer by ranks, such as GPT-4's, has no list of merges. Its file, `minbpe v3`, has instead a
line for each token in the order of its id, with the bytes in base64 and as text:

    tokens 257
    0 IQ== "!"
    ...
    256 aHU= "hu"

Reading checks, in this order: size and version, each line on its own (so that a message can name
the line), and the checksum. It gives a whole model or raises TokenizerFileError, never a part.
Files of karpathy's minbpe (version 1) are read as well.
"""

import binascii
import hashlib
import json
import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from minbpe.errors import TokenizerFileError, UsageError
from minbpe.files import whole_file
from minbpe.textbook import Pair

MAGIC = "minbpe v2"
RANK_MAGIC = "minbpe v3"
MAX_FILE_BYTES = 256 << 20
MAX_MERGES = 1_000_000
"""Five times the largest published vocabulary (o200k, 200,000)."""
MAX_VOCAB_BYTES = 256 << 20
"""Of all tokens together: thirty merges of a token with itself would make one of 2**30 bytes."""
MAX_ID = 0x10FFFF
"""Ids are characters inside the trainer and encoder, and this is the last character."""

_NUMBER = re.compile(r"0|[1-9][0-9]*", re.ASCII)
# Control characters that JSON leaves as they are, and two line separators.
_INVISIBLE = {c: f"\\u{c:04x}" for c in [*range(0x7F, 0xA0), 0x2028, 0x2029]}


@dataclass(frozen=True)
class Model:
    """What a tokenizer is: `merges[k]` makes token 256 + k; a `pattern` of None splits nothing."""

    pattern: str | None
    merges: list[Pair]
    special_tokens: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256, in hex, of all that the file says; the file's last line."""
        return hashlib.sha256(self._body().encode("utf-8")).hexdigest()

    def render(self) -> bytes:
        """Return the file's content."""
        return f"{self._body()}sha256 {self.digest()}\n".encode()

    def _body(self) -> str:
        lines = _head(MAGIC, self.pattern, self.special_tokens)
        lines.append(f"merges {len(self.merges)}")
        vocab = build_vocab(self.merges)
        for idx, (a, b) in enumerate(self.merges, start=256):
            lines.append(f"{idx} {a} {b} {render_token(vocab[idx])}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class RankModel:
    """A tokenizer by ranks: `ranks` maps a token to its id, and lower ids merge first."""

    pattern: str | None
    ranks: dict[bytes, int]
    special_tokens: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256, in hex, of all that the file says; the file's last line."""
        return hashlib.sha256(self._body().encode("utf-8")).hexdigest()

    def render(self) -> bytes:
        """Return the file's content."""
        body = self._body().encode("utf-8")
        return body + f"sha256 {hashlib.sha256(body).hexdigest()}\n".encode()

    def _body(self) -> str:
        lines = _head(RANK_MAGIC, self.pattern, self.special_tokens)
        lines.append(f"tokens {len(self.ranks)}")
        by_id = sorted(self.ranks.items(), key=lambda item: item[1])
        lines += [_rank_line(idx, token) for token, idx in by_id]
        return "\n".join(lines) + "\n"


def _head(magic: str, pattern: str | None, special_tokens: dict[str, int]) -> list[str]:
    by_id = sorted((idx, token) for token, idx in special_tokens.items())
    return [
        magic,
        f"pattern {_quote(pattern)}",
        f"special_tokens {len(special_tokens)}",
        *(f"{idx} {_quote(token)}" for idx, token in by_id),
    ]


def _rank_line(idx: int, token: bytes) -> str:
    encoded = binascii.b2a_base64(token, newline=False).decode("ascii")
    return f"{idx} {encoded} {render_token(token)}"


def build_vocab(merges: list[Pair]) -> list[bytes]:
    """Return the bytes of each token, by id: the 256 bytes, then one token a merge."""
    vocab = [bytes([byte]) for byte in range(256)]
    for a, b in merges:
        vocab.append(vocab[a] + vocab[b])
    return vocab


def render_token(token: bytes) -> str:
    r"""Return a token for human eyes: `b"hug" -> '"hug"'`, `b"\xe4" -> '"\\xe4"'`."""
    text = token[:64].decode("utf-8", "backslashreplace")
    # Most tokens need no JSON to be quoted.
    plain = text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
    text = f'"{text}"' if plain else _quote(text)
    return text if len(token) <= 64 else f"{text} and on to {len(token)} bytes"


def write_model(path: Path, model: Model | RankModel) -> None:
    """Write the file whole or not at all; raises as `write_whole` does."""
    write_whole(path, model.render())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises UsageError when the folder is missing, ResourceError when the disk refuses.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    with whole_file(path) as file:
        file.write(content)


def read_model(path: Path) -> Model | RankModel:
    """Read and check a file of version 1, 2 (both a Model) or 3 (a RankModel).

    Raises UsageError when there is no such file, TokenizerFileError when anything in it is wrong.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerFileError(
                f"{path}: {size} bytes; a tokenizer file has no more than {MAX_FILE_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return parse_model(path, data)


def parse_model(path: Path, data: bytes) -> Model | RankModel:
    """Check what a file holds; `path` is for the message of the TokenizerFileError alone."""
    return _Reader(path, data).read()


class _Reader:
    """The lines of a file, with a place for messages."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.line = 1
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.line += data.count(b"\n", 0, error.start)
            raise self.wrong(f"byte {error.start} of the file is not UTF-8") from None
        self.lines = text.split("\n")
        self.line = 0

    def wrong(self, what: str) -> TokenizerFileError:
        return TokenizerFileError(f"{self.path}, line {self.line}: {what}")

    def next(self) -> str:
        self.line += 1
        if self.line >= len(self.lines):  # the last "line" is what follows the last line end
            raise self.wrong("the file ends too early, it is truncated")
        return self.lines[self.line - 1]

    def number(self, text: str, what: str, most: int) -> int:
        """Return `text` as a number up to `most`, which bounds it before anything is allocated."""
        if not _NUMBER.fullmatch(text):
            raise self.wrong(f"{what} {text[:40]!r} is not a number")
        if len(text) > 18 or int(text) > most:
            raise self.wrong(f"{what} {text[:40]} is too large, at most {most} can be")
        return int(text)

    def counted(self, name: str, most: int) -> int:
        """Read a line `name count`; the lines it announces must be there."""
        key, _, count = self.next().partition(" ")
        if key != name:
            raise self.wrong(f"expected {name!r}, found {key[:40]!r}")
        number = self.number(count, f"the count of {name}", most)
        self.announced(number)
        return number

    def announced(self, number: int) -> None:
        if number > len(self.lines) - self.line:
            raise self.wrong(f"announces {number} lines, the file ends before: it is truncated")

    def string(self, text: str) -> str | None:
        """Return a JSON string or null, in exactly the form that `_quote` writes."""
        try:
            value = json.loads(text)
            if not (value is None or isinstance(value, str)) or _quote(value) != text:
                raise ValueError
        except ValueError:
            raise self.wrong(f"{text[:40]!r} is not a quoted string as minbpe writes it") from None
        return value

    def read(self) -> Model | RankModel:
        first = self.lines[0].rstrip("\r")
        self.line = 1
        if first == "minbpe v1":
            return self.read_v1()
        version = re.fullmatch(r"minbpe v([0-9]{1,9})", first, re.ASCII)
        if version and int(version[1]) > 3:
            raise self.wrong(f"{first!r} was written by a newer minbpe; this one reads v1 to v3")
        if first not in (MAGIC, RANK_MAGIC):
            raise self.wrong(f"not a minbpe file: it starts with {first[:40]!r}")
        pattern = self.read_pattern()
        special = self.read_special()
        if first == RANK_MAGIC:
            ranks = self.read_ranks()
            self.check_end()
            self.check_special(special, set(ranks.values()))
            return RankModel(pattern, ranks, special)
        merges = self.read_merges()
        self.check_end()
        self.check_special(special, range(256 + len(merges)))
        return Model(pattern, merges, special)

    def read_pattern(self) -> str | None:
        key, _, text = self.next().partition(" ")
        if key != "pattern":
            raise self.wrong(f"expected 'pattern', found {key[:40]!r}")
        return self.string(text)

    def read_special(self) -> dict[str, int]:
        special: dict[str, int] = {}
        last = -1
        for _ in range(self.counted("special_tokens", MAX_ID)):
            idx_text, _, text = self.next().partition(" ")
            idx = self.number(idx_text, "id", MAX_ID)
            token = self.string(text)
            if not token or token in special or idx <= last:
                raise self.wrong(f"special token {text[:40]} is empty, repeated or out of order")
            special[token] = last = idx
        return special

    def read_merges(self) -> list[Pair]:
        merges: list[Pair] = []
        checker = _MergeChecker(self)
        for idx in range(256, 256 + self.counted("merges", MAX_MERGES)):
            fields = self.next().split(" ", 3)
            if len(fields) != 4:
                raise self.wrong("a merge is 'id left right \"token\"'; the line is torn")
            if self.number(fields[0], "id", MAX_ID) != idx:
                raise self.wrong(f"id {fields[0]} where {idx} must come: lines were moved or lost")
            pair = (self.number(fields[1], "id", MAX_ID), self.number(fields[2], "id", MAX_ID))
            token = checker.add(pair)
            if fields[3] != render_token(token):
                raise self.wrong(
                    f"tokens {pair[0]} and {pair[1]} make {render_token(token)}, "
                    f"the line says {fields[3][:80]}"
                )
            merges.append(pair)
        return merges

    def read_ranks(self) -> dict[bytes, int]:
        ranks: dict[bytes, int] = {}
        last = -1
        for _ in range(self.counted("tokens", 256 + MAX_MERGES)):
            line = self.next()
            idx_text, _, rest = line.partition(" ")
            idx = last + 1  # of nearly every line; comparing is faster than reading a number
            if idx_text != str(idx):
                idx = self.number(idx_text, "id", MAX_ID)
            try:
                token = binascii.a2b_base64(rest.partition(" ")[0], strict_mode=True)
            except ValueError as error:  # of binascii, or not ASCII
                raise self.wrong(f"a token is 'id base64 \"text\"'; {error}") from None
            if idx <= last or not token or token in ranks:
                raise self.wrong(f"token {idx_text} is empty, there twice or out of order")
            if line != _rank_line(idx, token):
                raise self.wrong(f"the bytes are {render_token(token)}, the line says {rest[:80]}")
            ranks[token] = last = idx
        for byte in range(256):
            if bytes([byte]) not in ranks:
                raise self.wrong(f"the byte 0x{byte:02x} is no token; all 256 must be")
        return ranks

    def check_end(self) -> None:
        key, _, digest = self.next().partition(" ")
        if key != "sha256":
            raise self.wrong(f"expected 'sha256', found {key[:40]!r}")
        above = b"\n".join(self.data.split(b"\n")[: self.line - 1]) + b"\n"
        if hashlib.sha256(above).hexdigest() != digest:
            raise self.wrong("the checksum does not fit the lines above, the file was altered")
        if self.lines[self.line :] != [""]:
            self.line += 1
            raise self.wrong("the file goes on after its checksum")

    def check_special(self, special: dict[str, int], taken: Container[int]) -> None:
        for token, idx in special.items():
            if idx in taken:
                raise TokenizerFileError(
                    f"{self.path}: special token {token!r} has id {idx}, which another token has"
                )

    def read_v1(self) -> Model:
        """Read karpathy's format: the pattern as it is, `token id` lines, `left right` lines."""
        self.lines = [line.rstrip("\r") for line in self.lines]
        pattern = self.next() or None
        special: dict[str, int] = {}
        count = self.number(self.next(), "the count of special tokens", MAX_ID)
        self.announced(count)
        for _ in range(count):
            token, _, idx = self.next().rpartition(" ")  # from the right: a token may hold spaces
            if not token or token in special:
                raise self.wrong(f"special token {token[:40]!r} is empty or repeated")
            special[token] = self.number(idx, "id", MAX_ID)
        merges: list[Pair] = []
        checker = _MergeChecker(self)
        while self.line < len(self.lines) - 1:
            fields = self.next().split(" ")
            if len(fields) != 2:
                raise self.wrong("a merge is two ids; the line is torn")
            pair = (self.number(fields[0], "id", MAX_ID), self.number(fields[1], "id", MAX_ID))
            checker.add(pair)
            merges.append(pair)
        if self.lines[-1]:
            self.line += 1
            raise self.wrong("the last line has no end, the file is truncated")
        self.check_special(special, range(256 + len(merges)))
        return Model(pattern, merges, special)


class _MergeChecker:
    """Builds the tokens of the merges one by one; refuses a merge that cannot be."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.vocab = build_vocab([])
        self.seen: set[Pair] = set()
        self.bytes = 0

    def add(self, pair: Pair) -> bytes:
        """Return the bytes of the token that `pair` makes."""
        idx = len(self.vocab)
        if max(pair) >= idx:
            raise self.reader.wrong(f"token {idx} is made of token {max(pair)}, which comes later")
        if pair in self.seen:
            raise self.reader.wrong(f"the merge of {pair[0]} and {pair[1]} is there twice")
        self.bytes += len(self.vocab[pair[0]]) + len(self.vocab[pair[1]])
        if self.bytes > MAX_VOCAB_BYTES:
            raise self.reader.wrong(f"the tokens have more than {MAX_VOCAB_BYTES} bytes together")
        if idx > 256 + MAX_MERGES:
            raise self.reader.wrong(f"more than {MAX_MERGES} merges")
        self.seen.add(pair)
        self.vocab.append(self.vocab[pair[0]] + self.vocab[pair[1]])
        return self.vocab[-1]


def _quote(text: str | None) -> str:
    """Return a JSON string on one line, readable where it is text; null for None."""
    return json.dumps(text, ensure_ascii=False).translate(_INVISIBLE)

r"""Files of ranks, as others publish them: tiktoken's one file, and GPT-2's two.

A rank is a token's id and its place in the order of merging at once.

`.tiktoken`: a line per token, `aHVn 257`, the bytes in base64 and the rank.

`encoder.json` and `vocab.bpe`: tokens to ids, and the merges in order, `h ug` a line. JSON holds
text only, so GPT-2 writes each byte as a character (`bytes_to_unicode` in its encoder.py): the
visible ones of Latin-1 as they are, the 68 others as the characters from U+0100 on. A space is Ġ.

Reading is strict: a size cap first, then every line; the message names the line that is wrong.
"""

import binascii
import json
from pathlib import Path
from typing import Any

from minbpe.errors import TokenizerFileError, UsageError
from minbpe.model_file import MAX_ID, MAX_MERGES, render_token

MAX_RANK_FILE_BYTES = 64 << 20
"""Four times the largest that is published."""

_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_ORDER = bytes(_VISIBLE + _HIDDEN)
"""The bytes in the order of GPT-2's ids 0..255, which tiktoken's published files keep."""

_LETTERS = [chr(byte) for byte in _VISIBLE] + [chr(256 + k) for k in range(len(_HIDDEN))]
_TO_BYTE = dict(zip(_LETTERS, BYTE_ORDER, strict=True))
_TO_LETTER = dict(zip(BYTE_ORDER, _LETTERS, strict=True))


def letters_of(token: bytes) -> str:
    """Return a token in GPT-2's letters: `b" hug" -> "Ġhug"`."""
    return "".join(map(_TO_LETTER.__getitem__, token))


def bytes_of(letters: str) -> bytes:
    """Return the bytes that GPT-2's letters stand for; raise KeyError for another character."""
    return bytes(map(_TO_BYTE.__getitem__, letters))


def read_capped(path: Path) -> bytes:
    """Return a file's content; raise UsageError when it can't be read, and a cap's refusal."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RANK_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_RANK_FILE_BYTES:
        raise TokenizerFileError(
            f"{path}: a file of ranks has no more than {MAX_RANK_FILE_BYTES} bytes"
        )
    return data


def parse_tiktoken(path: Path, data: bytes) -> dict[bytes, int]:
    """Return the ranks in a `.tiktoken` file's content; raise TokenizerFileError."""
    ranks: dict[bytes, int] = {}
    *lines, rest = data.split(b"\n")
    seen: set[int] = set()
    for number, line in enumerate(lines, start=1):
        encoded, _, rank_text = line.partition(b" ")
        if not rank_text.isdigit() or len(rank_text) > 7 or int(rank_text) > MAX_ID:
            shown = rank_text[:40].decode("utf-8", "backslashreplace")
            raise _wrong(path, number, f"a line is 'base64 rank'; {shown!r} is no rank")
        try:
            token = binascii.a2b_base64(encoded, strict_mode=True)
        except binascii.Error as error:
            raise _wrong(path, number, f"the token is not base64: {error}") from None
        rank = int(rank_text)
        if not token or token in ranks or rank in seen:
            raise _wrong(
                path, number, f"token {render_token(token)} or rank {rank} is empty or repeated"
            )
        ranks[token] = rank
        seen.add(rank)
    if rest or not lines:
        raise _wrong(path, len(lines) + 1, "the last line has no end, the file is truncated")
    return ranks


def render_tiktoken(ranks: dict[bytes, int]) -> bytes:
    """Return the content of a `.tiktoken` file, in the order of the ranks."""
    encode = binascii.b2a_base64
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join([b"%b %d\n" % (encode(token, newline=False), rank) for token, rank in by_rank])


def parse_gpt2(
    encoder: tuple[Path, bytes], merges: tuple[Path, bytes]
) -> tuple[dict[bytes, int], dict[str, int]]:
    """Return ranks and special tokens from `encoder.json` and `vocab.bpe`, each as path, content.

    A token `<...>` that no merge makes is special. Raises TokenizerFileError when either file is
    wrong, or the two do not belong together.
    """
    path, data = merges
    ids = dict(parse_vocabulary(encoder[0], parse_json(*encoder)))
    ranks: dict[bytes, int] = {}
    made = set(_LETTERS)  # the tokens so far, in letters
    for letter, byte in _TO_BYTE.items():
        if letter not in ids:
            raise TokenizerFileError(f"{encoder[0]}: the single byte {letter!r} has no token")
        ranks[bytes([byte])] = ids.pop(letter)
    last = -1
    for number, left, right in _merge_lines(path, data):
        token = left + right
        if token not in ids:
            raise _wrong(path, number, f"{token!r} is there twice, or not in {encoder[0].name}")
        if left not in made or right not in made:
            raise _wrong(
                path, number, f"{left!r} or {right!r} is no byte and made by no line above"
            )
        rank = ids.pop(token)
        if rank <= last:
            raise _wrong(path, number, f"id {rank} of {token!r} is below that of the line above")
        made.add(token)
        ranks[bytes_of(token)] = last = rank
    for token, idx in ids.items():
        if not (token.startswith("<") and token.endswith(">")):
            raise TokenizerFileError(f"{path}: no line makes token {idx}, {token!r}; was it cut?")
    return ranks, ids


def _merge_lines(path: Path, data: bytes) -> list[tuple[int, str, str]]:
    """Return line number, left and right of each merge in `vocab.bpe`."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
        raise _wrong(path, place, f"byte {error.start} of the file is not UTF-8") from None
    if lines.pop():
        raise _wrong(path, len(lines) + 1, "the last line has no end, the file is truncated")
    if not lines or not lines[0].startswith("#version"):
        raise _wrong(path, 1, "it must start with '#version'")
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise _wrong(path, number, f"a merge is two tokens, not {line[:40]!r}")
        merges.append((number, left, right))
    return merges


def parse_json(path: Path, data: bytes) -> Any:
    """Return what a JSON file holds; raise TokenizerFileError for one that is torn or too deep."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise TokenizerFileError(f"{path}: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _wrong(path, error.lineno, f"not JSON, or torn: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerFileError(f"{path}: not JSON for a tokenizer: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ValueError(f"the name {twice!r} is there twice")
    return found


def parse_vocabulary(path: Path, vocabulary: Any) -> dict[str, int]:
    """Return a JSON object as tokens to ids; raise TokenizerFileError when it is none."""
    if not isinstance(vocabulary, dict):
        raise TokenizerFileError(f"{path}: the vocabulary must be an object, token to id")
    if len(vocabulary) > 256 + MAX_MERGES:
        raise TokenizerFileError(f"{path}: more than {256 + MAX_MERGES} tokens")
    seen: set[int] = set()
    for letters, idx in vocabulary.items():
        if type(idx) is not int or not 0 <= idx <= MAX_ID or idx in seen or not letters:
            raise TokenizerFileError(
                f"{path}: token {letters[:40]!r} has the id {str(idx)[:40]}; an id is a number "
                f"in 0..{MAX_ID}, each once"
            )
        seen.add(idx)
    return vocabulary


def check_ranks(path: Path, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> None:
    """Raise TokenizerFileError unless each byte is a token and each special token has its own id.

    Without a byte, some text could not be encoded.
    """
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise TokenizerFileError(
            f"{path}: {len(missing)} of the 256 single bytes are no tokens, the first is "
            f"0x{missing[0]:02x}; the file is cut or not of a byte-level tokenizer"
        )
    ids = set(ranks.values())
    for token, idx in special_tokens.items():
        if type(idx) is not int or not 0 <= idx <= MAX_ID or idx in ids:
            raise TokenizerFileError(
                f"{path}: special token {token!r} has the id {str(idx)[:40]}, which is taken or "
                f"not in 0..{MAX_ID}"
            )
        if not token or not _is_text(token):
            raise TokenizerFileError(f"{path}: special token {token!r} is empty or no text")
        ids.add(idx)


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON lets pass
        return False
    return True


def _wrong(path: Path, line: int, what: str) -> TokenizerFileError:
    return TokenizerFileError(f"{path}, line {line}: {what}")

r"""Patterns that mean the same to Python's `regex`, tiktoken's Rust and Hugging Face's Oniguruma.

The three dialects share a core and differ around it, silently: `\p{N}{1,3}+` is possessive in two
and a repeated repetition in the third, `^` is a line's start in one, `\w` is another set in each.
So a pattern may be exported when it is one of ours, or when it is built of the core alone:

    characters, `.`, `\r \n \t`, escaped syntax, `\s \d \p{L}` and their negations
    classes of those with ranges, `[^\s\p{L}a-z]`, but no class in a class
    `|`, `(...)`, `(?:...)`, lookahead `(?=...)` `(?!...)`
    `? * +`, lazy or possessive, and `{2,3}` as it is

A pattern that can match nothing, as `a*`, is refused too: each splits differently there.
"""

import re

from minbpe.errors import DataError
from minbpe.pretokens import PATTERNS

_CHARACTER = (
    r"\\[rntsSdD]"
    r"|\\[pP]\{[A-Za-z_]+\}"
    r"|\\[\\.+*?()|\[\]{}^$#&\-~/]"
)
_CLASS = re.compile(rf"\[\^?(?:{_CHARACTER}|(?!--|&&|~~|\|\|)[^\\\[\]])+\]")
_ATOM = re.compile(rf"{_CHARACTER}|[^\\\[\](){{}}|?*+^$]")
_OPEN = re.compile(r"\((?:\?:|\?=|\?!|(?!\?))")
_QUANTIFIER = re.compile(r"[?*+][?+]?|\{(\d{1,4})(?:,(\d{0,4}))?\}")


def check_portable(pattern: str) -> None:
    """Raise DataError for a pattern that other libraries might take for something else."""
    if pattern in PATTERNS.values():
        return
    width, end = _alternatives(pattern, 0)
    if end < len(pattern):
        raise _refusal(pattern, end)
    if width == 0:
        raise DataError(
            f"the split pattern {pattern!r} can match nothing at all, and each library goes on "
            "differently from there; let it match a character at least"
        )


def _refusal(pattern: str, place: int) -> DataError:
    return DataError(
        f"the split pattern {pattern!r} cannot be exported: from {pattern[place : place + 20]!r} "
        "on, libraries differ in what it means (see minbpe.portable)"
    )


def _alternatives(pattern: str, place: int) -> tuple[int, int]:
    """Return the least length of a match of what starts at `place`, and where that ends."""
    least: int | None = None
    while True:
        width = 0
        while place < len(pattern) and pattern[place] not in "|)":
            size, place = _quantified(pattern, place)
            width += size
        least = width if least is None else min(least, width)
        if not pattern.startswith("|", place):
            return least, place
        place += 1


def _quantified(pattern: str, place: int) -> tuple[int, int]:
    width, place = _atom(pattern, place)
    quantifier = _QUANTIFIER.match(pattern, place)
    if quantifier is None:
        return width, place
    if quantifier[0][0] == "{":
        return width * int(quantifier[1]), quantifier.end()
    return (width if quantifier[0][0] == "+" else 0), quantifier.end()


def _atom(pattern: str, place: int) -> tuple[int, int]:
    if match := _CLASS.match(pattern, place) or _ATOM.match(pattern, place):
        return 1, match.end()
    opening = _OPEN.match(pattern, place)
    if opening is None:
        raise _refusal(pattern, place)
    width, end = _alternatives(pattern, opening.end())
    if not pattern.startswith(")", end):
        raise _refusal(pattern, place)
    return (0 if opening[0] in ("(?=", "(?!") else width), end + 1

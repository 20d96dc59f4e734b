r"""Split text into pre-tokens, the pieces that merges never cross, by a pattern.

Without a split, "dog", "dog." and "dog!" would each earn tokens of their own. GPT-2 (Radford et
al., 2019, sec. 2.2) keeps letters, digits and punctuation apart; GPT-4 also limits numbers to
three digits and ends a run of spaces before the word it belongs to.

A pattern of `\p{L}` classes needs the `regex` library, which is three times slower than `re`. For
the patterns below, this module keeps an ASCII copy for `re`, and knows where a text may be cut so
that splitting the parts gives the same pre-tokens as splitting the whole (see `CUT`).

What is a letter or a number is up to the version of Unicode that a library knows, and "exactly as
tiktoken" holds where the installed `regex` and tiktoken agree: for all characters assigned up to
Unicode 15 or so, but for a very few that changed their class. Of characters that are newer or not
yet assigned, `regex` 2026.11.15 and tiktoken 0.14 class 17,480 otherwise, such as U+0558, and text
with them may be split otherwise.
"""

import re
from collections.abc import Iterator

import regex

from minbpe.errors import DataError, UsageError

GPT2_SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""OpenAI's gpt-2/src/encoder.py, as rewritten (equal, faster) in tiktoken."""

GPT4_SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"""
    r""" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
"""tiktoken's cl100k_base, as karpathy's minbpe writes it."""

O200K_SPLIT_PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"""
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"""
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"""
    r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
"""tiktoken's o200k_base (GPT-4o): a word may end in its contraction, and capitals begin one."""

PATTERNS = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN, "o200k": O200K_SPLIT_PATTERN}
"""Names for `--pattern`."""

# The same on ASCII text. `\s` is spelled out: `re` counts the separators \x1c-\x1f as spaces,
# `regex` (and tiktoken) do not. `(?i:s)` also matches "ſ" (U+017F), which is no ASCII.
_ASCII_COPY = {
    GPT2_SPLIT_PATTERN: (
        r"""'(?:[sdmt]|ll|ve|re)| ?[a-zA-Z]+| ?[0-9]+| ?[^\t-\r 0-9a-zA-Z]+|"""
        r"""[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"""
    ),
    GPT4_SPLIT_PATTERN: (
        r"""'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n0-9a-zA-Z]?+[a-zA-Z]+|[0-9]{1,3}|"""
        r""" ?[^\t-\r 0-9a-zA-Z]++[\r\n]*|[\t-\r ]*[\r\n]|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"""
    ),
    O200K_SPLIT_PATTERN: (
        r"""[^\r\n0-9a-zA-Z]?(?:[A-Z]*[a-z]+|[A-Z]+)(?:'(?:[sdmtSDMT]|[lL][lL]|[vV][eE]|[rR][eE]))?|"""
        r"""[0-9]{1,3}| ?[^\t-\r 0-9a-zA-Z]+[\r\n/]*|[\t-\r ]*[\r\n]+|"""
        r"""[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"""
    ),
}

_SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
r"""Unicode's White_Space, which is `\s` to `regex` and tiktoken."""

CUT = re.compile(f" (?=[^{_SPACES}])")
r"""A space before what is no space: a text may be cut there, by any of the three patterns.

No pre-token crosses it: a space is the first character of one, or in a run of spaces, and a run
that something visible follows is matched by `\s+(?!\S)`, which leaves the last space to what
follows. What is left of the cut splits as before: its last run has lost the space it did not own,
and `\s+(?!\S)` now takes all of it. What is right of it splits as before as no pattern looks back.
"""

# A space with a visible character on its left will do as well, by the same patterns: nothing that
# holds such a character goes on with a space. So `str.split(" ")`, twice as fast as `CUT.split`,
# cuts rightly unless a space has spaces (or an end of the text) on both sides. The most frequent of
# these, a line of one space (WikiText is full of them), is put together again.
_BLANK_LINE = "\n \n"
_BETWEEN_SPACES = ("   ", "\n  ", "  \n", "\n \n \n", "\t", "\v", "\f", "\r")

_WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")

# Where else? A lone newline between two visible ASCII characters ends a pre-token by all three
# patterns ("/" excepted, which may follow one in GPT-4o's); a longer run does not do, as in GPT-2's
# its end depends on what follows. And after a letter or digit a pre-token goes on, by all three,
# with nothing but letters, marks, digits and a contraction, so any other character begins a new
# one: that cuts text without spaces. (Half a character may be half a letter.)
_ANY_CUT = regex.compile(
    rf"(?<=[!-~]\n)(?=[!-.0-~])|(?= [^{_SPACES}])|"
    r"(?<=[\p{L}\p{N}])(?=[^\p{L}\p{M}\p{N}\p{Cs}'])"
)

BLOCK = 4096
"""Characters in a block, at least. Small, so that one "é" sends little text the slow way."""

TIME_LIMIT = 5.0
"""CPU seconds that a user's pattern may take for a mebibyte of text; a good one takes below one."""


def cut_at_spaces(text: str) -> list[str]:
    """Cut at some spaces where pre-tokens end; each part but the first has lost its first space.

    `"The cat  sat" -> ["The", "cat ", "sat"]`, for the patterns named in `PATTERNS` only.
    """
    if len(text) < 256 or text[-1] == " " or any(map(text.__contains__, _BETWEEN_SPACES)):
        return CUT.split(text)
    if not text.isascii() and _WIDE_SPACE.search(text):
        return CUT.split(text)
    first, *rest = text.split(_BLANK_LINE)
    pieces = first.split(" ")
    for part in rest:
        more = part.split(" ")
        more[0] = pieces.pop() + _BLANK_LINE + more[0]
        pieces += more
    return pieces


class Splitter:
    """A split pattern, compiled.

    Raises UsageError for one that is empty, does not compile or searches backwards, `(?r)`.

    `known` tells whether it is one of those named in `PATTERNS`, which may be cut at `CUT` and run
    in linear time. A user's own raises DataError when it takes more than `time_limit` CPU seconds
    and as many again for each mebibyte of a text, as it then might take for ever.
    """

    def __init__(self, pattern: str, block: int = BLOCK, *, time_limit: float = TIME_LIMIT) -> None:
        if not pattern:
            raise UsageError("the split pattern is empty; use BasicTokenizer to split nothing")
        try:
            pattern.encode("utf-8")  # or it could not be saved
            self._compiled = regex.compile(pattern)
        except (regex.error, UnicodeEncodeError) as error:
            raise UsageError(f"the split pattern {pattern!r} does not compile: {error}") from None
        if self._compiled.flags & regex.REVERSE:
            raise UsageError(
                f"the split pattern {pattern!r} searches backwards, but texts are split from their "
                "start: leave out (?r)"
            )
        ascii_copy = _ASCII_COPY.get(pattern)
        self.known = ascii_copy is not None
        self._compiled_ascii = re.compile(ascii_copy) if ascii_copy else None
        self._block = block
        self._time_limit = time_limit

    def blocks(self, text: str) -> Iterator[list[str]]:
        """Yield the pre-tokens of `text`, some thousand at a time; joined they are `text`."""
        if self._compiled_ascii is None:
            yield self._split_custom(text)
            return
        start = 0
        while start < len(text):
            end = self.find_cut(text, start + self._block) or len(text)
            yield self.split_small(text[start:end])
            start = end

    def find_cut(self, text: str, start: int = 0) -> int | None:
        """Return the first place from `start` on where `text` may be cut in two, None for none.

        The pre-tokens of both parts are then those of the whole, also of one that goes on after
        `text`. A user's own pattern may look anywhere, so there is no such place for one.
        """
        found = _ANY_CUT.search(text, start) if self.known else None
        return int(found.end()) if found else None

    def split_small(self, text: str) -> list[str]:
        """Return the pre-tokens of a text that is too small to be worth blocks."""
        if self._compiled_ascii is None:
            return self._split_custom(text)
        return (self._compiled_ascii if text.isascii() else self._compiled).findall(text)

    def split(self, text: str) -> list[str]:
        """Return the pre-tokens: with GPT-4's pattern `"I'm 1234" -> ["I", "'m", " ", "123", "4"]`.

        Text that a user's pattern leaves unmatched is kept, as a piece of its own for each gap, so
        that nothing is lost. (karpathy's minbpe and tiktoken drop it.)
        """
        return [piece for block in self.blocks(text) for piece in block]

    def _split_custom(self, text: str) -> list[str]:
        """Split by a user's pattern, which may have gaps, groups, empty matches and no end."""
        pieces: list[str] = []
        end = 0
        limit = self._time_limit * (1 + len(text) / 2**20)
        try:
            for match in self._compiled.finditer(text, timeout=limit):
                pieces += (text[end : match.start()], match.group())
                end = match.end()
        except TimeoutError:
            place = f"the text, after {text[max(0, end - 20) : end]!r}"
            raise too_slow(self._compiled.pattern, limit, place) from None
        pieces.append(text[end:])
        return [piece for piece in pieces if piece]


def too_slow(pattern: str, time_limit: float, text: str) -> DataError:
    """Return the error that shows a catastrophic pattern and says what to do about it."""
    return DataError(
        f"the split pattern {pattern!r} ran longer than its limit of {time_limit:.2g} s on {text}: "
        "it backtracks catastrophically; write nested repeats such as (a+)+ as one, a+, or make "
        "them possessive, a++ (or raise the time limit)"
    )


def replace_surrogates(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot express, as U+FFFD: as tiktoken does.

    Two halves of a character that belong together become that character.
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

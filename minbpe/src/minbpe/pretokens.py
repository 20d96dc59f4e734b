r"""Split text into pre-tokens, the pieces that merges never cross, by a pattern.

Without a split, "dog", "dog." and "dog!" would each earn tokens of their own. GPT-2 (Radford et
al., 2019, sec. 2.2) keeps letters, digits and punctuation apart; GPT-4 also limits numbers to
three digits and ends a run of spaces before the word it belongs to.

A pattern of `\p{L}` classes needs the `regex` library, which is three times slower than `re`. For
the two patterns below this module keeps an ASCII copy for `re`, and cuts text into blocks at line
ends where no pre-token can reach across, so that each block takes the fastest way that is exact.
"""

import re
from collections.abc import Iterator

import regex

from minbpe.errors import UsageError

GPT2_SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""OpenAI's gpt-2/src/encoder.py, as rewritten (equal, faster) in tiktoken."""

GPT4_SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"""
    r""" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
"""tiktoken's cl100k_base, as karpathy's minbpe writes it."""

PATTERNS = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN}
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
}

# In both patterns a lone newline between two visible ASCII characters ends a pre-token: what
# follows it is neither a space nor a line end, the only characters that may go on after one. (A
# longer run of spaces does not do: in GPT-2's pattern its end depends on what follows.)
_SAFE_CUT = re.compile(r"[!-~]\n(?=[!-~])")

BLOCK = 4096
"""Characters in a block, at least. Small, so that one "é" sends little text the slow way."""


class Splitter:
    """A split pattern, compiled. Raises UsageError for one that is empty or does not compile."""

    def __init__(self, pattern: str, block: int = BLOCK) -> None:
        if not pattern:
            raise UsageError("the split pattern is empty; use BasicTokenizer to split nothing")
        try:
            pattern.encode("utf-8")  # or it could not be saved
            self._compiled = regex.compile(pattern)
        except (regex.error, UnicodeEncodeError) as error:
            raise UsageError(f"the split pattern {pattern!r} does not compile: {error}") from None
        ascii_copy = _ASCII_COPY.get(pattern)
        self._compiled_ascii = re.compile(ascii_copy) if ascii_copy else None
        self._block = block

    def blocks(self, text: str) -> Iterator[list[str]]:
        """Yield the pre-tokens of `text`, some thousand at a time; joined they are `text`."""
        if self._compiled_ascii is None:
            yield self._split_custom(text)
            return
        start = 0
        while start < len(text):
            cut = _SAFE_CUT.search(text, start + self._block)
            end = cut.end() if cut else len(text)
            piece = text[start:end]
            compiled = self._compiled_ascii if piece.isascii() else self._compiled
            yield compiled.findall(piece)
            start = end

    def split(self, text: str) -> list[str]:
        """Return the pre-tokens: with GPT-4's pattern `"I'm 1234" -> ["I", "'m", " ", "123", "4"]`.

        Text that a user's pattern leaves unmatched is kept, as a piece of its own for each gap, so
        that nothing is lost. (karpathy's minbpe and tiktoken drop it.)
        """
        return [piece for block in self.blocks(text) for piece in block]

    def _split_custom(self, text: str) -> list[str]:
        """Split by a user's pattern, which may have gaps, groups and empty matches."""
        pieces: list[str] = []
        end = 0
        for match in self._compiled.finditer(text):
            pieces += (text[end : match.start()], match.group())
            end = match.end()
        pieces.append(text[end:])
        return [piece for piece in pieces if piece]

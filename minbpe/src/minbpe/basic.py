"""The simplest tokenizer: no split, so merges may cross words, spaces and line ends.

Adds to `base` one fact: a text is a single pre-token.
"""

from collections.abc import Iterator

from minbpe.base import Tokenizer
from minbpe.errors import UsageError


class BasicTokenizer(Tokenizer):
    """Byte-pair encoding of the whole text as one sequence."""

    def _blocks(self, text: str) -> Iterator[list[str]]:
        if text:
            yield [text]

    def _set_pattern(self, pattern: str | None) -> None:
        if pattern is not None:
            raise UsageError(f"has the split pattern {pattern!r}; load it with RegexTokenizer")

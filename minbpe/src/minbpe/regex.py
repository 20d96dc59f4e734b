"""The tokenizer of GPT-2 and GPT-4: a pattern splits text first, and merges stay inside the pieces.

Adds to `base` the split (see `minbpe.pretokens`). This module's name is minbpe's; inside the
package, `import regex` is still the library, as imports are absolute.
"""

from collections.abc import Iterator

from minbpe.base import Tokenizer
from minbpe.errors import UsageError
from minbpe.pretokens import GPT4_SPLIT_PATTERN, Splitter


class RegexTokenizer(Tokenizer):
    """Byte-pair encoding of the pieces that `pattern` (default: GPT-4's) finds.

    Raises UsageError for a pattern that is empty or does not compile.
    """

    def __init__(self, pattern: str | None = None) -> None:
        super().__init__()
        self._set_pattern(GPT4_SPLIT_PATTERN if pattern is None else pattern)

    def _blocks(self, text: str) -> Iterator[list[str]]:
        return self._splitter.blocks(text)

    def _set_pattern(self, pattern: str | None) -> None:
        if pattern is None:
            raise UsageError("has no split pattern; load it with BasicTokenizer")
        self._splitter = Splitter(pattern)
        self.pattern = pattern

"""Count the pre-tokens of texts, fast: pieces between spaces first, then what is in each piece.

Splitting is the slow part of counting, and most of a text is repetition. So text is first cut at
single spaces, which `str.split` does, and the pieces are counted; only then is each distinct piece
split by the pattern. In 25 MB of English 4.5 million pieces are 210,000 different ones.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from minbpe.pretokens import TIME_LIMIT, Splitter, cut_at_spaces

BLOCK = 1 << 13
"""Characters cut at spaces at a time, few enough for the pieces to be in cache when counted."""

MAX_PIECES = 1 << 16
"""Distinct pieces kept before they are split into pre-tokens; about 8 MB."""

NO_SPACE = "\ud800"
"""Marks a piece that no space stood before; half a character, which no text holds."""


class WordCounter:
    """Counts the pre-tokens of texts. Raises UsageError as `Splitter` does."""

    def __init__(self, pattern: str | None, time_limit: float = TIME_LIMIT) -> None:
        self._splitter = Splitter(pattern, time_limit=time_limit) if pattern else None
        self._words: Counter[str] = Counter()
        self._pieces: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """Count the pre-tokens of each text, which must not hold halves of characters.

        Raises DataError when the pattern is too slow.
        """
        for text in texts:
            if self._splitter is None:
                self._words[text] += 1
            elif self._splitter.known:
                self._add_pieces(text, self._splitter)
            else:
                self._words.update(self._splitter.split(text))
        if len(self._pieces) > MAX_PIECES:
            self._split_pieces()

    def result(self) -> Counter[str]:
        """Return how often each occurred, in the order of first appearance."""
        self._split_pieces()
        return self._words

    def _add_pieces(self, text: str, splitter: Splitter) -> None:
        """Count the pieces between spaces, which all but a block's first have lost."""
        start = 0
        while start < len(text):
            end = splitter.find_cut(text, start + BLOCK) or len(text)
            pieces = cut_at_spaces(text[start:end])
            pieces[0] = NO_SPACE + pieces[0]
            self._pieces.update(pieces)
            start = end

    def _split_pieces(self) -> None:
        """Turn the counted pieces into pre-tokens; their order of appearance is kept."""
        if self._splitter is None:
            return
        words, split = self._words, self._splitter.split_small
        for piece, n in self._pieces.items():
            for word in split(piece[1:] if piece[:1] == NO_SPACE else " " + piece):
                words[word] = words.get(word, 0) + n
        self._pieces.clear()


@dataclass(frozen=True)
class BatchCounter:
    """What a worker process does: from texts to the counts of their pre-tokens."""

    pattern: str | None
    time_limit: float = TIME_LIMIT

    def __call__(self, texts: list[str]) -> dict[str, int]:
        """Return the counts, in the order of first appearance."""
        counter = WordCounter(self.pattern, self.time_limit)
        counter.add(texts)
        return dict(counter.result())

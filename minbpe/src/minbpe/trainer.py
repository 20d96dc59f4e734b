"""The fast trainer: the textbook's merges, without a pass over the corpus for each.

Four ideas, none of which changes a single merge:

1. Most pre-tokens of a text are repetitions. Each distinct one is kept once, with its count.
2. A list of the places of each pair: a merge touches only those, and only the pairs next to a
   merged place are counted anew.
3. The first merges have thousands of places, and numpy does them all at once (`minbpe.flat`); the
   many later ones have a few, and go to strings whose characters are token ids (`minbpe.words`).
4. A pair is born with the merge that made its newer half, and from then on its count only falls.
   So pairs wait in a bucket per count, the highest bucket is opened first, and a pair whose count
   has fallen meanwhile is moved down only when its turn comes (lazy deletion).

Ties are broken exactly, by one of two rules (`TIE_BREAKS`).
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from minbpe.flat import FlatCorpus, split_words
from minbpe.textbook import Pair
from minbpe.words import WordCorpus

TIE_BREAKS = ("smallest", "minbpe", "rustbpe")
"""`smallest`: of equally frequent pairs the one with the smallest ids, so that merges depend on the
words and their counts alone and never on their order. `minbpe`: the pair met first when the words
are read in the order of their first appearance, which is what karpathy's minbpe gives. `rustbpe`:
the rule of the trainer of nanochat, which is `smallest` by another name."""

Progress = Callable[[int, int, int], None]
"""Called after each merge with its left id, its right id and its count."""


FEW_PLACES = 100
"""Places of a pair below which strings are faster than arrays; measured on 25 MB of English."""

LONG_WORD = 1000
"""Ids in the word that a place is in, on average, from which on arrays are always faster."""


@dataclass(frozen=True)
class Trained:
    """What training found: `merges[k]` makes token 256 + k; `words` are the encoded pre-tokens."""

    merges: list[Pair]
    words: dict[str, str]


def train_words(
    word_counts: Mapping[str, int],
    n_merges: int,
    tie_break: str = "smallest",
    progress: Progress | None = None,
) -> Trained:
    """Return up to `n_merges` merges of the pre-tokens `word_counts`, fewer when pairs run out.

    `word_counts` maps a pre-token to how often it occurs, in the order of first appearance (which
    matters to `tie_break="minbpe"` alone).
    """
    merges: list[Pair] = []
    with _collector_off():
        flat = FlatCorpus(word_counts)
        least = FEW_PLACES if flat.mean_length < LONG_WORD else 0
        _merge_all(flat, merges, n_merges, tie_break, progress, least)
        ids, freq, counts = flat.without_holes(), flat.freq, flat.counts
        del flat  # its lists of places are memory for the next ones
        if len(merges) < n_merges:
            rest = WordCorpus(ids, freq, counts)
            _merge_all(rest, merges, n_merges, tie_break, progress)
            words = rest.words
        else:
            words = split_words(ids)
    return Trained(merges, dict(zip(word_counts, words, strict=True)))


class _Corpus(Protocol):
    """Words of ids, as arrays or as strings; see `FlatCorpus` and `WordCorpus`."""

    @property
    def counts(self) -> dict[str, int]:
        """How often each pair occurs."""

    @property
    def where(self) -> Mapping[str, Sized]:
        """The places of each pair, and perhaps some that are no more."""

    def merge(self, pair: str, new: str) -> list[str]:
        """Replace `pair` by `new` everywhere and return the pairs this created."""

    def first(self, pair: str) -> int:
        """Return a number that is smaller the earlier `pair` first occurs; equal within a word."""

    def first_in(self, number: int, pairs: set[str], /) -> str:
        """Return which of the `pairs` with that number comes first."""


def _merge_all(
    corpus: _Corpus,
    merges: list[Pair],
    n_merges: int,
    tie_break: str,
    progress: Progress | None,
    least: int = 0,
) -> None:
    """Add to `merges` until there are `n_merges`, or most pairs have fewer than `least` places."""
    queue = _Queue(corpus.counts, _FirstMet(corpus) if tie_break == "minbpe" else _Smallest())
    usual = 0.0  # places of a pair: a running mean over some 64 merges
    while len(merges) < n_merges and (pair := queue.pop()):
        found = len(corpus.where[pair])
        usual = usual + (found - usual) / 64 if usual else found
        if usual < least:
            return
        merges.append((ord(pair[0]), ord(pair[1])))
        queue.push(corpus.merge(pair, chr(255 + len(merges))))
        if progress is not None:
            progress(*merges[-1], queue.count)


class _Ties(Protocol):
    """Pairs of one count, handed out in the order of a tie-break rule."""

    def add(self, pair: str) -> None:
        """Put a pair in."""

    def take(self) -> str | None:
        """Take the next pair out; None when empty."""


class _Smallest:
    """Smallest ids first: strings compare by their characters, which are the ids."""

    def __init__(self) -> None:
        self.heap: list[str] = []

    def add(self, pair: str) -> None:
        heappush(self.heap, pair)

    def take(self) -> str | None:
        return heappop(self.heap) if self.heap else None


class _FirstMet:
    """The pair that occurs first in the corpus, as words are read in order.

    As long as a pair's count has not changed none of its places has, so its first word is looked
    up once; a pair whose count did change may come out anywhere, the queue sorts it out.
    """

    def __init__(self, corpus: _Corpus) -> None:
        self.corpus = corpus
        self.heap: list[int] = []  # numbers of first words, or places
        self.groups: dict[int, set[str]] = {}  # number -> pairs that occur first there

    def add(self, pair: str) -> None:
        i = self.corpus.first(pair)
        if i not in self.groups:
            self.groups[i] = set()
            heappush(self.heap, i)
        self.groups[i].add(pair)

    def take(self) -> str | None:
        while self.heap:
            i = self.heap[0]
            if group := self.groups[i]:
                pair = self.corpus.first_in(i, group)
                group.remove(pair)
                return pair
            heappop(self.heap)
            del self.groups[i]
        return None


class _Queue:
    """All pairs, most frequent first, with lazy deletion."""

    def __init__(self, counts: dict[str, int], ties: _Ties) -> None:
        self.counts = counts
        self.ties = ties
        self.count = 0  # of the pairs in `ties`
        self.levels: list[int] = []  # a heap of the negated counts that have a bucket
        self.buckets: dict[int, list[str]] = {}
        self.push(counts)

    def push(self, pairs: Iterable[str]) -> None:
        """File pairs under their present counts, which are at most that of the last `pop`."""
        for pair in pairs:
            count = self.counts[pair]
            if count == self.count:
                self.ties.add(pair)
            elif count in self.buckets:
                self.buckets[count].append(pair)
            else:
                self.buckets[count] = [pair]
                heappush(self.levels, -count)

    def pop(self) -> str | None:
        """Take out the most frequent pair; None when no pair is left."""
        while True:
            while pair := self.ties.take():
                count = self.counts.get(pair, 0)
                if count == self.count:
                    return pair
                if count:
                    self.push([pair])
            if not self.levels:
                return None
            self.count = -heappop(self.levels)
            self.push(filter(self.counts.__contains__, self.buckets.pop(self.count)))


@contextmanager
def _collector_off() -> Iterator[None]:
    """Pause the garbage collector: the loop makes millions of objects and no cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

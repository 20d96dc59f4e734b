"""The fast trainer: the textbook's merges, without a pass over the corpus for each.

Four ideas, none of which changes a single merge:

1. Most pre-tokens of a text are repetitions. Each distinct one is kept once, with its count.
2. A word is a Python *string* whose characters are token ids: "hug" is `"hug"`, and after the
   merge (u, g) -> 256 it is `"hĀ"`, as chr(256) is "Ā". Finding and replacing a pair are then
   `str.partition` and `str.join`, which run at the speed of C.
3. `where` remembers in which words a pair occurs, so that a merge touches only those words, and
   only the pairs next to a merged place are counted anew.
4. A pair is born with the merge that made its newer half, and from then on its count only falls.
   So pairs wait in a bucket per count, the highest bucket is opened first, and a pair whose count
   has fallen meanwhile is moved down only when its turn comes (lazy deletion).

Ties are broken exactly, by one of two rules (`TIE_BREAKS`).
"""

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

import numpy as np

from minbpe.textbook import Pair

TIE_BREAKS = ("smallest", "minbpe")
"""`smallest`: of equally frequent pairs the one with the smallest ids, so that merges depend on the
words and their counts alone and never on their order. `minbpe`: the pair met first when the words
are read in the order of their first appearance, which is what karpathy's minbpe gives."""

Progress = Callable[[int, int, int], None]
"""Called after each merge with its left id, its right id and its count."""


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
    corpus = _Corpus(word_counts)
    merges: list[Pair] = []
    with _collector_off():
        queue = _Queue(corpus, _Smallest() if tie_break == "smallest" else _FirstMet(corpus))
        while len(merges) < n_merges and (pair := queue.pop()):
            merges.append((ord(pair[0]), ord(pair[1])))
            for fresh in corpus.merge(pair, chr(255 + len(merges))):
                queue.push(fresh)
            if progress is not None:
                progress(*merges[-1], queue.count)
    return Trained(merges, dict(zip(word_counts, corpus.words, strict=True)))


class _Corpus:
    """The distinct words as strings of token ids, with the count and the places of every pair."""

    def __init__(self, word_counts: Mapping[str, int]) -> None:
        # Latin-1 maps byte 0..255 to the character of the same number, our ids 0..255.
        self.words = [
            word if word.isascii() else word.encode("utf-8").decode("latin-1")
            for word in word_counts
        ]
        self.freq = list(word_counts.values())
        self.counts: dict[str, int] = {}  # pair -> how often it occurs in the corpus
        self.where: dict[str, list[int]] = {}  # pair -> ascending word numbers, once a place
        self._count_pairs()

    def _count_pairs(self) -> None:
        """Fill `counts` and `where` by one stable sort of all pairs, as keys left * 256 + right."""
        flat = np.frombuffer("".join(self.words).encode("latin-1"), np.uint8).astype(np.uint16)
        owner = np.repeat(np.arange(len(self.words)), [len(word) for word in self.words])
        inside = owner[:-1] == owner[1:]  # no pair spans two words
        keys, owner = (flat[:-1] << 8 | flat[1:])[inside], owner[:-1][inside]
        if not keys.size:
            return
        order = np.argsort(keys, kind="stable")
        keys, owner = keys[order], owner[order]
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] ^ 1))
        totals = np.add.reduceat(np.array(self.freq, dtype=np.int64)[owner], starts).tolist()
        places, bounds = owner.tolist(), [*starts.tolist(), len(keys)]
        for k, key in enumerate(keys[starts].tolist()):
            pair = chr(key >> 8) + chr(key & 255)
            self.counts[pair] = totals[k]
            self.where[pair] = places[bounds[k] : bounds[k + 1]]

    def merge(self, pair: str, new: str) -> list[str]:
        """Replace `pair` by the token `new` in all words; return the pairs this created.

        Of a place `x a b y` the pairs (x, a) and (b, y) become (x, new) and (new, y): `lefts[x]`
        and `rights[y]` collect the words in which that happens.
        """
        lefts: dict[str, list[int]] = defaultdict(list)
        rights: dict[str, list[int]] = defaultdict(list)
        words, last = self.words, -1
        for i in self.where[pair]:
            if i == last:  # listed once for each place, and all are done at the first
                continue
            last = i
            left, found, right = words[i].partition(pair)
            if not found:  # an earlier merge took it apart
                continue
            if pair in right:
                parts = words[i].split(pair)
                words[i] = new.join(parts)
                _note_neighbours(parts, new, i, lefts, rights)
                continue
            words[i] = left + new + right
            if left:
                lefts[left[-1]].append(i)
            if right:
                rights[right[0]].append(i)
        a, b = pair[0], pair[1]
        for x, places in lefts.items():
            self._rename(x + a, x + new, places)
        for y, places in rights.items():
            self._rename(b + (a if y == new else y), new + y, places)
        self.counts.pop(pair, None)
        self.where.pop(pair, None)
        return [x + new for x in lefts] + [new + y for y in rights]

    def _rename(self, old: str, new: str, places: list[int]) -> None:
        """Note that in `places` the pair `old` has become the pair `new`."""
        n = sum(map(self.freq.__getitem__, places))
        self.counts[new], self.where[new] = n, places
        rest = self.counts.get(old, 0) - n
        if rest > 0:
            self.counts[old] = rest
        else:  # gone, or the pair that is being merged: "aaa" holds (a, a) twice
            self.counts.pop(old, None)
            self.where.pop(old, None)

    def first_word(self, pair: str) -> int:
        """Return the number of the first word that holds `pair`."""
        places = self.where[pair]
        for k, i in enumerate(places):
            if pair in self.words[i]:
                del places[:k]  # stale ones, never to be looked at again
                return i
        raise AssertionError(f"the pair {pair!r} has a count but no place")


def _note_neighbours(
    parts: list[str], new: str, i: int, lefts: dict[str, list[int]], rights: dict[str, list[int]]
) -> None:
    """Collect the neighbours where word `i`, split at the pair into `parts`, holds it repeatedly.

    An empty part between two others means that two merged places touch: the pair (new, new).
    """
    end = len(parts) - 1
    for k, (before, after) in enumerate(pairwise(parts)):
        if before:
            lefts[before[-1]].append(i)
        if after:
            rights[after[0]].append(i)
        elif k + 1 < end:
            rights[new].append(i)


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
        self.heap: list[int] = []  # word numbers
        self.groups: dict[int, set[str]] = {}  # word number -> pairs that occur first in it

    def add(self, pair: str) -> None:
        i = self.corpus.first_word(pair)
        if i not in self.groups:
            self.groups[i] = set()
            heappush(self.heap, i)
        self.groups[i].add(pair)

    def take(self) -> str | None:
        while self.heap:
            i = self.heap[0]
            if group := self.groups[i]:
                pair = _first_in(self.corpus.words[i], group)
                group.remove(pair)
                return pair
            heappop(self.heap)
            del self.groups[i]
        return None


def _first_in(word: str, pairs: set[str]) -> str:
    """Return the one of `pairs` that comes first in `word`, or any if none does."""
    if len(pairs) == 1:
        return next(iter(pairs))
    if len(pairs) < 8:  # a long word (BasicTokenizer's only one) is then searched at C's speed
        return min(pairs, key=lambda pair: word.find(pair) % (len(word) + 1))  # -1: behind all
    for two in map(str.__add__, word, word[1:]):
        if two in pairs:
            return two
    return next(iter(pairs))


class _Queue:
    """All pairs, most frequent first, with lazy deletion."""

    def __init__(self, corpus: _Corpus, ties: _Ties) -> None:
        self.counts = corpus.counts
        self.ties = ties
        self.count = 0  # of the pairs in `ties`
        self.levels: list[int] = []  # a heap of the negated counts that have a bucket
        self.buckets: dict[int, list[str]] = {}
        for pair in self.counts:
            self.push(pair)

    def push(self, pair: str) -> None:
        """File a pair under its present count, which is at most that of the last `pop`."""
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
                    self.push(pair)
            if not self.levels:
                return None
            self.count = -heappop(self.levels)
            for pair in self.buckets.pop(self.count):
                if pair in self.counts:
                    self.push(pair)


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

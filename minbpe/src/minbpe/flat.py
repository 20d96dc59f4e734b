"""A corpus as one array of ids, in which a merge of many places is a handful of numpy calls.

A merge leaves holes, so that each id knows its neighbours by `before` and `after`, a linked list in
two arrays. A numpy call costs a few microseconds whatever it does, which pays from some hundred
places on: for the first merges of every corpus, and for all of a text that is one long word.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Places = TypeVar("Places")

SEPARATOR = 0xFF
"""Stands between words; no UTF-8 text has this byte, so the token 255 never occurs."""

HOLE = -1
"""What is left of the second half of a merged pair."""


class FlatCorpus:
    """The distinct words in one array, with the count and the places of every pair.

    Attributes: `counts` maps a pair, a string of two characters that are ids, to how often it
    occurs in the corpus; `where` maps it to its places in the array, ascending, some of which an
    earlier merge may have taken; `freq[k]` is how often word k occurs.
    """

    def __init__(self, word_counts: Mapping[str, int]) -> None:
        joined = b"\xff".join([b"", *(word.encode("utf-8") for word in word_counts), b""])
        self.ids = np.frombuffer(joined, np.uint8).astype(np.int32)
        self.freq = list(word_counts.values())
        ends = np.flatnonzero(self.ids == SEPARATOR)
        self.mean_length = mean_length(np.diff(ends) - 1)
        self.weights = np.repeat(
            np.array([*self.freq, 0], np.int64), np.diff(ends, append=ends[-1] + 1)
        )
        self.before = np.arange(-1, len(self.ids) - 1, dtype=np.int32)
        self.after = np.arange(1, len(self.ids) + 1, dtype=np.int32)
        self.counts: dict[str, int] = {}
        self.where: dict[str, Ids] = {}
        pairs, bounds, places = pair_places(self.ids)
        for pair, start, end in zip(pairs, bounds, bounds[1:], strict=False):
            self.where[pair] = places[start:end]
            self.counts[pair] = int(self.weights[places[start:end]].sum())

    def without_holes(self) -> Ids:
        """Return the ids that are left, with a SEPARATOR before, between and after the words."""
        left: Ids = self.ids[self.ids != HOLE]
        return left

    def merge(self, pair: str, new: str) -> list[str]:
        """Replace `pair` by the token `new` everywhere; return the pairs this created.

        Of a place `x a b y` the pairs (x, a) and (b, y) become (x, new) and (new, y).
        """
        ids, before, after, idx = self.ids, self.before, self.after, ord(new)
        places = self._live(pair)
        if pair[0] == pair[1]:
            places = self._every_second(places)
        second = after[places]
        right = after[second]
        ids[places], ids[second] = idx, HOLE
        after[places], before[right] = right, places
        left = before[places]
        weights = self.weights[places]
        a, b = pair[0], pair[1]
        x, y = ids[left], ids[right]  # where two merged places touch, y of the first is `new`
        changes = []
        chosen = (x != SEPARATOR) & (x != idx)  # (new, new) is taken from the other side, once
        for key, n, found in _grouped(x[chosen], weights[chosen], left[chosen]):
            changes.append((chr(key) + a, chr(key) + new, n, found))
        chosen = y != SEPARATOR
        for key, n, found in _grouped(y[chosen], weights[chosen], places[chosen]):
            changes.append((b + (a if key == idx else chr(key)), new + chr(key), n, found))
        return rename_pairs(self.counts, self.where, pair, changes)

    def _live(self, pair: str) -> Ids:
        """Return the places that still hold `pair`."""
        places = self.where[pair]
        places = places[self.ids[places] == ord(pair[0])]
        live: Ids = places[self.ids[self.after[places]] == ord(pair[1])]
        return live

    def _every_second(self, places: Ids) -> Ids:
        """Of overlapping places of (a, a), as in "aaa", keep those that merge from the left."""
        number = np.arange(len(places))
        starts = np.ones(len(places), bool)
        starts[1:] = self.after[places[:-1]] != places[1:]
        run_start = np.maximum.accumulate(np.where(starts, number, 0))
        chosen: Ids = places[(number - run_start) % 2 == 0]
        return chosen

    def first(self, pair: str) -> int:
        """Return the first place of `pair`."""
        self.where[pair] = self._live(pair)
        return int(self.where[pair][0])

    def first_in(self, _place: int, pairs: Collection[str], /) -> str:
        """Return any of `pairs`: one alone can be at a place, the counts of others have changed."""
        return next(iter(pairs))


def split_words(ids: Ids) -> list[str]:
    """Return the words of a corpus without holes, in order, as strings whose characters are ids."""
    chars = ids.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return chars[1:-1].split(chr(SEPARATOR))


def mean_length(lengths: NDArray[np.int64]) -> float:
    """Return the length of the word that a place is in, on average over all places."""
    total = int(lengths.sum())
    return float((lengths.astype(np.float64) ** 2).sum()) / total if total else 0.0


def pair_places(ids: Ids) -> tuple[list[str], list[int], Ids]:
    """Return the pairs of neighbours in `ids`, bounds and places; no pair has a SEPARATOR.

    Pair k is at `places[bounds[k] : bounds[k + 1]]`, in ascending order.
    """
    left, right = ids[:-1], ids[1:]
    places = np.flatnonzero((left != SEPARATOR) & (right != SEPARATOR)).astype(np.int32)
    # Numpy sorts numbers of two bytes by radix, ten times as fast as longer ones.
    kind = np.uint16 if ids.max() < 1 << 16 else np.uint32
    left, right = left[places], right[places]
    order = np.lexsort((right.astype(kind), left.astype(kind)))
    left, right = left[order], right[order]
    starts = _starts(left.astype(np.int64) << 32 | right)
    pairs = map(str.__add__, map(chr, left[starts].tolist()), map(chr, right[starts].tolist()))
    return list(pairs), [*starts.tolist(), len(places)], places[order]


def _starts(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Return where in sorted `keys` a new key begins."""
    is_new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    return np.flatnonzero(is_new)


def _grouped(keys: Ids, weights: NDArray[np.int64], places: Ids) -> Iterator[tuple[int, int, Ids]]:
    """Yield each of `keys` once, with the sum of its weights and its places in order."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    starts = _starts(keys)
    totals = np.add.reduceat(weights[order], starts).tolist()
    bounds = [*starts.tolist(), len(keys)]
    for k, key in enumerate(keys[starts].tolist()):
        yield key, totals[k], places[bounds[k] : bounds[k + 1]]


def rename_pairs(
    counts: dict[str, int],
    where: dict[str, Places],
    merged: str,
    changes: Iterable[tuple[str, str, int, Places]],
) -> list[str]:
    """Take `merged` out of `counts` and `where`, enter the changes, return the pairs they created.

    A change (old, new, n, places) says that n occurrences of the pair `old` are now the pair `new`.
    """
    counts.pop(merged, None)
    where.pop(merged, None)
    created = []
    for old, new, n, places in changes:
        counts[new], where[new] = n, places
        created.append(new)
        rest = counts.get(old, 0) - n
        if rest > 0:
            counts[old] = rest
        elif old in counts:  # not so for `merged` itself: "aaa" holds (a, a) twice
            del counts[old], where[old]
    return created

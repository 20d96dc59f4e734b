"""Merge thousands of short words by ranks at once: a step of each word at a time, in NumPy.

A new text brings thousands of words that are no token. Merged one by one they take a third of the
time. Here every word is a column of arrays, a row for each of its bytes; a step finds the lowest
merge of every column, does it, and looks up the two pairs it makes. These are the steps that
`RankMerges.encode_short` takes for each word by itself, in the same order, so the ids are equal.

A pair is looked up by its bytes, of which there are at most 16: two numbers of 64 bits, padded with
zeros (words and tokens with a zero byte are left out), found by a hash of them in a sorted array.
Whether they are the token that was found is then seen by comparing both numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 16
"""Bytes of a word, at most."""

BATCH = 1 << 13
"""Words that are merged together, at most; they take about 8 MB."""

_ROWS = LONGEST + 1  # one more, which ends the longest words
_NEVER = np.int32(1 << 25)  # behind every rank
_STARTS = 32  # a merge is ordered by rank * _STARTS + start: the leftmost of the lowest

# What remains of the 16 bytes at a place for a token of 0, 1, ... 16 of them, in two numbers.
_KEEP = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_KEEP_LOW = _KEEP[np.minimum(np.arange(_ROWS), 8)]
_KEEP_HIGH = _KEEP[np.maximum(np.arange(_ROWS) - 8, 0)]

Numbers = NDArray[np.uint64]


def fits(word: bytes) -> bool:
    """Tell whether a word is short enough, and has no zero byte."""
    return len(word) <= LONGEST and 0 not in word


def _order(rank: Any, start: Any) -> Any:
    """Return what orders merges; all that never happen come last, and are alike but for `start`."""
    return rank * _STARTS + start


def _hash(low: Numbers, high: Numbers) -> Numbers:
    mixed = low * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed += high * np.uint64(0xC2B2AE3D27D4EB4F)
    result: Numbers = mixed * np.uint64(0x9E3779B97F4A7C15)
    return result


class Lockstep:
    """The tokens of a vocabulary, to merge words by.

    `sound` is False if two tokens have the same hash; words must then be merged another way.
    """

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        tokens = list(filter(fits, ranks))
        padded = b"".join([token.ljust(LONGEST, b"\0") for token in tokens])
        low, high = np.frombuffer(padded, "<u8").reshape(-1, 2).astype(np.uint64).T
        rank = np.fromiter(map(ranks.__getitem__, tokens), np.int32, len(tokens))
        hashes = _hash(low, high)
        order = np.argsort(hashes)
        self._hashes, self._low, self._high = hashes[order], low[order], high[order]
        self._ranks = rank[order]
        self.sound = bool(np.all(self._hashes[1:] != self._hashes[:-1]))
        size = np.fromiter(map(len, tokens), np.int32, len(tokens))
        self.letters = np.array([ranks[bytes([byte])] for byte in range(256)], np.uint32)
        self.pairs = np.full(1 << 16, _NEVER)  # by the number that two bytes are
        self.pairs[low[size == 2]] = rank[size == 2]

    def encode(self, words: Sequence[bytes]) -> list[bytes]:
        """Return the ids, 4 bytes each, of words that are no tokens and that `fits` holds for."""
        ids: list[bytes] = []
        for start in range(0, len(words), BATCH):
            columns = _Columns(words[start : start + BATCH], self)
            while columns.step():
                pass
            ids += columns.ids()
        return ids

    def find(self, low: Numbers, high: Numbers) -> NDArray[np.int32]:
        """Return the ranks of tokens in two numbers each, `_NEVER` for what is no token."""
        hashes = _hash(low, high)
        i = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = (self._low[i] == low) & (self._high[i] == high)
        return np.where(found, self._ranks[i], _NEVER)


class _Columns:
    """Words while they are merged: column k of each array is word k, row i is its byte i.

    The arrays are flat. Of a token that starts at a place, `end` is the row behind it, `before`
    the row where the one before it starts, and `want` the order of its merge with the next.
    """

    def __init__(self, words: Sequence[bytes], tokens: Lockstep) -> None:
        self._find = tokens.find
        self._n = n = len(words)
        text = np.frombuffer(b"".join([word.ljust(2 * LONGEST, b"\0") for word in words]), np.uint8)
        text = text.reshape(n, 2 * LONGEST)
        number = np.zeros((_ROWS + 8, n), np.uint64)  # the eight bytes from each place on
        for i in range(_ROWS + 7):
            number[i] = np.ascontiguousarray(text[:, i : i + 8]).view("<u8")[:, 0]
        self._low, self._high = number[:_ROWS].ravel(), number[8:].ravel()
        row = np.arange(_ROWS)[:, None]
        size = np.fromiter(map(len, words), np.int64, n)
        self._ids = tokens.letters[text[:, :_ROWS].T].ravel()
        self._end = np.where(row < size, row + 1, 0).ravel()
        self._before = np.repeat(row - 1, n)
        # The pair of a word's last byte and a zero behind it is no token, see `fits`.
        self._want = _order(tokens.pairs[number[:_ROWS] & _KEEP[2]], row).ravel()

    def step(self) -> bool:
        """Do the lowest merge of every word; return False if there is none."""
        n, end, before, want = self._n, self._end, self._before, self._want
        lowest = want.reshape(_ROWS, n).min(axis=0)
        word = np.flatnonzero(lowest < _order(_NEVER, 0))
        rank, start = np.divmod(lowest[word], _STARTS)
        here = start * n + word
        there = end[here] * n + word
        behind = end[there]
        self._ids[here] = rank
        end[here], end[there] = behind, 0
        before[behind * n + word] = start
        want[here] = want[there] = _order(_NEVER, 0)
        last = end[behind * n + word]  # where the next token ends, 0 if there is none
        left = np.flatnonzero(before[here] >= 0)
        right = np.flatnonzero(last)
        first = np.concatenate((before[here[left]], start[right]))
        size = np.concatenate((behind[left], last[right])) - first
        place = first * n + np.concatenate((word[left], word[right]))
        found = self._find(self._low[place] & _KEEP_LOW[size], self._high[place] & _KEEP_HIGH[size])
        want[place] = _order(found, first)
        return len(word) > 0

    def ids(self) -> list[bytes]:
        """Return the ids of each word."""
        starts = self._end.reshape(_ROWS, self._n).T > 0
        data = self._ids.reshape(_ROWS, self._n).T[starts].tobytes()
        ends = [0, *np.cumsum(4 * starts.sum(axis=1)).tolist()]
        return [data[start:end] for start, end in pairwise(ends)]

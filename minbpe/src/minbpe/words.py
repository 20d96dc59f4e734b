"""A corpus as one string a word, in which a merge of few places touches only the words it is in.

A word is a Python *string* whose characters are token ids: "hug" is `"hug"`, and after the merge
(u, g) -> 256 it is `"hĀ"`, as chr(256) is "Ā". Finding and replacing a pair are then
`str.partition` and `str.join`, which run at the speed of C on short words.
"""

from collections import defaultdict
from collections.abc import Collection
from itertools import pairwise

import numpy as np

from minbpe.flat import SEPARATOR, Ids, pair_places, rename_pairs, split_words


class WordCorpus:
    """The distinct words as strings of ids, with the count and the places of every pair.

    Attributes: `counts` maps a pair to how often it occurs in the corpus; `where` maps it to the
    ascending numbers of the words it was seen in, once for each place; `freq[i]` is how often word
    i occurs. `ids` are those of a `FlatCorpus` without its holes, `counts` are taken over from it.
    """

    def __init__(self, ids: Ids, freq: list[int], counts: dict[str, int]) -> None:
        self.words = split_words(ids)
        self.freq = freq
        self.counts = counts
        pairs, bounds, places = pair_places(ids)
        owner = np.cumsum(ids == SEPARATOR, dtype=np.int32)[places] - 1
        shared = list(range(len(freq)))  # one int object a word: a list entry is then 8 bytes
        numbers = list(map(shared.__getitem__, owner.tolist()))
        self.where = {
            pair: numbers[start:end]
            for pair, start, end in zip(pairs, bounds, bounds[1:], strict=False)
        }

    def merge(self, pair: str, new: str) -> list[str]:
        """Replace `pair` by the token `new` in all words; return the pairs this created.

        Of a place `x a b y` the pairs (x, a) and (b, y) become (x, new) and (new, y): `lefts[x]`
        and `rights[y]` collect the words in which that happens.
        """
        lefts: dict[str, list[int]] = defaultdict(list)
        rights: dict[str, list[int]] = defaultdict(list)
        words = self.words
        for i in self.where[pair]:
            word = words[i]
            left, found, right = word.partition(pair)
            if not found:  # an earlier merge took it apart, or this one, at an earlier place
                continue
            if pair in right:
                parts = word.split(pair)
                words[i] = new.join(parts)
                _note_neighbours(parts, new, i, lefts, rights)
                continue
            words[i] = f"{left}{new}{right}"
            if left:
                lefts[left[-1]].append(i)
            if right:
                rights[right[0]].append(i)
        a, b = pair[0], pair[1]
        changes = [(x + a, x + new, found) for x, found in lefts.items()]
        changes += [(b + (a if y == new else y), new + y, found) for y, found in rights.items()]
        freq = self.freq.__getitem__
        return rename_pairs(
            self.counts, self.where, pair, [(o, n, sum(map(freq, p)), p) for o, n, p in changes]
        )

    def first(self, pair: str) -> int:
        """Return the number of the first word that holds `pair`."""
        places = self.where[pair]
        for k, i in enumerate(places):
            if pair in self.words[i]:
                del places[:k]  # stale ones, never to be looked at again
                return i
        raise AssertionError(f"the pair {pair!r} has a count but no place")

    def first_in(self, number: int, pairs: Collection[str], /) -> str:
        """Return the one of `pairs` that comes first in a word, or any if none does."""
        if len(pairs) > 1:
            for two in map("".join, pairwise(self.words[number])):
                if two in pairs:
                    return two
        return next(iter(pairs))


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

"""Encode one pre-token: apply, again and again, the earliest merge that fits anywhere in it.

As in the trainer, a word is a string whose characters are token ids, so that `str.replace` is a
merge. A short word is merged by that alone. A long one (a megabyte of one letter is one pre-token)
would take quadratic time; it goes to a list of places per merge instead.
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from operator import add

from minbpe.textbook import Pair

SHORT = 128
"""Bytes up to which a word is merged by repeated search, and remembered."""

CACHE_WORDS = 1 << 17
"""Words remembered, at most; about 20 MB."""

PATIENCE = 128
"""Fruitless searches through a long word, until its places are listed instead."""

FRUITFUL = 512
"""A search bears fruit when it merges at least one in so many of the word's tokens."""


class WordCache(dict[str, str]):
    """Maps a pre-token to its ids, as a string with the character chr(id) for each.

    A missing word is encoded and kept, unless it is long; a full cache starts anew.
    """

    def __init__(self, merges: Mapping[Pair, int], limit: int = CACHE_WORDS) -> None:
        super().__init__()
        self.limit = limit
        self._merged = {chr(a) + chr(b): chr(idx) for (a, b), idx in merges.items()}
        self._pair_of = {idx: pair for pair, idx in self._merged.items()}

    def __missing__(self, word: str) -> str:
        ids = self.encode_word(word)
        if len(word) <= SHORT:
            if len(self) >= self.limit:
                self.clear()
            self[word] = ids
        return ids

    def learn(self, words: Mapping[str, str]) -> None:
        """Take over encoded words, such as the trainer's, as far as there is room for them."""
        room = self.limit - len(self)
        if len(words) <= room:
            self.update((word, ids) for word, ids in words.items() if len(word) <= SHORT)

    def encode_word(self, word: str) -> str:
        """Return the ids of one pre-token; ids 0..255 are its UTF-8 bytes before any merge."""
        ids = word if word.isascii() else word.encode("utf-8").decode("latin-1")
        return self._merge_short(ids) if len(ids) <= SHORT else self._merge_long(ids)

    def _merge_short(self, ids: str) -> str:
        merged, pair_of = self._merged.get, self._pair_of
        # Earlier merges have smaller ids, so the smallest new token is the merge to apply.
        while best := min(filter(None, map(merged, map(add, ids, ids[1:]))), default=None):
            ids = ids.replace(pair_of[best], best)
        return ids

    def _merge_long(self, ids: str) -> str:
        """Merge by search as long as each search merges much; then by places.

        A merge creates only pairs with its own new token, and those have later merges. So each
        merge is looked at once, in order, and `waiting` need never forget one.
        """
        waiting = self._possible(map(add, ids, ids[1:]))
        heapify(waiting)
        patience = PATIENCE
        while waiting and patience:
            new = heappop(waiting)
            parts = ids.split(self._pair_of[new])
            if (len(parts) - 1) * FRUITFUL < len(ids):
                patience -= 1
            ids = new.join(parts)
            fresh = {part[-1] + new for part in parts[:-1] if part}
            fresh |= {new + part[0] for part in parts[1:] if part}
            if "" in parts[1:-1]:
                fresh.add(new + new)
            for later in self._possible(fresh):
                heappush(waiting, later)
        return self._merge_places(ids) if waiting else ids

    def _possible(self, pairs: Iterable[str]) -> list[str]:
        """Return the new tokens that `pairs` can merge into, each once."""
        return list(set(filter(None, map(self._merged.get, pairs))))

    def _merge_places(self, ids: str) -> str:
        """Merge with a linked list of tokens and, for each merge, the places where it may apply."""
        merged, size = self._merged.get, len(ids)
        token, following, before = list(ids), list(range(1, size + 1)), list(range(-1, size - 1))
        places: dict[str, list[int]] = {}
        for i, new in enumerate(map(merged, map(add, ids, ids[1:]))):
            if new:
                places.setdefault(new, []).append(i)
        waiting = list(places)
        heapify(waiting)
        while waiting:
            new = heappop(waiting)
            pair = self._pair_of[new]
            a, b = pair[0], pair[1]
            # Order decides in "aaa" alone, and places of a pair of equals are listed from left to
            # right: one merge made all of them.
            for i in places.pop(new):
                j = following[i]
                if token[i] != a or j == size or token[j] != b:
                    continue  # changed since it was listed
                token[i], token[j] = new, ""
                k, h = following[j], before[i]
                following[i] = k
                touched = []
                if k < size:
                    before[k] = i
                    touched.append((i, merged(new + token[k])))
                if h >= 0:
                    touched.append((h, merged(token[h] + new)))
                for place, later in touched:
                    if later is None:
                        continue
                    if later not in places:
                        places[later] = []
                        heappush(waiting, later)
                    places[later].append(place)
        return "".join(token)

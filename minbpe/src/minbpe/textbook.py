"""The algorithm itself, to be read first: byte-pair encoding in forty lines.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016),
algorithm 1, on bytes: count every pair of neighbours, replace the most frequent pair everywhere by
a new token, repeat. `minbpe.trainer` does the same without reading the whole corpus again for each
merge, and the tests hold the two equal on thousands of random corpora.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]


def get_stats(ids: Sequence[int], counts: dict[Pair, int] | None = None) -> dict[Pair, int]:
    """Count the pairs of neighbours: `[1, 2, 3, 1, 2] -> {(1, 2): 2, (2, 3): 1, (3, 1): 1}`.

    Adds to `counts` where it is given. Pairs overlap: `[1, 1, 1] -> {(1, 1): 2}`.
    """
    counts = {} if counts is None else counts
    for pair in pairwise(ids):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids: Sequence[int], pair: Pair, idx: int) -> list[int]:
    """Replace `pair` by `idx` from left to right: `[1, 2, 3, 1, 2], (1, 2), 4 -> [4, 3, 4]`."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(idx)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def train_textbook(words: Iterable[str], n_merges: int, tie_break: str = "smallest") -> list[Pair]:
    """Return up to `n_merges` merges of the pre-tokens `words`; merge k makes token 256 + k.

    The most frequent pair wins. Among equally frequent pairs `tie_break="smallest"` takes the one
    with the smallest ids, so that the order of the words has no say; `"minbpe"` takes the one met
    first when the words are read in order, as karpathy's code does; `"rustbpe"` is "smallest".
    Stops early when no pair is left.
    """
    chunks: list[list[int]] = [list(word.encode("utf-8")) for word in words]
    merges: list[Pair] = []
    for idx in range(256, 256 + n_merges):
        stats: dict[Pair, int] = {}
        for ids in chunks:
            get_stats(ids, stats)
        if not stats:
            break
        if tie_break == "minbpe":  # max() keeps the first of equals, a dict the order of arrival
            pair = max(stats, key=lambda pair: stats[pair])
        else:
            pair = min(stats, key=lambda pair: (-stats[pair], pair))
        chunks = [merge(ids, pair, idx) for ids in chunks]
        merges.append(pair)
    return merges

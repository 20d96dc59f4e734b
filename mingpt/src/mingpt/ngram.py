"""Counting: the next character has the frequencies seen after the same characters before.

Modified Kneser-Ney, interpolated (Kneser & Ney, 1995; Chen & Goodman, "An Empirical Study of
Smoothing Techniques for Language Modeling", TR-10-98, 1998, sec. 3).

Letters: h a context, w the character after it, c(h, w) its count, N(h) their sum over w.
Shapes: P places of a text, M contexts and G distinct n-grams of one length, V characters.

A long context says most and is seen least, so each length is mixed with the next shorter one:

    p(w | h) = max(c(h, w) - D, 0) / N(h)  +  taken(h) p(w | h without its oldest character)

D is what is taken from each count, taken(h) the share of N(h) that this frees. In a shorter
context the count is of the *different* characters seen before h w: it is consulted only where the
longer context failed, and there "Francisco" is rare, however often it follows "San".

Contexts form a trie, from the latest character back; a context is a number in its level:

    level 0   ()        level 1   "e", "h"        level 2   "he", "th"
    key of a context = number of the context one shorter * V + its oldest character
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mingpt.layers import cross_entropy
from shared.errors import ResourceError
from shared.sampler import IntArray

Floats = npt.NDArray[np.float32]
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)  # where counts are too few to estimate them; KenLM's choice
LEAST_FREED = 0.01  # counts; a context that frees less takes the usual discounts
MOST_BYTES = 4 << 30  # of hints of a text to train on
PLACES_AT_ONCE = 1 << 15  # 8 MB of probabilities: what fits the caches


@dataclass(frozen=True, kw_only=True)
class NGramConfig:
    """How much an n-gram model looks at."""

    vocab_size: int = 65
    """Characters it knows."""
    n: int = 7
    """Length of the longest n-gram: n - 1 characters of context and the one to predict."""
    block_size: int = 1 << 17
    """Characters it reads at once, at most: it needs no window, but evaluation gives it one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        for name, least in (("vocab_size", 1), ("n", 1), ("block_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Level:
    """The contexts of one length and what follows them."""

    keys: IntArray
    """Of each context (M,), ascending."""
    first: IntArray
    """Where the n-grams of each context begin, and the end of the last (M + 1,)."""
    character: IntArray
    """The character that ends each n-gram (G,)."""
    kept: Floats
    """(count - D) / N(h) of each n-gram (G,)."""
    taken: Floats
    """The share of each context that is left to the shorter one (M,)."""
    seen: Floats
    """N(h) of each context (M,)."""


def discounts(counts: IntArray) -> npt.NDArray[np.float64]:
    """Return what to take from n-grams counted 0, 1, 2 and 3 or more times (4,).

    With n_c n-grams counted c times, Y = n_1 / (n_1 + 2 n_2) and D_c = c - (c + 1) Y n_{c+1} / n_c
    (Chen & Goodman, 1998, eq. 26).
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]
    if not n.all():
        return np.array((0.0, *USUAL_DISCOUNTS))
    c = np.array((1, 2, 3))
    taken = c - (c + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
    return np.concatenate(([0.0], np.clip(taken, 0.0, c)))


def count(ids: IntArray, n: int, vocab_size: int) -> list[Level]:
    """Count the n-grams of a text (P,), of lengths 1 to n, and smooth them; n levels."""
    after, node = ids[n - 1 :], np.zeros(max(0, len(ids) - n + 1), dtype=np.int64)
    keys = [np.zeros(1, dtype=np.int64)]
    for back in range(1, n):
        older = ids[n - 1 - back : max(0, len(ids) - back)]
        contexts, node = np.unique(node * vocab_size + older, return_inverse=True)
        keys.append(contexts)
    grams, counts = np.unique(node * vocab_size + after, return_counts=True)
    levels = []
    for contexts in reversed(keys):
        levels.append(_smoothed(contexts, grams, counts, vocab_size))
        # An n-gram without its oldest character; how many fall together is the new count.
        context, character = np.divmod(grams, vocab_size)
        shorter = contexts[context] // vocab_size * vocab_size + character
        grams, counts = np.unique(shorter, return_counts=True)
    return levels[::-1]


def _smoothed(keys: IntArray, grams: IntArray, counts: IntArray, vocab_size: int) -> Level:
    context, character = np.divmod(grams, vocab_size)
    group = np.minimum(counts, 3)
    discount = discounts(counts)[group]
    freed = np.bincount(context, discount, minlength=len(keys))
    # An estimate may be 0, and what frees nothing would call all that it has not seen impossible.
    usual = np.array((0.0, *USUAL_DISCOUNTS))[group]
    discount = np.where(freed[context] < LEAST_FREED, usual, discount)
    freed = np.bincount(context, discount, minlength=len(keys))
    total = np.bincount(context, counts, minlength=len(keys))
    return Level(
        keys=keys,
        first=np.searchsorted(context, np.arange(len(keys) + 1)),
        character=character,
        kept=((counts - discount) / total[context]).astype(np.float32),
        # Of a text too short to have been counted everything is left.
        taken=np.where(total, freed / np.maximum(total, 1), 1.0).astype(np.float32),
        seen=total.astype(np.float32),
    )


def probabilities(levels: list[Level], ids: IntArray, vocab_size: int) -> Floats:
    """Return p of every character after each place of a text: ids (P,) to (P, V).

    Place i sees ids[: i + 1], of which the last n - 1 count.
    """

    def look_up(part: IntArray) -> Floats:
        return list(_look_up(levels, part, vocab_size))[-1][0]

    return _in_parts(levels, ids, look_up, vocab_size)


def hints(
    levels: list[Level], ids: IntArray, vocab_size: int, shortest: int | None = None
) -> Floats:
    """Return what counting says of each place of a text: ids (P,) to (P, M V + n).

    The first V numbers are log p of every character after it by n-grams of up to n characters, the
    next V those by n-grams of up to n - 1, and so on down to `shortest` (n if not given): M in
    all. The last n are log(1 + N(h)) of its contexts of 0 to n - 1 characters, or 0 for one that
    was not seen: how much the counts are to be trusted.
    """
    n = len(levels)
    shortest = n if shortest is None else shortest

    def look_up(part: IntArray) -> Floats:
        log_probs, counts = [], []
        for length, (p, seen) in enumerate(_look_up(levels, part, vocab_size), start=1):
            counts.append(np.log1p(seen)[:, None])
            if length >= shortest:
                log_probs.append(np.log(p))
        return np.concatenate((*reversed(log_probs), *counts), axis=1)

    return _in_parts(levels, ids, look_up, hint_width(n, vocab_size, shortest))


def hint_width(n: int, vocab_size: int, shortest: int) -> int:
    """Count the hints of a place: log p by each length of n-gram, and how often contexts were seen.

    >>> hint_width(9, 65, 3)
    464
    """
    return (n - shortest + 1) * vocab_size + n


def _in_parts(
    levels: list[Level], ids: IntArray, look_up: Callable[[IntArray], Floats], width: int
) -> Floats:
    """Look up a long text (P,) in parts that fit the caches: (P, width)."""
    parts = [np.zeros((0, width), np.float32)]
    for start in range(0, len(ids), PLACES_AT_ONCE):
        before = min(start, max(0, len(levels) - 2))  # the context of the first place
        parts.append(look_up(ids[start - before : start + PLACES_AT_ONCE])[before:])
    return np.concatenate(parts)


def _look_up(
    levels: list[Level], ids: IntArray, vocab_size: int
) -> Iterator[tuple[Floats, Floats]]:
    """Yield p (P, V) and N(h) (P,), 0 for a context not seen, as contexts grow by a character.

    p is changed in place from one to the next.
    """
    p = np.full((len(ids), vocab_size), 1 / vocab_size, np.float32)
    places = np.arange(len(ids))  # whose context is known up to this level
    node = np.zeros(len(ids), dtype=np.int64)
    for length, level in enumerate(levels):
        if length:  # the context grows by its oldest character, where it can
            long = places >= length - 1
            places, node = places[long], node[long]
            key = node * vocab_size + ids[places - (length - 1)]
            node = np.minimum(np.searchsorted(level.keys, key), len(level.keys) - 1)
            found = level.keys[node] == key if len(level.keys) else np.zeros(len(key), bool)
            places, node = places[found], node[found]
        seen = np.zeros(len(ids), np.float32)
        seen[places] = level.seen[node]
        p[places] *= level.taken[node, None]
        first, number = level.first[node], level.first[node + 1] - level.first[node]
        row = np.repeat(np.arange(len(node)), number)
        gram = np.arange(len(row)) + np.repeat(first - (np.cumsum(number) - number), number)
        p[places[row], level.character[gram]] += level.kept[gram]
        yield p, seen


def held_out_hints(
    ids: IntArray, n: int, vocab_size: int, folds: int = 10, shortest: int | None = None
) -> npt.NDArray[np.float16]:
    """Return `hints` of each place of a text, the place held out: (P, M V + n).

    The text is cut into `folds` pieces, and each is looked up in the counts of all others. What
    a model has counted it predicts too well: a network that is to correct the counts would learn
    to trust them more than a new text allows (Wolpert, "Stacked Generalization", 1992).

    Raises ResourceError for more than `MOST_BYTES` of hints.
    """
    width = hint_width(n, vocab_size, n if shortest is None else shortest)
    if len(ids) * width * 2 > MOST_BYTES:
        raise ResourceError(
            f"{width} hints for each of {len(ids):,} characters take "
            f"{len(ids) * width * 2 / 2**30:.1f} GiB, and {MOST_BYTES / 2**30:.0f} are allowed; "
            "take a shorter text, a smaller --n or a larger --shortest"
        )
    found = np.empty((len(ids), width), np.float16)  # there are hundreds for each character
    cuts = np.linspace(0, len(ids), folds + 1).astype(int)
    for start, end in pairwise(cuts):
        levels = count(np.concatenate((ids[end:], ids[:start])), n, vocab_size)
        before = min(start, n - 1)
        found[start:end] = hints(levels, ids[start - before : end], vocab_size, shortest)[before:]
    return found


def recent_counts(idx: Tensor, longest: int, vocab_size: int, last: int) -> Tensor:
    """Count what followed the latest characters where they stood before, in each row itself.

    idx (B, S) to (B, last, longest - 1, V), for the last places of a row: how often each character
    came, earlier in the row, after the k characters that end at the place; k from 2 to `longest`.
    """
    B, S = idx.shape
    unread = S - last
    # Pairs of a place and an earlier one after the same two characters; fewer as contexts grow.
    two = idx.roll(1, 1) * vocab_size + idx
    two[:, 0] = -1  # nothing stands before it
    equal = two[:, unread:, None] == two[:, None, :]  # (B, last, S)
    row, place, earlier = equal.tril(unread - 1).nonzero(as_tuple=True)
    found = []
    for back in range(1, longest):
        if back > 1:
            long = earlier >= back
            row, place, earlier = row[long], place[long], earlier[long]
            same = idx[row, unread + place - back] == idx[row, earlier - back]
            row, place, earlier = row[same], place[same], earlier[same]
        cell = (row * last + place) * vocab_size + idx[row, earlier + 1]
        counts = torch.bincount(cell, minlength=B * last * vocab_size)
        found.append(counts.view(B, last, vocab_size))
    return torch.stack(found, dim=2)


class NGram(nn.Module):
    """An n-gram model with modified Kneser-Ney smoothing; `fit` counts it.

    What it knows is the text it was counted on: the one buffer, of which the levels are a view
    that is counted again (Shakespeare's in a second) when a checkpoint is loaded.
    """

    def __init__(self, config: NGramConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        self.text: Tensor
        self.register_buffer("text", torch.zeros(0, dtype=torch.int32))
        self.levels = count(np.zeros(0, np.int64), config.n, config.vocab_size)

    def fit(self, ids: IntArray) -> None:
        """Count a text (P,); what was counted before is forgotten.

        Raises ValueError for ids that the vocabulary does not have.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"text: ids {ids.min()} to {ids.max()} do not fit vocab_size={self.vocab_size}; "
                "count a text of this vocabulary"
            )
        self.text = torch.from_numpy(ids.astype(np.int32))
        self.levels = count(ids, self.config.n, self.vocab_size)

    def hints(self, ids: IntArray, shortest: int | None = None) -> Floats:
        """Return `hints` of each place of a text: (P,) to (P, M V + n)."""
        return hints(self.levels, ids, self.vocab_size, shortest)

    def log_probs(self, ids: IntArray) -> Floats:
        """Return log p of every character after each place of a text: (P,) to (P, V)."""
        log_probs: Floats = np.log(probabilities(self.levels, ids, self.vocab_size))
        return log_probs

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, T, V) of the character after each of idx; with targets, the loss.

        Each row is read by itself, from its beginning. Raises ValueError when T > block_size.
        """
        if idx.size(1) > self.block_size:
            raise ValueError(
                f"{idx.size(1)} characters do not fit block_size={self.block_size};"
                f" keep the last {self.block_size}"
            )
        rows = [self.log_probs(row) for row in idx.cpu().numpy()]
        logits = torch.from_numpy(np.stack(rows)).to(idx.device)
        return logits if targets is None else cross_entropy(logits, targets)

    def flops_per_character(self) -> float:
        """Count a multiplication and an addition for each character and length."""
        return 2.0 * self.config.n * self.vocab_size

    @property
    def counts(self) -> int:
        """Count the distinct n-grams of all lengths."""
        return sum(len(level.kept) for level in self.levels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a text of any length, and count it."""
        text = state_dict.get(f"{prefix}text")
        if text is not None:
            if text.ndim != 1 or text.dtype not in (torch.int32, torch.int64):
                raise ValueError(
                    "the text that an n-gram model was counted on must be a row of ids"
                )
            self.fit(text.cpu().numpy().astype(np.int64))
        super()._load_from_state_dict(state_dict, prefix, *args)

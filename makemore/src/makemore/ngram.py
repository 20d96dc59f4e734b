"""Counting: the next character has the frequencies seen after the same characters before.

Lidstone (1920) or add-k; Witten and Bell (1991); Kneser and Ney (1995), all as given in Chen and
Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98, 1998).

Letters: c(h, w) how often w followed the context h, N(h) their sum over w, V the characters.
Shapes: P places of the corpus, G distinct n-grams, M distinct contexts of one length.

Long contexts say most and are seen least, so each order is mixed with the next shorter one:

    p(w | e m m) = [ kept(e m m, w) + mass(e m m) p(w | m m) ] / [ sum of kept + mass ]
    p(w | m m)   = [ kept(m m, w)   + mass(m m)   p(w | m)   ] / ...    and so on to p(w) = 1/V

A smoothing is the choice of `kept` and `mass`; the mixing is the same for all. It is done once,
when counting, from short to long; to predict is to look up the longest context that was seen.

Contexts are kept as a trie, read backwards from the character to predict. A context is a number:

    0 ()   1 "a"   2 "m"   3 "ma"   4 "mm"   5 "emm"       key of 5 = 4 V + id of "e"

Shorter contexts have lower numbers, so the keys ascend and one binary search finds a child.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from makemore.data import BOUNDARY, Items
from makemore.model import CharacterModel
from shared.errors import ArtefactError, ResourceError
from shared.sampler import IntArray

FloatArray = npt.NDArray[np.float64]
Smoothing = Literal["add_k", "witten_bell", "kneser_ney"]
SMOOTHINGS: tuple[Smoothing, ...] = ("add_k", "witten_bell", "kneser_ney")
USUAL_DISCOUNTS = (0.5, 1.0, 1.5)  # where a corpus is too small to estimate them; KenLM's choice
MOST_BYTES = 2 << 30  # of memory for the tables, while they are computed
LEAST_DISCOUNT = 0.05  # discounting nothing would leave unseen characters without probability


@dataclass(frozen=True, kw_only=True)
class NGramConfig:
    """How long the contexts are, and how the counts are smoothed."""

    vocab_size: int = 27
    """Characters and the boundary."""
    n: int = 6
    """Length of the longest n-gram: n - 1 characters of context and the one to predict."""
    smoothing: Smoothing = "kneser_ney"
    """`kneser_ney` (interpolated, modified), `witten_bell` or `add_k`."""
    k: float = 0.01
    """What add-k adds to every count."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be counted with."""
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size={self.vocab_size} leaves nothing to predict; at least 2")
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1, which counts single characters")
        if self.smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing={self.smoothing!r} is none of {', '.join(SMOOTHINGS)}")
        if not 0 < self.k < float("inf"):
            raise ValueError(f"k={self.k} must be above 0 and finite; try 0.1")


@dataclass(frozen=True)
class Grams:
    """The distinct n-grams of one length, and what their contexts are made of."""

    parents: IntArray
    """The context one character shorter, of each context (M,)."""
    oldest: IntArray
    """The character that a context has and its parent has not (M,)."""
    context: IntArray
    """The context of each n-gram (G,), 0..M-1."""
    character: IntArray
    """The character that follows in it (G,)."""
    count: IntArray
    """How often it does (G,)."""
    continuations: IntArray
    """How many different characters were seen before it (G,); zeros for the longest n-grams."""


def count_grams(items: Items, n: int) -> list[Grams]:
    """Count the n-grams of lengths 1..n; contexts begin with as many boundaries as needed.

    A gram of length l is a gram of length l + 1 less its oldest character: the shorter are found
    from the longer ones, and those that fall together are the continuations.
    """
    vocab_size, node = len(items.vocabulary), np.zeros(items.characters, dtype=np.int64)
    contexts = [np.zeros(1, dtype=np.int64)]
    for history in _histories(items, n - 1):
        keys, node = np.unique(node * vocab_size + history, return_inverse=True)
        contexts.append(keys)
    grams, count = np.unique(node * vocab_size + items.ids[1:], return_counts=True)
    continuations = np.zeros_like(count)
    levels = []
    for keys in reversed(contexts):
        parents, oldest = np.divmod(keys, vocab_size)
        context, character = np.divmod(grams, vocab_size)
        levels.append(Grams(parents, oldest, context, character, count, continuations))
        shorter = parents[context] * vocab_size + character
        grams, place, continuations = np.unique(shorter, return_inverse=True, return_counts=True)
        count = np.bincount(place, count).astype(np.int64)
    return levels[::-1]


def _histories(items: Items, number: int) -> Iterator[IntArray]:
    """Yield, for all places at once (P,), the last character, the one before it, and so on."""
    places = np.arange(items.characters)
    age = places - np.repeat(items.starts, items.lengths)  # characters since the item began
    for back in range(number):
        yield np.where(age >= back, items.ids[np.maximum(places - back, 0)], BOUNDARY)


def discounts(counts: IntArray) -> FloatArray:
    """Return what to take from n-grams seen once, twice, and more often (3,).

    With n_c n-grams seen c times, Y = n_1 / (n_1 + 2 n_2) and D_c = c - (c + 1) Y n_{c+1} / n_c
    (Chen & Goodman (1998), modified Kneser-Ney).
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5)[1:5]
    if not n.all():
        return np.array(USUAL_DISCOUNTS)
    seen = np.array([1, 2, 3])
    wanted = seen - (seen + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
    return np.asarray(np.clip(wanted, LEAST_DISCOUNT, seen), dtype=np.float64)


def _kept_and_mass(
    grams: Grams, longest: bool, config: NGramConfig
) -> tuple[FloatArray, FloatArray]:
    """Return what a smoothing leaves to each n-gram (G,) and to the shorter context (M,)."""
    if config.smoothing == "add_k":
        mass = np.full(len(grams.parents), config.k * config.vocab_size)
        return grams.count.astype(np.float64), mass
    if config.smoothing == "witten_bell":  # as much for the unseen as there were surprises
        return grams.count.astype(np.float64), np.bincount(grams.context).astype(np.float64)
    # A shorter context is consulted where the longer one was not seen: what counts is not how
    # often a character followed it, but after how many different ones before (Kneser and Ney).
    count = grams.count if longest else grams.continuations
    discount = discounts(count)[np.minimum(count, 3) - 1]
    return count - discount, np.bincount(grams.context, discount).astype(np.float64)


def _smooth(levels: list[Grams], config: NGramConfig) -> Iterator[FloatArray]:
    """Yield the table of probabilities (M, V) of each level, from short contexts to long."""
    uniform = np.full((1, config.vocab_size), 1 / config.vocab_size)
    table = uniform
    for grams in levels:
        kept, mass = _kept_and_mass(grams, grams is levels[-1], config)
        # Add-k mixes with the uniform distribution, whatever shorter contexts say.
        lower = uniform if config.smoothing == "add_k" else table[grams.parents]
        total = np.bincount(grams.context, kept) + mass
        table = (mass / total)[:, None] * lower
        table[grams.context, grams.character] += kept / total[grams.context]
        yield table


class NGram(CharacterModel):
    """A table of log-probabilities for every context seen, and the trie that finds its row.

    Without `fit`, every character is equally likely. There are no trainable parameters.
    """

    keys: Tensor
    """Of each context (R,): the number of its parent times V + its oldest character; ascending."""
    rows: Tensor
    """Log-probabilities of what follows each context (R, V)."""
    sizes: Tensor
    """The number of contexts of each length 0..n-1 (n,), which R is the sum of."""

    def __init__(self, config: NGramConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.block_size = max(1, config.n - 1)  # n = 1 reads nothing, but 0 would mean everything
        uniform = torch.full((1, config.vocab_size), 1 / config.vocab_size).log()
        self.register_buffer("keys", torch.tensor([-1]))  # the empty context has no parent
        self.register_buffer("rows", uniform)
        self.register_buffer("sizes", F.one_hot(torch.tensor(0), config.n))

    def fit(self, items: Items) -> None:
        """Count `items`, in place of whatever was counted before.

        Raises ValueError where there are none, or where their vocabulary is not the model's, and
        ResourceError where the tables would take more than `MOST_BYTES`.
        """
        if not len(items):
            raise ValueError("0 items: there is nothing to count; give at least one")
        if len(items.vocabulary) != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but the items have {len(items.vocabulary)} "
                "characters and boundary; build the model for these"
            )
        levels = count_grams(items, self.config.n)
        sizes = [len(grams.parents) for grams in levels]
        _check_memory(sizes, self.config)
        offsets = np.cumsum([0, 0, *sizes])  # of a level's parents
        keys = [
            (grams.parents + offset) * self.vocab_size + grams.oldest
            for grams, offset in zip(levels, offsets, strict=False)
        ]
        keys[0] = np.array([-1])
        rows = [np.log(table).astype(np.float32) for table in _smooth(levels, self.config)]
        device = self.rows.device
        self.keys = torch.from_numpy(np.concatenate(keys)).to(device)
        self.rows = torch.from_numpy(np.concatenate(rows)).to(device)
        self.sizes = torch.tensor(sizes, device=device)

    def contexts(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the numbers (N,) of the longest contexts seen in training at places `keep`."""
        node = torch.zeros(int(keep.sum()), dtype=torch.int64, device=idx.device)
        alive = torch.ones_like(node, dtype=torch.bool)
        for back in range(self.config.n - 1):
            history = F.pad(idx, (back, 0), value=BOUNDARY)[:, : idx.size(1)][keep]
            key = node * self.vocab_size + history
            child = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            alive &= self.keys[child] == key
            node = torch.where(alive, child, node)
        return node

    def matched_order(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the order (N,) of the n-grams that are consulted, 1..n.

        It is the length of the longest context seen in training, boundaries included, plus one.
        """
        return torch.searchsorted(self.sizes.cumsum(0), self.contexts(idx, keep), right=True) + 1

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return log-probabilities (N, V) of what follows the places in `keep`."""
        return F.embedding(self.contexts(idx, keep), self.rows)

    def flops_per_character(self) -> float:
        """Return 0: all arithmetic is done when counting; what is left is n - 1 look-ups."""
        return 0.0

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take tables of any length; raises ArtefactError where they do not fit together."""
        names = [name for name in ("keys", "rows", "sizes") if prefix + name in state_dict]
        found = {name: state_dict[prefix + name] for name in names}
        if len(names) == 3:
            _check_tables(found["keys"], found["rows"], found["sizes"], self.config)
        for name, saved in found.items():
            setattr(self, name, torch.empty_like(saved, device=self.rows.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_memory(sizes: list[int], config: NGramConfig) -> None:
    """Raise ResourceError where tables of these many contexts (n,) would take too much memory."""
    # A context's V numbers are of 4 bytes; at the largest level there also are its table, what it
    # is mixed from, its logarithm and the table of the level before, of 8 each.
    needed = config.vocab_size * (4 * sum(sizes) + 4 * 8 * max(sizes))
    if needed > MOST_BYTES:
        raise ResourceError(
            f"n={config.n}: {sum(sizes):,} contexts x {config.vocab_size:,} characters take "
            f"{needed / 2**30:.1f} GiB of memory to count, more than {MOST_BYTES / 2**30:.0f} GiB; "
            "try a smaller --n, or a larger --unk, which leaves fewer characters"
        )


def _check_tables(keys: Tensor, rows: Tensor, sizes: Tensor, config: NGramConfig) -> None:
    """Raise ArtefactError unless the tables are those of an n-gram model of this configuration."""
    expected = f"n={config.n} and vocab_size={config.vocab_size}"
    if rows.shape != (len(keys), config.vocab_size) or sizes.shape != (config.n,):
        raise ArtefactError(
            f"an n-gram model of {expected} has keys (R,), rows (R, {config.vocab_size}) and sizes "
            f"({config.n},); found {tuple(keys.shape)}, {tuple(rows.shape)}, {tuple(sizes.shape)}"
        )
    if not ((keys.diff() > 0).all() and int(sizes.sum()) == len(keys) > 0):
        raise ArtefactError(f"not the tables of an n-gram model of {expected}: keys out of order")

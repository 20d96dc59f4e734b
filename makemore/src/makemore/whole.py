"""What a model of characters cannot know: how often whole items come back.

A whole-sentence exponential model (Rosenfeld, Chen and Zhu, 2001, eq. 1), on top of any model p:

    p'(x) = p(x) r[c(x)],    c(x): how often the item x stands in the training data, 0, 1, 2, ...

A list of names is nearly a set. A model that has learnt it spends a large part of its probability
on the names it has seen, but a new name is seldom one of them. The ratios r that make held-out
items most likely are, for each count, the share of held-out items over the model's probability.

It stays a model of the next character. With Z(h) the mean of r over how p would go on after h,

    p'(w | h) = p(w | h) Z(h w) / Z(h),    Z(h) = r[0] + sum_w p(w | h) (Z(h w) - r[0])

where the sum goes over the h w that training items begin with, and Z of a whole item is its r.

Shapes: B items, T time, N places, V = vocab_size, R distinct beginnings of training items.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from makemore.data import BOUNDARY, IGNORED, Items, Splits
from makemore.evaluate import target_log_probs
from makemore.model import CharacterModel
from shared.errors import ArtefactError
from shared.sampler import IntArray

FloatArray = npt.NDArray[np.float64]
LEAST_MASS = 1e-12  # rounding leaves about so much of a probability that should be zero


@dataclass(frozen=True, kw_only=True)
class WholeConfig:
    """What is told apart; the model underneath comes with its own configuration."""

    vocab_size: int = 27
    """Characters and the boundary."""
    n_counts: int = 2
    """Items seen once, twice, ..., and `n_counts` times or more get ratios of their own."""

    def __post_init__(self) -> None:
        """Refuse to tell nothing apart."""
        for name, least in (("vocab_size", 2), ("n_counts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True)
class Beginnings:
    """A trie of items, numbered by length: 0 is the empty one, children follow their parents."""

    keys: IntArray
    """Of each beginning (R,): its parent times V + its last character; ascending, -1 the first."""
    count: IntArray
    """How many items begin so (R,)."""
    reached: IntArray
    """The beginning that each target of the items completes (P,)."""

    @classmethod
    def of(cls, items: Items) -> "Beginnings":
        """Collect the beginnings of `items`, ends included, one length after the other."""
        size, reached = len(items.vocabulary), np.zeros(items.characters, dtype=np.int64)
        keys, counts = [np.array([-1])], [np.array([len(items)])]
        starts, node, known = items.starts, np.zeros(len(items), dtype=np.int64), 1
        for age in range(int(items.lengths.max())):
            going = items.lengths[np.searchsorted(items.starts, starts)] > age
            starts, node = starts[going], node[going]
            found = node * size + items.ids[starts + age + 1]
            level, place, count = np.unique(found, return_inverse=True, return_counts=True)
            node = known + place
            reached[starts + age] = node
            keys.append(level)
            counts.append(count)
            known += len(level)
        return cls(np.concatenate(keys), np.concatenate(counts), reached)


def find_ratios(held: npt.NDArray[Any], mass: npt.NDArray[Any]) -> FloatArray:
    """Return the ratios r that make held-out items most likely.

    Of items seen 0, 1, ... times, `held` is how many were held out, `mass` the probability that
    the model gives to all of them together; r is the share held out over that. One more held-out
    item, spread as the model expects, keeps a ratio above 0 where none was. So p' sums to one.
    A class without any mass, such as that of items seen twice where all are distinct, has nothing
    to correct: its ratio is 1.
    """
    ratios = (held + mass) / (held.sum() + 1) / np.maximum(mass, LEAST_MASS)
    return np.where((mass > LEAST_MASS) | (held > 0), ratios, 1.0)


def reweight(
    log_probs: Mapping[str, FloatArray], splits: Splits, n_counts: int = 2
) -> dict[str, FloatArray]:
    """Return log p' of the items of each part of a split, from a model's own log p of them.

    What `Whole` does, where only the probabilities of whole items are at hand. The ratios are
    fitted to the validation items.
    """
    counts = Counter(splits.train)
    kinds = {
        part: np.array([min(counts[item], n_counts) for item in items])
        for part, items in asdict(splits).items()
    }
    # A distinct training item's probability, once: the items of a count c hold c copies of it.
    copies = np.array([counts[item] for item in splits.train])
    mass = np.bincount(kinds["train"], np.exp(log_probs["train"]) / copies, n_counts + 1)
    mass[0] = 1 - mass.sum()
    ratios = find_ratios(np.bincount(kinds["val"], minlength=n_counts + 1), mass)
    return {part: log_probs[part] + np.log(ratios[kinds[part]]) for part in kinds}


class Whole(CharacterModel):
    """A trained model, corrected for how often its training items come back."""

    keys: Tensor
    """Of each beginning of a training item (R,): its parent times V + its last character."""
    log_z: Tensor
    """The logarithm of Z after each beginning (R,)."""
    log_ratios: Tensor
    """log r of the items seen 0, 1, ... times (n_counts + 1,)."""

    def __init__(self, config: WholeConfig, base: CharacterModel) -> None:
        super().__init__()
        if base.vocab_size != config.vocab_size:
            raise ValueError(
                f"vocab_size={config.vocab_size}, but the model underneath has {base.vocab_size}"
            )
        self.config, self.base = config, base
        self.vocab_size, self.block_size = config.vocab_size, 0
        self.register_buffer("keys", torch.tensor([-1]))
        self.register_buffer("log_z", torch.zeros(1))
        self.register_buffer("log_ratios", torch.zeros(config.n_counts + 1))

    def fit(self, train: Items, held: Items) -> None:
        """Find the ratios: `train` is what the model has seen, `held` more of the same, unseen.

        Raises ValueError where `train` or `held` is empty.
        """
        if not len(train) or not len(held):
            raise ValueError(f"{len(train)} and {len(held)} items; at least one of each is needed")
        trie = Beginnings.of(train)
        edges, counts = self._edges(trie, train), self._counts(trie)
        parents = trie.keys // self.vocab_size
        whole = edges.copy()  # the probability of each beginning
        for level in _levels(parents):
            whole[level] *= whole[parents[level]]
        kinds = self.config.n_counts + 1
        mass = np.bincount(counts, np.where(counts > 0, whole, 0.0), kinds)
        mass[0] = 1 - mass[1:].sum()
        self.keys = torch.from_numpy(trie.keys).to(self.keys.device)
        nodes = self._ends(held)
        share = np.bincount(np.where(nodes >= 0, counts[nodes], 0), minlength=kinds)
        ratios = find_ratios(share, mass)
        self.log_ratios = torch.from_numpy(np.log(ratios)).float().to(self.keys.device)
        self._remember(trie, edges)

    def remember(self, train: Items) -> None:
        """Put `train` in place of the training items, and keep the ratios.

        For a model that has seen more since the ratios were found, held-out items included.
        """
        trie = Beginnings.of(train)
        self._remember(trie, self._edges(trie, train))

    def _remember(self, trie: Beginnings, edges: FloatArray) -> None:
        """Compute Z of all beginnings; Z - r[0] is the mean of the children's, longest first."""
        ratios, counts = self.log_ratios.double().exp().cpu().numpy(), self._counts(trie)
        parents = trie.keys // self.vocab_size
        excess = np.where(counts > 0, ratios[counts] - ratios[0], 0.0)
        for level in reversed(_levels(parents)):
            np.add.at(excess, parents[level], edges[level] * excess[level])
        self.keys = torch.from_numpy(trie.keys).to(self.log_z.device)
        self.log_z = torch.from_numpy(np.log(ratios[0] + excess)).float().to(self.log_z.device)

    def _counts(self, trie: Beginnings) -> IntArray:
        """Return how often a whole item was seen (R,), n_counts at most; 0 for the unfinished."""
        finished = trie.keys % self.vocab_size == BOUNDARY  # never of the first, whose key is -1
        return np.where(finished, np.minimum(trie.count, self.config.n_counts), 0)

    def _edges(self, trie: Beginnings, train: Items) -> FloatArray:
        """Return the probability of the last character of each beginning, given the others."""
        edges = np.ones(len(trie.keys))
        edges[trie.reached] = np.exp(target_log_probs(self.base, train))
        return edges

    def _ends(self, items: Items) -> IntArray:
        """Return the finished beginnings that items are (B,), in any order; -1 for unseen ones."""
        found = []
        for start in range(0, len(items), 512):
            idx, targets = items.batch(np.arange(start, min(start + 512, len(items))))
            closed = torch.cat([idx, torch.zeros_like(idx[:, :1])], 1).to(self.keys.device)
            ends = (targets != IGNORED).sum(1, keepdim=True).to(self.keys.device)
            found.append(self._walk(closed).gather(1, ends)[:, 0].cpu().numpy())
        return np.concatenate(found)

    def _walk(self, idx: Tensor) -> Tensor:
        """Return the beginning (B, T) that each row is up to each place, -1 if it is none."""
        nodes = [torch.zeros_like(idx[:, 0])]
        for last in idx[:, 1:].unbind(1):
            nodes.append(self._children(nodes[-1], last))
        return torch.stack(nodes, 1)

    def _children(self, nodes: Tensor, last: Tensor) -> Tensor:
        """Return the beginnings one character longer, -1 where there are none."""
        wanted = nodes * self.vocab_size + last
        places = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where((self.keys[places] == wanted) & (nodes >= 0), places, -1)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the log-probabilities (N, V) of what follows the places in `keep`."""
        nodes = self._walk(idx)[keep][:, None]
        children = self._children(nodes, torch.arange(self.vocab_size, device=idx.device))
        log_z = torch.where(children >= 0, self.log_z[children], self.log_ratios[0])
        return (self.base.scores(idx, keep).log_softmax(-1) + log_z).log_softmax(-1)

    def flops_per_character(self) -> float:
        """Return the model's own, and a sum and a normalisation of the scores."""
        return self.base.flops_per_character() + 4 * self.vocab_size

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take tables of any length; raises ArtefactError where they do not fit together."""
        names = [name for name in ("keys", "log_z") if prefix + name in state_dict]
        shapes = {tuple(state_dict[prefix + name].shape) for name in names}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ArtefactError(f"keys and log_z must both be (R,); found {sorted(shapes)}")
        for name in names:
            saved = state_dict[prefix + name]
            setattr(self, name, torch.empty_like(saved, device=self.log_ratios.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _levels(parents: IntArray) -> list[IntArray]:
    """Return the nodes of a trie by length, from 1 on."""
    levels, first, last = [], 1, 1
    while first < len(parents):
        last = int(np.searchsorted(parents[1:], first)) + 1  # children of what came before
        levels.append(np.arange(first, last))
        first = last
    return levels

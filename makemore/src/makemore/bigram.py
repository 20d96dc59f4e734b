"""The neural bigram: the smallest network, and the same model as counting pairs.

Both are in Karpathy's makemore part 1 (bigram).

One matrix W (V, V) of logits: the row of the last character, one-hot @ W, goes through a softmax.
Let C (V, V) be the counts of pairs, N_i the sum of row i, N that of all. The mean loss is

    L = - sum_ij C_ij log p_ij / N,    p_i = softmax(W_i),    dL/dW_ij = (N_i p_ij - C_ij) / N

so its gradient is zero exactly where p_ij = C_ij / N_i: the counted model, W = log C and any
constant added to a row. L is convex, so gradient descent has nowhere else to go. Add-k counting is
the same with C + k: to see every pair k times more.

Weight decay is often called its equal. With decay the minimum has C_ij - N_i p_ij = decay N W_ij,
with add-k it has C_ij - N_i p_ij = k (V p_ij - 1). Both pull every row towards the uniform one, and
rare rows more, but by different laws: decay grows with the logit, add-k with the probability.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import Items
from makemore.model import CharacterModel


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """The size of the one matrix."""

    vocab_size: int = 27
    """Characters and the boundary."""

    def __post_init__(self) -> None:
        """Refuse a vocabulary in which nothing is left to predict."""
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size={self.vocab_size} leaves nothing to predict; at least 2")


class Bigram(CharacterModel):
    """Logits of the next character, one row for each last character."""

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, 1
        # Small, unlike part 1's normal logits: near-equal guesses lose log V = 3.30 at first,
        # confident wrong ones 3.77.
        self.head = nn.Parameter(0.01 * torch.randn(config.vocab_size, config.vocab_size))

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the rows (N, V) of the characters in `keep`: one-hot @ head, without the zeros."""
        return F.embedding(idx[keep], self.head)

    def flops_per_character(self) -> float:
        """Return 0: a row is looked up."""
        return 0.0


def pair_counts(items: Items) -> Tensor:
    """Return C (V, V): how often character j followed character i, the boundary among them."""
    size = len(items.vocabulary)
    pairs = items.ids[:-1] * size + items.ids[1:]
    return torch.from_numpy(np.bincount(pairs, minlength=size * size).reshape(size, size))


def counted(counts: Tensor, k: float = 0.0) -> Bigram:
    """Return the network that predicts as add-k counting does: its weights are log(C + k).

    With k = 0 a pair that never occurred has probability 0 and weight minus infinity.
    """
    model = Bigram(BigramConfig(vocab_size=len(counts)))
    model.head.data = torch.log(counts.double() + k).to(model.head.dtype)
    return model


def gradient(weights: Tensor, counts: Tensor, decay: float = 0.0) -> Tensor:
    """Return the gradient (V, V) of the mean loss plus decay / 2 times the sum of W squared.

    See above: (N_i p_ij - C_ij) / N + decay W_ij.
    """
    rows = counts.sum(1, keepdim=True)
    return (rows * weights.softmax(1) - counts) / counts.sum() + decay * weights

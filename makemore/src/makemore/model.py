"""What every rung of the ladder is: a model of the next character given the characters before.

Shapes: B batch (items), T time (characters of the longest item, and its end), V = vocab_size,
N the positions whose scores are wanted.

A batch is a rectangle, items are not: of the places in a batch of 32 names 31% hold nothing, of
128 names 39%, of 512 names 45%. So a model is asked for the scores at the places that count, and
may leave out the others as early as its mathematics allows.

    idx       .  e  m  m  a          targets   e  m  m  a  .          keep   1 1 1 1 1
              .  a  v  a  .                    a  v  a  .  -100              1 1 1 1 0
"""

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import IGNORED


class CharacterModel(nn.Module, abc.ABC):
    """A model of the next character; `scores` is its own, the rest follows from it."""

    vocab_size: int
    """Characters and the boundary, which is id 0 (and the unknown character, if there is one)."""
    block_size: int
    """Characters that a score can depend on; 0 for all that came before."""

    @abc.abstractmethod
    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return unnormalised log-probabilities (N, V) of what follows the places in `keep`.

        `idx` (B, T) holds ids, each row beginning with the boundary; `keep` (B, T) is True at N
        places, which in every row come first. Rows of the result are in the order of `idx[keep]`.
        The scores at a place depend on its row up to that place, and on nothing else.
        """

    @abc.abstractmethod
    def flops_per_character(self) -> float:
        """Return the floating-point operations that the scores at one place take."""

    def logits(self, idx: Tensor) -> Tensor:
        """Return the scores at every place: (B, T) to (B, T, V)."""
        return self.scores(idx, torch.ones_like(idx, dtype=torch.bool)).view(*idx.shape, -1)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per character; targets of -100 do not count."""
        keep = targets != IGNORED
        return F.cross_entropy(self.scores(idx, keep), targets[keep])

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return `loss(idx, targets)`: what the trainer calls."""
        return self.loss(idx, targets)

"""A bag of words: the mean of what has been read so far (makemore.py's `BoW`, by Karpathy).

The simplest way to use all of the past: add up the vectors of all characters up to here, and divide
by their number. It is attention that looks at every place alike (Vaswani et al., 2017, with all
scores equal), and it is what a deep averaging network does to a sentence (Iyyer et al., 2015).

    place      .     e        m          m            a
    mean of    .    .,e     .,e,m     .,e,m,m     .,e,m,m,a     then a small network on each

Shapes: B batch, T time, C = n_embd channels, N places whose scores are wanted, V = vocab_size.

The sum at a place is the sum at the place before and one vector more, so one running sum gives
all means in T steps; the product of a (T, T) matrix of weights with (T, C) vectors takes T^2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.model import CharacterModel
from makemore.noising import blank


@dataclass(frozen=True, kw_only=True)
class BowConfig:
    """The shape of a bag of words; the defaults are those of makemore.py."""

    vocab_size: int = 27
    """Characters and the boundary."""
    block_size: int = 32
    """Places of the longest item, its beginning included: each has a learned vector."""
    n_embd: int = 64
    """Numbers that stand for a character."""
    n_hidden: int = 64
    """Units of the hidden layer."""
    dropout: float = 0.0
    """Share of the hidden units zeroed in training (0 to 1)."""
    noise: float = 0.0
    """Share of characters read as a blank in training (0 to 1; see `noising`)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_embd", "n_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("dropout", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 0 and below 1; try 0.1"
                )


class Bow(CharacterModel):
    """The mean of all embeddings so far plus the last one, then a residual hidden layer."""

    def __init__(self, config: BowConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        has_blank = config.noise > 0
        self.embed = nn.Embedding(config.vocab_size + has_blank, config.n_embd)
        self.position_embed = nn.Parameter(torch.randn(config.block_size, config.n_embd))
        self.hidden = nn.Linear(config.n_embd, config.n_hidden)
        self.hidden_out = nn.Linear(config.n_hidden, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)
        nn.init.normal_(self.head.weight, std=0.01)  # the first guess is nearly uniform
        nn.init.zeros_(self.head.bias)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the scores (N, V); raises `ValueError` for items longer than `block_size`."""
        c, (_, T) = self.config, idx.shape
        if c.block_size < T:
            raise ValueError(
                f"an item of {T} places is longer than block_size={c.block_size}; train with "
                f"block_size={T}"
            )
        if self.training and c.noise:
            first = torch.arange(T, device=idx.device) == 0
            idx = blank(idx, c.noise, c.vocab_size, first)
        x = self.embed(idx) + self.position_embed[:T]  # (B, T, C)
        count = torch.arange(1, T + 1, device=idx.device)[:, None]
        x = (x + x.cumsum(1) / count)[keep]  # (N, C)
        h = F.dropout(self.hidden(x).tanh(), c.dropout, self.training)
        scores: Tensor = self.head(x + self.hidden_out(h))
        return scores

    def flops_per_character(self) -> float:
        """Count two a weight of the three layers; the running sum is left out: it takes C."""
        c = self.config
        return 2.0 * c.n_embd * (2 * c.n_hidden + c.vocab_size)

r"""A tree of merges over the last characters, computed as dilated convolutions.

An MLP squeezes all its context through one layer at once. WaveNet (van den Oord et al., 2016, sec.
2.1) merges it slowly, two neighbours at a time, as Karpathy's makemore part 5 (WaveNet) draws it:

    level 3                       x                  a score for the next character
                          /               \
    level 2               x               x          four characters each
                      /       \       /       \
    level 1           x       x       x       x      two characters each
                     / \     / \     / \     / \
    ids              .   .   .   e   m   m   a   .   the last 8 = block_size

Two places further on stands another tree, and three of its four nodes on level 1 are the same. So
each node is computed once, for all trees that it is part of: on level l, a place t merges the nodes
of level l - 1 at t - 2^(l-1) and at t, which is a convolution of width 2 and dilation 2^(l-1) (the
paper's fig. 3). That is log2(block_size) merges a place instead of block_size - 1.

Before an item stand boundaries only, and its first place is one as well: its nodes are those of any
place further left, and serve for them. So nothing is computed but the N places that count.

Shapes: N places whose scores are wanted, C = n_embd numbers a character, H = n_hidden, V =
vocab_size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.mlp import BatchNorm1d
from makemore.model import CharacterModel
from makemore.noising import blank

NormName = Literal["batch", "layer", "none"]


@dataclass(frozen=True, kw_only=True)
class WaveNetConfig:
    """The shape of a `WaveNet`; the defaults are those of part 5."""

    vocab_size: int = 27
    """Characters and the boundary."""
    block_size: int = 8
    """Characters of context: 2, 4, 8, 16, ..."""
    n_embd: int = 24
    """Numbers that stand for a character."""
    n_hidden: int = 128
    """Numbers of a node of the tree."""
    norm: NormName = "batch"
    """What goes into each activation is normalised over the batch, over the node, or not."""
    gated: bool = False
    """tanh(a) * sigmoid(b) instead of tanh(a) (van den Oord et al., 2016, eq. 2)."""
    residual: bool = False
    """From level 2 on, add a node's right child to it (sec. 2.4)."""
    dropout: float = 0.0
    """Share of a node's numbers zeroed in training (0 to 1)."""
    noise: float = 0.0
    """Share of characters read as a blank in training (0 to 1; see `noising`)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_embd", "n_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        size = self.block_size
        if size < 2 or size & (size - 1):
            power = 1 << max(1, size.bit_length())
            raise ValueError(f"block_size={size} must be a power of 2, from 2 on; try {power}")
        for name in ("dropout", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 0 and below 1; try 0.1"
                )
        if self.norm not in ("batch", "layer", "none"):
            raise ValueError(f"norm={self.norm!r} must be 'batch', 'layer' or 'none'")

    @property
    def n_level(self) -> int:
        """Levels of merges: log2(block_size)."""
        return self.block_size.bit_length() - 1


class Merge(nn.Module):
    """One level: two children to a node."""

    def __init__(self, n_in: int, config: WaveNetConfig) -> None:
        super().__init__()
        self.gated, self.dropout = config.gated, config.dropout
        self.residual = config.residual and n_in == config.n_hidden
        width = config.n_hidden * (1 + config.gated)
        # A norm's own shift stands in for the linear layer's bias.
        self.linear = nn.Linear(2 * n_in, width, bias=config.norm == "none")
        gain = 5 / 3 if not config.gated else 1.0
        nn.init.normal_(self.linear.weight, std=gain / (2 * n_in) ** 0.5)
        norms = {"batch": BatchNorm1d, "layer": nn.LayerNorm}
        self.norm = norms[config.norm](width) if config.norm != "none" else nn.Identity()

    def forward(self, children: Tensor) -> Tensor:
        """Map (N, 2, n_in), left and right child, to (N, H)."""
        x = self.norm(self.linear(children.flatten(1)))
        if self.gated:
            a, b = x.chunk(2, 1)
            x = a.tanh() * b.sigmoid()
        else:
            x = x.tanh()
        x = F.dropout(x, self.dropout, self.training)
        return x + children[:, 1] if self.residual else x


class WaveNet(CharacterModel):
    """Embeddings, merged two by two until one node holds `block_size` characters.

    With batch norm, mean and variance in training are those of the N places of a level: every node
    counts once, however many trees share it. (In part 5's version a node counts once a tree.)
    """

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        has_blank = config.noise > 0
        self.embed = nn.Embedding(config.vocab_size + has_blank, config.n_embd)
        widths = [config.n_embd] + [config.n_hidden] * (config.n_level - 1)
        self.merges = nn.ModuleList(Merge(width, config) for width in widths)
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the scores (N, V) of what follows the places in `keep`."""
        time = keep.nonzero()[:, 1]  # (N,) in its item
        ids = idx[keep]
        if self.training and self.config.noise:
            ids = blank(ids, self.config.noise, self.vocab_size, time == 0)
        x, row = self.embed(ids), torch.arange(len(ids), device=idx.device)  # (N, C)
        for level, merge in enumerate(self.merges):
            left = row - time.clamp(max=1 << level)  # or the item's first place: see above
            both = torch.stack([left, row], 1).flatten()
            x = merge(x.index_select(0, both).view(len(ids), 2, x.size(1)))
        scores: Tensor = self.head(x)
        return scores

    def flops_per_character(self) -> float:
        """Count two a weight: one node of each level a place, and the scores."""
        c = self.config
        width = c.n_hidden * (1 + c.gated)
        merges = 2 * c.n_embd * width + (c.n_level - 1) * 2 * c.n_hidden * width
        return 2.0 * (merges + c.n_hidden * c.vocab_size)

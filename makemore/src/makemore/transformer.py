"""A decoder-only transformer (Vaswani et al., 2017; pre-norm as in GPT-2, Radford et al., 2019).

Every place of an item asks the places before it for what it needs (attention), then works on what
it was told (feed-forward); both add to a stream that runs from the embedding to the scores.

Shapes: B batch, T time, C = n_embd channels, H = n_head heads, D = C // H per head, L = n_layer,
V = vocab_size, N the places that count, U the distinct prefixes that end there.

All but the attention works on each place alone, so it runs on the N rows that count and never sees
the padding ("unpadding": Warner et al., 2024, ModernBERT, sec. 2.1.2). In training, places with the
same prefix even share one row: see `prefixes`. Attention needs the items side by side, so rows are
laid out as a rectangle for it, and only there:

    rows  . e m m a . a v a          time 0   .  .        what stands past an item's end does not
          | | | | |                       1   e  a        matter: no place looks ahead, and nobody
          +-+-+-+-+--- item 0             2   m  v        reads what it says
                                          3   m  a
                                          4   a
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.model import CharacterModel
from makemore.noising import blank
from makemore.prefixes import distinct_prefixes

ROTARY_BASE = 100.0  # the slowest pair turns once in about 350 characters; Su et al. have 10,000
# The rectangle's time goes up to a multiple of this. Softmax works on 16 numbers at a time (an
# AVX-512 register): rows of 13 take it longer than rows of 16.
LANES = 16


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a `Transformer`; the defaults are those of makemore.py, 0.2M parameters."""

    vocab_size: int = 27
    """Characters and the boundary."""
    block_size: int = 32
    """Places of the longest item, its beginning included; no limit with rotary positions."""
    n_layer: int = 4
    """Blocks, one after the other."""
    n_head: int = 4
    """Attention heads per block; must divide n_embd."""
    n_embd: int = 64
    """Channels of the residual stream."""
    positions: Literal["learned", "rotary"] = "learned"
    """A learned vector per place, or queries and keys turned by their place (Su et al., 2021)."""
    qk_norm: bool = False
    """Normalise queries and keys per head, so that no score grows large (Dehghani et al., 2023)."""
    activation: Literal["gelu", "relu2"] = "gelu"
    """Of the feed-forward layer; relu2 is relu squared (So et al., 2021)."""
    residual_init: Literal["gpt2", "zero"] = "gpt2"
    """First weights: `gpt2` draws all with 0.02 and what writes into the stream with
    0.02 / sqrt(2 n_layer); `zero` has every block add nothing at first."""
    dropout: float = 0.0
    """Share zeroed in training of what a branch adds to the stream (0 to 1)."""
    embed_dropout: float = 0.0
    """Share zeroed in training of the embedding (0 to 1)."""
    attention_dropout: float = 0.0
    """Share of the attention's weights zeroed in training (0 to 1)."""
    share_prefixes: bool = True
    """In training, compute a prefix that several items share once, dropout included."""
    noise: float = 0.0
    """Share of characters read as a blank in training (0 to 1; see `noising`)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            low = self.n_embd // self.n_head * self.n_head
            remedy = f"{low} or {low + self.n_head}" if low else str(self.n_head)
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}; try {remedy}"
            )
        for name in ("dropout", "embed_dropout", "attention_dropout", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 0 and below 1; try 0.1"
                )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(known)}")
        if self.positions == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"n_embd={self.n_embd} gives n_head={self.n_head} heads an odd number of channels, "
                f"and rotary positions turn pairs; try n_embd={self.n_embd + self.n_head}"
            )


_CHOICES = {
    "positions": ("learned", "rotary"),
    "activation": ("gelu", "relu2"),
    "residual_init": ("gpt2", "zero"),
}


@dataclass(frozen=True)
class Layout:
    """Where the U rows stand in attention's rectangle of T x B places; one serves all blocks."""

    shape: tuple[int, int]
    """(T, B), T a multiple of `LANES`."""
    places: Tensor
    """(U,): t * B + b for a row at place t of item b."""
    rows: Tensor
    """(T * B,): the row of each place; 0, or any other, past an item's end."""
    mask: Tensor
    """(T, T): what is added to the score of query t and key s: 0, or -inf where s > t."""

    @classmethod
    def of(cls, first: Tensor, row: Tensor, like: Tensor) -> "Layout":
        """Lay out what `distinct_prefixes` found, with a mask of the type of `like`."""
        B, T = row.shape
        time = -(-T // LANES) * LANES
        mask = like.new_full((time, time), -torch.inf).triu(1)
        rows = F.pad(row, (0, time - T)).T.flatten()
        return cls((time, B), first % T * B + first // T, rows, mask)

    def spread(self, x: Tensor, n_head: int) -> Tensor:
        """Lay rows (U, C) out as (B * H, T, D)."""
        (T, B), D = self.shape, x.size(1) // n_head
        return x.index_select(0, self.rows).view(T, B * n_head, D).transpose(0, 1)

    def collect(self, y: Tensor) -> Tensor:
        """Return the rows (U, C) of what `spread` laid out, the heads side by side again."""
        T, B = self.shape
        return y.transpose(0, 1).reshape(T * B, -1).index_select(0, self.places)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Mix the values by how well their keys answer a query (Vaswani et al., 2017, eq. 1).

    q, k, v and the result are (B * H, T, D); `mask` (T, T) is added to the scores. A share
    `dropout` of the weights is zeroed.
    """
    # A sum of D products spreads like sqrt(D); undo that, or the softmax saturates.
    att = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.size(-1)))
    return F.dropout(att.softmax(-1), dropout) @ v


def rotation(t: Tensor, n_dim: int) -> Tensor:
    """Return how far each pair of channels is turned at places t: (U,) to complex (U, 1, D / 2).

    Pair i turns by base^(-2i / n_dim) radians a place (Su et al., 2021, sec. 3.2.2), so that the
    angle between a query and a key tells their distance. The type is that of t, which is real.
    """
    speed = ROTARY_BASE ** (-torch.arange(0, n_dim, 2, device=t.device, dtype=t.dtype) / n_dim)
    angle = t[:, None, None] * speed
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn channels (2i, 2i + 1) of x (U, heads, D) as one complex number by `turn`."""
    pairs = torch.view_as_complex(x.to(turn.real.dtype).reshape(*x.shape[:2], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(2).to(x.dtype)  # bf16 cannot be complex


class Attention(nn.Module):
    """Multi-head attention in which place t sees places 0 to t (Vaswani et al., 2017, sec. 3.2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_head, self.qk_norm = config.n_head, config.qk_norm
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)  # all in one product
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, layout: Layout, turn: Tensor | None) -> Tensor:
        """Map rows (U, C) to rows (U, C); `turn` is their rotation, if positions are rotary."""
        q, k, v = self.qkv(x).chunk(3, dim=1)
        if self.qk_norm or turn is not None:
            heads = torch.cat([q, k], 1).view(len(x), 2 * self.n_head, -1)  # (U, 2 H, D)
            if self.qk_norm:
                heads = F.layer_norm(heads, heads.shape[2:])
            if turn is not None:
                heads = rotate(heads, turn)
            q, k = heads.flatten(1).chunk(2, dim=1)
        q, k, v = (layout.spread(z, self.n_head) for z in (q, k, v))
        y = attention(q, k, v, layout.mask, self.dropout if self.training else 0.0)
        result: Tensor = self.out(layout.collect(y))
        return result


class FeedForward(nn.Module):
    """Two layers on each place alone, four times as wide in between (sec. 3.3)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.hidden = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.out = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (U, C) to rows (U, C)."""
        h = self.hidden(x)
        # gelu by erf: on a CPU its formula with tanh, which GPT-2 has, takes three times as long.
        h = F.gelu(h) if self.activation == "gelu" else F.relu(h).square()
        result: Tensor = self.out(h)
        return result


class Block(nn.Module):
    """Attention, then feed-forward, each adding to the stream what it finds."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=False)
        self.attention = Attention(config)
        self.feed_norm = nn.LayerNorm(config.n_embd, bias=False)
        self.feed = FeedForward(config)

    def forward(self, x: Tensor, layout: Layout, turn: Tensor | None) -> Tensor:
        """Map rows (U, C) to rows (U, C)."""
        found = self.attention(self.attention_norm(x), layout, turn)
        x = x + F.dropout(found, self.dropout, self.training)
        return x + F.dropout(self.feed(self.feed_norm(x)), self.dropout, self.training)


class Transformer(CharacterModel):
    """A stack of blocks between an embedding and a layer that scores the next character."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        rotary = config.positions == "rotary"
        self.block_size = 0 if rotary else config.block_size
        self.embed = nn.Embedding(config.vocab_size + (config.noise > 0), config.n_embd)
        self.position_embed = None if rotary else nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw the first weights: see `TransformerConfig.residual_init`.

        With `zero`, a character's vector is drawn with 1 and a place's with 0.1, as who it is
        matters more than where; other matrices keep the spread of what they read, and all
        characters are as likely at first.
        """
        gpt2 = self.config.residual_init == "gpt2"
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                continue  # norms start at 1
            std = 0.02 if gpt2 else 1 / math.sqrt(parameter.size(1))
            if name.endswith("out.weight"):
                std = std / math.sqrt(2 * self.config.n_layer) if gpt2 else 0.0
            elif not gpt2:
                std = {"embed": 1.0, "position_embed": 0.1, "head": 0.0}.get(
                    name.removesuffix(".weight"), std
                )
            parameter.normal_(std=std)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the scores (N, V); raises `ValueError` for items longer than `block_size`."""
        if 0 < self.block_size < idx.size(1):
            raise ValueError(
                f"an item of {idx.size(1)} places is longer than block_size={self.block_size}; "
                f"train with block_size={idx.size(1)}, or with positions='rotary', without a limit"
            )
        c = self.config
        if self.training and c.noise:
            begins = torch.arange(idx.size(1), device=idx.device) == 0
            idx = blank(idx, c.noise, c.vocab_size, begins)
        first, row = self._rows(idx, keep)
        if not len(first):  # a rectangle without rows has nothing to be filled with
            return self.head.weight.new_empty(0, self.vocab_size)
        ids, t = idx.flatten()[first], first % idx.size(1)  # (U,) and the time in the item
        x = self.embed(ids)  # (U, C)
        turn = None
        if self.position_embed is None:
            turn = rotation(t.to(x.dtype), c.n_embd // c.n_head)
        else:
            x = x + self.position_embed(t)
        x = F.dropout(x, c.embed_dropout, self.training)
        layout = Layout.of(first, row, x)
        for block in self.blocks:
            x = block(x, layout, turn)
        result: Tensor = self.head(self.norm(x)).index_select(0, row[keep])
        return result

    def _rows(self, idx: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the rows to compute; returns what `distinct_prefixes` does.

        In evaluation every place has its own row, so that the same item among others gets the
        same score to the last bit: the order of sums in a product depends on the number of rows.
        """
        if self.training and self.config.share_prefixes:
            return distinct_prefixes(idx, keep)
        first = keep.flatten().nonzero()[:, 0]
        return first, (keep.flatten().cumsum(0) - 1).view(keep.shape).clamp(min=0)

    def flops_per_character(self) -> float:
        """Count two a weight, and attention to half of a block: products with keys and values."""
        C, L = self.config.n_embd, self.config.n_layer
        weights = 12 * C * C * L + C * self.vocab_size
        return 2.0 * (weights + 2 * C * L * self.config.block_size / 2)

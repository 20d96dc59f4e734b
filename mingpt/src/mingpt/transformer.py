"""The encoder-decoder of "Attention Is All You Need" (Vaswani et al., 2017, figure 1).

The encoder reads the whole source at once. The decoder writes the target a token at a time; for
each it looks at what it has written (masked self-attention) and at what the encoder made of the
source (cross-attention). Source, target and output share one embedding (sec. 3.4), so that there
is one vocabulary.

What padding and the future can change, and tests hold: what lies under a mask changes no bit; the
shape of the arrays may change the order of sums, so with more or less padding the results agree to
float32 rounding (about 1e-6 of the logits), and the texts found are the same.

Shapes: B batch, S source time, T target time, C = n_embd, V vocabulary, K beam.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mingpt.layers import (
    Activation,
    Attention,
    Dropout,
    Embedding,
    FeedForward,
    KeyValueCache,
    LayerNorm,
    LearnedPositions,
    MultiHeadAttention,
    SinusoidalPositions,
    causal_mask,
    cross_entropy,
)
from shared.errors import NumericalError

PAD, START, END = 0, 1, 2  # ids that are no text: after the end, before the first, the end itself
N_SPECIAL = 3


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of an encoder-decoder; raises ValueError for what cannot work."""

    vocab_size: int = 29
    """Tokens of source and target together, with padding (0), start (1) and end (2)."""
    block_size: int = 32
    """Places of the longest source or target."""
    n_layer: int = 2
    """Layers of the encoder, and as many of the decoder; the paper's N = 6."""
    n_head: int = 4
    """Attention heads; the paper's h = 8."""
    n_embd: int = 128
    """Channels; the paper's d_model = 512."""
    n_hidden: int = 0
    """Hidden numbers of a feed-forward layer, the paper's d_ff; 0: four times n_embd, as there."""
    dropout: float = 0.0
    """Share zeroed of embeddings and of what each sublayer returns; the paper's 0.1 (sec. 5.4)."""
    label_smoothing: float = 0.0
    """Share of each target spread over all tokens in training; the paper's 0.1 (sec. 5.4)."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """How places are told apart (sec. 3.5)."""
    norm_place: Literal["post", "pre"] = "post"
    """post: LayerNorm(x + Sublayer(x)), the paper's (sec. 3.1); pre: x + Sublayer(LayerNorm(x)),
    today's (Xiong et al., 2020)."""
    activation: Activation = "relu"
    """What bends a feed-forward layer; the paper's is relu (eq. 2)."""
    attention: Attention = "lesson"
    """lesson: equation 1 as it is written; fused: PyTorch's kernel."""

    def __post_init__(self) -> None:
        if self.vocab_size <= N_SPECIAL:
            raise ValueError(
                f"vocab_size={self.vocab_size} must be above {N_SPECIAL}: the first {N_SPECIAL} "
                "ids are padding, start and end"
            )
        for name in ("block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            low = max(self.n_embd // self.n_head, 1) * self.n_head
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}; try {low}"
            )
        if self.n_hidden < 0:
            raise ValueError(f"n_hidden={self.n_hidden} must be at least 0; 0 is 4 x n_embd")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")


# ---- the layers of figure 1


class Residual(nn.Module):
    """LayerNorm(x + Dropout(Sublayer(x))), around every sublayer (sec. 3.1 and 5.4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm_place == "pre"
        self.norm = LayerNorm(config.n_embd)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        y: Tensor
        if self.pre:
            y = x + self.drop(sublayer(self.norm(x)))
        else:
            y = self.norm(x + self.drop(sublayer(x)))
        return y


def attention_of(config: TransformerConfig) -> MultiHeadAttention:
    """Return multi-head attention of the configured shape (sec. 3.2.2)."""
    return MultiHeadAttention(config.n_embd, config.n_head, attention=config.attention)


def feed_forward_of(config: TransformerConfig) -> FeedForward:
    """Return a position-wise feed-forward layer of the configured shape (sec. 3.3)."""
    return FeedForward(config.n_embd, config.n_hidden or None, activation=config.activation)


class EncoderLayer(nn.Module):
    """Self-attention over the source, then the feed-forward layer (sec. 3.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention_of(config), feed_forward_of(config)
        self.around_attention, self.around_feed_forward = Residual(config), Residual(config)

    def forward(self, x: Tensor, source_mask: Tensor) -> Tensor:
        """Map (B, S, C) to (B, S, C); `source_mask` (B, 1, 1, S) is False at padding."""
        x = self.around_attention(x, lambda y: self.attention(y, mask=source_mask))
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


class LayerCache:
    """Keys and values that a decoder layer need not compute again.

    Those of the target grow by a position a step; those of the memory come with the first step.
    """

    def __init__(self) -> None:
        self.target, self.memory = KeyValueCache(), KeyValueCache()


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder's output, feed-forward (sec. 3.1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention, self.cross_attention = attention_of(config), attention_of(config)
        self.feed_forward = feed_forward_of(config)
        self.around_attention, self.around_cross = Residual(config), Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(
        self,
        x: Tensor,
        target_mask: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C), with `memory` (B, S, C) from the encoder.

        Masks are True where a query may look: `target_mask` (T, T), `source_mask` (B, 1, 1, S).
        """
        held = (cache.target, cache.memory) if cache else (None, None)
        x = self.around_attention(x, lambda y: self.attention(y, mask=target_mask, cache=held[0]))
        x = self.around_cross(
            x, lambda y: self.cross_attention(y, memory, source_mask, cache=held[1])
        )
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


# ---- the model


@dataclass
class Decoding:
    """Where a batch of sentences stands while it is being written."""

    memory: Tensor
    """(B, S, C) from the encoder."""
    source_mask: Tensor
    """(B, 1, 1, S)."""
    caches: list[LayerCache]
    """One a decoder layer."""
    length: int = 0
    """Tokens read so far."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        self.memory = self.memory.index_select(0, rows)
        self.source_mask = self.source_mask.index_select(0, rows)
        for cache in self.caches:
            cache.target.select(rows)
            cache.memory.select(rows)


class Transformer(nn.Module):
    """The model of figure 1: token ids in, logits of the next target token out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        kind = SinusoidalPositions if config.positions == "sinusoidal" else LearnedPositions
        self.wte = Embedding(config.vocab_size, config.n_embd, scaled=True)
        self.wpe = kind(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layer))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_layer))
        # Post-norm layers end in a norm; with pre-norm nothing else would bound the two sums.
        pre = config.norm_place == "pre"
        self.encoder_norm = LayerNorm(config.n_embd) if pre else nn.Identity()
        self.decoder_norm = LayerNorm(config.n_embd) if pre else nn.Identity()

    @property
    def block_size(self) -> int:
        """Places of the longest source or target."""
        return self.config.block_size

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Map source (B, S) and target_in (B, T) to the logits of the next tokens (B, T, V).

        Position t of the result has seen the source and target_in up to t. Source ids of 0 are
        padding and are not looked at. Raises ValueError beyond `block_size`.
        """
        return self.decode(target_in, self.encode(source), source_mask(source))

    def encode(self, source: Tensor) -> Tensor:
        """Read source ids (B, S) into what the decoder looks at, (B, S, C)."""
        x, mask = self.embed(source), source_mask(source)
        for layer in self.encoder:
            x = layer(x, mask)
        y: Tensor = self.encoder_norm(x)
        return y

    def decode(self, target_in: Tensor, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Return logits (B, T, V) after each of target_in (B, T), given memory (B, S, C)."""
        T = target_in.size(1)
        return self._decode(self.embed(target_in), causal_mask(T, T), memory, source_mask)

    def start(self, source: Tensor) -> Decoding:
        """Encode a source (B, S) and return the state that `next_logits` goes on from."""
        caches = [LayerCache() for _ in self.decoder]
        return Decoding(self.encode(source), source_mask(source), caches)

    def next_logits(self, tokens: Tensor, state: Decoding) -> Tensor:
        """Read one more token a row, (B,); return the logits (B, V) of what follows.

        Only this token is computed: the rest is in `state`, which is brought up to date.
        """
        x = self.embed(tokens[:, None], state.length)
        state.length += 1
        mask = causal_mask(1, state.length)
        return self._decode(x, mask, state.memory, state.source_mask, state.caches)[:, 0]

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """Add embeddings and positions, from place `start` on: (B, T) to (B, T, C)."""
        x: Tensor = self.drop(self.wte(idx) + self.wpe(idx.size(1), start))
        return x

    def _decode(
        self,
        x: Tensor,
        target_mask: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        caches: list[LayerCache] | None = None,
    ) -> Tensor:
        """Run the decoder's stack on (B, T, C) and return logits (B, T, V)."""
        target_mask = target_mask.to(x.device)
        for number, layer in enumerate(self.decoder):
            cache = caches[number] if caches else None
            x = layer(x, target_mask, memory, source_mask, cache)
        return self.wte.logits(self.decoder_norm(x))


def source_mask(source: Tensor) -> Tensor:
    """Let queries look at all of source (B, S) but its padding: (B, 1, 1, S) booleans."""
    return (source != PAD)[:, None, None]


def loss(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of a batch in nats per token, targets of -100 ignored.

    The batch is source (B, S), target_in (B, T) and targets (B, T). Labels are smoothed in
    training only (sec. 5.4), so that evaluations with and without compare.
    """
    source, target_in, targets = batch
    smoothing = getattr(module, "config", TransformerConfig()).label_smoothing
    logits = module(source, target_in)
    return cross_entropy(logits, targets, smoothing if module.training else 0.0)


# ---- search: from logits to a text


@torch.no_grad()
def greedy(model: Transformer, source: Tensor, max_length: int = 0) -> Tensor:
    """Take the likeliest token, again and again: source (B, S) to ids (B, L).

    A row is its tokens, `END` and padding; one that does not end within `max_length` tokens (0:
    block_size) has no `END`. Padding and start are never said. Raises NumericalError for logits
    that are not numbers, ValueError for a bad `max_length`.
    """
    steps = check_length(model, max_length)
    state = model.start(source)
    token = torch.full_like(source[:, 0], START)
    ended = torch.zeros_like(token, dtype=torch.bool)
    found: list[Tensor] = []
    while len(found) < steps and not ended.all():
        token = log_probabilities(model, token, state).argmax(-1)
        found.append(token.masked_fill(ended, PAD))
        ended |= token == END
    return torch.stack(found, dim=1)


@torch.no_grad()
def beam_search(
    model: Transformer,
    source: Tensor,
    *,
    beam: int = 4,
    alpha: float = 0.6,
    max_length: int = 0,
) -> tuple[Tensor, Tensor]:
    """Look for the best whole text among those that begin well: source (B, S) to (ids, scores).

    `beam` beginnings are kept a step, the likeliest of all ways to go on with those of the last.
    One that ends leaves its place empty and competes by its score, log p(Y) / lp(Y) with
    lp(Y) = ((5 + |Y|) / 6)^alpha, where |Y| counts `END` (Wu et al., 2016, eq. 14): a sum of logs
    alone would favour short texts. The paper takes beam 4 and alpha 0.6 (sec. 6.1). A beam of 1 is
    `greedy`; one as wide as there are beginnings finds the best text there is.

    ids (B, L) are as from `greedy`; scores are (B,). A text without end is returned only where
    none ended. Raises what `greedy` raises, ValueError for a beam below 1 or an alpha below 0.
    """
    steps = check_length(model, max_length)
    if beam < 1 or not 0.0 <= alpha < math.inf:
        raise ValueError(f"beam={beam} must be at least 1, alpha={alpha} at least 0")
    B, V = source.size(0), model.config.vocab_size
    first = torch.arange(B, device=source.device)[:, None] * beam  # (B, 1): row of the first place
    state = model.start(source)
    state.select(torch.arange(B, device=source.device).repeat_interleave(beam))
    ids = torch.full((B * beam, 1), START, device=source.device)
    # All places begin alike; that they do not go on alike either, only the first one counts.
    scores = torch.full((B, beam), -math.inf, device=source.device)
    scores[:, 0] = 0.0
    best = torch.full((B,), -math.inf, device=source.device)
    found = torch.full((B, steps), PAD, device=source.device)
    for length in range(1, steps + 1):
        more = log_probabilities(model, ids[:, -1], state).view(B, beam, V)
        scores, place = (scores[..., None] + more).flatten(1).topk(beam)  # of (B, K * V): (B, K)
        rows = (first + place // V).flatten()
        state.select(rows)
        ids = torch.cat([ids[rows], (place % V).view(-1, 1)], dim=1)  # (B * K, 1 + length)
        ended = place % V == END  # (B, K)
        done = (scores / length_penalty(length, alpha)).masked_fill(~ended, -math.inf)
        if length == steps:  # what has not ended by now, where there is nothing better
            nothing = torch.isinf(torch.maximum(best, done.amax(-1)))[:, None]
            done = torch.where(nothing, scores / length_penalty(length, alpha), done)
        top, winner = done.max(-1)  # (B,)
        better = top > best
        best = torch.where(better, top, best)
        text = torch.nn.functional.pad(ids[first[:, 0] + winner, 1:], (0, steps - length))
        found = torch.where(better[:, None], text, found)
        scores = scores.masked_fill(ended, -math.inf)
        # A beginning only loses by going on, and is divided by the last penalty at most.
        if bool((best >= scores.amax(-1) / length_penalty(steps, alpha)).all()):
            break
    return found, best


def length_penalty(length: int, alpha: float) -> float:
    """Return lp(Y) = ((5 + |Y|) / (5 + 1))^alpha of Wu et al. (2016), eq. 14."""
    return float(((5 + length) / 6) ** alpha)


def log_probabilities(model: Transformer, tokens: Tensor, state: Decoding) -> Tensor:
    """Read a token a row, (B,); return log p of what may follow, (B, V).

    Neither padding nor start may. Raises NumericalError for logits that are not finite.
    """
    logits = model.next_logits(tokens, state).float()
    if not bool(logits.isfinite().all()):
        raise NumericalError("the model gave logits that are not finite; its weights are broken")
    logits[:, [PAD, START]] = -math.inf
    logits = logits - logits.amax(-1, keepdim=True)
    return logits - logits.exp().sum(-1, keepdim=True).log()


def check_length(model: Transformer, max_length: int) -> int:
    """Return the tokens to write at most; raises ValueError for more than the model has places."""
    if not 0 <= max_length <= model.block_size:
        raise ValueError(
            f"max_length={max_length} must be at most block_size={model.block_size}, which 0 means"
        )
    return max_length or model.block_size

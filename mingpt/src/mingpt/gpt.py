"""A decoder-only language model: the paper's decoder without the encoder, and what came after.

Vaswani et al. (2017) for the decoder, Radford et al. (2018) for leaving the encoder away. What
came later is an option each; `mingpt.ablate` measures what each is worth:

    positions="rotary"   turn queries and keys by their place (Su et al., 2021)
    norm="plain"         layer norm without gain and bias (Xu et al., 2019)
    norm_place="pre"     normalise what a sub-layer reads (Xiong et al., 2020)
    qk_norm              normalise queries and keys, head by head (Henry et al., 2020; here by layer
                         norm without gain, and sqrt(d_k) stays)
    activation="relu2"   squared ReLU, and
    conv                 a short causal convolution of each channel (both So et al., 2021, "Primer";
                         there after the projections, here before each sub-layer)
    zero_init            sub-layers begin by adding nothing (Zhang et al., 2019, "Fixup")
    softcap              bound the logits by a tanh (Gemma Team, 2024, sec. 2)

Shapes: B batch, T time (queries), S time (keys), C = n_embd, H = n_head, D = d_k numbers per head,
L = n_layer, K = conv taps, V = vocab_size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mingpt import kernels, layers
from mingpt.layers import Activation, Attention, KeyValueCache, causal_mask
from mingpt.model import IGNORED

Positions = Literal["learned", "sinusoidal", "rotary", "none"]
NormKind = Literal["layer", "plain"]
NormPlace = Literal["pre", "post"]
ROTARY_BASE = 1024.0  # slowest wave length 2 pi 1024: windows here are a few hundred characters


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a `GPT`."""

    vocab_size: int = 65
    """Characters it knows."""
    block_size: int = 256
    """Characters of context, at most."""
    n_layer: int = 4
    """Blocks of attention and feed-forward."""
    n_head: int = 2
    """Attention heads per block."""
    n_embd: int = 128
    """Width of the residual stream."""
    d_k: int = 0
    """Numbers per head in queries and keys; 0 is n_embd / n_head, which values always have."""
    n_hidden: int = 0
    """Width of the feed-forward layer; 0 is 4 n_embd."""
    dropout: float = 0.0
    """Share of numbers zeroed in training: of embeddings, and of what sub-layers return."""
    positions: Positions = "learned"
    """How the model knows places: learned or sinusoidal vectors, rotary, or none."""
    scaled: bool = False
    """Multiply embeddings by sqrt(n_embd), as the paper does (sec. 3.4)."""
    norm: NormKind = "layer"
    """Layer norm with gain and bias (layer), or without them (plain)."""
    norm_place: NormPlace = "pre"
    """Normalise what a sub-layer reads (pre), or the sum that it adds to, as the paper (post)."""
    embed_norm: bool = False
    """Normalise the embeddings too."""
    qk_norm: bool = False
    """Normalise queries and keys, without gain."""
    activation: Activation = "gelu"
    """What bends the feed-forward layer: relu, gelu or relu2."""
    conv: int = 0
    """Taps of the causal convolution of each channel before each sub-layer; 0 is none."""
    zero_init: bool = False
    """Start what writes into the residual stream, and an untied head, at zero."""
    tied: bool = True
    """Score characters by the vectors that embed them."""
    bias: bool = True
    """Add a vector after each matrix."""
    softcap: float = 0.0
    """Bound of the logits, by a tanh; 0 is none."""
    label_smoothing: float = 0.0
    """Share of the target's probability spread over all characters in training."""
    init_std: float = 0.02
    """Deviation of weights at the start; 0: 1 for embeddings, 0.85 / sqrt(inputs) for matrices."""
    attention: Attention = "fused"
    """lesson: attention, norms and loss as layers.py spells them out; fused: torch's kernels."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("d_k", "n_hidden", "conv", "softcap", "init_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and finite")
        if self.n_embd % self.n_head:
            low = max(self.n_embd // self.n_head, 1) * self.n_head
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}; try {low}"
            )
        if self.positions == "rotary" and self.head_width % 4:
            raise ValueError(
                f"rotary positions turn half of a head's pairs: its width {self.head_width} must "
                "be a multiple of 4; set --d-k"
            )
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}"
                )

    @property
    def head_width(self) -> int:
        """D, the numbers per head in queries and keys."""
        return self.d_k or self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_hidden or 4 * self.n_embd


CHOICES: dict[str, tuple[str, ...]] = {
    "positions": get_args(Positions),
    "norm": get_args(NormKind),
    "norm_place": get_args(NormPlace),
    "activation": get_args(Activation),
    "attention": get_args(Attention),
}


# Parts ---------------------------------------------------------------------------------------


class Linear(layers.Linear):
    """`layers.Linear`, begun as GPT-2 does: normal weights, of deviation `std`."""

    def __init__(self, n_in: int, n_out: int, config: GPTConfig) -> None:
        super().__init__(n_in, n_out, config.bias)
        # 0.85 / sqrt(inputs): from inputs of variance 1 outputs of variance 0.7.
        nn.init.normal_(self.weight, std=config.init_std or 0.85 / math.sqrt(n_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out): x W^T + b in one call, which autocast knows."""
        return F.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """Layer norm over the last dimension (Ba et al., 2016), plain or with gain and bias."""

    def __init__(self, width: int, config: GPTConfig, *, plain: bool = False) -> None:
        super().__init__()
        self.width, self.fused = width, config.attention == "fused"
        plain = plain or config.norm == "plain"
        self.weight = None if plain else nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias and not plain else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to the same, of mean 0 and variance 1."""
        if self.fused:
            return F.layer_norm(x, (self.width,), self.weight, self.bias)
        return layers.layer_norm(x, self.weight, self.bias)


class Positional(nn.Module):
    """Scale embeddings (sec. 3.4) and add a vector for each place (sec. 3.5), where asked to."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        T, C = config.block_size, config.n_embd
        self.places: nn.Module | None = None
        # So that a table begun small, as it scores characters too, is as large as the sines.
        self.scale = math.sqrt(C) if config.scaled else 1.0
        if config.positions == "sinusoidal":
            self.places = layers.SinusoidalPositions(T, C)
        elif config.positions == "learned":
            self.places = layers.LearnedPositions(T, C)
            nn.init.normal_(self.places.wpe, std=config.init_std or 0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Map embeddings (B, T, C), whose first is at place `start`, to the same."""
        x = x * self.scale if self.scale != 1.0 else x
        return x if self.places is None else x + self.places(x.size(1), start)


class Conv(nn.Module):
    """Mix each channel with its last K - 1 values before (So et al., 2021, "Primer").

    A character means little without its neighbours; this hands them over for K C products, so
    that attention need not spend a head on it. Starts as the identity.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # By its name it is AdamW's: its rows are taps, not directions (shared.optim, TOKEN_PARTS).
        self.conv_embed = nn.Parameter(torch.zeros(config.conv, config.n_embd))
        nn.init.ones_(self.conv_embed[0])

    def forward(self, x: Tensor, past: "Past | None" = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache, x continues what it holds."""
        if past is None:
            return kernels.causal_conv(x, self.conv_embed)
        T = x.size(1)
        return kernels.causal_conv(past.extend(x), self.conv_embed)[:, -T:]


class Rotary(nn.Module):
    """Turn queries and keys by angles that grow with their place (Su et al., 2021).

    The product of a query and a key then depends on their distance and not on their places. Unlike
    in the paper only half of a head's numbers turn, at speeds from 1 down to 1 / `ROTARY_BASE`
    radians a character; by the other half content is found wherever it is.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        speeds = ROTARY_BASE ** -torch.linspace(0, 1, config.head_width // 4)  # (P,)
        angles = torch.arange(config.block_size)[:, None, None] * speeds  # (block_size, 1, P)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Turn x (B, T, H, D), which begins at place `start`."""
        places = slice(start, start + x.size(1))
        return kernels.rotate(x, self.cos[places], self.sin[places])


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees 0..t (sec. 3.2.2 and 3.2.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C, H, D = config.n_embd, config.n_head, config.head_width
        self.n_head, self.d_k, self.fused = H, D, config.attention == "fused"
        self.qkv = Linear(C, 2 * H * D + C, config)  # queries, keys, values in one product
        self.out = Writer(C, C, config)
        self.qk_norm = Norm(D, config, plain=True) if config.qk_norm else None
        self.rotary = Rotary(config) if config.positions == "rotary" else None

    def forward(
        self,
        x: Tensor,
        cache: "LayerCache | None" = None,
        head_mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C); see `GPT.features` for the rest."""
        B, T, C = x.shape
        H, D = self.n_head, self.d_k
        qk, v = self.qkv(x).split((2 * H * D, C), dim=-1)
        qk = qk.view(B, T, 2 * H, D)
        qk = qk if self.qk_norm is None else self.qk_norm(qk)
        start = cache.kv.length if cache else 0
        qk = qk if self.rotary is None else self.rotary(qk, start)
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B, H, T, D)
        v = v.view(B, T, H, C // H).transpose(1, 2)  # (B, H, T, C / H)
        k, v = cache.kv.extend(k, v) if cache else (k, v)  # (B, H, S, D)
        y = self.attend(q, k, v, maps)
        y = y if head_mask is None else y * head_mask[:, None, None]
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, C))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, maps: list[Tensor] | None) -> Tensor:
        """Equation 1, each query seeing the keys up to its own place."""
        T, S = q.size(-2), k.size(-2)
        if maps is not None:
            maps.append(layers.attention_weights(q, k, causal_mask(T, S, q.device)))
        if not self.fused:
            mask = causal_mask(T, S, q.device) if T > 1 else None
            return layers.scaled_dot_product_attention(q, k, v, mask)
        if q.device.type == "cpu" and q.element_size() == 2:
            # torch's CPU kernel is slow in half precision, and its float32 one took longer than
            # these products (B = 8, H = 2, T = 128, D = 64).
            scores = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1)  # (B, H, T, S)
            if T > 1:
                scores = scores + hidden_future(T, S, q.device).to(scores.dtype)
            return scores.softmax(dim=-1).to(v.dtype) @ v
        # `is_causal` aligns the triangle top left, which is ours where T = S; one query sees all.
        mask = causal_mask(T, S, q.device) if 1 < T < S else None
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=T == S > 1)


def hidden_future(T: int, S: int, device: torch.device) -> Tensor:
    """`causal_mask` to be added to scores: 0 where a query may look, else -inf; (T, S)."""
    return torch.full((T, S), -math.inf, device=device).triu(S - T + 1)


FUSED_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "relu2": kernels.relu2,
}


class FeedForward(nn.Module):
    """Two layers on each position alone (eq. 2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.into = Linear(config.n_embd, config.hidden, config)
        self.out = Writer(config.hidden, config.n_embd, config)
        fused = config.attention == "fused"
        self.activation = (FUSED_ACTIVATIONS if fused else layers.ACTIVATIONS)[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        y: Tensor = self.out(self.activation(self.into(x)))
        return y


class Writer(Linear):
    """The last matrix of a sub-layer: what it returns is added to the residual stream.

    2 L of these add up. Begun with a deviation smaller by sqrt(2 L), the sum does not grow with
    depth (Radford et al., 2019, sec. 2.3); begun at zero, every block starts as the identity. The
    paper's post-norm needs neither, as it normalises each sum.
    """

    def __init__(self, n_in: int, n_out: int, config: GPTConfig) -> None:
        super().__init__(n_in, n_out, config)
        with torch.no_grad():
            if config.zero_init:
                self.weight.zero_()
            elif config.norm_place == "pre":
                self.weight.mul_(1 / math.sqrt(2 * config.n_layer))


class Block(nn.Module):
    """Attention, then feed-forward; each adds to the residual stream (fig. 1, right)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.post, self.dropout = config.norm_place == "post", config.dropout
        self.norm_1, self.norm_2 = Norm(C, config), Norm(C, config)
        self.conv_1 = Conv(config) if config.conv else None
        self.conv_2 = Conv(config) if config.conv else None
        self.attention, self.feed_forward = CausalSelfAttention(config), FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cache: "LayerCache | None" = None,
        head_mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        h = x if self.post else self.norm_1(x)
        h = h if self.conv_1 is None else self.conv_1(h, cache and cache.past_1)
        x = x + self.drop(self.attention(h, cache, head_mask, maps))
        x = self.norm_1(x) if self.post else x
        h = x if self.post else self.norm_2(x)
        h = h if self.conv_2 is None else self.conv_2(h, cache and cache.past_2)
        x = x + self.drop(self.feed_forward(h))
        return self.norm_2(x) if self.post else x

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout where training (sec. 5.4)."""
        return layers.dropout(x, self.dropout, self.training)


# Decoding ------------------------------------------------------------------------------------


class Past:
    """The last K - 1 inputs of a convolution."""

    def __init__(self, taps: int) -> None:
        self.taps = taps
        self.held: Tensor | None = None

    def extend(self, x: Tensor) -> Tensor:
        """Return x (B, T, C) with what is held before it, and hold the last of both."""
        x = x if self.held is None else torch.cat((self.held, x), dim=1)
        self.held = x[:, max(0, x.size(1) - self.taps + 1) :]
        return x


class LayerCache:
    """What one block remembers of the positions before."""

    def __init__(self, config: GPTConfig) -> None:
        self.kv = KeyValueCache()
        self.past_1, self.past_2 = Past(config.conv), Past(config.conv)


class KVCache:
    """What all blocks remember, so that one more character costs one position's work."""

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [LayerCache(config) for _ in range(config.n_layer)]

    @property
    def length(self) -> int:
        """Count the positions held."""
        return self.layers[0].kv.length


# The model -----------------------------------------------------------------------------------


class GPT(nn.Module):
    """The language model: embeddings, blocks, a last norm, a score for every character.

    `model(idx)` gives logits (B, T, V); `model(idx, targets)` the mean loss in nats;
    `model.next_logits(idx, cache)` serves decoding.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        V, C = config.vocab_size, config.n_embd
        self.wte = nn.Parameter(torch.randn(V, C) * (config.init_std or 1.0))
        self.wpe = Positional(config)
        self.embed_norm = Norm(C, config) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        last = config.norm_place == "pre"  # post-norm blocks end with one
        self.norm = Norm(C, config) if last else None
        std = 0.0 if config.zero_init else config.init_std or 0.02
        self.head = None if config.tied else nn.Parameter(torch.randn(V, C) * std)

    def features(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        *,
        head_mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
        hint: Tensor | None = None,
    ) -> Tensor:
        """Map characters idx (B, T) to what the head reads, (B, T, C).

        cache: idx continues the positions it holds, and joins them.
        head_mask: (L, H), multiplies what each head returns; 0 switches it off.
        maps: the attention weights (B, H, T, S) of each block are appended to this list.
        hint: (B, T, C), added to the embeddings (see `hybrid`).

        Raises ValueError when the positions go beyond block_size.
        """
        start = cache.length if cache else 0
        end = start + idx.size(1)
        if end > self.block_size:
            raise ValueError(
                f"{end} characters do not fit block_size={self.block_size};"
                f" keep the last {self.block_size}"
            )
        x = self.wpe(F.embedding(idx, self.wte), start)
        x = x if hint is None else x + hint
        x = x if self.embed_norm is None else self.embed_norm(x)
        x = layers.dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.blocks):
            mask = None if head_mask is None else head_mask[i]
            x = block(x, cache.layers[i] if cache else None, mask, maps)
        features: Tensor = x if self.norm is None else self.norm(x)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Score every character: features (..., C) to (..., V), float32 or more."""
        # Not in half precision: rounding a logit of 10 there moves its probability by 3%.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            y = F.linear(x, self.wte if self.head is None else self.head)
        cap = self.config.softcap
        return cap * torch.tanh(y / cap) if cap else y

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the character after each of idx (B, T); with targets, the loss.

        The loss is the mean over targets (B, T) that are not -100, in nats (no such target: 0);
        in training, against smoothed targets if `label_smoothing` says so. Raises ValueError when
        T > block_size.
        """
        logits = self.logits(self.features(idx))
        return logits if targets is None else self.loss(logits, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (B, T, V) against targets (B, T), in nats (sec. 5.4)."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        if self.config.attention == "lesson":
            return layers.cross_entropy(logits, targets, smoothing)
        total = F.cross_entropy(
            logits.flatten(0, -2),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total / (targets != IGNORED).sum().clamp(min=1)

    def next_logits(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the character after idx (B, T), which continues those in `cache`."""
        return self.logits(self.features(idx, cache)[:, -1])

    def new_cache(self) -> KVCache:
        """Return an empty cache for `next_logits`."""
        return KVCache(self.config)

    def flops_per_character(self) -> float:
        """Count the FLOPs of a forward pass per character, the context full.

        A multiply-add is two FLOPs. Attention is counted over all T keys, as most papers do.
        """
        c, C = self.config, self.config.n_embd
        wide = c.n_head * c.head_width
        block = 2 * C * (2 * wide + C)  # queries, keys, values
        block += 2 * c.block_size * (wide + C)  # q k^T, then weights v
        block += 2 * C * C + 2 * 2 * C * c.hidden + 2 * 2 * c.conv * C
        return float(c.n_layer * block + 2 * C * c.vocab_size)

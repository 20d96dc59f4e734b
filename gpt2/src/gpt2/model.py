"""GPT-2, a decoder-only transformer (Radford et al., 2019).

The paper is "Language Models are Unsupervised Multitask Learners"; section and table numbers below
are its own.

Each position reads a token and guesses the next one. An embedding of the token plus one of its
position runs through `n_layer` blocks, each of which adds something to it: attention brings in what
earlier positions know, an MLP works on each position alone. The embedding table then turns the
result back into one score per token of the vocabulary.

Shapes: B batch, T time, C = n_embd channels, H = n_head heads, D = C // H per head,
V = vocab_size, L = n_layer, N = B * T positions.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.linear import Linear, product
from shared.profiling import Flops

IGNORED = -100  # a target that does not count; torch.nn.functional.cross_entropy's default
# Logits are made this many at a time (32 MB in fp32): see `linear_cross_entropy`.
LOGITS_AT_ONCE = 1 << 23


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; the defaults are the 124M model of the paper."""

    vocab_size: int = 50257
    """Tokens in the vocabulary; set from the tokenizer. 50257 is GPT-2's."""
    block_size: int = 1024
    """Longest context, in tokens; there is one learned embedding per position."""
    n_layer: int = 12
    """Blocks, one after the other."""
    n_head: int = 12
    """Attention heads per block; must divide n_embd."""
    n_embd: int = 768
    """Channels of the residual stream."""
    dropout: float = 0.0
    """Share of activations zeroed in training (0 to 1); the paper used 0.1."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms, as in GPT-2; False is a little faster."""
    residual_init: Literal["gpt2", "zero"] = "gpt2"
    """Start of the layers that write into the residual stream: `gpt2` is normal with
    0.02 / sqrt(2 n_layer); `zero` makes every block the identity at first."""

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
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1; try 0.1")
        if self.residual_init not in ("gpt2", "zero"):
            raise ValueError(f"residual_init={self.residual_init!r} must be 'gpt2' or 'zero'")


# Radford et al., 2019, table 2; `tiny` is ours, for a laptop's CPU.
PRESETS: dict[str, GPTConfig] = {
    "tiny": GPTConfig(
        vocab_size=2048, block_size=128, n_layer=5, n_head=2, n_embd=128, residual_init="zero"
    ),
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}


class KVCache:
    """The keys and values of the positions seen so far, so that decoding computes only new ones.

    keys and values are (L, B, H, block_size, D), allocated once and filled from the left; the
    first `length` positions hold something.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        D = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, config.block_size, D)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H, T, D) after the positions held; return all of them (B, H, S+T, D).

        `length` stays as it is: every layer extends first, then the model moves it once.
        """
        end = self.length + k.size(2)
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return keys, values


# SDPA's CPU kernel is slow below fp32; the formula stores (T, S) but up to here takes less time.
PLAIN_UP_TO = 512


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention by the fastest way there is: `attention_reference`, whatever the way.

    On a CPU in bf16 forward and backward of the formula take 2.0 ms where SDPA's take 6.4 (B = 8,
    H = 2, T = 128, D = 64); everywhere else SDPA is faster and never stores (T, S).
    """
    T, S = q.size(-2), k.size(-2)
    if q.device.type == "cpu" and q.element_size() == 2 and S <= PLAIN_UP_TO:
        return attention_reference(q, k, v, dropout)
    # SDPA's is_causal aligns the triangle top left, so only T == S may use it; a single query
    # sees every key and needs no mask at all.
    mask = causal_mask(T, S, q.device) if 1 < T < S else None
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=T == S > 1)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention as the formula has it (Vaswani et al., 2017, eq. 1): the tested reference.

    q (B, H, T, D); k and v (B, H, S, D) with S >= T, where q holds the last T of S positions.
    A share `dropout` of the weights is zeroed. Returns (B, H, T, D).
    """
    T, S = q.size(-2), k.size(-2)
    # A sum of D products spreads like sqrt(D); undo that, or the softmax saturates.
    att = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1)  # (B, H, T, S)
    att += torch.full((T, S), float("-inf"), dtype=att.dtype, device=q.device).triu(S - T + 1)
    return F.dropout(att.softmax(dim=-1), dropout) @ v


def causal_mask(T: int, S: int, device: torch.device | None = None) -> Tensor:
    """Say whether query t, at position S - T + t, may look at key s: (T, S) booleans."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(diagonal=S - T)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees 0..t (Vaswani et al., 2017, sec. 3.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(C, 3 * C, bias=config.bias)  # queries, keys, values in one product
        self.c_proj = Linear(C, C, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache, x continues the positions it holds."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, D)
        y = attention(q, k, v, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.resid_dropout(self.c_proj(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two layers on each position alone, four times as wide in between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.c_fc = Linear(C, 4 * C, bias=config.bias)
        # GPT-2 was trained with the tanh approximation of gelu (Hendrycks & Gimpel, 2016).
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = Linear(4 * C, C, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then MLP, each adding to the residual stream.

    GPT-2 normalises what a branch reads, not what it writes (sec. 2.3): the stream from the first
    embedding to the last layer is a plain sum, and so is its gradient.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The language model: token and position embeddings, blocks, a final norm, a tied head.

    `model(idx)` gives logits (B, T, V); `model(idx, targets)` gives the training loss, through
    `forward` so that DDP and FSDP hooks run; `model.next_logits(idx, cache)` serves decoding.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation, from torch's global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)  # GPT-2's init, as released (model.py)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 L branches add into the residual stream; scaled so, their sum does not grow with L
        # (sec. 2.3). Zero is the other choice, by which all blocks start as the identity.
        std = 0.02 / math.sqrt(2 * self.config.n_layer)
        if self.config.residual_init == "zero":
            std = 0.0
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=std)

    def features(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map token ids (B, T) to what the head reads, (B, T, C).

        With a cache, idx continues the positions it holds, and joins them. Raises ValueError when
        the positions go beyond block_size.
        """
        start = cache.length if cache is not None else 0
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(
                f"{end} tokens do not fit block_size={self.config.block_size};"
                f" keep the last {self.config.block_size}"
            )
        x = self.wte(idx) + self.wpe.weight[start:end]  # (B, T, C) + (T, C)
        x = self.drop(x)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length = end
        return self.ln_f(x)  # type: ignore[no-any-return]

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of idx (B, T); with targets (B, T), the loss.

        The loss is the mean cross-entropy in nats per token over targets that are not -100 (no
        such target: 0). Raises ValueError when T > block_size.
        """
        x = self.features(idx)
        if targets is None:
            return self.head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.wte.weight, targets.flatten())

    def head(self, x: Tensor) -> Tensor:
        """Scores of every token: x (..., C) to (..., V), by the table that embedded the input."""
        return F.linear(x, self.wte.weight)

    def next_logits(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after idx (B, T), which continues the positions in `cache`."""
        return self.head(self.features(idx, cache)[:, -1])

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Parameters, the tied table counted once; without embeddings, those in the blocks."""
        total = sum(p.numel() for p in self.parameters())
        return total if embeddings else total - self.wte.weight.numel() - self.wpe.weight.numel()

    @classmethod
    def from_pretrained(cls, source: str | Path) -> GPT:
        """Read a GPT from a Hugging Face GPT-2 folder or hub name; see `pretrained`."""
        from gpt2.pretrained import load  # which imports this module

        return load(source)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors as transformers reads them; see `pretrained`."""
        from gpt2.pretrained import save

        save(self, Path(folder))


def estimate_flops(config: GPTConfig) -> Flops:
    """Count the FLOPs of training on one token with the context full, term by term.

    A multiply-add is two FLOPs; the backward pass does each product of the forward pass twice,
    once for its input and once for its weights (hence 3 x). Attention is counted over all T
    positions, as most papers do and PyTorch's counter does; the causal half could be saved.
    """
    L, C, T, V = config.n_layer, config.n_embd, config.block_size, config.vocab_size
    return 3 * Flops(
        {
            "queries, keys, values": L * 2 * C * 3 * C,
            "attention": L * (2 * T * C + 2 * T * C),  # q @ k.T, then att @ v
            "attention output": L * 2 * C * C,
            "mlp": L * (2 * C * 4 * C + 2 * 4 * C * C),
            "head": 2 * C * V,
        }
    )


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `x @ weight.T` (N, V) against targets (N,), in nats.

    x (N, C), weight (V, C). Targets of -100 do not count; when none counts, the loss is 0. Equal to
    F.cross_entropy, but only `LOGITS_AT_ONCE` logits exist at a time: for 4 x 1024 positions of
    GPT-2 the logits, their log-softmax and their gradient would be 0.8 GB each.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain form by itself
        total = F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient is made in the forward pass, while a chunk's logits are still in the cache."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        counted = targets != IGNORED
        # The softmax and all sums are in fp32 (fp64 in tests), whatever the products are in.
        scale = counted.to(torch.promote_types(x.dtype, torch.float32))
        scale = scale / scale.sum().clamp(min=1)
        with torch.autocast(kind, enabled=False):
            loss, grad_x, grad_weight = _chunked_loss(
                x.to(dtype), weight.to(dtype), targets * counted, scale, with_gradient
            )
        if grad_x is not None and grad_weight is not None:
            ctx.grads = grad_x.to(x.dtype), grad_weight.to(weight.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.grads is None:
            raise RuntimeError("the loss was differentiated before; call the model again")
        (grad_x, grad_weight), ctx.grads = ctx.grads, None
        # In place, and no other reference is kept: autograd then takes the tensors as they are.
        return grad_x.mul_(grad), grad_weight.mul_(grad), None, None


def _chunked_loss(
    x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum -scale * log softmax[target] over rows, and make its gradients for x and weight.

    With P the softmax, Y the one-hot targets and s the scale (1 / n, or 0 where ignored),
    d loss / d x = s (P - Y) weight and d loss / d weight = (P - Y)' (s x).
    """
    loss = scale.new_zeros(())
    grad_x = torch.empty_like(x, dtype=scale.dtype) if with_gradient else None
    grad_weight = torch.zeros_like(weight, dtype=scale.dtype) if with_gradient else None
    rows = max(1, LOGITS_AT_ONCE // weight.size(0))
    for start in range(0, x.size(0), rows):
        part = slice(start, start + rows)
        target, s = targets[part, None], scale[part, None]  # (n, 1)
        logits = product(x[part], weight).to(scale.dtype)  # (n, V)
        logprobs = torch.log_softmax(logits, dim=-1, out=logits)
        loss -= (logprobs.gather(1, target) * s).sum()
        if grad_x is not None and grad_weight is not None:
            g = logprobs.exp_().scatter_add_(1, target, -torch.ones_like(s)).to(x.dtype)
            grad_x[part] = product(g, weight.T) * s
            # In place: a new (V, C) for each chunk would be 154 MB for GPT-2. An fp32 sum of lower
            # precision products cannot be, and is small beside them.
            if g.dtype == grad_weight.dtype:
                grad_weight.addmm_(g.T, x[part] * s)
            else:
                grad_weight += g.T @ (x[part] * s.to(x.dtype))
    return loss, grad_x, grad_weight

"""The layers of the transformer, from tensor operations only (Vaswani et al., 2017).

The paper is "Attention Is All You Need", arXiv:1706.03762; equation and section numbers are its
own. What PyTorch calls a layer or a function of torch.nn is written out here (matmul, exp, max,
sum and indexing remain); `fused_attention` alone calls PyTorch's, for speed beside the lesson.

Shapes: B batch, T time (queries), S time (keys), C = n_embd channels, H = n_head heads,
D = d_k numbers per head in queries and keys, Dv = d_v in values, V vocabulary.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt.model import IGNORED

Activation = Literal["relu", "gelu", "relu2"]
Attention = Literal["lesson", "fused"]


# Functions -----------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Turn scores into shares that sum to 1 along `dim`: e^x / sum e^x (in eq. 1).

    A row of nothing but -inf, which asks for a share of nothing, gives zeros and zero gradients.
    """
    # Any shift cancels in the fraction. By the maximum, e^x can't overflow; of an empty row, whose
    # maximum is -inf, it must be finite, as -inf - -inf is NaN.
    shift = x.detach().amax(dim, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    e = (x - shift).exp()
    # The largest term is e^0 = 1, so only the sum of an empty row is below 1.
    return e / e.sum(dim, keepdim=True).clamp(min=1.0)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Measure how far a prediction is from its target: -log p(target), the mean in nats.

    logits (..., V), targets (...) of class numbers; targets of -100 do not count, and the loss of
    no targets is 0. With label smoothing (sec. 5.4; Szegedy et al., 2015) a share of each target
    is spread evenly over all V classes: the model is taught to be less sure. Half precision is
    summed, and returned, in float32.
    """
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    x = x - x.detach().amax(-1, keepdim=True)  # as in `softmax`
    counts = targets != IGNORED
    aim = x.gather(-1, (targets * counts).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        aim = (1 - label_smoothing) * aim + label_smoothing * x.mean(-1)
    # -log(e^x[target] / sum e^x), without the division.
    losses = x.exp().sum(-1).log() - aim  # (...)
    return losses.where(counts, 0.0).sum() / counts.sum().clamp(min=1)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero a share p of the numbers at random, in training only (sec. 5.4).

    What is left is divided by 1 - p, so that every number keeps its mean and nothing needs to
    change when training ends (Srivastava et al., 2014). Draws from torch's global generator.
    """
    if not training or p == 0.0:
        return x
    # In float32 whatever x is: bfloat16 knows too few numbers below 1 to hit p.
    return x * (torch.rand(x.shape, device=x.device) >= p) / (1 - p)


_dropout = dropout  # for functions with a parameter of that name


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Give each position mean 0 and variance 1 over its channels, then scale and shift (sec. 3.1).

    Ba, Kiros & Hinton (2016), eq. 3 and 4; x (..., C), weight and bias (C). `eps` is added to the
    variance, so that a constant row divides by something.
    """
    x = x - x.mean(-1, keepdim=True)
    x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Say how much each query attends to each key: softmax(Q K^T / sqrt(d_k)), within eq. 1.

    q (..., T, D) and k (..., S, D) to (..., T, S), each row summing to 1. `mask` is boolean,
    (..., T, S) or with 1 in place of any of these: True where the query may look. A row with
    nothing to look at is 0.
    """
    # A sum of D products spreads like sqrt(D); undo that, or the softmax saturates (sec. 3.2.1).
    # Dividing q, not the product, touches T x D numbers instead of T x S.
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (..., T, S)
    if mask is not None:
        scores = scores.where(mask, -math.inf)
    return softmax(scores)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend: softmax(Q K^T / sqrt(d_k)) V, equation 1.

    q (..., T, D), k (..., S, D) and v (..., S, Dv) to (..., T, Dv). `mask` as in
    `attention_weights`; a query that may look at nothing gets zeros. A share `dropout` of the
    weights is zeroed, at every call: a caller who is not training passes 0.
    """
    return _dropout(attention_weights(q, k, mask), dropout, training=True) @ v


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attend by PyTorch's kernel, which never stores the weights: equation 1 once more.

    Takes what `scaled_dot_product_attention` takes and gives, to rounding, what it gives.
    """
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, None, dropout)
    # What a kernel makes of an empty row varies; let it see everything, and zero what comes out.
    sees = mask.any(-1, keepdim=True)
    y = F.scaled_dot_product_attention(q, k, v, mask | ~sees, dropout)
    return y.masked_fill(~sees, 0.0)


ATTENTIONS = {"lesson": scaled_dot_product_attention, "fused": fused_attention}


def causal_mask(T: int, S: int, device: torch.device | str | None = None) -> Tensor:
    """Let a position see itself and those before it (sec. 3.2.3): booleans (T, S), True = may look.

    The T queries are the last of S positions: query t, at position S - T + t, sees 0..S-T+t.
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def padding_mask(lengths: Tensor, T: int) -> Tensor:
    """Hide the keys beyond each row's length: (B,) to booleans (B, 1, 1, T), True = may look.

    Joined to the causal mask of sec. 3.2.3 by `&`. The paper does not speak of padding, but
    batches of sentences (sec. 5.1) are not possible without it.
    """
    return (torch.arange(T, device=lengths.device) < lengths[:, None])[:, None, None]


def sinusoidal_positions(n_positions: int, n_embd: int) -> Tensor:
    """Write each position as sines and cosines of it: a table (n_positions, n_embd), sec. 3.5.

    PE(pos, 2i) = sin(pos / 10000^(2i / C)), PE(pos, 2i + 1) = cos of the same: wave lengths from
    2 pi to 10000 * 2 pi. A shift by k turns each pair by an angle of its own, whatever pos.
    """
    # In double precision: a float32 angle of 10,000 is off by up to 0.0005.
    position = torch.arange(n_positions, dtype=torch.float64)[:, None]
    two_i = torch.arange(0, n_embd, 2, dtype=torch.float64)
    angles = position / 10000 ** (two_i / n_embd)  # (n_positions, ceil(C / 2))
    pairs = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return pairs[:, :n_embd].to(torch.get_default_dtype())


def relu(x: Tensor) -> Tensor:
    """Keep what is positive: max(0, x), within equation 2."""
    return x * (x > 0)  # faster both ways than clamp or where; only of -inf it makes NaN


def gelu(x: Tensor) -> Tensor:
    """Weigh x by the chance that a normal number is below it (Hendrycks & Gimpel, 2016, sec. 2)."""
    return x / 2 * (1 + (x / math.sqrt(2)).erf())


def relu2(x: Tensor) -> Tensor:
    """Square `relu`, found by a search over programs (So et al., 2021, "Primer")."""
    return relu(x).square()


ACTIVATIONS = {"relu": relu, "gelu": gelu, "relu2": relu2}


# Layers --------------------------------------------------------------------------------------


class Linear(nn.Module):
    """x W^T + b, the projections of sections 3.2.2, 3.3 and 3.4, as torch.nn.Linear.

    Maps (..., n_in) to (..., n_out). weight is (n_out, n_in), bias (n_out) or None.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        # Glorot & Bengio (2010): about the same variance forward and backward.
        bound = math.sqrt(6 / (n_in + n_out))
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class LayerNorm(nn.Module):
    """Give each position mean 0 and variance 1 over its channels, then scale and shift (sec. 3.1).

    Ba, Kiros & Hinton (2016), eq. 3 and 4; weight and bias (C) are learned. As torch.nn.LayerNorm.
    """

    def __init__(self, n_embd: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps  # so that a constant row divides by something
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(nn.Module):
    """A vector for each of n tokens, and its use in reverse as the output (sec. 3.4).

    With `scaled`, vectors are multiplied by sqrt(n_embd), as in the paper: so a table small enough
    to serve as the output's weights gives inputs as large as the positions added to them. Either
    way the vectors start with components of variance 1. weight is (n, n_embd).
    """

    def __init__(self, n: int, n_embd: int, scaled: bool = False) -> None:
        super().__init__()
        self.scale = math.sqrt(n_embd) if scaled else 1.0
        self.weight = nn.Parameter(torch.randn(n, n_embd) / self.scale)

    def forward(self, idx: Tensor) -> Tensor:
        """Map token ids (...) to vectors (..., C); raises IndexError for an id outside 0..n-1."""
        # Not weight[idx]: that takes -1 for the last row, and its gradient takes longer.
        x = self.weight.index_select(0, idx.flatten()).view(*idx.shape, -1)
        return x * self.scale if self.scale != 1.0 else x

    def logits(self, x: Tensor) -> Tensor:
        """Score every token by its vector: (..., C) to (..., n), with the same weights."""
        return x @ self.weight.T


class Dropout(nn.Module):
    """`dropout` as a layer that knows whether it is training (sec. 5.4)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout={p} must be at least 0 and below 1; try 0.1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same."""
        return dropout(x, self.p, self.training)


class LearnedPositions(nn.Module):
    """A learned vector for each position: the alternative of sec. 3.5, row (E) of table 3."""

    def __init__(self, n_positions: int, n_embd: int) -> None:
        super().__init__()
        self.wpe = nn.Parameter(torch.randn(n_positions, n_embd))

    def forward(self, T: int, start: int = 0) -> Tensor:
        """Return the vectors of positions start..start+T-1: (T, C); ValueError beyond the last."""
        return _rows(self.wpe, T, start)


class SinusoidalPositions(nn.Module):
    """`sinusoidal_positions` as a layer: nothing to learn, nothing to save (sec. 3.5)."""

    def __init__(self, n_positions: int, n_embd: int) -> None:
        super().__init__()
        self.table: Tensor
        table = sinusoidal_positions(n_positions, n_embd)
        self.register_buffer("table", table, persistent=False)

    def forward(self, T: int, start: int = 0) -> Tensor:
        """Return the vectors of positions start..start+T-1: (T, C); ValueError beyond the last."""
        return _rows(self.table, T, start)


def _rows(table: Tensor, T: int, start: int) -> Tensor:
    """Return T rows from `start`; a slice alone would silently give fewer."""
    if start + T > len(table):
        raise ValueError(
            f"{start + T} positions do not fit a table of {len(table)}; keep the last {len(table)}"
        )
    return table[start : start + T]


class KeyValueCache:
    """The keys and values that one `MultiHeadAttention` has computed, for decoding step by step.

    The decoder writes one token, reads it, and writes the next (sec. 3). In self-attention each
    call adds its own keys and values, so that one more position costs one position's work; in
    attention over other keys (the encoder's output) the first call's serve all later ones. The
    layer fills it; every layer needs a cache of its own. `held` is k (B, H, S, D) and
    v (B, H, S, Dv), or None at first.
    """

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        """Count the positions held."""
        return self.held[0].size(2) if self.held else 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k (B, H, T, D) and v (B, H, T, Dv) to what is held; return all of it."""
        if self.held:
            k, v = torch.cat((self.held[0], k), dim=2), torch.cat((self.held[1], v), dim=2)
        self.held = k, v
        return self.held

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; beam search drops and doubles rows."""
        if self.held:
            self.held = self.held[0].index_select(0, rows), self.held[1].index_select(0, rows)


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on projections of its own (sec. 3.2.2).

    MultiHead(Q, K, V) = Concat(head_1, ..., head_H) W^O,
    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V).

    The W_i of all heads are stacked into one matrix. d_k and d_v are the widths of a head, by
    default n_embd // n_head. A share `dropout` of the attention weights is zeroed in training (not
    in the paper, but in its code). `attention` chooses `scaled_dot_product_attention` ("lesson")
    or `fused_attention` ("fused"). Raises ValueError for widths that do not divide, or a dropout
    outside [0, 1).
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        d_k: int | None = None,
        d_v: int | None = None,
        dropout: float = 0.0,
        attention: Attention = "lesson",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if not (d_k and d_v) and n_embd % n_head:
            low = max(n_embd // n_head, 1) * n_head
            raise ValueError(
                f"n_embd={n_embd} must be a multiple of n_head={n_head}; try {low}"
                " or give d_k and d_v"
            )
        self.n_head = n_head
        d_k, d_v = d_k or n_embd // n_head, d_v or n_embd // n_head
        self.attend = ATTENTIONS[attention]
        self.w_q = Linear(n_embd, n_head * d_k, bias)
        self.w_k = Linear(n_embd, n_head * d_k, bias)
        self.w_v = Linear(n_embd, n_head * d_v, bias)
        self.w_o = Linear(n_head * d_v, n_embd, bias)
        self.drop = Dropout(dropout)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
        head_mask: Tensor | None = None,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Map queries (B, T, C), looking at keys (B, S, C) or at themselves, to (B, T, C).

        mask: True where a query may look, broadcast to (B, H, T, S).
        cache: with it, queries continue those of earlier calls, and S counts all of them; given
            `keys`, it remembers their projections, and later calls do not read `keys` again.
        head_mask: (H), multiplies what each head returns; 0 switches the head off.
        maps: the attention weights (B, H, T, S) are appended to this list.
        """
        q = self.heads(self.w_q(queries))  # (B, H, T, D)
        if cache is not None and cache.held and keys is not None:
            k, v = cache.held
        else:
            keys = queries if keys is None else keys
            k, v = self.heads(self.w_k(keys)), self.heads(self.w_v(keys))  # (B, H, S, D or Dv)
            k, v = (k, v) if cache is None else cache.extend(k, v)
        y = self.attend(q, k, v, mask, self.drop.p if self.training else 0.0)  # (B, H, T, Dv)
        if maps is not None:
            maps.append(attention_weights(q, k, mask))
        if head_mask is not None:
            y = y * head_mask[:, None, None]
        out: Tensor = self.w_o(y.transpose(1, 2).flatten(2))  # heads side by side: (B, T, H Dv)
        return out

    def heads(self, x: Tensor) -> Tensor:
        """Cut channels into heads: (B, T, H D) to (B, H, T, D)."""
        B, T, _ = x.shape
        return x.view(B, T, self.n_head, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers on each position alone: max(0, x W_1 + b_1) W_2 + b_2, equation 2 (sec. 3.3).

    The hidden layer has n_hidden numbers, by default four times n_embd as in the paper; a share
    `dropout` of them is zeroed in training (not in the paper, but in its code). `activation` is
    the paper's "relu", or a later choice: "gelu" or "relu2".
    """

    def __init__(
        self,
        n_embd: int,
        n_hidden: int | None = None,
        dropout: float = 0.0,
        activation: Activation = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        n_hidden = n_hidden or 4 * n_embd
        self.w_1 = Linear(n_embd, n_hidden, bias)
        self.w_2 = Linear(n_hidden, n_embd, bias)
        self.activation = ACTIVATIONS[activation]
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        out: Tensor = self.w_2(self.drop(self.activation(self.w_1(x))))
        return out

"""A transformer that corrects n-gram models: counts for what was seen, attention for the rest.

    log p(w | text)  ~  sum_k g_k(x) log p_k(w | last k - 1 characters)  +  f_w(x)

p_k is the n-gram model of length k, for lengths from `shortest` to n. x is what the transformer's
blocks make of the text *and* of the counts' hints: all those log-probabilities, and how often the
context of each length was seen, projected and added to the embeddings. f is the transformer's usual
head; the g_k, learned sums of x, say how far to trust each length here. At the start g_n = 1, the
others are 0, and so is f with `zero_init` and an untied head, as the presets have it: training
begins at the n-gram model's loss, and all that is learned is what counting misses. It is a product
of experts (Hinton, 2002), all but one of them counted. The n-grams that a place is trained with
leave out its own tenth of the text (`ngram.held_out_hints`: ten counts and a look-up of every
place), or the transformer would learn to trust them too much.

With `recent`, what the window itself shows is counted too (Kuhn & De Mori, 1990: a cache). From
q_1 = p_n, the probabilities of the longest n-grams, each longer context of k = 2 .. recent
characters that stood in the window before, N_k times, c_k(w) of them before w, corrects the last:

    q_k(w) = (c_k(w) + a_k q_{k-1}(w)) / (N_k + a_k)

(MacKay & Peto, 1995), the a_k learned. log q, of the longest, is the first expert: g = 1 at the
start is then its. The transformer is told log q - log p_n and log(1 + N_k).

In training and evaluation the n-grams read on across windows: they know the n - 1 characters before
a place also where the window has just begun. The transformer never does, nor what is counted in the
window.

Shapes: B batch, T time, C = n_embd, V characters, M = n - shortest + 1 lengths, K = recent - 1
contexts counted in the window (0 without), W = M V + n hints for each place.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mingpt.data import Text, Windows
from mingpt.gpt import GPT, GPTConfig, KVCache
from mingpt.ngram import NGram, NGramConfig, held_out_hints, hint_width, recent_counts
from shared.sampler import IntArray

HintedBatch = tuple[Tensor, Tensor, Tensor]
# Hints are numbers from about -12 to 12; at this scale they are as large as other embeddings.
HINT_SCALE = 0.3
# a_k starts at STRENGTH / 2^k: 120 for two characters, half for each more. Training moves them on.
STRENGTH = 480.0


@dataclass(frozen=True, kw_only=True)
class HybridConfig(GPTConfig):
    """The shape of the transformer, and of the n-gram model beside it."""

    n: int = 9
    """Length of the longest n-gram: n - 1 characters of context and the one to predict."""
    shortest: int = 3
    """Length of the shortest n-gram whose log-probabilities are hints of their own."""
    folds: int = 10
    """Pieces of the text, each of which is trained on with counts of the others."""
    recent: int = 0
    """Length of the longest context that is counted in the window, too, from 2; 0 counts none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1")
        if not 1 <= self.shortest <= self.n:
            raise ValueError(f"shortest={self.shortest} must be from 1 to n={self.n}; lower it")
        if self.recent != 0 and not 2 <= self.recent < self.block_size:
            raise ValueError(
                f"recent={self.recent} must be 0 or from 2 to block_size - 1={self.block_size - 1}"
            )
        if self.folds < 2:
            raise ValueError(
                f"folds={self.folds} must be at least 2: others to count, one to hold out"
            )

    @property
    def lengths(self) -> int:
        """M, the lengths of n-grams whose log-probabilities are hints."""
        return self.n - self.shortest + 1

    @property
    def experts(self) -> int:
        """Count the log-probabilities of a character whose sum is learned."""
        return self.lengths + (self.recent > 0)

    @property
    def hints(self) -> int:
        """Count the numbers that the transformer is told of each place: W and those of `recent`."""
        width = hint_width(self.n, self.vocab_size, self.shortest)
        return width + (self.vocab_size + self.contexts if self.recent else 0)

    @property
    def reach(self) -> int:
        """Count the characters before a place that the n-gram model reads besides its own."""
        return max(0, self.n - 2)

    @property
    def contexts(self) -> int:
        """K, the lengths of contexts that are counted in the window."""
        return max(0, self.recent - 1)


class Hybrid(nn.Module):
    """`model(idx, targets, hints)`: a GPT, and the n-gram model whose counts it corrects.

    `hints` (B, T, W) are those of `ngram` for the character after each of idx; where they are
    not given they are looked up from what the window shows. `fit` counts.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, config.block_size
        self.ngram = NGram(NGramConfig(vocab_size=config.vocab_size, n=config.n))
        self.gpt = GPT(config)
        if config.recent:
            strength = STRENGTH / 2.0 ** torch.arange(2, config.recent + 1)
            self.log_strength = nn.Parameter(strength.log())
        # By their names they are AdamW's, as all that reads or writes characters (shared.optim).
        self.hint_embed = nn.Parameter(torch.randn(config.n_embd, config.hints) * 0.1)
        self.trust_head = nn.Parameter(torch.zeros(config.experts, config.n_embd))

    def fit(self, ids: IntArray) -> None:
        """Count the n-grams of a text (P,)."""
        self.ngram.fit(ids)

    def examples(self, text: Text) -> tuple["HintedWindows", "HintedWindows"]:
        """Count, and return the windows to train on and to validate, with the n-gram's hints."""
        self.fit(text.train)
        c = self.config
        held_out = held_out_hints(text.train, c.n, self.vocab_size, c.folds, c.shortest)
        train = HintedWindows(text.train, self.block_size, held_out, jitter=True)
        return train, self.windows(text.val)

    def windows(self, ids: IntArray, *, stride: int | None = None) -> "HintedWindows":
        """Return windows of a text to evaluate, with hints; see `Windows` for the stride."""
        hints = self.ngram.hints(ids, self.config.shortest).astype(np.float16)
        return HintedWindows(ids, self.block_size, hints, jitter=False, stride=stride)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, hints: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the character after each of idx (B, T); with targets, the loss."""
        logits = self.logits(idx, self.look_up(idx) if hints is None else hints)
        return logits if targets is None else self.gpt.loss(logits, targets)

    def look_up(self, idx: Tensor) -> Tensor:
        """Return the hints of each row of idx (B, T), read from its beginning: (B, T, W)."""
        rows = [self.ngram.hints(row, self.config.shortest) for row in idx.cpu().numpy()]
        return torch.from_numpy(np.stack(rows)).to(idx.device)

    def logits(
        self,
        idx: Tensor,
        hints: Tensor,
        cache: KVCache | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Correct the log-probabilities in hints (B, T, W) to logits (B, T, V).

        seen (B, S) are the window's characters up to the last of idx; idx, if not given.
        """
        M, V = self.config.lengths, self.vocab_size
        log_probs = hints[..., : M * V].float().view(*idx.shape, M, V)  # the longest first
        if self.config.recent:
            log_q, counted = self.recall(idx if seen is None else seen, log_probs[..., 0, :])
            hints = torch.cat((hints, log_q - log_probs[..., 0, :], counted), dim=-1)
            log_probs = torch.cat((log_q.unsqueeze(-2), log_probs), dim=-2)
        x = self.gpt.features(idx, cache, hint=self.hint(hints))
        with torch.autocast(x.device.type, enabled=False):  # as in `GPT.logits`
            trust = F.linear(x.float(), self.trust_head)  # (B, T, experts)
            trusted = (trust.unsqueeze(-2) @ log_probs).squeeze(-2)  # (B, T, V)
        logits: Tensor = self.gpt.logits(x) + log_probs[..., 0, :] + trusted
        return logits

    def recall(self, seen: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q (B, T, V) and log(1 + N_k) (B, T, K): the module's docstring.

        log_probs (B, T, V) are log p_n of the last T places of the window `seen` (B, S).
        """
        T, V, longest = log_probs.size(1), self.vocab_size, self.config.recent
        q = log_probs.exp()
        counts = recent_counts(seen, longest, V, T)  # (B, T, K, V)
        total = counts.sum(dim=-1)  # (B, T, K)
        for k, strength in enumerate(self.log_strength.exp()):
            q = (counts[:, :, k] + strength * q) / (total[:, :, k, None] + strength)
        return q.log(), total.log1p()

    def hint(self, hints: Tensor) -> Tensor:
        """Map hints (B, T, W), and what `recall` adds, to be added to the embeddings (B, T, C)."""
        return F.linear(hints * HINT_SCALE, self.hint_embed)

    def next_logits(self, idx: Tensor, cache: "HybridCache") -> Tensor:
        """Logits (B, V) of the character after idx (B, T), which continues those in `cache`."""
        T, seen = idx.size(1), cache.extend(idx)
        hints = self.look_up(seen[:, -T - self.config.reach :])[:, -T:]
        return self.logits(idx, hints, cache, seen)[:, -1]

    def new_cache(self) -> "HybridCache":
        """Return an empty cache for `next_logits`."""
        return HybridCache(self.config)

    def flops_per_character(self) -> float:
        """Count the FLOPs of a forward pass per character, the context full."""
        c = self.config
        hint = 2 * c.n_embd * (c.hints + c.experts) + 2 * c.experts * c.vocab_size
        hint += 2 * c.contexts * c.vocab_size
        return self.gpt.flops_per_character() + self.ngram.flops_per_character() + hint


class HybridCache(KVCache):
    """What the transformer's blocks remember, and the characters that counting reads."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.kept = config.block_size if config.recent else config.reach
        self.idx = torch.zeros(0)

    def extend(self, idx: Tensor) -> Tensor:
        """Return idx (B, T) with the characters before that counting it may need."""
        known = torch.cat((self.idx, idx), dim=1) if self.idx.numel() else idx
        self.idx = known[:, -self.kept :] if self.kept > 0 else known[:, :0]
        return known


class HintedWindows(Windows):
    """`Windows` that come with the n-gram model's hints, which read on across windows.

    hints (len(ids), W) are those of the character after each place of the text.
    """

    def __init__(
        self,
        ids: IntArray,
        block_size: int,
        hints: npt.NDArray[np.float16],
        *,
        jitter: bool,
        stride: int | None = None,
    ) -> None:
        super().__init__(ids, block_size, jitter=jitter, stride=stride)
        self.hints = torch.from_numpy(hints)

    def batch(self, indices: IntArray, epochs: IntArray | None = None) -> HintedBatch:  # type: ignore[override]
        """Cut windows as `Windows.batch` does: idx (B, T), targets (B, T), hints (B, T, W)."""
        idx, targets = super().batch(indices, epochs)
        places = torch.from_numpy(np.minimum(self.places(indices, epochs), len(self.ids) - 1))
        return idx, targets, self.hints[places].float()

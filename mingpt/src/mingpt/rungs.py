"""The rungs of the ladder, from guessing to the transformer: each adds the one thing it names.

    counted     uniform -> unigram -> counted-bigram -> ngram        tables of counts, no chance
    window      bigram -> mlp                                        networks on 1 and W characters
    attention   (bigram ->) one-head -> many-heads -> feed-forward   attention, then what is around
                -> residual -> blocks -> layer-norm                  it in the paper
                -> transformer                                       the recipe, many things at once

From one-head to layer-norm all read the same window of BLOCK_SIZE characters in the same width
N_EMBD and are trained by the same settings for the same UPDATES, so that two neighbours differ by
one idea; what it costs stands beside it in CPU seconds. The pieces are those of `mingpt.layers`.

Shapes: B batch, T time, C = n_embd channels, V vocabulary, W characters of the MLP's window.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mingpt import recipes
from mingpt.layers import (
    Embedding,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Linear,
    MultiHeadAttention,
    causal_mask,
    cross_entropy,
)
from mingpt.ngram import NGram, NGramConfig
from shared import cli
from shared.config import TrainerConfig
from shared.errors import UsageError
from shared.sampler import IntArray

Chain = Literal["counted", "window", "attention"]
BLOCK_SIZE, N_EMBD, N_HEAD, N_LAYER = 64, 96, 6, 3
# Of one thread of a server CPU of 2023, measured on these rungs: for guesses of a training's time.
STEP_SECONDS, FLOPS_PER_SECOND = 2e-3, 4e10
UPDATES = 1000  # of the plain rungs on attention: the text once


def scored(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Return logits (B, T, V) as they are, or with targets (B, T) the mean loss in nats."""
    return logits if targets is None else cross_entropy(logits, targets)


def check_length(idx: Tensor, block_size: int) -> None:
    """Raise ValueError for more characters than a model has been made for."""
    if idx.size(1) > block_size:
        raise ValueError(
            f"{idx.size(1)} characters do not fit block_size={block_size}; keep the last ones"
        )


def product_flops(*layers: nn.Module) -> float:
    """Count the FLOPs of the products of `layers` with one vector: two for each weight of each."""
    matrices = (each for layer in layers for each in layer.modules() if isinstance(each, Linear))
    return 2.0 * sum(each.weight.numel() for each in matrices)


def attention_flops(block_size: int, n_embd: int) -> float:
    """Count the FLOPs of one query's scores with all keys, and of the mean of their values."""
    return 2.0 * 2 * block_size * n_embd


# ---- counted


class Counted(nn.Module):
    """How often each character follows each other one, every count raised by `k` (Lidstone, 1920).

    With `context` 0 all characters are counted together: the unigram.
    """

    def __init__(self, vocab_size: int, context: int, k: float) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, BLOCK_SIZE
        self.context, self.k = context, k
        self.log_p: Tensor
        rows = vocab_size if context else 1
        self.register_buffer("log_p", torch.full((rows, vocab_size), -math.log(vocab_size)))

    def fit(self, ids: IntArray) -> None:
        """Count the characters (N,)."""
        counts = np.full(self.log_p.shape, self.k)
        np.add.at(counts, (ids[:-1] * self.context, ids[1:]), 1)
        self.log_p.copy_(torch.from_numpy(np.log(counts / counts.sum(1, keepdims=True))))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Look up the row of each character: logits (B, T, V), or the loss."""
        check_length(idx, self.block_size)
        return scored(self.log_p[idx * self.context], targets)

    def flops_per_character(self) -> float:
        """Return 0: a row is looked up."""
        return 0.0


class Uniform(nn.Module):
    """Every character is as likely as any other; what any model has to beat."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, BLOCK_SIZE

    def fit(self, ids: IntArray) -> None:
        """Learn nothing."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return zeros (B, T, V), or the loss, which is log V."""
        check_length(idx, self.block_size)
        return scored(torch.zeros(*idx.shape, self.vocab_size, device=idx.device), targets)

    def flops_per_character(self) -> float:
        """Return 0."""
        return 0.0


# ---- networks without attention


class Bigram(nn.Module):
    """A row of logits for each character: the counted bigram, found by gradient descent."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, BLOCK_SIZE
        self.wte = Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.wte.weight)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Look up the row of each character: logits (B, T, V), or the loss."""
        check_length(idx, self.block_size)
        return scored(self.wte(idx), targets)

    def flops_per_character(self) -> float:
        """Return 0: a row is looked up."""
        return 0.0


class MLP(nn.Module):
    """The last `window` characters' vectors, side by side, through one hidden layer of tanh.

    Bengio et al. (2003), section 2, without its direct connections. What lies before the text's
    first character reads as a blank, character V.
    """

    def __init__(self, vocab_size: int, window: int, n_embd: int, n_hidden: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size, self.window = vocab_size, BLOCK_SIZE, window
        self.wte = Embedding(vocab_size + 1, n_embd)
        self.hidden = Linear(window * n_embd, n_hidden)
        self.head = Linear(n_hidden, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map idx (B, T) to logits (B, T, V), or to the loss."""
        check_length(idx, self.block_size)
        before = idx.new_full((len(idx), self.window - 1), self.vocab_size)
        x = self.wte(torch.cat((before, idx), dim=1))  # (B, W - 1 + T, E)
        x = x.unfold(1, self.window, 1).flatten(2)  # (B, T, E W)
        return scored(self.head(self.hidden(x).tanh()), targets)

    def flops_per_character(self) -> float:
        """Sum the products of both layers."""
        return product_flops(self)


# ---- attention


class Stem(nn.Module):
    """What all networks on attention begin with: a vector for the character and one for its place.

    Section 3.4 of Vaswani et al. (2017), with the learned positions of table 3, row (E).
    """

    def __init__(self, vocab_size: int, block_size: int, n_embd: int) -> None:
        super().__init__()
        self.block_size = block_size
        self.wte, self.positions = (
            Embedding(vocab_size, n_embd),
            LearnedPositions(block_size, n_embd),
        )

    def forward(self, idx: Tensor) -> Tensor:
        """Map (B, T) to (B, T, C); raise ValueError for T > block_size."""
        check_length(idx, self.block_size)
        x: Tensor = self.wte(idx) + self.positions(idx.size(1))
        return x


class Heads(nn.Module):
    """One layer of attention with `n_head` heads between the embedding and the logits."""

    def __init__(self, vocab_size: int, n_head: int, block_size: int, n_embd: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size, self.n_embd = vocab_size, block_size, n_embd
        self.stem = Stem(vocab_size, block_size, n_embd)
        self.attention = MultiHeadAttention(n_embd, n_head, attention="fused")
        self.head = Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map idx (B, T) to logits (B, T, V), or to the loss."""
        mask = causal_mask(idx.size(1), idx.size(1), idx.device)
        return scored(self.head(self.attention(self.stem(idx), mask=mask)), targets)

    def flops_per_character(self) -> float:
        """Sum the products and the attention."""
        return product_flops(self) + attention_flops(self.block_size, self.n_embd)


class HeadsFeedForward(nn.Module):
    """`Heads`, then a feed-forward layer that each position goes through alone."""

    def __init__(self, vocab_size: int, n_head: int, block_size: int, n_embd: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size, self.n_embd = vocab_size, block_size, n_embd
        self.stem = Stem(vocab_size, block_size, n_embd)
        self.attention = MultiHeadAttention(n_embd, n_head, attention="fused")
        self.feed_forward = FeedForward(n_embd)
        self.head = Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map idx (B, T) to logits (B, T, V), or to the loss."""
        mask = causal_mask(idx.size(1), idx.size(1), idx.device)
        x = self.attention(self.stem(idx), mask=mask)  # (B, T, C)
        return scored(self.head(self.feed_forward(x)), targets)

    def flops_per_character(self) -> float:
        """Sum the products and the attention."""
        return product_flops(self) + attention_flops(self.block_size, self.n_embd)


class Block(nn.Module):
    """Attention and feed-forward, each added to what it read; with `norm`, reading it normalised.

    The normalisation is before each part (Xiong et al., 2020), as in GPT-2, not after the sum as
    in the paper: deep stacks train without a warm-up.
    """

    def __init__(self, n_embd: int, n_head: int, norm: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (LayerNorm(n_embd) if norm else nn.Identity() for _ in range(2))
        self.attention = MultiHeadAttention(n_embd, n_head, attention="fused")
        self.feed_forward = FeedForward(n_embd)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, C) to the same."""
        x = x + self.attention(self.norm_1(x), mask=mask)
        out: Tensor = x + self.feed_forward(self.norm_2(x))
        return out


class Blocks(nn.Module):
    """Blocks on one stream, that residual connections keep open from end to end."""

    def __init__(
        self, vocab_size: int, norm: bool, n_layer: int, n_head: int, block_size: int, n_embd: int
    ) -> None:
        super().__init__()
        self.vocab_size, self.block_size, self.n_embd = vocab_size, block_size, n_embd
        self.stem = Stem(vocab_size, block_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, norm) for _ in range(n_layer))
        self.norm = LayerNorm(n_embd) if norm else nn.Identity()
        self.head = Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map idx (B, T) to logits (B, T, V), or to the loss."""
        mask = causal_mask(idx.size(1), idx.size(1), idx.device)
        x = self.stem(idx)
        for block in self.blocks:
            x = block(x, mask)
        return scored(self.head(self.norm(x)), targets)

    def flops_per_character(self) -> float:
        """Sum the products and the attention of all layers."""
        attention = attention_flops(self.block_size, self.n_embd)
        return product_flops(self) + len(self.blocks) * attention


# ---- the ladder


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it is, how it is trained, and which steps it has to beat."""

    name: str
    chain: Chain
    adds: str
    """What it has that the one below has not, for a reader."""
    build: Callable[..., nn.Module]
    """Makes it: `build(vocab_size, **settings)`."""
    settings: Mapping[str, Any]
    trainer: TrainerConfig | None = None
    """How it is trained; None where it is counted."""
    after: tuple[str, ...] = ()
    """The rungs below, all of which it has to beat."""
    tie_with: str = ""
    """The one of them that it need not beat; it may be worse by at most `tie`."""
    tie: float = 0.0
    """Nats per character of validation text."""
    same: bool = False
    """Whether it is the same model as that one, found in another way: then it may not be better
    by more than `tie` either."""
    reference: str = ""
    """What an earlier project reached with a like model, in nats per character, and its time
    where that is known."""

    def make(self, vocab_size: int) -> nn.Module:
        """Build the model with weights from torch's global generator."""
        return self.build(vocab_size, **self.settings)

    def steps(self, max_steps: int | None = None) -> int:
        """Count the updates of its training, capped; 0 where it is counted."""
        steps = self.trainer.max_steps if self.trainer else 0
        return min(steps, max_steps or steps)

    def cost(self, max_steps: int | None = None) -> float:
        """Guess the seconds of its training: a fixed part, each step, and its arithmetic."""
        if self.trainer is None:
            return 5.0
        model: Any = self.make(65)
        characters = self.trainer.batch_size * self.trainer.grad_accum_steps * model.block_size
        flops: float = 3 * model.flops_per_character() * characters
        return 5.0 + self.steps(max_steps) * (STEP_SECONDS + flops / FLOPS_PER_SECOND)


def counted_ngram(vocab_size: int, n: int) -> nn.Module:
    """Build the n-gram model with modified Kneser-Ney smoothing."""
    return NGram(NGramConfig(vocab_size=vocab_size, n=n))


def transformer(vocab_size: int, **settings: Any) -> nn.Module:
    """Build the model of the default recipe."""
    model = recipes.build("default", vocab_size, **settings)
    assert isinstance(model, nn.Module)  # as all language models are
    return model


def _trainer(**changes: Any) -> TrainerConfig:
    """Return the settings that the small networks share, with some replaced.

    Common settings, chosen on the last tenth of the training text (`python -m mingpt.climb
    --tune`), not for each rung anew. There are no evaluations: nothing is chosen by the validation
    text, the last weights count.
    """
    common: dict[str, Any] = {
        "batch_size": 16,
        "optimizer": "muon",
        "learning_rate": 4e-3,
        "muon_learning_rate": 0.02,
        "schedule": "linear",
        "warmup_steps": 50,
        "precision": "fp32",
        "threads": 1,
        "eval_every": 0,
        "checkpoint_every": 250,
        "log_every": 25,
    }
    return TrainerConfig(**{**common, **changes})


def _recipe() -> tuple[dict[str, Any], TrainerConfig]:
    """Return the settings of the default recipe's model, and of its training by our rules."""
    recipe = recipes.find("default")
    settings = asdict(recipe.config)
    del settings["vocab_size"]
    return settings, replace(recipe.trainer, eval_every=0, threads=1)


_TRANSFORMER, _TRANSFORMER_TRAINER = _recipe()
# All that decides the numbers is in the settings: a ladder is not resumed after a change of them.
_SIZES = {"n_head": N_HEAD, "block_size": BLOCK_SIZE, "n_embd": N_EMBD}

RUNGS = (
    Rung(
        "uniform",
        "counted",
        "Nothing: every character is as likely as any other.",
        Uniform,
        {},
        reference="4.17",
    ),
    Rung(
        "unigram",
        "counted",
        "How often each character is used.",
        Counted,
        {"context": 0, "k": 0.1},
        after=("uniform",),
    ),
    Rung(
        "counted-bigram",
        "counted",
        "How often each character follows each other one.",
        Counted,
        {"context": 1, "k": 0.1},
        after=("unigram",),
    ),
    Rung(
        "ngram",
        "counted",
        "The last six characters, the counts of long contexts smoothed by those of shorter ones "
        "(modified Kneser-Ney). On a text this small, counting beats small networks: the chain of "
        "networks starts again below.",
        counted_ngram,
        {"n": 7},
        after=("counted-bigram",),
    ),
    Rung(
        "bigram",
        "window",
        "Gradient descent in place of counting. It is the counted bigram again, so it has to land "
        "at the same loss: on the text it has read it does, to 0.001; on a new one within 0.02, as "
        "the counts have 0.1 added to each, and a pair never seen costs the network more.",
        Bigram,
        {},
        _trainer(
            max_steps=1500, batch_size=64, optimizer="adamw", learning_rate=0.1, weight_decay=0.0
        ),
        after=("counted-bigram",),
        tie_with="counted-bigram",
        tie=0.02,
        same=True,
        reference="2.72, with Adam 2.56",
    ),
    Rung(
        "mlp",
        "window",
        "A window of 16 characters, each a learned vector, through one hidden layer of tanh "
        "(Bengio et al., 2003): every place of the window has weights of its own.",
        MLP,
        {"window": 16, "n_embd": 24, "n_hidden": 256},
        _trainer(max_steps=1500),
        after=("bigram",),
        reference="2.49",
    ),
    Rung(
        "one-head",
        "attention",
        "Attention in place of the window: one mean over all characters before, weighted by what "
        "they and their places are. It starts from the bigram again, and need not beat the MLP: "
        "one mean of all that it reads is little to predict from; what follows is built on it.",
        Heads,
        {**_SIZES, "n_head": 1},
        _trainer(max_steps=UPDATES),
        after=("bigram",),
    ),
    Rung(
        "many-heads",
        "attention",
        f"The same weights cut into {N_HEAD} heads: {N_HEAD} means at once, so that each can look "
        "at a place of its own.",
        Heads,
        _SIZES,
        _trainer(max_steps=UPDATES),
        after=("one-head",),
    ),
    Rung(
        "feed-forward",
        "attention",
        "A hidden layer for each position after the attention: what the heads brought together is "
        "not only summed but computed with.",
        HeadsFeedForward,
        _SIZES,
        _trainer(max_steps=UPDATES),
        after=("many-heads",),
        reference="2.17 (1 min), 1.89 (1 h)",
    ),
    Rung(
        "residual",
        "attention",
        "Attention and feed-forward each add to what they read, in place of replacing it: one "
        "block of the same size, with residual connections.",
        Blocks,
        {**_SIZES, "norm": False, "n_layer": 1},
        _trainer(max_steps=UPDATES),
        after=("feed-forward",),
    ),
    Rung(
        "blocks",
        "attention",
        f"{N_LAYER} such blocks, one on the other: later ones look for what earlier ones found.",
        Blocks,
        {**_SIZES, "norm": False, "n_layer": N_LAYER},
        _trainer(max_steps=UPDATES),
        after=("residual",),
    ),
    Rung(
        "layer-norm",
        "attention",
        f"Each part reads the stream normalised. At {N_LAYER} blocks and this learning rate the "
        "network trains as well without it, so it only has to come as near as 0.02; what the norm "
        "allows is a higher rate.",
        Blocks,
        {**_SIZES, "norm": True, "n_layer": N_LAYER},
        _trainer(max_steps=UPDATES),
        after=("blocks",),
        tie_with="blocks",
        tie=0.02,
        reference="1.78 (6 h)",
    ),
    Rung(
        "transformer",
        "attention",
        "Not one thing but many at once: the default recipe of `mingpt.train`, with its own size "
        f"({_TRANSFORMER['n_layer']} blocks of width {_TRANSFORMER['n_embd']}), a context of "
        f"{_TRANSFORMER['block_size']}, several times the training, rates and a schedule of its "
        "own, and today's parts: rotary positions, short convolutions, squared ReLU, normalised "
        "queries and keys, and others; in bfloat16 where the CPU has units for it. "
        "`mingpt.ablate` tells what each part gives.",
        transformer,
        _TRANSFORMER,
        _TRANSFORMER_TRAINER,
        after=("layer-norm", "mlp"),
        reference="1.66",
    ),
)


def find(name: str) -> Rung:
    """Return the rung of that name; raise UsageError naming the nearest where there is none."""
    for rung in RUNGS:
        if rung.name == name:
            return rung
    names = [rung.name for rung in RUNGS]
    told = cli.suggest(name, names) or f"; there are {', '.join(names)}"
    raise UsageError(f"no rung {name!r}{told}")

"""Recurrent networks: a state is carried from character to character.

Elman (1990) and Mikolov et al. (2010), the GRU of Cho et al. (2014), the LSTM of Hochreiter &
Schmidhuber (1997) with the forget gates of Gers et al. (2000).

Shapes: B items, T time, C = n_embd, H = n_hidden, G gates (1, 3, 4 for rnn, gru, lstm), V
vocab_size, N places that count, P prefixes that are computed (P <= N).

    character --embed--> (C) --w_input--> (G H) --+--> gates --> state (H) --head--> scores (V)
                                                  |                |
                            the state before --w_hidden            +--> the next character's

Of these, only w_hidden and the gates have to wait for the state before. The rest is done for all
characters of a batch at once, and what a character adds to the gates is a row of a table with V
rows: embed @ w_input^T. `makemore.recurrence` has the cells' equations and does the waiting.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import BOUNDARY, IGNORED
from makemore.model import CharacterModel
from makemore.noising import blank
from makemore.recurrence import Plan, elman, gru, lstm, make_plan

Cell = Literal["rnn", "gru", "lstm"]
GATES: dict[Cell, int] = {"rnn": 1, "gru": 3, "lstm": 4}

# To find out which items begin alike takes 0.15 to 0.3 ms. Measured with names on one core, sharing
# gains from about 16,000 numbers in a time step's gates on for the rnn, 24,000 for the gru, 33,000
# for the lstm, and loses below.
SHARE_FROM = 20_000  # B * G * H


@dataclass(frozen=True, kw_only=True)
class RNNConfig:
    """Size and kind of a recurrent network."""

    vocab_size: int = 27
    """Characters and the boundary."""
    cell: Cell = "gru"
    """The recurrence: rnn (Elman), gru (Cho et al.) or lstm (Hochreiter and Schmidhuber)."""
    n_embd: int = 64
    """Width of a character's vector."""
    n_hidden: int = 64
    """Width of the state."""
    n_layer: int = 1
    """Recurrences, one reading the states of the other."""
    dropout: float = 0.0
    """Share of a state's units that are dropped between layers and before the head (Zaremba et
    al., 2014), never on the way through time."""
    embed_dropout: float = 0.0
    """Share of a character vector's units that are dropped, anew at every place."""
    weight_dropout: float = 0.0
    """Share of the recurrent weights that are dropped, anew for every batch (Merity et al., 2017,
    sec. 2)."""
    noise: float = 0.0
    """Share of characters read as a blank in training (Xie et al., 2017; see `noising`)."""

    def __post_init__(self) -> None:
        if self.cell not in GATES:
            raise ValueError(f"cell={self.cell!r} must be one of {', '.join(GATES)}")
        for name in ("vocab_size", "n_embd", "n_hidden", "n_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1; try 64")
        for name in ("dropout", "embed_dropout", "weight_dropout", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1); try 0.2")


class Layer(nn.Module):
    """One recurrence and its weights; the gates are stacked as in `makemore.recurrence`.

    The recurrent matrices begin orthogonal (Saxe et al., 2014), so that a state neither fades nor
    grows through them; the forget gates with bias 1, open (Jozefowicz et al., 2015).
    """

    def __init__(self, cell: Cell, n_in: int, n_hidden: int) -> None:
        super().__init__()
        gates = GATES[cell]
        self.cell = cell
        self.w_input = nn.Parameter(torch.empty(gates * n_hidden, n_in))
        nn.init.normal_(self.w_input, std=1 / math.sqrt(n_in))
        blocks = [nn.init.orthogonal_(torch.empty(n_hidden, n_hidden)) for _ in range(gates)]
        self.w_hidden = nn.Parameter(torch.cat(blocks))
        self.bias = nn.Parameter(torch.zeros(gates * n_hidden))
        self.start = nn.Parameter(torch.zeros(n_hidden))
        if cell == "gru":
            self.bias_hidden = nn.Parameter(torch.zeros(n_hidden))
        if cell == "lstm":  # gates: output, input, forget, candidate
            nn.init.ones_(self.bias.data[2 * n_hidden : 3 * n_hidden])
            self.start_cell = nn.Parameter(torch.zeros(n_hidden))

    def forward(self, x: Tensor, w: Tensor, plan: Plan) -> Tensor:
        """Map what the inputs add to the gates, (P, G * H), to the states (P, H)."""
        x = x.to(w.dtype)  # the product before is bf16 under autocast, the recurrence never
        if self.cell == "rnn":
            return elman(x, w, self.start, plan)
        if self.cell == "gru":
            return gru(x, w, self.bias_hidden, self.start, plan)
        return lstm(x, w, self.start, self.start_cell, plan)


class RNN(CharacterModel):
    """A recurrent language model of one or more layers."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.block_size = config.vocab_size, 0
        has_blank = config.noise > 0
        self.embed = nn.Parameter(torch.randn(config.vocab_size + has_blank, config.n_embd))
        widths = [config.n_embd, *[config.n_hidden] * config.n_layer]
        self.layers = nn.ModuleList(
            Layer(config.cell, n_in, config.n_hidden) for n_in in widths[:-1]
        )
        self.head = nn.Linear(config.n_hidden, config.vocab_size)

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return unnormalised log-probabilities (N, V) of what follows the places in `keep`.

        Where items share prefixes, they share what dropout has left of them.
        """
        plan = self._plan(idx, keep)
        return self._prefix_scores(plan).index_select(0, plan.places)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, taken in the plan's order: scores need not be moved."""
        plan = self._plan(idx, targets != IGNORED)
        scores = self._prefix_scores(plan)
        if plan.prefixes is not None:
            scores = scores.index_select(0, plan.prefixes)
        return F.cross_entropy(scores, targets.take(plan.at))

    def _plan(self, idx: Tensor, keep: Tensor) -> Plan:
        """Plan a batch, in training with the configured share of blanks."""
        config = self.config
        if self.training and config.noise:
            idx = blank(idx, config.noise, config.vocab_size, first=idx == BOUNDARY)
        size = len(idx) * GATES[config.cell] * config.n_hidden
        return make_plan(idx, keep, share=size >= SHARE_FROM)

    def _prefix_scores(self, plan: Plan) -> Tensor:
        """Return the scores after every prefix of the plan, (P, V)."""
        config = self.config
        if not plan.counts:
            return self.embed.new_empty(0, config.vocab_size)
        states: Tensor = self.embed
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if number == 0 and config.embed_dropout:
                states = self._dropped(self.embed.index_select(0, plan.ids), config.embed_dropout)
            x = F.linear(states, layer.w_input, layer.bias)
            if number == 0 and not config.embed_dropout:
                x = x.index_select(0, plan.ids)  # (V, G H) to (P, G H)
            w = self._dropped(layer.w_hidden, config.weight_dropout)
            states = self._dropped(layer(x, w, plan), config.dropout)  # (P, H)
        scores: Tensor = self.head(states)
        return scores

    def _dropped(self, x: Tensor, share: float) -> Tensor:
        """Apply dropout in training."""
        return F.dropout(x, share) if share and self.training else x

    def flops_per_character(self) -> float:
        """Return the floating-point operations that the scores at one place take.

        All of the formula, though the first layer's input product is a look-up in practice.
        """
        c = self.config
        gates, H = GATES[c.cell], c.n_hidden
        inputs = c.n_embd + (c.n_layer - 1) * H  # of all layers together
        products = gates * H * (inputs + c.n_layer * H) + H * c.vocab_size
        # One operation for each gate's bias and function, the rest by the cell's equations.
        elementwise = c.n_layer * H * {"rnn": 3, "gru": 15, "lstm": 17}[c.cell]
        return 2.0 * products + elementwise

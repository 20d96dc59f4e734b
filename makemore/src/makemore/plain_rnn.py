"""The plain formulation of the recurrent networks: the reference that `makemore.rnn` is held to.

Shapes: B items, T time, C width of the input, H = n_hidden.

One Python step a character, over all T columns of the batch, padding included; every gate is a
linear map of its own of [x, h] (B, C + H), and autograd finds the gradients. This is how the cells
are usually written first (makemore.py does), it reads like the equations, and it is slow.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import IGNORED
from makemore.rnn import RNN

State = tuple[Tensor, ...]
"""h (B, H), and for the LSTM c (B, H)."""


class PlainElman(nn.Module):
    """The tanh network of `makemore.recurrence.elman`."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(n_in + n_hidden, n_hidden)])

    def forward(self, x: Tensor, state: State) -> State:
        """Map inputs (B, C) and the state to the next state."""
        return (torch.tanh(self.gates[0](torch.cat([x, state[0]], dim=1))),)


class PlainGRU(nn.Module):
    """The unit of `makemore.recurrence.gru`; the candidate's two products stay apart."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(n_in + n_hidden, n_hidden) for _ in range(2))
        self.candidate_input = nn.Linear(n_in, n_hidden)
        self.candidate_hidden = nn.Linear(n_hidden, n_hidden)

    def forward(self, x: Tensor, state: State) -> State:
        """Map inputs (B, C) and the state to the next state."""
        (h,) = state
        xh = torch.cat([x, h], dim=1)
        r, z = (torch.sigmoid(gate(xh)) for gate in self.gates)
        n = torch.tanh(self.candidate_input(x) + r * self.candidate_hidden(h))
        return ((1 - z) * n + z * h,)


class PlainResetFirstGRU(nn.Module):
    """The unit as Cho et al. (2014) and makemore.py have it: the reset before the product.

    Of the same weights it is another function than `PlainGRU`, and a little cheaper when written
    plainly; the benchmark times it, so that our speed is not held against a slower variant only.
    """

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(n_in + n_hidden, n_hidden) for _ in range(3))

    def forward(self, x: Tensor, state: State) -> State:
        """Map inputs (B, C) and the state to the next state."""
        (h,) = state
        xh = torch.cat([x, h], dim=1)
        r, z = torch.sigmoid(self.gates[0](xh)), torch.sigmoid(self.gates[1](xh))
        n = torch.tanh(self.gates[2](torch.cat([x, r * h], dim=1)))
        return ((1 - z) * n + z * h,)


class PlainLSTM(nn.Module):
    """The unit of `makemore.recurrence.lstm`."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(n_in + n_hidden, n_hidden) for _ in range(4))

    def forward(self, x: Tensor, state: State) -> State:
        """Map inputs (B, C) and the states to the next states."""
        h, c = state
        xh = torch.cat([x, h], dim=1)
        o, i, f = (torch.sigmoid(gate(xh)) for gate in self.gates[:3])
        c = f * c + i * torch.tanh(self.gates[3](xh))
        return o * torch.tanh(c), c


PLAIN_CELLS: dict[str, type[nn.Module]] = {"rnn": PlainElman, "gru": PlainGRU, "lstm": PlainLSTM}


class PlainRNN(nn.Module):
    """The plain model with the weights of `model`, without its dropout."""

    def __init__(self, model: RNN, gru: type[nn.Module] = PlainGRU) -> None:
        super().__init__()
        config = model.config
        kind = gru if config.cell == "gru" else PLAIN_CELLS[config.cell]
        widths = [config.n_embd] + [config.n_hidden] * (config.n_layer - 1)
        self.embed = nn.Parameter(torch.empty_like(model.embed))
        self.cells = nn.ModuleList([kind(n_in, config.n_hidden) for n_in in widths])
        names = [name for name, _ in model.named_parameters() if "start" in name]
        self.starts = nn.ParameterDict(
            {name.replace(".", "_"): torch.empty(config.n_hidden) for name in names}
        )
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        self.to(model.embed.dtype)
        self.pairs = list(self._pairs(names))
        theirs = dict(model.named_parameters())
        for name, rows, parameter, columns in self.pairs:
            parameter.data[..., columns] = theirs[name].data[rows]

    def _pairs(self, starts: list[str]) -> Iterator[tuple[str, slice, Tensor, slice]]:
        """Say which rows of an RNN's parameter are which columns of one of ours."""
        everything = slice(None)
        yield "embed", everything, self.embed, everything
        yield "head.weight", everything, self.head.weight, everything
        yield "head.bias", everything, self.head.bias, everything
        for name in starts:
            yield name, everything, self.starts[name.replace(".", "_")], everything
        cell: Any
        for number, cell in enumerate(self.cells):
            at = f"layers.{number}."
            H, width = cell.gates[0].weight.shape
            for gate, linear in enumerate(cell.gates):
                rows = slice(gate * H, (gate + 1) * H)
                yield at + "w_input", rows, linear.weight, slice(width - H)
                yield at + "w_hidden", rows, linear.weight, slice(width - H, width)
                yield at + "bias", rows, linear.bias, everything
            if isinstance(cell, PlainGRU):
                rows = slice(2 * H, 3 * H)
                yield at + "w_input", rows, cell.candidate_input.weight, everything
                yield at + "bias", rows, cell.candidate_input.bias, everything
                yield at + "w_hidden", rows, cell.candidate_hidden.weight, everything
                yield at + "bias_hidden", everything, cell.candidate_hidden.bias, everything

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the targets that are not -100; both are (B, T)."""
        x = F.embedding(idx, self.embed)  # (B, T, C)
        starts = list(self.starts.values())
        each = len(starts) // len(self.cells)
        for number, cell in enumerate(self.cells):
            mine = starts[number * each : (number + 1) * each]
            state = tuple(start.expand(len(x), -1) for start in mine)
            states = []
            for t in range(x.shape[1]):
                state = cell(x[:, t], state)
                states.append(state[0])
            x = torch.stack(states, dim=1)  # (B, T, H)
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def gradients(self, model: RNN) -> dict[str, Tensor]:
        """Return the gradients by the names and in the shapes of `model`'s parameters."""
        found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for name, rows, parameter, columns in self.pairs:
            assert parameter.grad is not None
            found[name][rows] = parameter.grad[..., columns]
        return found

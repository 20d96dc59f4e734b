"""A training step of bow, mlp, wavenet and transformer beside the plain formulation of each.

    python makemore/benchmarks/step_speed.py --out makemore/results/step_speed.json

Forward, backward and AdamW on batches of 32 names, one thread, fp32, no dropout, the same sizes and
about the same number of parameters. Making the batches is left out on both sides. "plain" is how a
tutorial writes it, and as makemore.py and the lectures have it: names padded to 16 places, every
place computed, one module an operation, a mask of all pairs of places, a tree for each window, and
AdamW as torch gives it. "plain, fused AdamW" is the same with the optimizer that ours has. All take
turns in one process, so that a busy machine slows all alike; CPU seconds leave out the time that
others take. The recurrent nets are in recurrent_speed.py.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.bow import Bow, BowConfig
from makemore.data import (
    DEFAULT_DATA,
    FALLBACK_DATA,
    IGNORED,
    Batch,
    Items,
    Vocabulary,
    context_windows,
)
from makemore.mlp import MLP, MLPConfig
from makemore.transformer import Transformer, TransformerConfig
from makemore.wavenet import WaveNet, WaveNetConfig
from shared.datasets import resolve_default
from shared.files import write_json
from shared.optim import make_optimizers
from shared.profiling import Row, compare, table

BLOCK = 16  # the longest of the names has 15 characters
BATCH = 32
BATCHES = 16  # different ones, each used again and again


class PlainAttention(nn.Module):
    """Causal attention of the whole rectangle, by a mask kept in a buffer."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)
        self.register_buffer("mask", torch.ones(BLOCK, BLOCK).tril().view(1, 1, BLOCK, BLOCK))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        heads = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in self.qkv(x).split(C, 2))
        q, k, v = heads
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        att = att.masked_fill(self.get_buffer("mask")[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        result: Tensor = self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return result


class PlainGELU(nn.Module):
    """Gelu's formula with tanh, written out (Hendrycks & Gimpel, 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to itself."""
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1 + torch.tanh(inner))


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attention = PlainAttention(n_embd, n_head)
        self.feed = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), PlainGELU(), nn.Linear(4 * n_embd, n_embd)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attention(self.norm_1(x))
        result: Tensor = x + self.feed(self.norm_2(x))
        return result


class PlainTransformer(nn.Module):
    """Four blocks on the padded rectangle."""

    def __init__(self, n_embd: int = 64, n_head: int = 4, n_layer: int = 4) -> None:
        super().__init__()
        self.embed, self.position_embed = nn.Embedding(27, n_embd), nn.Embedding(BLOCK, n_embd)
        self.blocks = nn.ModuleList(PlainBlock(n_embd, n_head) for _ in range(n_layer))
        self.norm, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, 27, bias=False)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        x = self.embed(idx) + self.position_embed(torch.arange(idx.size(1)).unsqueeze(0))
        for block in self.blocks:
            x = block(x)
        return padded_loss(self.head(self.norm(x)), targets)


class PlainBow(nn.Module):
    """The mean as the product with a matrix of weights, a softmax over what is not masked."""

    def __init__(self, n_embd: int = 64) -> None:
        super().__init__()
        self.embed, self.position_embed = nn.Embedding(27, n_embd), nn.Embedding(BLOCK, n_embd)
        self.hidden, self.out = nn.Linear(n_embd, n_embd), nn.Linear(n_embd, n_embd)
        self.head = nn.Linear(n_embd, 27)
        self.register_buffer("mask", torch.ones(BLOCK, BLOCK).tril().view(1, BLOCK, BLOCK))

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        B, T = idx.shape
        x = self.embed(idx) + self.position_embed(torch.arange(T).unsqueeze(0))
        att = torch.zeros(B, T, T)
        att = att.masked_fill(self.get_buffer("mask")[:, :T, :T] == 0, float("-inf"))
        x = x + F.softmax(att, dim=-1) @ x
        x = x + self.out(torch.tanh(self.hidden(x)))
        return padded_loss(self.head(x), targets)


class PlainMLP(nn.Module):
    """The context of every padded place, shifted into view one character at a time."""

    def __init__(self, n_embd: int = 64, n_hidden: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(28, n_embd)  # and one before the beginning
        self.net = nn.Sequential(
            nn.Linear(BLOCK * n_embd, n_hidden), nn.Tanh(), nn.Linear(n_hidden, 27)
        )

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        found = []
        for _ in range(BLOCK):
            found.append(self.embed(idx))
            idx = torch.roll(idx, 1, 1)
            idx[:, 0] = 27
        return padded_loss(self.net(torch.cat(found, -1)), targets)


class PlainWaveNet(nn.Module):
    """The lecture's: one tree of merges for each window of eight characters."""

    def __init__(self, n_embd: int = 24, n_hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(27, n_embd)
        widths = (2 * n_embd, 2 * n_hidden, 2 * n_hidden)
        self.linears = nn.ModuleList(nn.Linear(width, n_hidden, bias=False) for width in widths)
        self.norms = nn.ModuleList(nn.BatchNorm1d(n_hidden) for _ in widths)
        self.head = nn.Linear(n_hidden, 27)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; windows of padding are left out."""
        keep = targets != IGNORED
        x = self.embed(context_windows(idx, 8)[keep])  # (N, 8, C)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            N, T, C = x.shape
            x = linear(x.view(N, T // 2, 2 * C))  # (N, T / 2, H)
            x = torch.tanh(norm(x.flatten(0, 1)).view_as(x))
        return F.cross_entropy(self.head(x.squeeze(1)), targets[keep])


def padded_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, T, V) where targets (B, T) count."""
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


# Ours and the plain one; sizes of makemore.py, and of lecture 6 for the wavenet.
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "bow": (lambda: Bow(BowConfig(block_size=BLOCK)), PlainBow),
    "mlp": (
        lambda: MLP(MLPConfig(block_size=BLOCK, n_embd=64, n_hidden=64)),
        PlainMLP,
    ),
    "wavenet": (lambda: WaveNet(WaveNetConfig()), PlainWaveNet),
    "transformer": (lambda: Transformer(TransformerConfig(block_size=BLOCK)), PlainTransformer),
}


def batches() -> tuple[list[Batch], str]:
    """Return batches of names trimmed to their longest, and what they were drawn from."""
    data, _ = resolve_default(DEFAULT_DATA, FALLBACK_DATA)
    lines = [line.strip().lower() for line in data.text().splitlines()]
    fits = [line for line in lines if line.isascii() and line.isalpha() and len(line) < BLOCK]
    items = Items(fits, Vocabulary("abcdefghijklmnopqrstuvwxyz"))
    order = torch.randperm(len(items)).numpy()
    return [items.batch(order[i * BATCH : (i + 1) * BATCH]) for i in range(BATCHES)], data.name


def padded(batch: Batch) -> Batch:
    """Fill a batch up to the places of the longest name there is."""
    idx, targets = batch
    more = (0, BLOCK - idx.size(1))
    return F.pad(idx, more), F.pad(targets, more, value=IGNORED)


def stepper(
    module: nn.Module, optimizer: torch.optim.Optimizer, data: Iterable[Batch], steps: int
) -> Callable[[], None]:
    """Return a function that trains for a number of steps."""
    supply = itertools.cycle(data)

    def run() -> None:
        for idx, targets in itertools.islice(supply, steps):
            loss = module(idx, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def fused(module: nn.Module) -> torch.optim.Optimizer:
    """Return the trainer's own AdamW."""
    (optimizer,) = make_optimizers(
        module,
        name="adamw",
        learning_rate=5e-4,
        muon_learning_rate=0.0,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    return optimizer


def measure(name: str, data: list[Batch], rounds: int, steps: int) -> dict[str, Any]:
    """Time a step of one model, ours and plain, in turns: rows with milliseconds in them."""
    build, build_plain = PAIRS[name]
    ours, plain, second = build().train(), build_plain().train(), build_plain().train()
    square = [padded(batch) for batch in data]
    usual = torch.optim.AdamW(plain.parameters(), lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
    rows = compare(
        {
            "ours": stepper(ours, fused(ours), data, steps),
            "plain": stepper(plain, usual, square, steps),
            "plain, fused AdamW": stepper(second, fused(second), square, steps),
        },
        rounds,
        warmup=2,
    )
    rows = [per_step(row, name, steps) for row in rows]
    return {
        "parameters": {"ours": count(ours), "plain": count(plain)},
        "cpu_ratio": rows[1].cpu_seconds / rows[0].cpu_seconds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def per_step(row: Row, name: str, steps: int) -> Row:
    """Turn the seconds of a round into those of a step."""
    return dataclasses.replace(
        row,
        name=f"{name}, {row.name}",
        seconds=row.seconds / steps,
        cpu_seconds=row.cpu_seconds / steps,
    )


def count(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Measure the models, print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=25, help="turns (default 25)")
    parser.add_argument("--steps", type=int, default=16, help="steps in a turn (default 16)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, source = batches()
    found = {name: measure(name, data, args.rounds, args.steps) for name in args.models}
    print(f"seconds of a step, batches of {BATCH} from {source}, medians of {args.rounds} turns")
    print(table([Row(**row) for each in found.values() for row in each["rows"]]))
    for name, each in found.items():
        sizes = each["parameters"]
        print(
            f"{name}: {each['cpu_ratio']:.1f} times as fast by CPU seconds; "
            f"{sizes['ours']:,} parameters, plain {sizes['plain']:,}"
        )
    if args.out:
        write_json(args.out, {"torch": torch.__version__, "data": source, "models": found})


if __name__ == "__main__":
    main()

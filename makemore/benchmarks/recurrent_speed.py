"""Training speed of our recurrent networks beside the plain formulation and beside torch's own.

    python makemore/benchmarks/recurrent_speed.py --out makemore/results

One thread; a step is forward, backward and AdamW. They take turns on the same batches of names:

- ours: `makemore.rnn`
- plain: `makemore.plain_rnn`, padded to 16 columns, the optimizer's default loop: makemore.py's way
- plain, fused AdamW: the same with our optimizer, so that only the recurrence differs
- plain, reset first: the GRU as makemore.py has it
- torch.nn: nn.RNN, nn.GRU or nn.LSTM over a PackedSequence, fused AdamW

With `--ladder` the rows lead from plain to ours instead: each keeps what the row above it has, and
adds the one idea that it is named after.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import makemore.rnn
from makemore.data import DEFAULT_DATA, FALLBACK_DATA, IGNORED, Batch, Items, Vocabulary, read_items
from makemore.plain_rnn import PlainResetFirstGRU, PlainRNN
from makemore.rnn import RNN, Cell, RNNConfig
from shared import files
from shared.datasets import resolve_default
from shared.profiling import Row, compare

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")
BLOCK_SIZE = 16  # the longest name and its end
NEVER = 1 << 60


class TorchRNN(nn.Module):
    """A language model around torch's own recurrence, over packed rows, longest first."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.recurrence: Any = kind(
            config.n_embd, config.n_hidden, config.n_layer, batch_first=True
        )
        self.head = nn.Linear(config.n_hidden, config.vocab_size)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, as the other models do."""
        lengths = (targets != IGNORED).sum(1)
        packed = pack_padded_sequence(self.embed(idx), lengths, batch_first=True)
        wanted = pack_padded_sequence(targets, lengths, batch_first=True)
        return F.cross_entropy(self.head(self.recurrence(packed)[0].data), wanted.data)


class HoistedRNN(nn.Module):
    """The first rung above plain: the inputs' products out of the loop, autograd, padding."""

    def __init__(self, model: RNN, trim: bool) -> None:
        super().__init__()
        self.model, self.trim = model, trim

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, with one loop of autograd operations."""
        if self.trim:
            longest = int((targets != IGNORED).sum(1).max())
            idx, targets = idx[:, :longest], targets[:, :longest]
        layer: Any = self.model.layers[0]
        H = self.model.config.n_hidden
        x = F.embedding(idx.t(), F.linear(self.model.embed, layer.w_input, layer.bias))  # (T, B, _)
        h = layer.start.expand(x.shape[1], H)
        c = layer.start_cell.expand(x.shape[1], H) if layer.cell == "lstm" else h
        states = []
        for x_t in x:
            u = h @ layer.w_hidden.t()
            if layer.cell == "rnn":
                h = torch.tanh(x_t + u)
            elif layer.cell == "gru":
                r, z = torch.sigmoid(x_t[:, : 2 * H] + u[:, : 2 * H]).chunk(2, dim=1)
                n = torch.tanh(x_t[:, 2 * H :] + r * (u[:, 2 * H :] + layer.bias_hidden))
                h = torch.lerp(n, h, z)
            else:
                gates = x_t + u
                o, i, f = torch.sigmoid(gates[:, : 3 * H]).chunk(3, dim=1)
                c = f * c + i * torch.tanh(gates[:, 3 * H :])
                h = o * torch.tanh(c)
            states.append(h)
        logits = self.model.head(torch.stack(states, dim=1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def padded(batch: Batch) -> Batch:
    """Return the batch with `BLOCK_SIZE` columns."""
    missing = BLOCK_SIZE - batch[0].shape[1]
    return F.pad(batch[0], (0, missing)), F.pad(batch[1], (0, missing), value=IGNORED)


def steps(model: nn.Module, batches: list[Batch], fused: bool, share: int | None = None) -> Any:
    """Return a function that trains `model` for a step on each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused or None)

    def train() -> None:
        before = makemore.rnn.SHARE_FROM
        makemore.rnn.SHARE_FROM = before if share is None else share
        for idx, targets in batches:
            loss = model(idx, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        makemore.rnn.SHARE_FROM = before

    return train


def contestants(
    config: RNNConfig, batches: list[Batch], ladder: bool
) -> dict[str, Callable[[], None]]:
    """Return what is compared, ours first; with `ladder` each idea on top of those before it."""

    def ours() -> RNN:
        torch.manual_seed(0)
        return RNN(config)

    wide = [padded(batch) for batch in batches]
    found = {"ours": steps(ours(), batches, True), "plain": steps(PlainRNN(ours()), wide, False)}
    if ladder:
        return found | {
            "+ fused AdamW": steps(PlainRNN(ours()), wide, True),
            "+ inputs as a table, gates in one product": steps(
                HoistedRNN(ours(), False), wide, True
            ),
            "+ trimmed to the longest": steps(HoistedRNN(ours(), True), wide, True),
            "+ rows that go on only, backward by hand, in place": steps(
                ours(), batches, True, NEVER
            ),
            "+ shared prefixes": steps(ours(), batches, True, 0),
        }
    found["plain, fused AdamW"] = steps(PlainRNN(ours()), wide, True)
    if config.cell == "gru":
        reset_first = PlainRNN(ours(), PlainResetFirstGRU)
        found["plain, reset first"] = steps(reset_first, wide, False)
    found["torch.nn"] = steps(TorchRNN(config), batches, True)
    return found


def report(config: RNNConfig, rows: list[Row], batch_size: int, n_steps: int) -> str:
    """Return the rows as a table of milliseconds a step and names a second."""
    lines = [
        f"{config.cell}, n_embd {config.n_embd}, n_hidden {config.n_hidden}, batch {batch_size}: "
        f"{n_steps} steps a round, medians of {rows[0].rounds} rounds",
        f"| {'':50} | CPU ms/step | wall ms/step | spread | names/CPU s | times ours |",
        f"| {'-' * 50} | ----------- | ------------ | ------ | ----------- | ---------- |",
    ]
    for row in rows:
        cpu, wall = row.cpu_seconds / n_steps, row.seconds / n_steps
        lines.append(
            f"| {row.name:50} | {cpu * 1e3:11.3f} | {wall * 1e3:12.3f} | {row.spread:6.0%} | "
            f"{batch_size / cpu:11,.0f} | {row.cpu_seconds / rows[0].cpu_seconds:10.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", choices=CELLS, nargs="+", default=CELLS)
    parser.add_argument("--n-embd", type=int, default=64)
    parser.add_argument("--n-hidden", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ladder", action="store_true", help="one idea at a time")
    parser.add_argument("--out", type=Path, help="folder for recurrent_speed_*.json and .txt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = read_items(resolve_default(DEFAULT_DATA, FALLBACK_DATA)[0])
    data, rng = Items(items, Vocabulary.of(items)), np.random.default_rng(0)
    batches = [data.batch(rng.integers(len(data), size=args.batch_size)) for _ in range(args.steps)]
    texts, values = [], []
    for cell in args.cells:
        sizes = {"n_embd": args.n_embd, "n_hidden": args.n_hidden}
        config = RNNConfig(vocab_size=len(data.vocabulary), cell=cell, **sizes)
        rows = compare(contestants(config, batches, args.ladder), args.rounds, warmup=1)
        texts.append(report(config, rows, args.batch_size, args.steps))
        print(texts[-1], flush=True)
        rows_json = [dataclasses.asdict(row) for row in rows]
        values.append({"config": dataclasses.asdict(config), "rows": rows_json})
    if args.out:
        files.make_folder(args.out)
        kind = "ladder" if args.ladder else "peers"
        name = f"recurrent_speed_{kind}_{args.n_hidden}_{args.batch_size}"
        files.write_file(args.out / f"{name}.txt", "\n".join(texts).encode())
        facts = {"torch": torch.__version__, "batch_size": args.batch_size, "steps": args.steps}
        files.write_json(args.out / f"{name}.json", {**facts, "cells": values})


if __name__ == "__main__":
    main()

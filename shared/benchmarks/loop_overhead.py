"""What the training loop itself costs: a step through `Trainer` against a bare PyTorch loop.

    python shared/benchmarks/loop_overhead.py --out results

Both sides do the same work on the same batches: the sampler's order, forward, backward, clipping
to a global norm, fused AdamW under a cosine schedule, the loss read once a step. The bare loop is
what a careful engineer writes by hand. The trainer adds everything else at its defaults: checks
for non-finite numbers and spikes, signals, seeds of each step, timing, metrics.jsonl, TensorBoard
and the console (into a file) every 10 steps. Both loops advance in turns, a block of steps each,
in one process and one thread; each pair of blocks gives one difference, and the table shows their
median and quartiles. CPU seconds leave out the time that a busy neighbour takes.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.callbacks import Callback
from shared.config import TrainerConfig
from shared.files import write_file, write_json
from shared.optim import make_optimizers
from shared.parallel import World
from shared.runs import Run
from shared.sampler import IntArray, Sampler
from shared.schedules import make_schedule
from shared.trainer import Trainer

Pair = tuple[Tensor, Tensor]
BATCH = {"mlp": 32, "gpt2": 8}
FLAGS: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "precision": "fp32",
    "eval_every": 0,
    "checkpoint_every": 0,
}


class Table:
    """Rows of two tensors, taken by number."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: IntArray, _epochs: IntArray) -> Pair:
        """Take rows."""
        rows = torch.from_numpy(indices)
        return self.x[rows], self.y[rows]

    def weight(self, batch: Pair) -> float:
        """Count the targets."""
        return batch[1].numel()


def mlp() -> tuple[nn.Module, Table]:
    """Return a two-layer network with 2,113 parameters and data for it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16), nn.Linear(16, 1))
    return module, Table(torch.randn(4096, 16), torch.randn(4096, 1))


def gpt2() -> tuple[nn.Module, Table]:
    """Return the quickstart's model and random tokens."""
    from gpt2.model import GPT, PRESETS

    torch.manual_seed(0)
    config = PRESETS["tiny"]
    ids = torch.randint(config.vocab_size, (512, config.block_size + 1))
    return GPT(config), Table(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def mlp_loss(module: nn.Module, batch: Pair) -> Tensor:
    """Return the mean squared error."""
    return F.mse_loss(module(batch[0]), batch[1])


def gpt2_loss(module: nn.Module, batch: Pair) -> Tensor:
    """Return the mean cross-entropy."""
    loss: Tensor = module(*batch)
    return loss


def bare_steps(
    module: nn.Module, loss_of: Callable[[nn.Module, Pair], Tensor], table: Table, batch_size: int
) -> Iterator[float]:
    """Train by hand; yields the loss after each step."""
    (optimizer,) = make_optimizers(
        module,
        name="adamw",
        learning_rate=1e-3,
        muon_learning_rate=0.0,
        betas=(0.9, 0.95),
        weight_decay=0.1,
    )
    schedule = make_schedule("cosine", max_steps=10**9)
    sampler, step = Sampler(len(table), 0), 0
    parameters = list(module.parameters())
    while True:
        indices, epochs = sampler.draw(step * batch_size, batch_size)
        batch = table.batch(indices.copy(), epochs)
        loss = loss_of(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        yield loss.item()


class Turns(Callback):
    """Hands the processor to the other loop after each block of the trainer's steps."""

    def __init__(self, bare: Iterator[float], block: int, rounds: int) -> None:
        self.bare, self.block, self.rounds = bare, block, rounds
        self.blocks: dict[str, list[tuple[float, float]]] = {"trainer": [], "bare": []}
        self.count = 0
        self.begin = 0.0, 0.0

    def on_boundary(self, trainer: Trainer[Any]) -> None:
        """Time the block that ends here, then one of the bare loop."""
        if trainer.state.step % self.block:
            return
        if trainer.state.step:
            self.blocks["trainer"].append(self.since(self.begin))
        begin = clocks()
        for _ in range(self.block):
            next(self.bare)
        if trainer.state.step:
            self.blocks["bare"].append(self.since(begin))
        self.begin = clocks()

    def since(self, begin: tuple[float, float]) -> tuple[float, float]:
        """Return wall and CPU seconds per step since `begin`."""
        wall, cpu = clocks()
        return (wall - begin[0]) / self.block, (cpu - begin[1]) / self.block


def clocks() -> tuple[float, float]:
    """Return wall seconds, and CPU seconds of this process, TensorBoard's thread included."""
    return time.perf_counter(), time.process_time()


def measure(name: str, block: int, rounds: int) -> dict[str, Any]:
    """Run both loops in turns; return seconds per step and the differences, in microseconds."""
    build, loss_of = {"mlp": (mlp, mlp_loss), "gpt2": (gpt2, gpt2_loss)}[name]
    module, table = build()
    turns = Turns(bare_steps(build()[0], loss_of, table, BATCH[name]), block, rounds)
    config = TrainerConfig(max_steps=block * (rounds + 3), batch_size=BATCH[name], **FLAGS)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
        Run.open("bench", Path(folder) / "run", resume=False, config={}) as run,
    ):
        world = World(torch.device("cpu"))
        Trainer(config, module, loss_of, table, run=run, world=world, callbacks=[turns]).fit()
    blocks = {side: values[2:] for side, values in turns.blocks.items()}  # two warm up
    found: dict[str, Any] = {"steps_per_block": block, "rounds": len(blocks["bare"])}
    for clock, unit in ((0, "wall"), (1, "cpu")):
        bare = [values[clock] * 1e6 for values in blocks["bare"]]
        ours = [values[clock] * 1e6 for values in blocks["trainer"]]
        extra = [a - b for a, b in zip(ours, bare, strict=True)]
        found[unit] = {
            "bare_us": statistics.median(bare),
            "trainer_us": statistics.median(ours),
            "extra_us": statistics.median(extra),
            "extra_us_quartiles": statistics.quantiles(extra, n=4)[::2],
            "extra_percent": 100 * statistics.median(extra) / statistics.median(bare),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = [
        "microseconds a step; extra = median of the paired differences [quartiles]",
        f"{'model':6} {'clock':5} {'bare':>10} {'trainer':>10} {'extra':>8} {'':20} {'extra':>8}",
    ]
    for name, found in results.items():
        for unit in ("wall", "cpu"):
            row = found[unit]
            low, high = row["extra_us_quartiles"]
            lines.append(
                f"{name:6} {unit:5} {row['bare_us']:10.1f} {row['trainer_us']:10.1f} "
                f"{row['extra_us']:8.1f} {f'[{low:.1f}, {high:.1f}]':20} "
                f"{row['extra_percent']:6.2f} %"
            )
        lines.append(f"       {found['rounds']} rounds of {found['steps_per_block']} steps each")
    return "\n".join(lines)


def main() -> None:
    """Measure both models and write loop_overhead.json and .txt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for loop_overhead.txt and .json")
    parser.add_argument("--models", nargs="+", default=["mlp", "gpt2"], choices=["mlp", "gpt2"])
    parser.add_argument("--rounds", type=int, default=100, help="pairs of blocks (default 100)")
    parser.add_argument("--mlp-block", type=int, default=50, help="steps a block (default 50)")
    parser.add_argument("--gpt2-block", type=int, default=1, help="steps a block (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"mlp": args.mlp_block, "gpt2": args.gpt2_block}
    results = {name: measure(name, sizes[name], args.rounds) for name in args.models}
    print(table(results))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "loop_overhead.json", {"torch": torch.__version__, **results})
        write_file(args.out / "loop_overhead.txt", (table(results) + "\n").encode())


if __name__ == "__main__":
    main()

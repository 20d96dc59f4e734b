"""A small training program with faults to order, for tests that need a process of their own.

It fits a two-layer network with dropout to noise. At the end one line of JSON on stdout gives the
digest of the weights and the metrics.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared import cli, parallel
from shared.config import TrainerConfig
from shared.faults import fail_nth
from shared.runs import Run
from shared.sampler import IntArray
from shared.trainer import Trainer

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What to train, and what shall go wrong."""

    out: Path
    """Run folder."""
    resume: bool = False
    """Continue the run in --out."""
    dropout: float = 0.1
    """Dropout probability."""
    nan_steps: tuple[int, ...] = ()
    """Steps (from 0) whose loss is NaN on --fault-rank."""
    hang_step: int = -1
    """Step at which --fault-rank sleeps for good."""
    slow_compile: float = 0.0
    """Seconds that torch.compile takes."""
    disk_full_at_save: int = 0
    """The save (from 1) at which the disk is full; 0 never."""
    fault_rank: int = 0
    """Process on which faults happen."""
    record: bool = False
    """Append the examples that each process draws to draws-RANK.jsonl."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(precision="fp32"))


class Noise:
    """Regression of one number on eight."""

    def __init__(self, n: int, seed: int, record: Path | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 8, generator=generator)
        self.y = self.x.sum(1, keepdim=True).sin() + 0.1 * torch.randn(n, 1, generator=generator)
        self.record = record

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: IntArray, _epochs: IntArray) -> Batch:
        """Build the batch of examples `indices`."""
        if self.record is not None:
            with self.record.open("a") as file:
                file.write(json.dumps(indices.tolist()) + "\n")
        chosen = torch.from_numpy(indices)
        return {"x": self.x[chosen], "y": self.y[chosen]}

    def weight(self, batch: Batch) -> float:
        """Count the examples."""
        return len(batch["y"])


def network(dropout: float, seed: int) -> nn.Module:
    """Return an MLP with three matrices."""
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 1))


def digest(module: nn.Module) -> str:
    """Return the sha256 of all weights."""
    weights = [p.detach().cpu().numpy().tobytes() for p in module.state_dict().values()]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def compile_slowly(seconds: float, module: nn.Module) -> Any:
    """Stand in for torch.compile, with a back end that compiles for `seconds` and changes nothing.

    Sleeps in short naps, as a compiler also returns to Python now and then.
    """

    def backend(graph: Any, inputs: object) -> Any:
        end = time.monotonic() + seconds
        print("compiling", flush=True)
        while time.monotonic() < end:
            time.sleep(0.01)
        return graph.forward

    return real_compile(module, backend=backend)


real_compile = torch.compile


def main(demo: Demo) -> None:
    """Train the network."""
    settings = demo.trainer
    if demo.slow_compile:
        torch.compile = partial(compile_slowly, demo.slow_compile)
    with (
        parallel.join(settings.device, settings.threads, settings.dist_timeout) as world,
        Run.open(
            "demo",
            demo.out,
            resume=demo.resume,
            config={"model": {"dropout": demo.dropout}},
            rank=world.rank,
        ) as run,
    ):
        faulty = world.rank == demo.fault_rank

        def loss(module: nn.Module, batch: Batch) -> Tensor:
            """Return the squared error, unless a fault was ordered."""
            value: Tensor = (module(batch["x"]) - batch["y"]).square().mean()
            if module.training and faulty and trainer.state.step == demo.hang_step:
                time.sleep(1000)
            broken = module.training and faulty and trainer.state.step in demo.nan_steps
            return value * float("nan") if broken else value

        path = demo.out / f"draws-{world.rank}.jsonl" if demo.record else None
        trainer: Trainer[Batch] = Trainer(
            settings,
            network(demo.dropout, settings.seed),
            loss,
            Noise(256, 1, path),
            run=run,
            world=world,
            validation=Noise(40, 2),
        )
        with fail_nth(demo.disk_full_at_save, kinds={"mkdir"}):  # only saves make folders
            metrics = trainer.fit()
        health = asdict(trainer.state.health)
        result = {"digest": digest(trainer.module), "metrics": metrics, "health": health}
        print(json.dumps(result | {"rank": world.rank}), flush=True)


if __name__ == "__main__":
    cli.run(main)

"""One training script on three engines: scalar Values, numpy Tensors, and torch in float64.

    python micrograd/benchmarks/three_engines.py --out micrograd/results/three_engines.json

`train` is written once. An engine brings five words for it (`Engine`); everything else, from
`x @ w + b` to `loss.backward()`, the three share, as numpy arrays of Values have numpy's operators.
The task is karpathy's demo: two moons, max-margin loss with an L2 penalty, SGD. All start from the
same weights. The script stops with exit code 1 if a loss or gradient differs from torch's by more
than 1e-9. CPU seconds of the whole step, engines turn by turn, one thread each, the garbage
collector as Python sets it; the first round is not counted.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from micrograd.engine import Value
from micrograd.tensor import Array, Tensor

TOLERANCE = 1e-9


class Engine(NamedTuple):
    """What differs between engines."""

    constant: Callable[[Array], Any]
    """An array of data, which gets no gradient."""
    parameter: Callable[[Array], Any]
    """An array of weights."""
    relu: Callable[[Any], Any]
    """max(x, 0) of each element."""
    leaves: Callable[[Any], Iterable[Any]]
    """What of a parameter has `.data` and `.grad`: each of its Values, or itself."""
    note: str
    """What a step's graph is made of."""


ENGINES = {
    "scalar": Engine(
        constant=np.asarray,
        parameter=np.vectorize(Value, otypes=[object]),
        relu=np.frompyfunc(Value.relu, 1, 1),
        leaves=lambda parameter: parameter.flat,
        note="a node for each number",
    ),
    "tensor": Engine(
        constant=np.asarray,
        parameter=Tensor,
        relu=Tensor.relu,
        leaves=lambda parameter: [parameter],
        note="a node for each array",
    ),
    "torch": Engine(
        constant=torch.tensor,
        parameter=lambda array: torch.tensor(array, requires_grad=True),
        relu=torch.relu,
        leaves=lambda parameter: [parameter],
        note="the same, in C++",
    ),
}


# ---- the training script


def loss_of(engine: Engine, parameters: Sequence[Any], x: Any, y: Any) -> Any:
    """Return mean(max(0, 1 - y * score)) + 1e-4 * |weights|^2 for points (N, 2), labels (N,)."""
    h = x
    for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        h = engine.relu(h @ w + b)  # (N, neurons)
    scores = (h @ parameters[-2] + parameters[-1]).reshape(-1)  # (N, 1) -> (N,)
    margins = engine.relu(1 - y * scores)
    return margins.mean() + 1e-4 * sum((p * p).sum() for p in parameters)


def train(
    engine: Engine, start: Sequence[Array], points: Array, labels: Array, steps: int
) -> "Run":
    """Train from the weights `start`; return every step's loss, gradients and CPU seconds."""
    run = Run()
    x, y = engine.constant(points), engine.constant(labels)
    parameters = [engine.parameter(array) for array in start]
    for step in range(steps):
        clock = time.process_time()
        loss = loss_of(engine, parameters, x, y)
        loss.backward()
        run.seconds.append(time.process_time() - clock)

        run.losses.append(float(loss.data))
        run.gradients.append([gradient(engine, p) for p in parameters])

        clock = time.process_time()
        for leaf in (leaf for p in parameters for leaf in engine.leaves(p)):
            leaf.data -= (1.0 - 0.9 * step / 100) * leaf.grad
            leaf.grad *= 0.0
        run.seconds[-1] += time.process_time() - clock
    return run


# ---- what surrounds it


@dataclass
class Run:
    """What training has left behind, an entry for each step."""

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Array]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def gradient(engine: Engine, parameter: Any) -> Array:
    """Return a copy of the gradient of a parameter, in its shape."""
    found = np.array([np.asarray(leaf.grad) for leaf in engine.leaves(parameter)])
    return found.reshape(parameter.shape)


def two_moons(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return points (n, 2) on two interlocking half circles with noise, labels (n,) of -1 and 1."""
    angle = rng.uniform(0.0, np.pi, n)
    labels = np.where(np.arange(n) % 2, 1.0, -1.0)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] > 0, [1.0, 0.5] - upper, upper)
    return points + rng.normal(0.0, 0.1, (n, 2)), labels


def first_weights(sizes: Sequence[int], rng: np.random.Generator) -> list[Array]:
    """Return weights (n, m), with variance 2 / n, and biases (m,), of each layer."""
    layers = [(rng.normal(0.0, np.sqrt(2 / n), (n, m)), np.zeros(m)) for n, m in pairwise(sizes)]
    return [array for layer in layers for array in layer]


def largest_difference(ours: Run, theirs: Run) -> tuple[float, float]:
    """Return how far losses and gradients are apart at most, relative to theirs.

    A gradient's differences are relative to the largest element of its array.
    """
    of_losses = [abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    of_gradients = [
        float(np.abs(a - b).max() / np.abs(b).max())
        for step, their_step in zip(ours.gradients, theirs.gradients, strict=True)
        for a, b in zip(step, their_step, strict=True)
    ]
    return max(of_losses), max(of_gradients)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return each engine's losses, differences from torch and milliseconds per step."""
    rng = np.random.default_rng(args.seed)
    points, labels = two_moons(args.points, rng)
    start = first_weights([2, *args.hidden, 1], rng)
    runs: dict[str, list[Run]] = {name: [] for name in ENGINES}
    for _ in range(1 + args.rounds):
        for name, engine in ENGINES.items():
            runs[name].append(train(engine, start, points, labels, args.steps))
    result = {}
    for name, engine in ENGINES.items():
        first = runs[name][0]
        of_loss, of_gradient = largest_difference(first, runs["torch"][0])
        step_ms = [1000 * statistics.mean(run.seconds) for run in runs[name][1:]]
        result[name] = {
            "graph": engine.note,
            "first_loss": first.losses[0],
            "last_loss": first.losses[-1],
            "loss_difference": of_loss,
            "gradient_difference": of_gradient,
            "step_ms": statistics.median(step_ms),
            "step_ms_rounds": step_ms,
        }
    return result


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table()
    for title in ("engine", "graph"):
        table.add_column(title)
    for title in ("first loss", "last loss", "losses differ", "gradients differ", "CPU ms/step"):
        table.add_column(title, justify="right")
    for name, row in result.items():
        table.add_row(
            name,
            row["graph"],
            f"{row['first_loss']:.12f}",
            f"{row['last_loss']:.12f}",
            f"{row['loss_difference']:.0e}",
            f"{row['gradient_difference']:.0e}",
            f"{row['step_ms']:.2f}",
        )
    Console(width=120).print(table)


def parse() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description="One training script on three engines.")
    parser.add_argument("--hidden", type=int, nargs="*", default=[16, 16], help="hidden layers")
    parser.add_argument("--points", type=int, default=100, help="points of the moons")
    parser.add_argument("--steps", type=int, default=20, help="SGD steps of a run")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each engine")
    parser.add_argument("--seed", type=int, default=0, help="of points and first weights")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    return parser.parse_args()


def main() -> int:
    """Run, print, write; return 1 if the engines disagree."""
    args = parse()
    torch.set_num_threads(1)
    result = measure(args)
    show(result)
    if args.out:
        machine = {
            "command": " ".join(["python", *sys.argv]),
            "processor": platform.processor() or platform.machine(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "torch": torch.__version__,
            },
        }
        args.out.write_text(json.dumps(machine | {"engines": result}, indent=1) + "\n")
    furthest = max(max(r["loss_difference"], r["gradient_difference"]) for r in result.values())
    if not furthest <= TOLERANCE:
        print(f"the engines differ by {furthest:.1e}, more than {TOLERANCE:.0e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train a small network on points in the plane: `python -m micrograd.train --data spiral`.

Writes a folder with the model (`model.json`), the decision boundary and the losses as pictures, the
figures of each step (`metrics.jsonl`) and of the run (`result.json`). Ctrl-C ends the run early and
saves what there is; so does an overflow, with the last model that had a loss. Exit codes: 2 usage,
5 no space or permission, 6 a result that is not finite, 130 interrupted.
"""

import argparse
import json
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from micrograd import command, data, draw, losses, optim
from micrograd.engine import Value
from micrograd.errors import NumericalError, UsageError
from micrograd.files import write_whole
from micrograd.nn import ACTIVATIONS, INITS, MLP

LOSSES = ("hinge", "bce", "mse", "softmax")
LEARNING_RATES = {"adam": 0.02, "sgd": 0.2}
TEST_SAMPLES = 500
TEST_SEED = 10_000  # added to the seed: the test points are others than those of any small seed


@dataclass(frozen=True)
class Epoch:
    """The figures of one step: the number, the loss on its batch, the share classed rightly."""

    step: int
    train_loss: float
    train_accuracy: float


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = command.Parser("python -m micrograd.train", "Train a small network on toy data.")
    add = parser.add_argument
    add("--data", choices=data.PROBLEMS, default="moons", help="the problem (default: moons)")
    add("--samples", type=int, default=100, help="points to train on (default: 100)")
    add("--noise", type=float, help="standard deviation of the points (default: the problem's)")
    add("--hidden", type=int, nargs="*", default=[16, 16], help="layer sizes (default: 16 16)")
    add("--activation", choices=ACTIVATIONS, default="relu", help="default: relu")
    add("--init", choices=INITS, default="he", help="of the weights (default: he)")
    add(
        "--loss",
        choices=LOSSES,
        help="hinge, bce and mse are for two classes, softmax for any number "
        "(default: hinge for two, softmax for more)",
    )
    add("--optimizer", choices=LEARNING_RATES, default="adam", help="default: adam")
    add("--learning-rate", type=float, help="default: 0.02 for adam, 0.2 for sgd")
    add("--momentum", type=float, help="of sgd alone (default: 0.9)")
    add("--weight-decay", type=float, default=0.0, help="share of a weight lost per step / rate")
    add("--l2", type=float, default=1e-4, help="penalty on the squared weights (default: 1e-4)")
    add("--batch-size", type=int, help="points of a step (default: all)")
    add("--max-steps", type=int, help="steps (default: what the problem needs, 400 or 1500)")
    add("--seed", type=int, default=0, help="of points, weights and batches (default: 0)")
    add("--plain", action="store_true", help="a node for every product and sum; far slower")
    add("--out", type=command.path, help="folder to write (default: runs/micrograd/<start time>)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = check(parser.parse_args(argv))
    words = sys.argv[1:] if argv is None else argv
    args.command = shlex.join(["python", "-m", "micrograd.train", *words])
    return args


def check(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that hang together. Raises UsageError for settings that do not."""
    problem = data.PROBLEMS[args.data]
    args.loss = args.loss or ("hinge" if problem.n_classes == 2 else "softmax")
    if args.loss != "softmax" and problem.n_classes > 2:
        raise UsageError(f"--data {args.data} has {problem.n_classes} classes: use --loss softmax")
    args.max_steps = problem.steps if args.max_steps is None else args.max_steps
    args.batch_size = args.samples if args.batch_size is None else args.batch_size
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATES[args.optimizer]
    if args.optimizer == "sgd":
        args.momentum = 0.9 if args.momentum is None else args.momentum
    elif args.momentum is not None:
        raise UsageError(f"--momentum {args.momentum} is of sgd alone: add --optimizer sgd")
    for name, least in (("samples", 2), ("max_steps", 1), ("batch_size", 1), ("l2", 0.0)):
        if not least <= getattr(args, name) < math.inf:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {getattr(args, name)} must be at least {least}")
    args.batch_size = min(args.batch_size, args.samples)
    return args


def loss_of(name: str, outputs: Sequence[Any], labels: Sequence[int]) -> Value:
    """Return the loss `name` of a model's outputs for classes 0, 1, ..."""
    match name:
        case "hinge":
            return losses.hinge(outputs, [2 * y - 1 for y in labels])
        case "mse":
            return losses.mse(outputs, [2 * y - 1 for y in labels])
        case "bce":
            return losses.binary_cross_entropy(outputs, labels)
        case _:
            return losses.cross_entropy(outputs, labels)


def predict(output: Any) -> int:
    """Return the class that a model's output stands for: its sign, or its largest."""
    if isinstance(output, Value):
        return int(output.data > 0.0)
    numbers = [z.data for z in output]
    return numbers.index(max(numbers))


def accuracy(outputs: Sequence[Any], labels: Sequence[int]) -> float:
    """Return the share of outputs, 0 to 1, whose class is the label."""
    right = [predict(output) == y for output, y in zip(outputs, labels, strict=True)]
    return sum(right) / len(right)


def build(args: argparse.Namespace) -> tuple[MLP, optim.Optimizer]:
    """Return the model and its optimiser."""
    n_outputs = data.PROBLEMS[args.data].n_classes if args.loss == "softmax" else 1
    rng = random.Random(args.seed)
    sizes = [*args.hidden, n_outputs]
    model = MLP(2, sizes, activation=args.activation, init=args.init, rng=rng, fused=not args.plain)
    if args.optimizer == "adam":
        return model, optim.Adam(
            model.parameters(), args.learning_rate, weight_decay=args.weight_decay
        )
    return model, optim.SGD(
        model.parameters(), args.learning_rate, args.momentum, args.weight_decay
    )


def fit(
    model: MLP,
    optimizer: optim.Optimizer,
    points: data.Points,
    labels: Sequence[int],
    args: argparse.Namespace,
    report: Callable[[Epoch], None],
) -> None:
    """Run the training loop: forward, loss, backward, step.

    Raises NumericalError where that overflows, and leaves the last model that had a loss.
    """
    rng = random.Random(f"batches {args.seed}")
    good = model.state_dict()
    try:
        for step in range(args.max_steps):
            chosen: Sequence[int] = range(args.samples)
            if args.batch_size < args.samples:
                chosen = rng.sample(chosen, args.batch_size)
            y = [labels[i] for i in chosen]
            # The rate falls to a tenth, so that the last steps settle.
            optimizer.learning_rate = args.learning_rate * (1.0 - 0.9 * step / args.max_steps)

            outputs = [model(points[i]) for i in chosen]
            loss = loss_of(args.loss, outputs, y) + losses.l2(model.parameters(), args.l2)
            optimizer.zero_grad()
            loss.backward()
            good = model.state_dict()
            optimizer.step()
            report(Epoch(step, loss.data, accuracy(outputs, y)))
        for p in points:
            model(p)  # the last step may be the one that went too far
    except NumericalError:
        model.load_state_dict(good)
        raise


def run(args: argparse.Namespace) -> None:
    """Train as `args` say, write the folder, print the results."""
    points, labels = data.make(args.data, args.samples, args.seed, args.noise)
    model, optimizer = build(args)
    out = command.open_folder(args.out or _default_folder())
    hidden = ("out", "debug", "command")
    settings = {name: value for name, value in vars(args).items() if name not in hidden}
    print(" ".join(f"{name}={value}" for name, value in settings.items()))
    history: list[Epoch] = []
    wall, cpu = time.perf_counter(), time.process_time()
    interrupted, overflow = False, None
    with progress(args.max_steps) as advance:

        def report(epoch: Epoch) -> None:
            history.append(epoch)
            advance(epoch)

        try:
            fit(model, optimizer, points, labels, args, report)
        except KeyboardInterrupt:
            interrupted = True
        except NumericalError as error:
            overflow = error
    times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    results = summary(model, points, labels, args, history) | times
    figures = {"command": args.command, **settings, **results}
    write(out, model, points, labels, history, figures)
    show(results, out)
    if interrupted:
        raise KeyboardInterrupt
    if overflow or results["test_accuracy"] is None:
        raise NumericalError(
            f"training overflows after {len(history)} of {args.max_steps} steps; lower "
            f"--learning-rate {args.learning_rate} (or --l2 and --noise, where they are "
            f"large); the last model that had a loss is in {out}"
        ) from overflow


def summary(
    model: MLP,
    points: data.Points,
    labels: Sequence[int],
    args: argparse.Namespace,
    history: Sequence[Epoch],
) -> dict[str, Any]:
    """Return the results by name; the test points are drawn anew.

    An accuracy is None where the model's outputs overflow.
    """
    unseen, classes = data.make(args.data, TEST_SAMPLES, args.seed + TEST_SEED, args.noise)
    return {
        "parameters": len(model.parameters()),
        "steps": len(history),
        "train_loss": history[-1].train_loss if history else None,
        "train_accuracy": measure(model, points, labels),
        "test_accuracy": measure(model, unseen, classes),
    }


def measure(model: MLP, points: data.Points, labels: Sequence[int]) -> float | None:
    """Return the accuracy of a model, None where its outputs overflow."""
    try:
        return accuracy([model(p) for p in points], labels)
    except NumericalError:
        return None


def write(
    out: Path,
    model: MLP,
    points: data.Points,
    labels: Sequence[int],
    history: Sequence[Epoch],
    results: dict[str, Any],
) -> None:
    """Write the model first, then figures and pictures."""
    model.save(out / "model.json")
    lines = [json.dumps(vars(epoch)) for epoch in history]
    write_whole(out / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
    write_whole(out / "result.json", json.dumps(results, indent=2) + "\n")
    if results["test_accuracy"] is not None:
        title = f"{results['data']}: test accuracy {results['test_accuracy']:.1%}"
        with suppress(NumericalError):  # weights so large have no boundary that can be computed
            draw.plot_boundary(model, points, labels, out / "boundary.png", title=title)
    if history:
        curve = [
            {"step": e.step, "loss": e.train_loss, "accuracy": e.train_accuracy} for e in history
        ]
        draw.plot_loss(curve, out / "loss.png")


def show(results: dict[str, Any], out: Path) -> None:
    """Print the results as a table."""
    table = Table(show_header=False, title=f"wrote {out}", title_justify="left")
    for name, value in results.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    Console().print(table)


@contextmanager
def progress(total: int) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that shows each step on a terminal, and does nothing elsewhere."""
    console = Console(stderr=True)
    columns = [
        TextColumn("steps"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, figures="")

        def advance(epoch: Epoch) -> None:
            figures = f"loss {epoch.train_loss:.4f}  accuracy {epoch.train_accuracy:.0%}"
            bar.update(task, completed=epoch.step + 1, figures=figures)

        yield advance


def _default_folder() -> Path:
    return Path("runs/micrograd") / datetime.now().astimezone().strftime("%Y-%m-%d-%H%M%S")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command.main(parse, run, "micrograd.train", argv)


if __name__ == "__main__":
    sys.exit(main())

"""Read handwritten digits with the tensor engine: `python -m micrograd.digits`.

A 64-64-10 network learns scikit-learn's 1,797 digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998)
by Adam on mini-batches, and is tested on the fifth of them that it never saw. `--out FOLDER` keeps
the figures and a picture of the digits that it misread.
"""

import argparse
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from micrograd import command
from micrograd.errors import UsageError
from micrograd.files import write_whole
from micrograd.tensor import Array, Tensor

Digits = tuple[Array, NDArray[np.int64]]
"""Pixels (N, 64) from 0 to 1, and the digits (N,) that they show."""


@dataclass(frozen=True)
class Config:
    """What a run is determined by: the same one twice gives the same network."""

    hidden: int = 64
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 0.01
    noise: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for what cannot work."""
        for name, value in asdict(self).items():
            least = {"noise": 0, "seed": 0, "learning_rate": 1e-9}.get(name, 1)
            if not least <= value < 1e9:  # NaN is not either
                raise UsageError(f"{name}={value} must be at least {least} and below 1e9")


HELP = {
    "hidden": "neurons in the hidden layer",
    "epochs": "passes over the training digits",
    "batch_size": "digits per step",
    "learning_rate": "Adam's at the first step, from where it falls evenly to 0 at the last",
    "noise": "standard deviation of what each batch's pixels (0 to 1) get added, against overfit",
    "seed": "of the split, the first weights, the order of the digits and the noise",
}
"""What each field of Config means."""


class MLP:
    """Layers of `sizes` with relu between them, such as 64, 64, 10.

    Weights are normal with variance 2 / inputs (He et al., 2015, eq. 10), biases zero.
    """

    def __init__(self, sizes: Sequence[int], rng: np.random.Generator) -> None:
        self.layers = [
            (Tensor(rng.normal(0.0, np.sqrt(2 / n), (n, m))), Tensor(np.zeros(m)))
            for n, m in pairwise(sizes)
        ]

    def __call__(self, x: Array) -> Tensor:
        """Map a batch of pixels (N, 64) to scores (N, 10)."""
        *hidden, (last, bias) = self.layers
        h: Tensor | Array = x
        for weight, b in hidden:
            h = (h @ weight + b).relu()  # (N, hidden)
        return h @ last + bias

    def parameters(self) -> list[Tensor]:
        """Return weights and biases, layer by layer."""
        return [parameter for layer in self.layers for parameter in layer]


class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1), for arrays.

    A step moves each element against the running mean of its gradients, measured in units of
    their running root mean square, and zeroes the gradients.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.means = [np.zeros(p.shape) for p in parameters]
        self.squares = [np.zeros(p.shape) for p in parameters]
        self.steps = 0

    def step(
        self, learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        """Change every parameter by about `learning_rate` at most."""
        self.steps += 1
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            mean += (1 - beta1) * (p.grad - mean)
            square += (1 - beta2) * (p.grad**2 - square)
            # Both began at zero; dividing by these undoes the lean towards it.
            unbiased_mean = mean / (1 - beta1**self.steps)
            unbiased_square = square / (1 - beta2**self.steps)
            p.data -= learning_rate * unbiased_mean / (np.sqrt(unbiased_square) + eps)
            p.zero_grad()


def load(seed: int) -> tuple[Digits, Digits]:
    """Return the training and the test digits: 80 and 20 in a hundred of each class.

    It is `train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)` of scikit-learn.
    Raises UsageError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    pixels, digits = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        pixels / 16, digits, test_size=0.2, stratify=digits, random_state=seed
    )
    return (x, y), (x_test, y_test)


def train(
    digits: Digits, config: Config, progress: Callable[[float], None] = lambda _: None
) -> MLP:
    """Return the network that has learned `digits`; `progress` gets the loss of each epoch."""
    x, y = digits
    rng = np.random.default_rng(config.seed)
    model = MLP([x.shape[1], config.hidden, 10], rng)
    adam = Adam(model.parameters())
    starts = range(0, len(x), config.batch_size)
    steps = config.epochs * len(starts)
    for _ in range(config.epochs):
        order, losses = rng.permutation(len(x)), []
        for start in starts:
            batch = order[start : start + config.batch_size]
            pixels = x[batch] + rng.normal(0.0, config.noise, (len(batch), x.shape[1]))
            loss = model(pixels).cross_entropy(y[batch])
            loss.backward()
            adam.step(config.learning_rate * (1 - adam.steps / steps))
            losses.append(float(loss))
        progress(float(np.mean(losses)))
    return model


def read(model: MLP, pixels: Array) -> NDArray[np.int64]:
    """Return the digit that the network reads in each row (64,) of `pixels`."""
    return np.asarray(model(pixels).data.argmax(axis=1))


def plot_misread(pixels: Array, digits: NDArray[Any], found: NDArray[Any]) -> bytes:
    """Return a PNG of the first 24 misread digits, each with what it is and what was read."""
    from matplotlib.figure import Figure  # a second to import, for those who want the picture

    wrong = np.flatnonzero(digits != found)
    shown, columns = wrong[:24], 8
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(columns * 1.1, rows * 1.35 + 0.6), layout="constrained")
    figure.suptitle(f"{len(wrong)} of {len(digits)} test digits misread")
    for place, ax in enumerate(np.ravel(figure.subplots(rows, columns))):
        ax.axis("off")
        if place < len(shown):
            k = shown[place]
            ax.imshow(pixels[k].reshape(8, 8), cmap="gray_r")
            ax.set_title(f"{digits[k]} read as {found[k]}", fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


# ---- the command line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values. Raises UsageError."""
    parser = command.Parser("python -m micrograd.digits", "Learn to read handwritten digits.")
    for field in fields(Config):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        help_ = f"{HELP[field.name]} (default: {default})"
        parser.add_argument(flag, type=type(default), default=default, help=help_)
    parser.add_argument(
        "--out", type=command.path, help="write result.json and misread.png to this folder"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Train, test, print, and write what `--out` asks for."""
    config = Config(**{field.name: getattr(args, field.name) for field in fields(Config)})
    training, test = load(config.seed)
    if args.out:
        command.open_folder(args.out)
    console = Console(stderr=True)
    cpu, wall = time.process_time(), time.perf_counter()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=config.epochs)
        model = train(
            training,
            config,
            lambda loss: bar.update(task, advance=1, description=f"loss {loss:.3f}"),
        )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found = read(model, test[0])
    result = asdict(config) | {
        "train_digits": len(training[1]),
        "test_digits": len(test[1]),
        "train_accuracy": float((read(model, training[0]) == training[1]).mean()),
        "test_accuracy": float((found == test[1]).mean()),
        "cpu_seconds": round(cpu, 2),
        "seconds": round(wall, 2),
    }
    if args.out:
        write_whole(args.out / "misread.png", plot_misread(*test, found))
        write_whole(args.out / "result.json", json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result, test[1], found)


def _print_table(result: dict[str, Any], digits: NDArray[Any], found: NDArray[Any]) -> None:
    table = Table()
    table.add_column("digits")
    table.add_column("number", justify="right")
    table.add_column("read correctly", justify="right")
    for part in ("train", "test"):
        accuracy = f"{result[f'{part}_accuracy']:.1%}"
        table.add_row(part, str(result[f"{part}_digits"]), accuracy)
    print(f"64-{result['hidden']}-10 on scikit-learn's digits, seed {result['seed']}")
    Console().print(table)
    wrong = Counter(f"{y} as {z}" for y, z in zip(digits, found, strict=True) if y != z)
    often = [f"{pair} ({times})" for pair, times in wrong.most_common(10)]
    print(f"misread most often: {', '.join(often) or 'none'}")
    print(f"{result['epochs']} epochs in {result['cpu_seconds']} CPU seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command.main(parse, run, "micrograd.digits", argv)


if __name__ == "__main__":
    sys.exit(main())

"""Look inside networks while they learn: `python -m makemore.inspect`.

A deep network learns only if every layer passes on a signal of a useful size: activations on the
way forward, gradients on the way back. The same deep tanh network is trained three times and
measured by hooks, before and after two fixes:

    naive       standard normal weights: sums of a hundred such terms drive tanh to its ends, and
                gradients grow from layer to layer on their way back
    scaled      weights scaled so that spreads stay (Glorot & Bengio, 2010; He et al., 2015)
    batch-norm  spreads forced to one at every step (Ioffe & Szegedy, 2015)

With `--search 20` it instead trains twenty MLPs with settings drawn at random (Bergstra & Bengio,
2012, "Random search for hyper-parameter optimization") and shows what mattered.

The diagnostics are those of Karpathy's makemore part 3 (activations and batch norm).
"""

import contextlib
import dataclasses
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from makemore.data import SplitName, find_data
from makemore.mlp import MLP, ActivationName, MLPConfig
from makemore.train import Corpus, Encoded, count_parameters, fit, load_corpus
from shared import cli, files, parallel, plots
from shared.callbacks import Callback
from shared.config import TrainerConfig
from shared.errors import NumericalError, UsageError
from shared.parallel import World
from shared.runs import Run, shown_data
from shared.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGE = "makemore-inspect"
SATURATED = 0.97  # of tanh, the lecture's bound: the slope there is below 6%
POINTS = 200  # steps at which updates are measured, spread over the run
TINY = 1e-30  # what a zero counts as in log10: -30, left of every picture
TOP = 10  # trials in the table

SHORT = TrainerConfig(
    max_steps=600,
    batch_size=32,
    learning_rate=1e-3,
    schedule="constant",
    precision="fp32",
    eval_every=0,
    eval_batch_size=512,
    checkpoint_every=0,
    log_every=100,
)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Which network to look into, or how many to search among."""

    data: str = ""
    """A file of one item a line, or a data set's name (python -m shared.datasets lists them); names
    if not given, or words where that can't be had."""
    split: SplitName = "random"
    """random: 80/10/10, as in the lectures; karpathy: the last 1000 items are the test part."""
    n_layer: int = 5
    """Hidden layers."""
    n_hidden: int = 100
    """Units of a hidden layer."""
    n_embd: int = 10
    """Numbers that stand for a character."""
    block_size: int = 3
    """Characters of context."""
    activation: ActivationName = "tanh"
    """tanh, or relu, whose units are off rather than saturated."""
    init: Literal["he", "xavier"] = "he"
    """First weights of the two that are not naive."""
    search: int = 0
    """Networks of one hidden layer to train with settings drawn at random; 0 compares the three."""
    out: Path | None = None
    """Run folder; runs/makemore-inspect/<start time> if not given."""
    json: bool = False
    """Print JSON for programs."""
    trainer: TrainerConfig = SHORT

    def __post_init__(self) -> None:
        presets(self, 1)  # refuses shapes that cannot work
        if self.search < 0:
            raise ValueError(f"search={self.search} must be at least 0")
        if self.trainer.max_steps < 1:
            raise ValueError(
                f"max_steps={self.trainer.max_steps} must be at least 1: "
                "without a step there are no gradients to look at"
            )


def presets(config: InspectConfig, vocab_size: int) -> dict[str, MLPConfig]:
    """Return the three networks by name, worst first."""
    names = ("n_layer", "n_hidden", "n_embd", "block_size", "activation")
    naive = MLPConfig(
        vocab_size=vocab_size, init="naive", **{name: getattr(config, name) for name in names}
    )
    scaled = dataclasses.replace(naive, init=config.init)
    return {
        "naive": naive,
        "scaled": scaled,
        "batch-norm": dataclasses.replace(scaled, batch_norm=True),
    }


# ---- measuring


@dataclass
class Snapshot:
    """What went through the hidden layers in one step, by the layer's number from 0."""

    activations: dict[int, Tensor] = field(default_factory=dict)
    """(N, H): what leaves the activation."""
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """(N, H): of the loss by that."""
    weights: dict[int, Tensor] = field(default_factory=dict)
    """(H, n_in), before the step."""
    weight_gradients: dict[int, Tensor] = field(default_factory=dict)
    """(H, n_in)."""


class Recorder(Callback):
    """Measures the hidden layers of an `MLP` while the trainer trains it.

    Hooks take a snapshot of the first and of the last step. At `POINTS` steps the weights before
    and after are compared.
    """

    def __init__(self, model: MLP) -> None:
        self.layers: list[Any] = list(model.layers)
        self.first, self.last = Snapshot(), Snapshot()
        self.first_loss = math.nan
        self.update_steps: list[int] = []
        self.update_ratios: list[list[float]] = []
        """A list a step: std(update) / std(weights) of each layer."""
        self.before: list[Tensor] = []
        self.filling: Snapshot | None = None
        self.handles: list[RemovableHandle] = []

    def on_start(self, trainer: Trainer[Any]) -> None:
        """Hang in the hooks; between snapshots they return at once."""
        self.every = max(1, trainer.config.max_steps // POINTS)
        for i, layer in enumerate(self.layers):
            weight = layer.linear.weight
            self.handles += [
                layer.activation.register_forward_hook(partial(self.see_activation, i)),
                weight.register_hook(partial(self.see_weight, i, weight)),
            ]

    def see_activation(self, i: int, _module: nn.Module, _x: Any, output: Tensor) -> None:
        """Keep what layer i gives, and ask autograd for its gradient."""
        if self.filling is not None:
            self.filling.activations[i] = output.detach().cpu()
            output.register_hook(partial(self.see_gradient, i))  # type: ignore[no-untyped-call]

    def see_gradient(self, i: int, gradient: Tensor) -> None:
        """Keep the gradient by what layer i gave."""
        if self.filling is not None:
            self.filling.gradients[i] = gradient.cpu()

    def see_weight(self, i: int, weight: Tensor, gradient: Tensor) -> None:
        """Keep the weights of layer i and their gradient."""
        if self.filling is not None:
            self.filling.weights[i] = weight.detach().cpu().clone()
            self.filling.weight_gradients[i] = gradient.cpu()

    def on_boundary(self, trainer: Trainer[Any]) -> None:
        """Get ready for the step to come; an evaluation, if due, lies behind."""
        step, end = trainer.state.step, trainer.config.max_steps
        if step in (0, end - 1):
            self.filling = self.first if step == 0 else self.last
        if step % self.every == 0 and step < end:
            self.before = [layer.linear.weight.detach().clone() for layer in self.layers]

    def on_step(self, trainer: Trainer[Any]) -> None:
        """Compare the weights with those before, if they were kept."""
        self.filling = None
        if trainer.state.step == 1:
            self.first_loss = trainer.state.metrics["train_loss"]
        if self.before:
            after = [layer.linear.weight.detach() for layer in self.layers]
            ratios = [spread(b - a) / spread(a) for a, b in zip(self.before, after, strict=True)]
            self.update_steps.append(trainer.state.step)
            self.update_ratios.append(ratios)
            self.before = []

    def on_close(self, trainer: Trainer[Any]) -> None:  # noqa: ARG002 - the hook's signature
        """Take the hooks out."""
        for handle in self.handles:
            handle.remove()
        if not self.last.activations:  # a run of one step
            self.last = self.first


def spread(x: Tensor) -> float:
    """Return the standard deviation of all entries."""
    return float(x.std(correction=0))


def saturated(activations: Tensor, activation: ActivationName) -> Tensor:
    """Say of each activation (N, H) whether its unit hardly reacts to its input there.

    tanh above 0.97 either way, where its slope 1 - tanh^2 is below 6%; relu at 0.
    """
    return activations.abs() > SATURATED if activation == "tanh" else activations == 0


def dead_units(activations: Tensor, activation: ActivationName) -> Tensor:
    """Say of each unit (H,) whether all N examples saturate it, so that it learns nothing."""
    return saturated(activations, activation).all(0)


@dataclass(frozen=True)
class Diagnosis:
    """A network that was trained, and what was seen meanwhile."""

    name: str
    activation: ActivationName
    seen: Recorder
    parameters: int
    val_loss: float

    def summary(self) -> dict[str, float]:
        """Return the figures of the table, by name.

        Saturation is the share over all layers; `gradient_ratio` is the spread of the gradients by
        the first layer's outputs over that by the last's: 1 if depth does no harm.
        `log10_update_ratio` is the median over layers and the second half of the steps.
        """
        first, last = self.seen.first, self.seen.last
        n_layer = len(first.activations)
        late = self.seen.update_ratios[len(self.seen.update_ratios) // 2 :]
        ratios = [ratio for row in late for ratio in row]
        top, bottom = spread(first.gradients[n_layer - 1]), spread(first.gradients[0])
        return {
            "first_loss": self.seen.first_loss,
            "saturated_start": self.share(first),
            "saturated_end": self.share(last),
            "dead_start": self.dead(first),
            "dead_end": self.dead(last),
            "gradient_ratio": bottom / max(top, TINY),
            "log10_update_ratio": math.log10(max(statistics.median(ratios), TINY)),
            "val_loss": self.val_loss,
        }

    def share(self, snapshot: Snapshot) -> float:
        """Return the share of saturated activations, 0 to 1."""
        return statistics.fmean(self.shares(snapshot))

    def shares(self, snapshot: Snapshot) -> list[float]:
        """Return the same layer by layer."""
        layers = snapshot.activations
        return [float(saturated(layers[i], self.activation).float().mean()) for i in sorted(layers)]

    def dead(self, snapshot: Snapshot) -> int:
        """Count the dead units of all layers."""
        layers = snapshot.activations.values()
        return sum(int(dead_units(each, self.activation).sum()) for each in layers)


def diagnose(
    name: str, shape: MLPConfig, encoded: Encoded, settings: TrainerConfig, run: Run, world: World
) -> Diagnosis:
    """Train a network in a folder of its own below the run's, and look into it meanwhile."""
    torch.manual_seed(settings.seed)
    model = MLP(shape)
    seen = Recorder(model)
    config = {"model": asdict(shape), "trainer": asdict(settings)}
    with Run.open(PACKAGE, run.folder / name, resume=False, config=config) as own:
        metrics = fit(model, encoded, settings, own, world, [seen])
    return Diagnosis(name, shape.activation, seen, count_parameters(model), metrics["val_loss"])


# ---- searching


@dataclass(frozen=True)
class Trial:
    """Settings drawn at random, and how far they got."""

    number: int
    learning_rate: float
    n_hidden: int
    n_embd: int
    block_size: int
    parameters: int
    val_loss: float | None
    """None when training diverged."""


def draw_trial(seed: int, number: int) -> dict[str, Any]:
    """Draw the settings of trial `number`: the same for the same seed, however many there are.

    The learning rate is uniform in its logarithm, as its powers of ten are alike beforehand.
    """
    chance = random.Random(f"{seed}/{number}")
    return {
        "learning_rate": 10 ** chance.uniform(-4.0, -1.0),
        "n_hidden": chance.choice((32, 64, 100, 150, 200, 300)),
        "n_embd": chance.choice((2, 4, 8, 12, 16, 24)),
        "block_size": chance.choice((2, 3, 4, 5, 6, 8)),
    }


def try_out(
    number: int, vocab_size: int, encoded: Encoded, settings: TrainerConfig, run: Run, world: World
) -> Trial:
    """Train the MLP of one trial, with batch norm; its seed is the run's plus its number."""
    drawn = draw_trial(settings.seed, number)
    sizes = {name: drawn[name] for name in ("n_hidden", "n_embd", "block_size")}
    shape = MLPConfig(vocab_size=vocab_size, batch_norm=True, **sizes)
    settings = dataclasses.replace(
        settings,
        seed=settings.seed + number,
        learning_rate=drawn["learning_rate"],
        log_every=settings.max_steps,
    )
    torch.manual_seed(settings.seed)
    model, val_loss = MLP(shape), None
    config = {"model": asdict(shape), "trainer": asdict(settings)}
    folder = run.folder / f"trial-{number:03}"
    with (
        contextlib.suppress(NumericalError),
        Run.open(PACKAGE, folder, resume=False, config=config) as own,
    ):
        val_loss = fit(model, encoded, settings, own, world)["val_loss"]
    return Trial(number, **drawn, parameters=count_parameters(model), val_loss=val_loss)


def ranking(trials: Sequence[Trial]) -> list[tuple[float, Trial]]:
    """Return validation losses and trials, the best first, without those that diverged."""
    done = [(t.val_loss, t) for t in trials if t.val_loss is not None]
    return sorted(done, key=lambda each: each[0])


# ---- pictures


Painter = Callable[["Axes", Diagnosis], str]
"""Draws a diagnostic into a panel and returns the figures in words, to stand above it."""


def layer_colours(n: int) -> list[Any]:
    """Return a colour a layer, from dark (first) to light (last)."""
    import matplotlib as mpl

    return [mpl.colormaps["viridis"](0.85 * i / max(1, n - 1)) for i in range(n)]


def plot_density(axes: "Axes", layers: Mapping[int, Tensor], low: float, high: float) -> None:
    """Draw the distribution of each layer's values, a line a layer; the ends gather what is beyond.

    A share is that of one of 60 bins.
    """
    for i, colour in enumerate(layer_colours(len(layers))):
        values = layers[i].flatten().float()
        heights, edges = torch.histogram(values.clamp(low, high), 60, range=(low, high))
        centres = (edges[1:] + edges[:-1]) / 2
        axes.plot(
            centres.numpy(),
            (heights / len(values)).numpy(),
            color=colour,
            linewidth=1.6,
            label=f"{i + 1}",
        )
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of values")


def plot_activations(axes: "Axes", found: Diagnosis) -> str:
    """Draw the distribution of each layer's activations in the first step."""
    low, high = (-1.0, 1.0) if found.activation == "tanh" else (0.0, 4.0)
    layers = found.seen.first.activations
    plot_density(axes, layers, low, high)
    axes.set_xlabel("activation")
    return "first step; spread " + listed(spread(layers[i]) for i in sorted(layers))


def plot_gradients(axes: "Axes", found: Diagnosis) -> str:
    """Draw the distribution of the gradients by each layer's activations in the first step."""
    layers = found.seen.first.gradients
    plot_density(axes, {i: log10(g) for i, g in layers.items()}, -8.0, 2.0)
    axes.set_xlabel("log10 |gradient by activation|")
    return f"first step; first / last layer {found.summary()['gradient_ratio']:,.2g}"


def plot_weight_gradients(axes: "Axes", found: Diagnosis) -> str:
    """Draw the distribution of the gradients by each layer's weights in the first step."""
    first = found.seen.first
    layers = first.weight_gradients
    plot_density(axes, {i: log10(g) for i, g in layers.items()}, -8.0, 2.0)
    axes.set_xlabel("log10 |gradient by weight|")
    ratios = (spread(layers[i]) / spread(first.weights[i]) for i in sorted(layers))
    return "gradient / weight " + listed(ratios, digits=1)


def plot_updates(axes: "Axes", found: Diagnosis) -> str:
    """Draw how large each layer's updates are beside its weights, over the steps."""
    seen = found.seen
    layers = list(zip(*seen.update_ratios, strict=True))
    for i, (ratios, colour) in enumerate(zip(layers, layer_colours(len(layers)), strict=True)):
        logs = [math.log10(max(ratio, TINY)) for ratio in ratios]
        axes.plot(seen.update_steps, logs, color=colour, linewidth=1.3, label=f"{i + 1}")
    axes.axhline(-3, color=plots.RED, linestyle="--", linewidth=1.2, label="1e-3")
    axes.set_ylim(-5, -0.5)
    axes.set_xlabel("step")
    axes.set_ylabel("log10 update / weight")
    return f"median of the second half: {found.summary()['log10_update_ratio']:.2f}"


def plot_saturation(axes: "Axes", found: Diagnosis) -> str:
    """Draw the share of saturated activations of each layer, in the first and the last step."""
    seen = found.seen
    for snapshot, label, colour, shift in (
        (seen.first, "first step", plots.BLUE, -0.2),
        (seen.last, "last step", plots.ORANGE, 0.2),
    ):
        shares = [100 * share for share in found.shares(snapshot)]
        places = [i + 1 + shift for i in range(len(shares))]
        axes.bar(places, shares, width=0.38, color=colour, label=label)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(1, len(shares) + 1))
    axes.set_xlabel("hidden layer")
    axes.set_ylabel("saturated %" if found.activation == "tanh" else "off %")
    return f"all layers: {found.share(seen.first):.1%}, in the end {found.share(seen.last):.1%}"


def plot_units(axes: "Axes", found: Diagnosis) -> str:
    """Draw every unit of every layer: how often the last batch saturates it; the dead in red."""
    import matplotlib as mpl

    layers = found.seen.last.activations
    share = torch.stack(
        [saturated(layers[i], found.activation).float().mean(0) for i in sorted(layers)]
    )
    greys = mpl.colormaps["Greys"].with_extremes(over=plots.RED)
    axes.imshow(
        share.numpy(), cmap=greys, vmin=0, vmax=0.9999, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(share)), [f"{i + 1}" for i in range(len(share))])
    axes.grid(visible=False)
    axes.set_xlabel("unit (darker: more saturated; red: dead)")
    axes.set_ylabel("hidden layer")
    return f"last step; {found.dead(found.seen.last)} dead of {share.numel()}"


DIAGNOSTICS: dict[str, tuple[str, Painter]] = {
    "activations": ("activations", plot_activations),
    "gradients": ("gradients", plot_gradients),
    "weight_gradients": ("weight gradients", plot_weight_gradients),
    "updates": ("size of updates", plot_updates),
    "saturation": ("saturation", plot_saturation),
    "dead_units": ("dead units", plot_units),
}


def log10(x: Tensor) -> Tensor:
    """Return log10 of the absolute values; a zero counts as `TINY`."""
    return x.abs().clamp(min=TINY).log10()


def listed(values: Iterable[float], digits: int = 2) -> str:
    """Write numbers to two digits, large ones in full: `0.63, 12, 1,058`."""
    return ", ".join(f"{value:,.0f}" if value >= 10 else f"{value:.{digits}g}" for value in values)


def draw_diagnostics(found: Sequence[Diagnosis], names: Sequence[str], out: Path) -> None:
    """Draw some `DIAGNOSTICS` as rows of panels, a column a network, into one PNG."""
    with plots.picture_style():
        figure = plots.new_figure(4.6 * len(found), 3.4 * len(names))
        grid = figure.subplots(len(names), len(found), squeeze=False)
        for panels, name in zip(grid, names, strict=True):
            title, paint = DIAGNOSTICS[name]
            for axes, each in zip(panels, found, strict=True):
                told = paint(axes, each)
                plots.headline(axes, f"{each.name}: {title}", told)
                axes.title.set_fontsize(11)
                for line in axes.texts:  # a long one must not make its column narrow
                    line.set_in_layout(False)
            if name == "saturation":  # the bars of the first panel leave no room
                panels[-1].legend(fontsize=9)
            elif panels[0].get_legend_handles_labels()[0]:
                panels[0].legend(title="layer", fontsize=9)
        plots.save_figure(figure, out)


def draw_search(trials: Sequence[Trial], out: Path) -> None:
    """Draw the histogram of validation losses, and the loss against each setting."""
    from matplotlib.ticker import MaxNLocator

    done = ranking(trials)
    losses, best = [loss for loss, _ in done], done[0][1]
    settings = {
        "learning_rate": "learning rate",
        "n_hidden": "hidden units",
        "n_embd": "numbers a character",
        "block_size": "characters of context",
    }
    with plots.picture_style():
        figure = plots.new_figure(13.0, 6.4)
        grid = figure.add_gridspec(2, len(settings))
        axes = figure.add_subplot(grid[0, :])
        axes.hist(losses, bins=max(5, len(losses) // 2), color=plots.BLUE, edgecolor="white")
        axes.set_xlabel("validation loss (nats per character)")
        axes.set_ylabel("trials")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        told = f"{len(trials)} settings drawn at random, {len(trials) - len(done)} diverged"
        plots.headline(axes, f"Search: best validation loss {losses[0]:.3f}", told)
        for column, (name, label) in enumerate(settings.items()):
            panel = figure.add_subplot(grid[1, column])
            values = [getattr(trial, name) for _, trial in done]
            panel.scatter(values, losses, color=plots.BLUE, s=22)
            panel.scatter(getattr(best, name), losses[0], color=plots.RED, s=110, marker="*")
            panel.set_xlabel(label)
            if name == "learning_rate":
                panel.set_xscale("log")
                panel.set_ylabel("validation loss")
        plots.save_figure(figure, out)


# ---- the command


def main(config: InspectConfig) -> None:
    """Compare three starts of a deep network from the inside, or search among small ones."""
    settings = config.trainer
    with parallel.join(settings.device, settings.threads, settings.dist_timeout) as world:
        if world.size > 1:
            raise UsageError("makemore.inspect looks into one process; start it without torchrun")
        dataset = find_data(config.data)
        corpus = load_corpus(dataset, config.split, split_seed=42, unk=0)
        encoded = Encoded.of(corpus.splits, corpus.vocabulary)
        saved = {**asdict(config), "out": None, "sha256": corpus.sha256}
        with Run.open(PACKAGE, config.out, resume=False, config=saved) as run:
            describe(config, corpus, run)
            look = search if config.search else compare
            table, told = look(config, len(corpus.vocabulary), encoded, run, world)
            result = run.write_result(
                seed=settings.seed,
                device=str(world.device),
                data_name=shown_data(corpus.name),
                data_sha256=corpus.sha256,
                **told,
            )
            if config.json:
                print(json.dumps(result, indent=2))
            else:
                Console().print(table)
                for picture in sorted(run.folder.glob("*.png")):
                    print(f"plot: {picture}")


def describe(config: InspectConfig, corpus: Corpus, run: Run) -> None:
    """Print what is about to be done, on stderr: stdout may be for a program."""
    what = f"{config.search} trials of a search" if config.search else "three starts compared"
    cli.print_settings(
        Console(stderr=True, soft_wrap=True),
        f"makemore.inspect: {what}",
        {
            "data": f"{corpus.name} ({corpus.sha256[:12]}), {config.split} split",
            "steps": f"{config.trainer.max_steps} each",
            "seed": config.trainer.seed,
            "device": config.trainer.device,
            "run": run.folder,
        },
    )


Told = tuple[Table, dict[str, Any]]
"""What to print, and the part of result.json that depends on what was done."""


def compare(
    config: InspectConfig, vocab_size: int, encoded: Encoded, run: Run, world: World
) -> Told:
    """Train the three networks and draw what was seen in them."""
    found = []
    for name, shape in presets(config, vocab_size).items():
        print(f"network: {name}", file=sys.stderr)
        found.append(diagnose(name, shape, encoded, config.trainer, run, world))
    print("drawing", file=sys.stderr)
    draw_diagnostics(found, list(DIAGNOSTICS), run.folder / "diagnostics.png")
    figures = {
        f"{each.name.replace('-', '_')}_{name}": value
        for each in found
        for name, value in each.summary().items()
    }
    return diagnoses_table(found, vocab_size), {
        "parameters": max(each.parameters for each in found),
        "steps": config.trainer.max_steps * len(found),
        "metrics": {**figures, "log_vocab_size": math.log(vocab_size)},
    }


def diagnoses_table(found: Sequence[Diagnosis], vocab_size: int) -> Table:
    """Lay out the summaries, a line a network."""
    headings = ("first loss", "saturated %", "dead units", "gradient", "update", "val loss")
    table = Table("network", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption_justify = "left"
    table.caption = (
        f"The first loss would be log V = {math.log(vocab_size):.2f} without any confidence. "
        "Saturated %, dead units: in the first step, in the last. Gradient: spread at the first "
        "layer / at the last, first step. Update: median of log10(update / weight); about -3 is "
        "healthy."
    )
    for each in found:
        s = each.summary()
        table.add_row(
            each.name,
            f"{s['first_loss']:.2f}",
            f"{100 * s['saturated_start']:.1f}, {100 * s['saturated_end']:.1f}",
            f"{s['dead_start']}, {s['dead_end']}",
            f"{s['gradient_ratio']:.2g}",
            f"{s['log10_update_ratio']:.2f}",
            f"{s['val_loss']:.4f}",
        )
    return table


def search(
    config: InspectConfig, vocab_size: int, encoded: Encoded, run: Run, world: World
) -> Told:
    """Train networks with random settings and draw how they did.

    Raises NumericalError when all of them diverged.
    """
    trials: list[Trial] = []
    for number in range(config.search):
        print(f"trial {number + 1} of {config.search}", file=sys.stderr)
        trials.append(try_out(number, vocab_size, encoded, config.trainer, run, world))
        # After each one: a search that is stopped keeps what it found.
        files.write_json(run.folder / "trials.json", [asdict(trial) for trial in trials])
    ranked = ranking(trials)
    if not ranked:
        raise NumericalError(f"all {len(trials)} trials diverged")
    draw_search(trials, run.folder / "search.png")
    best = ranked[0][1]
    told = {f"best_{name}": float(value) for name, value in asdict(best).items()}
    del told["best_parameters"]
    return trials_table(ranked[:TOP]), {
        "parameters": best.parameters,
        "steps": config.trainer.max_steps * len(trials),
        "metrics": {**told, "trials": len(trials), "diverged": len(trials) - len(ranked)},
    }


def trials_table(ranked: Sequence[tuple[float, Trial]]) -> Table:
    """Lay out trials, a line each."""
    table = Table("val loss", box=None, pad_edge=False)
    headings = ("trial", "learning rate", "hidden units", "embedding", "context", "parameters")
    for heading in headings:
        table.add_column(heading, justify="right")
    for loss, t in ranked:
        table.add_row(
            f"{loss:.4f}", f"{t.number}", f"{t.learning_rate:.1e}", f"{t.n_hidden}",
            f"{t.n_embd}", f"{t.block_size}", f"{t.parameters:,}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    cli.run(main)

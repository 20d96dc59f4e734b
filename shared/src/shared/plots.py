"""Pictures of a run for its folder and for a README: PNG, labelled, with units.

Drawn without pyplot, whose global state would leak between runs; matplotlib is imported at the
first picture, as that takes half a second.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import files
from shared.errors import DataError
from shared.estimates import Estimate
from shared.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart as well.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
DPI = 100
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def plot_loss(
    metrics: Path,
    out: Path,
    *,
    title: str,
    subtitle: str | None = None,
    unit: str = "nats per token",
) -> None:
    """Draw the losses and the learning rate of a run against its steps, as a PNG of 900 x 560.

    Reads the records of kind "train" (`loss`, `lr`), "val" (`val_loss` or `loss`) and "skip" of a
    metrics.jsonl. Raises `DataError` when it holds no finite training loss.
    """
    records = read_metrics(metrics)
    train = _series(records, "train", "loss")
    if not train[0]:
        raise DataError(f"{metrics}: no training loss to draw")
    val = _series(records, "val", "val_loss", "loss")
    rate = _series(records, "train", "lr", "learning_rate")
    skipped = sorted({record["step"] for record in records if record.get("kind") == "skip"})
    with picture_style():
        figure, loss_axes, rate_axes = _panels(two=bool(rate[0]))
        _draw_train(loss_axes, *train)
        if val[0]:
            _draw_validation(loss_axes, *val)
        for number, step in enumerate(skipped):
            label = _skipped(len(skipped)) if not number else None
            loss_axes.axvline(step, color=RED, linewidth=1, linestyle=":", label=label)
        _frame(loss_axes, train, val)
        loss_axes.set_ylabel(f"loss ({unit})")
        loss_axes.legend(loc="upper right")
        if rate_axes is not None:
            _draw_rate(rate_axes, *rate)
        _count_steps(rate_axes or loss_axes)
        headline(loss_axes, title, subtitle)
        save_figure(figure, out)


def plot_run(folder: Path, title: str, unit: str) -> bool:
    """Draw loss.png of a run folder from its metrics.jsonl; False where there are no losses."""
    with contextlib.suppress(DataError):
        plot_loss(folder / "metrics.jsonl", folder / "loss.png", title=title, unit=unit)
        return True
    return False


def bar_chart(
    rows: Sequence[tuple[str, float]] | Mapping[str, float],
    out: Path,
    *,
    title: str,
    unit: str,
    subtitle: str | None = None,
    highlight: str | None = None,
) -> None:
    """Draw one horizontal bar a row, labelled with its value: a speed ladder, top to bottom.

    `rows` are names and values in `unit`; the bar named `highlight`, or the last one, stands out.
    Raises `DataError` when there are no rows.
    """
    pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
    if not pairs:
        raise DataError(f"{out}: no rows to draw")
    names, values = [name for name, _ in pairs], [value for _, value in pairs]
    chosen = highlight if highlight is not None else names[-1]
    with picture_style():
        figure = new_figure(9.0, 1.5 + 0.42 * len(pairs))
        axes = figure.add_subplot()
        colours = [BLUE if name == chosen else "#A9CCE3" for name in names]
        bars = axes.barh(range(len(pairs)), values, color=colours, height=0.68)
        axes.bar_label(bars, [_short(value) for value in values], padding=5, color="#333333")
        axes.set_yticks(range(len(pairs)), names)
        axes.tick_params(axis="y", length=0, labelcolor="#333333")
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(unit)
        axes.xaxis.set_major_formatter(lambda x, _: _short(x))
        axes.margins(x=0.12)
        headline(axes, title, subtitle)
        save_figure(figure, out)


def interval_bars(
    axes: "Axes",
    places: Mapping[str, float],
    estimates: Mapping[str, Estimate],
    colours: Mapping[str, str],
) -> None:
    """Draw a horizontal bar for each of the `estimates`, with its 95% interval and its mean.

    `places` says how far down the bar of each name goes, and may have more names than there are
    bars: panels side by side share it.
    """
    for name, estimate in estimates.items():
        half = estimate.half or 0.0
        axes.barh(places[name], estimate.mean, color=colours[name], height=0.7)
        if half:
            axes.errorbar(
                estimate.mean, places[name], xerr=half, color="#222222", capsize=3, linewidth=1.2
            )
        axes.annotate(
            f"{estimate.mean:.3f}", (estimate.mean + half, places[name]), (6, 0),
            textcoords="offset points", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.set_yticks(list(places.values()), list(places))
    axes.set_ylim(max(places.values()) + 0.6, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor="#333333")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.12)


def picture_style() -> Any:
    """Return the context in which our pictures look alike, whatever the user's settings are."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {**mpl.rcParamsDefault, **_STYLE}
    del settings["backend"]  # the one setting that the context would not put back
    return mpl.rc_context(settings)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches, with a canvas that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def headline(axes: "Axes", title: str, subtitle: str | None) -> None:
    """Put a title over the axes, and a smaller grey line between the two."""
    # A user's text may hold dollar signs that mean no formula: parse_math=False.
    above = 24 if subtitle else 10
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=above, parse_math=False)
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points",
            fontsize=10, color=GREY, parse_math=False,
        )  # fmt: skip


def save_figure(figure: "Figure", out: Path) -> None:
    """Write the figure whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    files.write_file(out, picture.getvalue())


def smooth(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of each value and its `reach` neighbours on either side.

    Near an end both sides shrink alike, so that a falling curve is not bent:
    `([4, 1, 1], 1) -> [4.0, 2.0, 1.0]`.
    """
    sums = [0.0, *itertools.accumulate(values)]
    averages = []
    for at in range(len(values)):
        near = min(reach, at, len(values) - 1 - at)
        averages.append((sums[at + near + 1] - sums[at - near]) / (2 * near + 1))
    return averages


def _series(
    records: Sequence[Mapping[str, Any]], kind: str, *names: str
) -> tuple[list[int], list[float]]:
    """Return steps and finite values of the first of `names` that each record of a kind has."""
    steps, values = [], []
    for record in records:
        if record.get("kind") != kind:
            continue
        value = next((record[name] for name in names if name in record), None)
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(int(record["step"]))
            values.append(float(value))
    return steps, values


def _draw_train(axes: "Axes", steps: list[int], losses: list[float]) -> None:
    """Draw the training loss: pale as it was, strong as it goes on average."""
    if len(losses) < 10:
        axes.plot(steps, losses, color=BLUE, linewidth=1.8, marker="o", markersize=3, label="train")
        return
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.9)
    averages = smooth(losses, _reach(losses))
    axes.plot(steps, averages, color=BLUE, linewidth=1.8, label="train (smoothed)")


def _draw_validation(axes: "Axes", steps: list[int], losses: list[float]) -> None:
    """Draw the validation loss and name its best point."""
    axes.plot(
        steps, losses, color=ORANGE, linewidth=1.6, marker="o", markersize=4, label="validation"
    )
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(
        steps[best], losses[best], marker="*", markersize=15, color=RED, linestyle="none",
        markeredgecolor="white", label=f"best {losses[best]:.4f} at step {steps[best]:,}",
        zorder=5, clip_on=False,
    )  # fmt: skip


def _draw_rate(axes: "Axes", steps: list[int], rates: list[float]) -> None:
    """Draw the learning rate above zero."""
    axes.plot(steps, rates, color=GREY, linewidth=1.5)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(0, max(rates) * 1.1 or 1)
    axes.yaxis.set_major_formatter("{x:g}")


def _count_steps(axes: "Axes") -> None:
    """Label the horizontal axis with whole steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _frame(
    axes: "Axes", train: tuple[list[int], list[float]], val: tuple[list[int], list[float]]
) -> None:
    """Choose the vertical range, so that the first few steps do not flatten all the others.

    The loss starts near log(vocab_size) and plunges; what is worth comparing lies below. A curve
    that shoots up later stays in the picture.
    """
    averages = smooth(train[1], _reach(train[1]))
    early = train[0][len(train[0]) // 20]
    points = [*zip(train[0], averages, strict=True), *zip(*val, strict=True)]
    low = min(loss for _, loss in points)
    high = max(loss for step, loss in points if step >= early)
    margin = 0.06 * (high - low) or 0.1 * abs(low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _reach(losses: Sequence[float]) -> int:
    """Return how far to smooth: a fiftieth of the run on either side, and no few points."""
    return math.ceil(len(losses) / 50) if len(losses) >= 10 else 0


def _panels(*, two: bool) -> "tuple[Figure, Axes, Axes | None]":
    """Return a figure with a panel for losses and, under it, a thin one for the learning rate."""
    figure = new_figure(9.0, 5.6)
    if not two:
        return figure, figure.add_subplot(), None
    grid = figure.add_gridspec(2, 1, height_ratios=(5, 1), hspace=0.08)
    upper = figure.add_subplot(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    upper.tick_params(axis="x", labelbottom=False)
    return figure, upper, lower


def _skipped(count: int) -> str:
    """Write a label for the skipped steps."""
    return f"{count} skipped step{'s' if count > 1 else ''}"


def _short(value: float) -> str:
    """Write a value for a label: 37,300 or 1.25."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""The ladder as a table, in the terminal and in Markdown, and as a picture.

| model | params | FLOPs | CPU s | train  | val    | test            | bits  |
|-------|--------|-------|-------|--------|--------|-----------------|-------|
| gru   |  21.3k |   41k |    52 | 1.8713 | 1.9431 | 1.9321 ± 0.0041 | 2.787 |

A figure after ± is half the width of the 95% interval of the mean over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from shared import plots
from shared.estimates import Estimate, brief_count, brief_seconds, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Chain = Literal["counted", "neural", "mixtures"]
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

COLUMNS = (
    *("model", "parameters", "FLOPs per character", "CPU seconds"),
    *("train", "val", "test", "bits per character"),
)
BRIEF_COLUMNS = ("model", "params", "FLOPs", "CPU s", "train", "val", "test", "bits")
COLOURS: Mapping[Chain, str] = {
    "counted": plots.GREY,
    "neural": plots.BLUE,
    "mixtures": plots.GREEN,
}


@dataclass(frozen=True)
class Row:
    """A rung of the ladder on one split of the data, over all seeds."""

    name: str
    chain: Chain
    split: str
    seeds: int
    """Runs with different seeds; 0 where chance plays no part."""
    parameters: int
    """Numbers that training adjusts."""
    counts: int
    """Numbers that counting stored."""
    flops: float
    """Floating-point operations of the forward pass per character."""
    cpu_seconds: float
    """CPU time of the training, the mean over seeds; of a mixture that of all its members."""
    nats: Mapping[Part, Estimate]
    """Mean cross-entropy per character of each part of the data."""
    below: str = ""
    """The rung it has to beat; none for the lowest, and where it was not judged."""
    beaten: bool = True
    """Whether it did, or came as near as it may."""
    tied: bool = False
    """Whether it came near only."""

    @property
    def bits_per_character(self) -> float:
        """Cross-entropy of the test part to base 2."""
        return self.nats["test"].mean / math.log(2)

    def cells(self) -> list[str]:
        """Return the texts of `COLUMNS`, in full."""
        mark = "" if self.beaten else f" (does not beat {self.below})"
        mark = f" (ties with {self.below})" if self.tied else mark
        return [
            self.name + mark,
            _sizes(self.parameters, self.counts),
            f"{self.flops:,.0f}",
            brief_seconds(self.cpu_seconds),
            *(str(self.nats[part]) for part in PARTS),
            f"{self.bits_per_character:.3f}",
        ]

    def brief(self) -> list[str]:
        """Return the texts of `COLUMNS` for a narrow screen; only the test has its interval."""
        return [
            self.name + (" \N{ALMOST EQUAL TO}" * self.tied if self.beaten else " \N{BALLOT X}"),
            brief_count(self.parameters + self.counts) + "*" * bool(self.counts),
            brief_count(self.flops),
            brief_seconds(self.cpu_seconds),
            *(f"{self.nats[part].mean:.4f}" for part in PARTS[:2]),
            str(self.nats["test"]),
            f"{self.bits_per_character:.3f}",
        ]


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as rich shows them, a gap between the chains, failures in red."""
    table = Table(
        title=title,
        title_justify="left",
        caption="* numbers counted, at least in part; others are trained parameters",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # two blanks between columns: 80 characters in all
    )
    for number, column in enumerate(BRIEF_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].chain != row.chain
        style = "" if row.beaten else "red"
        table.add_row(*map(Text, row.brief()), end_section=last, style=style)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with full numbers."""
    return markdown_table(COLUMNS, [row.cells() for row in rows])


def draw(rows: Sequence[Row], out: Path, *, title: str, subtitle: str, line: str) -> None:
    """Draw a bar of test nats a rung, as a PNG: a panel a split, its chains apart by colour.

    Whiskers are the 95% intervals. The rung named `line`, the best counted model, is a dashed
    line through all bars.
    """
    splits = list(dict.fromkeys(row.split for row in rows))
    chains = list(COLOURS)
    # From the top down, with a gap between two chains.
    places = {name: i + 0.4 * chains.index(chain) for i, (name, chain) in enumerate(
        dict.fromkeys((row.name, row.chain) for row in rows)
    )}  # fmt: skip
    with plots.picture_style():
        figure = plots.new_figure(4.2 + 4.8 * len(splits), 1.7 + 0.36 * len(places))
        panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
        for split, axes in zip(splits, panels, strict=True):
            _panel(axes, [row for row in rows if row.split == split], places, line)
            axes.set_xlabel(f"test nats per character, {split} split (lower is better)")
        _legend(panels[-1], [chain for chain in chains if any(r.chain == chain for r in rows)])
        plots.headline(panels[0], title, subtitle)
        plots.save_figure(figure, out)


def _panel(axes: "Axes", rows: Sequence[Row], places: Mapping[str, float], line: str) -> None:
    """Draw the bars of one split at the height that `places` gives each."""
    nats = {row.name: row.nats["test"] for row in rows}
    plots.interval_bars(axes, places, nats, {row.name: COLOURS[row.chain] for row in rows})
    for row in rows:
        if row.name == line:
            best = row.nats["test"].mean
            axes.axvline(best, color=plots.RED, linestyle="--", linewidth=1.3, label=line)


def _legend(axes: "Axes", chains: Sequence[Chain]) -> None:
    """Name the colours of the chains, and the line."""
    from matplotlib.patches import Patch

    colours = [Patch(color=COLOURS[chain], label=chain) for chain in chains]
    lines, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[*colours, *lines], loc="lower right")


def _sizes(parameters: int, counts: int) -> str:
    """Write how much a model stores: `21,339`, `9,120 counts` or both."""
    if not counts:
        return f"{parameters:,}"
    return f"{parameters:,} + {counts:,} counts" if parameters else f"{counts:,} counts"

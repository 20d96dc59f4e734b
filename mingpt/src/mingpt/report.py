"""The ladder as a table, in the terminal and in Markdown, and as a picture.

| rung     | params | FLOPs | CPU s |  train |    validation | earlier project |
|----------|--------|-------|-------|--------|---------------|-----------------|
| one-head |  55.9k |  110k |    31 | 2.3291 | 2.3861 ± 0.01 |                 |

A figure after ± is half the width of the 95% interval of the mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from mingpt.rungs import RUNGS, Chain, Rung
from shared import plots
from shared.estimates import Estimate, brief_count, brief_seconds, markdown_table

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = get_args(Part)
COLUMNS = (
    *("rung", "parameters", "FLOPs per character", "CPU seconds", "train", "validation"),
    "earlier project",
)
BRIEF_COLUMNS = ("rung", "params", "FLOPs", "CPU s", "train", "validation", "earlier project")
COUNTED = "* numbers counted; others are trained parameters"
EARLIER = (
    "Earlier project: what the one that this package replaces reached with a like model, as it "
    "reported it, the time where it told one"
)
COLOURS: Mapping[Chain, str] = {
    "counted": plots.GREY,
    "window": plots.ORANGE,
    "attention": plots.BLUE,
}


@dataclass(frozen=True)
class Row:
    """A rung of the ladder, over all seeds."""

    rung: Rung
    seeds: int
    """Runs with different seeds; 0 where chance plays no part."""
    parameters: int
    """Numbers that training adjusts."""
    counts: int
    """Numbers that counting stored."""
    flops: float
    """Floating-point operations of the forward pass per character, the context full."""
    cpu_seconds: float
    """CPU time of the training or counting, the mean over seeds."""
    nats: Mapping[Part, Estimate]
    """Mean cross-entropy per character."""
    short_of: tuple[str, ...] = ()
    """The rungs below that it should have beaten and has not."""
    tied: str = ""
    """The rung below that it need not beat, where it came as near to it as it should."""

    @property
    def name(self) -> str:
        """The name of the rung."""
        return self.rung.name

    @property
    def beaten(self) -> bool:
        """Whether it beats all that it has to."""
        return not self.short_of

    def cells(self) -> list[str]:
        """Return the texts of `COLUMNS`, in full."""
        mark = f" (ties with {self.tied})" if self.tied else ""
        mark = mark if self.beaten else f" (short of {' and '.join(self.short_of)})"
        sizes = f"{self.counts:,} counts" if self.counts else f"{self.parameters:,}"
        return [
            self.name + mark,
            sizes,
            f"{self.flops:,.0f}",
            brief_seconds(self.cpu_seconds),
            *(str(self.nats[part]) for part in PARTS),
            self.rung.reference,
        ]

    def brief(self) -> list[str]:
        """Return the texts of `BRIEF_COLUMNS`, for a narrow screen."""
        return [
            self.name
            + (" \N{ALMOST EQUAL TO}" * bool(self.tied) if self.beaten else " \N{BALLOT X}"),
            brief_count(self.parameters + self.counts) + "*" * bool(self.counts),
            brief_count(self.flops),
            brief_seconds(self.cpu_seconds),
            f"{self.nats['train'].mean:.4f}",
            str(self.nats["val"]),
            self.rung.reference.split(",")[0],
        ]


def judge(rows: Sequence[Row]) -> list[Row]:
    """Say of each row which rungs below it has to beat and does not, by validation nats.

    Of a rung that was left out its own lower ones are taken.
    """
    val = {row.name: row.nats["val"].mean for row in rows}
    judged = []
    for row in rows:
        below = _present(row.rung.after, val)
        short, tied = [], ""
        for name in below:
            above = val[row.name] - val[name]
            if name != row.rung.tie_with:
                fails = above >= 0
            else:
                fails = (abs(above) if row.rung.same else above) > row.rung.tie
                tied = name if abs(above) <= row.rung.tie else ""
            short += [name] if fails else []
        judged.append(replace(row, short_of=tuple(short), tied=tied))
    return judged


def _present(names: Sequence[str], present: Mapping[str, float]) -> list[str]:
    """Return those of `names` that are present, and for each other one what is below it."""
    rungs = {rung.name: rung for rung in RUNGS}
    found: list[str] = []
    for name in names:
        found += [name] if name in present else _present(rungs[name].after, present)
    return list(dict.fromkeys(found))


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as rich shows them, a gap between the chains, failures in red."""
    table = Table(
        title=title,
        title_justify="left",
        caption=f"{COUNTED}\n{EARLIER}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # two blanks between columns: 80 characters in all
    )
    for number, column in enumerate(BRIEF_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].rung.chain != row.rung.chain
        style = "" if row.beaten else "red"
        table.add_row(*map(Text, row.brief()), end_section=last, style=style)
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, and under it what each rung added."""
    added = "".join(f"- **{row.name}**: {row.rung.adds}\n" for row in rows)
    return f"{markdown_table(COLUMNS, [row.cells() for row in rows])}\n{EARLIER}.\n\n{added}"


def draw(rows: Sequence[Row], out: Path, *, title: str, subtitle: str) -> None:
    """Draw a bar of validation nats a rung as a PNG, from the top down: a colour a chain.

    Whiskers are the 95% intervals. The best counted rung is a dashed line through all bars.
    """
    from matplotlib.patches import Patch

    chains = list(COLOURS)
    # With a gap between two chains.
    places = {row.name: i + 0.4 * chains.index(row.rung.chain) for i, row in enumerate(rows)}
    with plots.picture_style():
        figure = plots.new_figure(9.0, 1.9 + 0.36 * len(rows))
        axes = figure.add_subplot()
        nats = {row.name: row.nats["val"] for row in rows}
        plots.interval_bars(axes, places, nats, {row.name: COLOURS[row.rung.chain] for row in rows})
        handles = [
            Patch(color=COLOURS[chain], label=chain)
            for chain in chains
            if any(row.rung.chain == chain for row in rows)
        ]
        counted = [row for row in rows if row.rung.chain == "counted"]
        if counted:
            best = min(counted, key=lambda row: row.nats["val"].mean)
            line = axes.axvline(
                best.nats["val"].mean, color=plots.RED, linestyle="--", linewidth=1.3,
                label=f"best of counting: {best.name}",
            )  # fmt: skip
            axes.legend(handles=[*handles, line], loc="lower right")
        axes.set_xlabel("validation nats per character (lower is better)")
        plots.headline(axes, title, subtitle)
        plots.save_figure(figure, out)

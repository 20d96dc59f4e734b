"""Means over seeds with their intervals, and how figures are written in a table of them.

A figure after ± is half the width of the 95% interval of the mean.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from shared.profiling import format_flops

# Student's t that 2.5% of the distribution lies above, for 1, 2, 3, ... degrees of freedom
# (any statistics table; Student, "The Probable Error of a Mean", 1908).
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and half the width of its 95% interval: None for a single value."""

    mean: float
    half: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Estimate the mean of independent runs by Student's t: `[1, 2, 3] -> 2 ± 2.48`.

        Beyond 21 values the interval is that of 21, a little too wide.
        """
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean)
        t = T_975[min(len(values) - 1, len(T_975)) - 1]
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        half = "" if self.half is None else f" ± {self.half:.4f}"
        return f"{self.mean:.4f}{half}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that is aligned in its source too, the first column to the left.

    >>> print(markdown_table(["model", "nats"], [["gru", "1.9"]]), end="")
    | model | nats |
    | ----- | ---: |
    | gru   |  1.9 |
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "".join(
        "| "
        + " | ".join(
            f"{cell:<{width}}" if not number else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        + " |\n"
        for cells in lines
    )


def brief_count(number: float) -> str:
    """Write a number with three digits: `21339 -> "21.3k"`."""
    return format_flops(number).removesuffix("FLOP").replace(" ", "")


def brief_seconds(seconds: float) -> str:
    """Write a time with a tenth where that is a part of it: `0.52 -> "0.5"`, `63.2 -> "63"`."""
    return f"{seconds:,.1f}" if seconds < 10 else f"{seconds:,.0f}"

"""Means with intervals, and how figures are written in a table of them."""

import math

import pytest

from shared.estimates import Estimate, brief_count, brief_seconds, markdown_table


def test_the_interval_is_students() -> None:
    """Five values: mean ± 2.776 standard errors (t with 4 degrees of freedom)."""
    estimate = Estimate.of([2.0, 2.1, 1.9, 2.2, 1.8])
    assert estimate.mean == pytest.approx(2.0)
    assert estimate.half == pytest.approx(2.776 * math.sqrt(0.025 / 5))
    assert str(Estimate.of([1.0, 2.0, 3.0])) == "2.0000 ± 2.4843"


def test_one_value_has_no_interval() -> None:
    """A single run says nothing of its spread, and many runs still have an interval."""
    assert str(Estimate.of([1.93751])) == "1.9375"
    half = Estimate.of([0.0, 1.0] * 50).half
    assert half == pytest.approx(2.086 * math.sqrt(25 / 99 / 100))


def test_a_markdown_table_is_aligned_in_its_source() -> None:
    """Lines of one length, the first column to the left, the others to the right."""
    lines = markdown_table(["model", "nats"], [["gru", "1.9"], ["a", "12.25"]]).splitlines()
    assert lines == [
        "| model |  nats |",
        "| ----- | ----: |",
        "| gru   |   1.9 |",
        "| a     | 12.25 |",
    ]


def test_figures_are_short_enough_for_a_screen() -> None:
    """Three digits of a count; tenths of a second where the time is short."""
    assert [brief_count(n) for n in (0, 999, 21339, 4.25e9)] == ["0", "999", "21.3k", "4.25G"]
    assert [brief_seconds(s) for s in (0.52, 9.96, 63.2, 1234)] == ["0.5", "10.0", "63", "1,234"]

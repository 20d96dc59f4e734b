"""Distinct prefixes against a dictionary of strings."""

import pytest
import torch

from makemore.data import IGNORED, Items, Vocabulary
from makemore.prefixes import distinct_prefixes


def test_rows_are_those_of_the_docstring() -> None:
    """Three items with 12 places have 9 prefixes, numbered as they appear in sorted order."""
    idx = torch.tensor([[0, 5, 13, 13, 1], [0, 5, 12, 12, 1], [0, 1, 0, 0, 0]])
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    first, row = distinct_prefixes(idx, keep)
    assert row.tolist() == [[0, 2, 6, 7, 8], [0, 2, 3, 4, 5], [0, 1, 0, 0, 0]]
    assert first.tolist() == [10, 11, 6, 7, 8, 9, 2, 3, 4]


def test_each_prefix_has_one_row_and_each_row_one_prefix(names: list[str]) -> None:
    """Among names with many common beginnings, repeated ones and a prefix of another."""
    words = [*names, "em", "emma", "e", "ella"]
    idx, targets = Items(words, Vocabulary("abcdefghijklmnopqrstuvwxyz")).batch(range(len(words)))
    keep = targets != IGNORED
    odd = torch.where(keep, idx, torch.randint(27, idx.shape))  # what padding holds is all one
    first, row = distinct_prefixes(odd, keep)
    found: dict[tuple[int, ...], int] = {}
    for b, t in keep.nonzero().tolist():
        prefix, number = tuple(idx[b, : t + 1].tolist()), int(row[b, t])
        assert found.setdefault(prefix, number) == number
    assert sorted(found.values()) == list(range(len(first)))
    width = idx.size(1)
    assert {tuple(idx[i // width, : i % width + 1].tolist()) for i in first.tolist()} == set(found)
    assert not row[~keep].any()


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)])
def test_nothing_kept_has_no_prefix(shape: tuple[int, int]) -> None:
    """Items of which no place counts, empty ones, or no items."""
    idx = torch.ones(shape, dtype=torch.long)
    first, row = distinct_prefixes(idx, torch.zeros(shape, dtype=torch.bool))
    assert first.tolist() == []
    assert torch.equal(row, torch.zeros_like(idx))
    assert first.dtype == row.dtype == torch.int64

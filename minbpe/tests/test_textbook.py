"""The readable reference, on examples worked by hand."""

from minbpe import get_stats, merge
from minbpe.textbook import train_textbook


def test_get_stats_counts_overlapping_pairs_and_adds_to_earlier_counts() -> None:
    """[1, 1, 1] holds (1, 1) twice, and counts go on across calls."""
    counts = get_stats([1, 2, 3, 1, 2])
    assert counts == {(1, 2): 2, (2, 3): 1, (3, 1): 1}
    assert get_stats([1, 1, 1], counts) == {(1, 2): 2, (2, 3): 1, (3, 1): 1, (1, 1): 2}


def test_merge_goes_from_left_to_right() -> None:
    """Of three equal ids the first two merge."""
    assert merge([1, 2, 3, 1, 2], (1, 2), 4) == [4, 3, 4]
    assert merge([7, 7, 7], (7, 7), 8) == [8, 7]


def test_wikipedias_example_gives_its_merges() -> None:
    """In "aaabdaaabac", aa comes first; then ab and (aa)a both count 2, and the rules differ."""
    a, b = b"ab"
    words = ["aaabdaaabac"]
    assert train_textbook(words, 1) == [(a, a)]
    # now: Z a b d Z a b a c, with Z = 256; (Z, a) and (a, b) occur twice each
    assert train_textbook(words, 3) == [(a, a), (a, b), (256, 257)]
    assert train_textbook(words, 3, "minbpe") == [(a, a), (256, a), (257, b)]


def test_training_ends_when_no_pair_is_left() -> None:
    """Two letters allow one merge."""
    assert train_textbook(["ab", "c"], 10) == [(97, 98)]

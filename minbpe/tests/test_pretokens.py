"""Splitting: the fast way equals the `regex` library on the whole text."""

import random

import pytest
import regex

from minbpe.errors import UsageError
from minbpe.pretokens import GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN, Splitter

PIECES = [
    *(chr(c) for c in range(128)),
    *("é", "ſ", "\x85", "\u00a0", "\u2028", "中", "½", "😀", "\u0301", "\u3000"),
    *("'s", "'LL", "'ve", "'Re", "\n", "\n", "\r\n", "  ", " \n", "x\ny", "12345", "word"),
]


@pytest.mark.parametrize("pattern", [GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_blocks_and_the_ascii_copy_split_as_the_pattern_does(
    pattern: str, ascii_only: bool
) -> None:
    """Random text, cut into blocks wherever a cut is allowed."""
    rng = random.Random(1)
    pieces = [piece for piece in PIECES if piece.isascii()] if ascii_only else PIECES
    splitter, reference = Splitter(pattern, block=1), regex.compile(pattern)
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 30)))
        assert splitter.split(text) == reference.findall(text), repr(text)


def test_blocks_end_only_at_lone_line_ends_between_visible_ascii() -> None:
    """Elsewhere a pre-token might reach across, or its end depend on what follows."""
    text = "one\ntwo\né two\r\nthree\n\nfour \nfive\nsix"
    blocks = list(Splitter(GPT4_SPLIT_PATTERN, block=1).blocks(text))
    assert ["".join(block) for block in blocks] == [
        "one\n",
        "two\né two\r\nthree\n\nfour \nfive\n",
        "six",
    ]
    blocks = list(Splitter(GPT4_SPLIT_PATTERN, block=5).blocks("a\nb\nc\nd\ne\nf\ng"))
    assert ["".join(block) for block in blocks] == ["a\nb\nc\nd\n", "e\nf\ng"]


def test_the_documented_example_splits_as_documented() -> None:
    """Contractions, spaces before words, and digits by threes."""
    assert Splitter(GPT4_SPLIT_PATTERN).split("I'm 1234") == ["I", "'m", " ", "123", "4"]
    assert Splitter(GPT2_SPLIT_PATTERN).split("I'm 1234") == ["I", "'m", " 1234"]


@pytest.mark.parametrize("pattern", [r"\w+", r"(a)|(b)", r"x*", r"\w+(?=\n)"])
def test_nothing_is_lost_by_gaps_groups_or_empty_matches(pattern: str) -> None:
    """What a user's pattern leaves out is kept as pieces of its own."""
    text = "a b, xx\n c"
    pieces = Splitter(pattern).split(text)
    assert "".join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize("pattern", ["", "(", "\ud800"])
def test_a_pattern_that_cannot_work_is_refused(pattern: str) -> None:
    """Empty, not compiling, or not to be saved."""
    with pytest.raises(UsageError, match="split pattern"):
        Splitter(pattern)

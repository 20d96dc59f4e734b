"""Splitting: the fast way equals the `regex` library on the whole text."""

import random

import pytest
import regex

from minbpe.errors import DataError, UsageError
from minbpe.pretokens import (
    CUT,
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    PATTERNS,
    Splitter,
    cut_at_spaces,
)

PIECES = [
    *(chr(c) for c in range(128)),
    *("é", "ſ", "\x85", "\u00a0", "\u2028", "中", "½", "😀", "\u0301", "\u3000"),
    *("'s", "'LL", "'ve", "'Re", "\n", "\n", "\r\n", "  ", " \n", "x\ny", "12345", "word"),
    *("camelCase", "HTTPServer's", "!\n/", "x\n/", "ǅ", "ʰ", " ", " ", " ", "\n  ", "\u3000 "),
    *("人人", "。", "，", "\u0e34", "\u0f0b", "٣", "'", "e\u0301's"),
]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
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


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_text_may_be_cut_wherever_a_cut_is_found(pattern: str, ascii_only: bool) -> None:
    """The pre-tokens of both parts are those of the whole, at each place, and if it goes on."""
    rng = random.Random(2)
    pieces = [piece for piece in PIECES if piece.isascii()] if ascii_only else PIECES
    splitter, reference = Splitter(pattern), regex.compile(pattern)
    found = 0
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 20)))
        whole = reference.findall(text)
        seen = text[: rng.randint(0, len(text))]
        end = splitter.find_cut(seen)
        while end is not None:
            found += 1
            assert reference.findall(text[:end]) + reference.findall(text[end:]) == whole, text
            end = splitter.find_cut(seen, end + 1)
    assert found > 500


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_text_without_spaces_may_be_cut_after_words(pattern: str) -> None:
    """But not before what may go on with a word: a mark, a contraction, half a character."""
    splitter = Splitter(pattern)
    text = "人人生而自由，在尊严和权利上一律平等。\n１２、_。"
    ends = [end for end in range(len(text)) if splitter.find_cut(text, end) == end]
    assert [text[end - 1 : end + 1] for end in ends] == ["由，", "等。", "２、"]
    for text in ["e\u0301", "I'm", "a\ud835\udc00", "a1b"]:
        assert splitter.find_cut(text, 1) is None


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("kind", ["regular", "ascii", "any"])
def test_pieces_between_spaces_split_as_the_whole_text(pattern: str, kind: str) -> None:
    """Each but the first with the space that it lost; also where `str.split` does the cutting."""
    rng = random.Random(3)
    alphabets = {
        "regular": ["a", "B", "1", "'s", ".", " ", " ", "\n", "\n\n", ".\n/", "\x1c", " \n"],
        "ascii": [piece for piece in PIECES if piece.isascii()],
        "any": [*PIECES, " ", " ", " "],
    }
    reference, by_split = regex.compile(pattern), 0
    for _ in range(600):
        text = "".join(rng.choices(alphabets[kind], k=rng.choice([5, 20, 400])))
        first, *rest = cut_at_spaces(text)
        pieces = [first, *(" " + piece for piece in rest)]
        assert "".join(pieces) == text
        assert [w for piece in pieces for w in reference.findall(piece)] == reference.findall(text)
        by_split += len(pieces) > len(CUT.split(text))
    for text in ["x " * 200 + "a  b c\nd", "é " * 200 + "a  b", "é " * 200 + "a \u2003 \u2003b"]:
        first, *rest = cut_at_spaces(text)
        again = [w for piece in [first, *(" " + p for p in rest)] for w in reference.findall(piece)]
        assert again == reference.findall(text)


def test_long_regular_text_is_cut_by_str_split() -> None:
    """Which shows in double spaces: `CUT` keeps them with what stands before them."""
    words = "word " * 100
    assert cut_at_spaces(words + "a  b")[-3:] == ["a", "", "b"]
    assert cut_at_spaces(words + "é  b")[-3:] == ["é", "", "b"]
    for odd in ["a   b", "a\n  b", "a  \nb", "a\n \n \nb  c", "a\tb  c", "é \u3000 b  c", "a  b "]:
        assert cut_at_spaces(words + odd) == CUT.split(words + odd)
    assert cut_at_spaces(words + ". \n \n = a\n \nb")[-4:] == [".", "\n \n", "=", "a\n \nb"]
    assert cut_at_spaces("a  b") == ["a ", "b"]


def test_a_pattern_of_ones_own_has_no_place_to_cut() -> None:
    """As it may look anywhere."""
    assert Splitter(r"\w+|\W+").find_cut("one two\nthree") is None
    assert Splitter(GPT2_SPLIT_PATTERN).find_cut("one two\nthree") == 3
    assert Splitter(GPT2_SPLIT_PATTERN).find_cut("one two.\nthree", 8) == 9


def test_blocks_end_only_where_a_text_may_be_cut() -> None:
    """Elsewhere a pre-token might reach across, or its end depend on what follows."""
    text = "one  two\n\n!\n?\n/"
    blocks = list(Splitter(GPT4_SPLIT_PATTERN, block=1).blocks(text))
    assert ["".join(block) for block in blocks] == ["one", " ", " two", "\n\n!\n", "?\n/"]
    blocks = list(Splitter(GPT4_SPLIT_PATTERN, block=5).blocks("a b c d e"))
    assert ["".join(block) for block in blocks] == ["a b c", " d e"]


def test_the_documented_example_splits_as_documented() -> None:
    """Contractions, spaces before words, and digits by threes."""
    assert Splitter(GPT4_SPLIT_PATTERN).split("I'm 1234") == ["I", "'m", " ", "123", "4"]
    assert Splitter(GPT2_SPLIT_PATTERN).split("I'm 1234") == ["I", "'m", " 1234"]
    assert Splitter(PATTERNS["o200k"]).split("I'm camelCase") == ["I'm", " camel", "Case"]
    assert cut_at_spaces("The cat  sat") == ["The", "cat ", "sat"]


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


def test_a_pattern_that_searches_backwards_is_refused() -> None:
    """Its pieces come from the end of a text, which would be lost or doubled."""
    for pattern in (r"(?r)a", r"(?ir)\w+|\W"):
        with pytest.raises(UsageError, match=r"searches backwards.*leave out \(\?r\)"):
            Splitter(pattern)


def test_case_12_a_pattern_that_would_run_for_ever_is_stopped() -> None:
    """The message shows it; the limit is for a mebibyte, so long texts have more time."""
    pattern = r"(\p{Greek}+)+$"
    with pytest.raises(DataError, match=r"limit of 0.1 s on the text, after 'α!'") as caught:
        Splitter(rf"α!|{pattern}", time_limit=0.1).split("α!" + "α" * 3000 + "?")
    assert repr(rf"α!|{pattern}") in str(caught.value)
    with pytest.raises(DataError, match=r"limit of 0.3 s on the text"):
        Splitter(pattern, time_limit=0.1).split("α" * (1 << 21) + "!")

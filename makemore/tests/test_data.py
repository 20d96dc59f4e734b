"""Items, splits, vocabularies and batches, against plain Python; the doctor by its words."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.data import (
    IGNORED,
    MAX_LENGTH,
    UNKNOWN_SIGN,
    Items,
    SplitName,
    Vocabulary,
    context_windows,
    examine,
    examined_items,
    read_items,
    split_items,
)
from shared.datasets import resolve
from shared.errors import DataError

TEXTS = st.text(alphabet="abcdeé ", min_size=1, max_size=9)
LISTS = st.lists(TEXTS, min_size=1, max_size=30)
SPLITS: tuple[SplitName, ...] = ("karpathy", "random")


@pytest.fixture
def real_names() -> list[str]:
    """Return names.txt, or skip the test where it can't be had offline."""
    try:
        return read_items(resolve("names", offline=True))
    except DataError as error:
        pytest.skip(str(error))


# -- reading and examining -----------------------------------------------------------------------


def write(folder: Path, content: bytes) -> Path:
    path = folder / "items.txt"
    path.write_bytes(content)
    return path


def test_lines_are_items_however_they_end(tmp_path: Path) -> None:
    """Windows' line ends and byte order mark, blanks around and empty lines are not of an item."""
    words = [f"name{n}" for n in range(12)]
    for end in ("\n", "\r\n", "\r"):
        text = "\ufeff" + f"{end}  ".join(words) + f" {end}{end}"
        assert read_items(resolve(write(tmp_path, text.encode()))) == words


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    """Items, distinct ones, lengths, and characters by their frequency."""
    lines = ["bb", "abb", "", *(f"{n}b" for n in range(8)), "bb"]
    items, report = examined_items(resolve(write(tmp_path, "\n".join(lines).encode())))
    assert items == [line for line in lines if line]
    assert (report.items, report.distinct) == (11, 10)
    assert (report.shortest, report.longest, report.mean_length) == (2, 3, 23 / 11)
    assert report.characters[0] == "b"
    assert sorted(report.characters) == sorted("ab01234567")


TEN = [f"x{n}y" for n in range(10)]
REFUSED = {
    "nothing": ([], "no items"),
    "empty lines": (["", ""], "no items; it needs one a line"),
    "one": (["anna"], "has 1 item, the last in line 1; at least 10"),
    "few": (["", *TEN[:9]], "has 9 items, the last in line 10; at least 10"),
    "the same": (["anna"] * 12, "all 12 lines from line 1 on say 'anna'"),
    "long": ([*TEN, "a" * 257], "line 11: 257 characters; an item has at most 256"),
    "control": ([*TEN, "a\x07b"], "line 11: holds the control character '\\x07'"),
    "surrogate": (["a\ud800", *TEN], "line 1: holds the control character '\\ud800'"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_the_doctor_refuses_with_the_line_and_the_reason(why: str) -> None:
    """Each with exit code 3 and the name of the file."""
    lines, said = REFUSED[why]
    with pytest.raises(DataError) as error:
        examine(lines, "cats.txt")
    assert said in str(error.value)
    assert str(error.value).startswith("cats.txt")
    assert error.value.exit_code == 3


def test_the_longest_item_allowed_is_allowed() -> None:
    """256 characters."""
    assert examine([*TEN, "a" * MAX_LENGTH]).longest == 256


def test_a_line_is_counted_as_an_editor_does(tmp_path: Path) -> None:
    """A form feed or a line separator in an earlier line does not shift the number."""
    odd = ["a\u2028b", *TEN, "c\x0cd"]
    with pytest.raises(DataError, match="line 12: holds the control character '\\\\x0c'"):
        read_items(resolve(write(tmp_path, "\n".join(odd).encode())))


MANY = [a + b + c for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"]
WARNED = {
    "few": (TEN * 2, "only 20 items"),
    "empty": ([*MANY, "", ""], "empty lines, left out: 2"),
    "twice": ([*MANY, "aaa", "aaa", "aab"], "repeat an earlier one: 3 ('aaa' 3 times)"),
    "rare": ([*MANY, "añña"], "characters of a single item: 'ñ' (line 513)"),
    "many rare": ([*MANY, "0123456"], "'4' (line 513) and 2 more"),
    "decomposed": ([*MANY, "e\u0301"], "not in Unicode's normal form NFC: 1"),
}


@pytest.mark.parametrize("why", WARNED)
def test_the_doctor_warns_of_what_is_odd(why: str) -> None:
    """And of nothing else."""
    lines, said = WARNED[why]
    warnings = examine(lines).warnings
    assert any(said in warning for warning in warnings), warnings
    assert not any(said in warning for warning in examine(MANY).warnings)


def test_ordinary_items_give_no_warning() -> None:
    """Five hundred and more, all different, of common characters."""
    assert examine(MANY).warnings == ()


# -- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@given(items=st.lists(TEXTS, min_size=10, max_size=60), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_the_parts_together_are_the_data(split: SplitName, items: list[str], seed: int) -> None:
    """As multisets, and no part is empty."""
    parts = split_items(items, split, seed)
    assert Counter(parts.train + parts.val + parts.test) == Counter(items)
    assert parts.train
    assert parts.val
    assert parts.test


@pytest.mark.parametrize("count", [57, 12_345])
def test_the_karpathy_split_is_makemore_pys(count: int) -> None:
    """What torch.manual_seed(3407) and torch.randperm give; the last 1000, or a tenth, test."""
    items = [str(n) for n in range(count)]
    torch.manual_seed(3407)
    order = torch.randperm(count).tolist()
    held = min(1000, int(count * 0.1))
    parts = split_items(items, "karpathy")
    assert parts.test == [items[i] for i in order[-held:]]
    assert parts.train + parts.val == [items[i] for i in order[:-held]]
    assert len(parts.val) == held


def test_the_random_split_is_the_lectures() -> None:
    """What random.seed(42) and random.shuffle give, cut at 80% and 90%."""
    items = [str(n) for n in range(333)]
    words, state = list(items), random.getstate()
    random.seed(42)
    random.shuffle(words)
    random.setstate(state)
    parts = split_items(items, "random")
    assert (parts.train, parts.val, parts.test) == (words[:266], words[266:299], words[299:])
    assert split_items(items, "random", 7).train != parts.train


def test_the_global_generators_are_left_alone() -> None:
    """A split draws from generators of its own."""
    before = random.getstate(), torch.get_rng_state()
    for split in SPLITS:
        split_items([str(n) for n in range(50)], split)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_lectures_numbers_of_examples(real_names: list[str]) -> None:
    """The shapes that the second lecture prints: 182625, 22655 and 22866 targets."""
    parts, vocabulary = split_items(real_names, "random"), Vocabulary.of(real_names)
    counts = [Items(part, vocabulary).characters for part in (parts.train, parts.val, parts.test)]
    assert counts == [182_625, 22_655, 22_866]
    assert len(vocabulary) == 27


# -- vocabulary ----------------------------------------------------------------------------------


@given(items=LISTS)
@settings(max_examples=40, deadline=None)
def test_decoding_undoes_encoding(items: list[str]) -> None:
    """Ids are 1, 2, ... in the order of the characters; 0 is the boundary's."""
    vocabulary = Vocabulary.of(items)
    for item in items:
        ids = vocabulary.encode(item)
        assert vocabulary.decode(ids.tolist()) == item
        assert ids.min(initial=1) >= 1
    assert len(vocabulary) == len(set("".join(items))) + 1
    assert vocabulary.encode(vocabulary.characters).tolist() == list(range(1, len(vocabulary)))
    assert vocabulary.unknown_id is None


def test_unseen_characters_are_listed() -> None:
    """All of them, in one error that says what to do."""
    with pytest.raises(DataError, match=r"never seen: 'xü😀'; it knows 'abc'.*--unk") as error:
        Vocabulary("abc").encode("a😀xüxb")
    assert error.value.exit_code == 3


def test_the_unknown_character_stands_for_rare_and_unseen_ones() -> None:
    """Rare: in fewer items than asked for, however often in one; its id is the last."""
    vocabulary = Vocabulary.of(["abba", "ab", "cc", "é"], min_count=2)
    assert vocabulary == Vocabulary("ab", unknown=True)
    assert (len(vocabulary), vocabulary.unknown_id) == (4, 3)
    assert vocabulary.encode("aczb").tolist() == [1, 3, 3, 2]
    assert vocabulary.decode([0, 1, 3]) == f".a{UNKNOWN_SIGN}"


def test_a_vocabulary_without_characters_knows_only_the_unknown() -> None:
    """Nothing to look up is not an index error."""
    vocabulary = Vocabulary.of(["ab", "cd"], min_count=2)
    assert vocabulary.encode("abc").tolist() == [1, 1, 1]
    with pytest.raises(DataError):
        Vocabulary("").encode("a")


# -- batches -------------------------------------------------------------------------------------


def reference(
    items: Sequence[str], vocabulary: Vocabulary, chosen: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return idx and targets of a batch, an item after the other."""
    rows = [vocabulary.encode(items[i]).tolist() for i in chosen]
    rows.sort(key=len, reverse=True)  # stable, as a list's sort is
    longest = max(map(len, rows)) + 1
    idx = [[0, *row] + [0] * (longest - len(row) - 1) for row in rows]
    targets = [[*row, 0] + [IGNORED] * (longest - len(row) - 1) for row in rows]
    return idx, targets


@given(items=LISTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_batches_equal_plain_python(items: list[str], data: st.DataObject) -> None:
    """Any items in any order, repeated or not."""
    chosen = data.draw(st.lists(st.integers(0, len(items) - 1), min_size=1, max_size=12))
    vocabulary = Vocabulary.of(items)
    encoded = Items(items, vocabulary)
    idx, targets = encoded.batch(np.array(chosen))
    assert (idx.tolist(), targets.tolist()) == reference(items, vocabulary, chosen)
    assert encoded.weight((idx, targets)) == sum(len(items[i]) + 1 for i in chosen)
    assert encoded.characters == sum(len(item) + 1 for item in items)
    assert len(encoded) == len(items)


def test_items_lie_in_one_array_with_a_boundary_between_two() -> None:
    """The picture at the top of the file."""
    items = Items(["emma", "olivia", "ava"], Vocabulary.of(["emma", "olivia", "ava"]))
    assert items.vocabulary.decode(items.ids.tolist()) == ".emma.olivia.ava."
    assert items.starts.tolist() == [0, 5, 12]
    assert items.lengths.tolist() == [5, 7, 4]


def test_no_items_are_no_targets() -> None:
    """An empty part has a boundary and nothing else."""
    items = Items([], Vocabulary("ab"))
    assert (len(items), items.characters, items.ids.tolist()) == (0, 0, [0])


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=4))
@pytest.mark.parametrize("block_size", [1, 3, 6])
@settings(max_examples=20, deadline=None)
def test_context_windows_equal_plain_python(block_size: int, rows: list[list[int]]) -> None:
    """The last block_size ids at every place, boundaries before the first."""
    expected = [
        [([0] * block_size + row[: t + 1])[-block_size:] for t in range(len(row))] for row in rows
    ]
    assert context_windows(torch.tensor(rows), block_size).tolist() == expected

"""Drawing items, looking them up, and the command `python -m makemore.generate`."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from makemore import generate as program
from makemore.data import MAX_LENGTH, Splits, Vocabulary
from makemore.generate import (
    GenerateConfig,
    edit_distances,
    look_up,
    sample_items,
    samples_table,
    shares,
    told_shares,
)
from makemore.model import CharacterModel
from shared.checkpoint import Checkpoints, open_checkpoint
from shared.errors import DataError, NumericalError
from shared.sampling import sample

Command = Callable[..., Any]
VOCABULARY = Vocabulary("ab", unknown=True)  # ids: boundary 0, a 1, b 2, unknown 3


class Chain(CharacterModel):
    """A bigram of fixed probabilities over boundary, a, b and the unknown character."""

    TABLE = (
        (0.5, 0.2, 0.1, 0.2),  # first: a twice as likely as b, once the two others are ruled out
        (0.2, 0.0, 0.6, 0.2),  # after a: the end, or three times as often b
        (0.9, 0.0, 0.0, 0.1),  # after b: the end
        (0.25, 0.25, 0.25, 0.25),
    )

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.block_size = 4, 1
        self.seen: list[int] = []

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Look the last character up; remember how many rows were asked for."""
        self.seen.append(idx.size(0))
        return torch.tensor(self.TABLE).log()[idx[keep]]

    def flops_per_character(self) -> float:
        """Nothing is computed."""
        return 0.0


def draw(number: int, model: CharacterModel | None = None, **settings: Any) -> list[str]:
    """Make up items of the chain, always the same."""
    generator = torch.Generator().manual_seed(1)
    chain = model or Chain().train()
    return sample_items(chain, VOCABULARY, number, generator=generator, **settings)


# -- drawing -------------------------------------------------------------------------------------


def test_items_come_as_often_as_the_chain_rule_says() -> None:
    """Neither empty ones nor the unknown character; the others by their probabilities."""
    shares_found = Counter(draw(20_000))
    expected = {"a": 2 / 3 / 4, "ab": 2 / 3 * 3 / 4, "b": 1 / 3}
    assert shares_found.keys() == expected.keys()
    for item, share in expected.items():
        error = math.sqrt(share * (1 - share) / 20_000)
        assert abs(shares_found[item] / 20_000 - share) < 4 * error


def test_after_a_prefix_an_item_may_end_at_once() -> None:
    """Each begins with it, and the boundary may be drawn first."""
    assert set(draw(300, prefix="a")) == {"a", "ab"}


def test_an_unknown_character_of_a_prefix_is_shown_as_it_was_typed() -> None:
    """The model reads it as unknown; without such a character it is refused."""
    assert {item[:2] for item in draw(50, prefix="é")} <= {"é", "éa", "éb"}
    with pytest.raises(DataError, match="never seen: 'é'"):
        sample_items(Chain(), Vocabulary("abc"), 1, prefix="é")


def test_items_are_cut_off_at_the_maximal_length() -> None:
    """A model that never ends gives items of that many characters."""

    class Endless(Chain):
        TABLE = ((0.0, 1.0, 0.0, 0.0),) * 4

    assert draw(3, Endless(), max_length=5) == ["aaaaa"] * 3
    assert {len(item) for item in draw(2, Endless())} == {MAX_LENGTH}
    assert draw(1, Endless(), prefix="bbbb", max_length=5) == ["bbbba"]
    with pytest.raises(ValueError, match=r"'bbbbb' has 5 characters.*max_length=5"):
        draw(1, Endless(), prefix="bbbbb", max_length=5)


def test_many_items_are_drawn_in_parts_and_finished_ones_no_longer_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most AT_ONCE rows; after the first character fewer and fewer."""
    monkeypatch.setattr(program, "AT_ONCE", 100)
    chain = Chain()
    assert len(draw(250, chain)) == 250
    assert [chain.seen[0], max(chain.seen), chain.seen.count(100)] == [100, 100, 4]
    # Both letters are no ends the first time; most items end at the second or third character.
    assert chain.seen[0] == chain.seen[1] > chain.seen[2] > 0


def test_the_same_seed_gives_the_same_items() -> None:
    """The global generator plays no part; the model stays in its mode."""
    chain = Chain().train()
    first = draw(40, chain)
    torch.manual_seed(99)
    assert draw(40, chain) == first
    assert chain.training
    other = torch.Generator().manual_seed(2)
    assert sample_items(chain, VOCABULARY, 40, generator=other) != first


def test_case_08_temperature_zero_is_greedy() -> None:
    """The likeliest character each time: a, then b, then the end, whatever the seed."""
    assert draw(3, temperature=0.0) == ["ab", "ab", "ab"]
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert sample(scores, temperature=0.0).tolist() == [1, 0]
    assert sample(scores, temperature=1e-39).tolist() == [1, 0]  # no overflow to NaN


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e39, 1e300])
def test_no_temperature_is_too_small_or_too_large(temperature: float) -> None:
    """Also beside a score of -inf, which stays impossible."""
    scores = torch.tensor([[-math.inf, 2.0, 1.0]]).expand(200, -1)
    drawn = set(sample(scores, temperature=temperature).tolist())
    assert drawn == ({1} if temperature < 1 else {1, 2})


def test_samples_follow_temperature_and_top_k() -> None:
    """Within four standard errors; nothing outside the k likeliest."""
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares, normalised
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
    ]
    for chosen, expected in cases:
        generator = torch.Generator().manual_seed(3)
        drawn = sample(scores.expand(20_000, -1), generator=generator, **chosen)
        found = drawn.bincount(minlength=4) / 20_000
        assert found.tolist() == pytest.approx(expected, abs=0.015)
        assert not found[torch.tensor(expected) == 0].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_case_08_scores_that_are_not_finite_stop_generation(bad: float, temperature: float) -> None:
    """NaN or infinite: exit code 6, also where the greedy choice would be another."""
    with pytest.raises(NumericalError, match="not finite") as error:
        sample(torch.tensor([[0.0, 1.0], [0.5, bad]]), temperature=temperature)
    assert error.value.exit_code == 6


def test_where_nothing_can_be_drawn_is_an_error() -> None:
    """Not an endless loop: all scores are -inf."""
    with pytest.raises(NumericalError):
        sample(torch.full((1, 3), -math.inf))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": math.nan}, "temperature=nan must be"),
        ({"temperature": math.inf}, "temperature=inf must be"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"number": 0}, "number=0 must be at least 1"),
        ({"max_length": 257}, "max_length=257 must be from 1 to 256"),
        ({"seed": -1}, "seed=-1 must be from 0"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    """The message names the value and the rule."""
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**changes)


# -- looking up ----------------------------------------------------------------------------------


def distance(a: str, b: str) -> int:
    """Return the edit distance by Wagner and Fischer's table, cell by cell."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@given(text=st.text("abé", max_size=8), others=st.lists(st.text("abé", max_size=8), max_size=9))
@settings(max_examples=60, deadline=None)
def test_edit_distances_equal_the_table_cell_by_cell(text: str, others: list[str]) -> None:
    """Of any texts, empty ones included."""
    assert edit_distances(text, others).tolist() == [distance(text, other) for other in others]


def test_distances_of_many_items_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer lists are cut into parts of different widths."""
    monkeypatch.setattr(program, "NAMES_AT_ONCE", 3)
    others = ["anna", "ana", "", "hannah", "an", "nan", "anna-lena"]
    expected = [distance("anna", other) for other in others]
    assert edit_distances("anna", others).tolist() == expected


SPLIT = Splits(train=["anna", "emma", "lena", "emma"], val=["nora", "anna"], test=["lara", "nora"])


def test_samples_are_marked_with_the_first_part_that_has_them() -> None:
    """And the nearest training item, of equally near ones the first, also for repeated samples."""
    samples = look_up(["emma", "nora", "lara", "anne", "mena", "nora"], SPLIT)
    assert [(s.item, s.mark, s.nearest, s.distance) for s in samples] == [
        ("emma", "train", "emma", 0),
        ("nora", "val", "anna", 3),
        ("lara", "test", "lena", 2),
        ("anne", "new", "anna", 1),
        ("mena", "new", "lena", 1),
        ("nora", "val", "anna", 3),
    ]


def test_the_shares_of_the_marks_add_up() -> None:
    """Each mark's share of all samples, and in words; none without marks."""
    samples = look_up(["emma", "nora", "lara", "anne"] * 5, SPLIT)
    assert shares(samples) == {"train": 0.25, "val": 0.25, "test": 0.25, "new": 0.25}
    assert told_shares(samples[:4]) == "train 25%, val 25%, test 25%, new 25% of 4 items"
    assert shares([program.Sample("x", "")]) == {}


def test_an_item_in_brackets_is_no_markup() -> None:
    """It is shown as it is."""
    assert str(samples_table([program.Sample("[red]", "new")]).columns[0]._cells[0]) == "[red]"


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(trained: tuple[Path, Any]) -> Path:
    return trained[0]


def items_of(ended: Any) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.error
    found: list[dict[str, Any]] = json.loads(ended.out)["samples"]
    return found


def test_the_command_shows_items_marks_and_shares(command: Command, run: Path) -> None:
    """A line an item, with its mark and the nearest training item; the shares last."""
    ended = command("generate", "--run", run, "--number", 7, "--prefix", "ma", "--seed", 3)
    assert (ended.code, ended.error) == (0, "")
    head, *lines, empty, last = ended.out.splitlines()
    assert " ".join(head.split()) == "item seen in nearest training item edit distance"
    assert len(lines) == 7
    assert all(line.startswith("ma") for line in lines)
    assert (empty, last.endswith("of 7 items")) == ("", True)
    rows = items_of(
        command("generate", "--run", run, "--number", 7, "--prefix", "ma", "--seed", 3, "--json")
    )
    for line, row in zip(lines, rows, strict=True):
        assert line.split() == [row["item"], row["mark"], row["nearest"], str(row["distance"])]
    assert all(row["distance"] == distance(row["item"], row["nearest"]) for row in rows)


def test_the_command_is_right_about_what_it_has_seen(
    command: Command, names_file: Path, names: list[str], tmp_path: Path
) -> None:
    """Six-grams know some names by heart; marked new exactly where no part has the item.

    None is longer than the longest of the data.
    """
    run = tmp_path / "run"
    assert command("train", "--data", names_file, "--model", "ngram", "--out", run).code == 0
    rows = items_of(command("generate", "--run", run, "--number", 200, "--json"))
    assert all((row["mark"] == "new") == (row["item"] not in names) for row in rows)
    assert max(len(row["item"]) for row in rows) <= max(map(len, names))
    assert {row["mark"] for row in rows} >= {"new", "train"}


def test_case_08_temperature_zero_gives_one_item_and_says_so(command: Command, run: Path) -> None:
    """All would be the same, whatever the seed."""
    found = [
        command("generate", "--run", run, "--temperature", 0, "--seed", n, "--json") for n in (1, 2)
    ]
    assert items_of(found[0]) == items_of(found[1])
    assert len(items_of(found[0])) == 1
    assert found[0].said == "temperature 0: all items are the same, here is one"


@pytest.fixture
def moved(trained: tuple[Path, Any], names_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return a run whose data can be moved and changed, and the file of its data."""
    data, folder = tmp_path / "names.txt", tmp_path / "run"
    shutil.copy(names_file, data)
    shutil.copytree(trained[0], folder)
    best = open_checkpoint(folder, best=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    pending = checkpoints.begin(best.step)
    pending.write_tensors("model.safetensors", best.tensors())
    pending.write_json("config.json", {**best.json(), "data": str(data)})
    checkpoints.commit(pending, best=True)
    return folder, data


def test_without_its_data_a_run_gives_items_without_marks(
    command: Command, moved: tuple[Path, Path]
) -> None:
    """One line says why; --data tells where they are now."""
    folder, data = moved
    elsewhere = data.rename(data.with_name("elsewhere.txt"))
    words = ("generate", "--run", folder, "--number", 3, "--json")
    ended = command(*words)
    assert [row["mark"] for row in items_of(ended)] == [""] * 3
    assert ended.error.count("\n") == 1
    assert "no marks: the data of the training are not where they were" in ended.said
    assert "name them with --data" in ended.said
    ended = command(*words, "--data", elsewhere)
    assert all(row["mark"] for row in items_of(ended))


def test_changed_data_are_refused(command: Command, moved: tuple[Path, Path]) -> None:
    """Exit 4 with both digests: marks would be wrong."""
    folder, data = moved
    data.write_text(data.read_text() + "zoltan\n")
    ended = command("generate", "--run", folder)
    assert ended.code == 4
    assert "not what the model was trained on, or was changed since: sha256" in ended.said
    assert ended.out == ""


MISTAKES = {
    "negative": (("--temperature", "-0.5"), 2, "temperature=-0.5 must be 0 or more"),
    "nan": (("--temperature", "nan"), 2, "temperature=nan must be 0 or more"),
    "unseen": (("--prefix", "maß"), 3, "characters the model has never seen: 'ß'"),
    "long": (("--prefix", "m" * 40), 2, "items have at most 9; shorten it or raise --max-length"),
    "no run": (("--run", "nowhere"), 2, "nowhere: no such folder"),
    "no data": (("--data", "nowhere"), 2, "no data set and no file is called 'nowhere'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_exit_code(
    mistake: str, command: Command, run: Path
) -> None:
    """The line names what is wrong; nothing is printed."""
    flags, code, said = MISTAKES[mistake]
    ended = command("generate", "--run", run, *flags)
    assert said in ended.error
    assert (ended.code, ended.out, ended.error.count("\n")) == (code, "", 1)

"""The tasks: what they draw, what is held out, and what a person may type."""

import datetime

import numpy as np
import pytest
import torch

from mingpt.tasks import (
    ENDLESS,
    HELD_OUT_SHARE,
    TASKS,
    Endless,
    Fixed,
    Task,
    draw_held_out,
    draw_training,
)
from mingpt.transformer import END, PAD, START
from shared.errors import DataError, UsageError

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
FORMATS = (  # of strptime, enough for what our seventeen look like without ordinals and "of"
    *("%d %B %Y", "%d %B %y", "%B %d %Y", "%B %d %y", "%b %d %Y", "%b %d %y", "%d %b %Y"),
    *("%d %b %y", "%d-%b-%Y", "%d-%b-%y", "%A %B %d %Y", "%a %d %b %Y", "%a %d %b %y"),
    *("%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%m/%d/%y", "%Y/%m/%d", "%Y%m%d"),
)


@EVERY
def test_what_is_drawn_fits_the_task(task: Task) -> None:
    """Characters, lengths, and a target that is the right one."""
    pairs = task.draw(np.random.default_rng(0), 500)
    assert len(pairs) == 500
    assert len(set(pairs)) > 350
    assert max(len(source) for source, _ in pairs) <= task.max_source
    assert max(len(target) for _, target in pairs) <= task.max_target
    assert {*"".join(a + b for a, b in pairs)} <= {*task.alphabet}
    if task.solve:
        assert all(task.solve(source) == target for source, target in pairs)


@EVERY
def test_training_never_sees_what_is_held_out(task: Task) -> None:
    """Of 3,000 training pairs none is in the test, nor shares its key with one."""
    test = draw_held_out(task, 1200)
    training = draw_training(task, np.random.default_rng(1), 3000)
    assert len(set(test)) == 1200
    assert draw_held_out(task, 1200) == test
    assert draw_held_out(task, 7) == test[:7]
    assert all(task.held_out(pair) for pair in test)
    assert not {task.key(pair) for pair in test} & {task.key(pair) for pair in training}
    drawn = task.draw(np.random.default_rng(2), 3000)
    share = sum(map(task.held_out, drawn)) / len(drawn)
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.03)


def test_pairs_of_one_key_are_held_out_together() -> None:
    """A sum in either order, a day in any format, digits in any order."""
    add2, dates, sort = TASKS["add2"], TASKS["dates"], TASKS["sort"]
    for a, b in ((a, b) for a in range(0, 100, 7) for b in range(0, 100, 9)):
        one, other = ((f"{x:02d}+{y:02d}", "") for x, y in ((a, b), (b, a)))
        assert add2.held_out(one) == add2.held_out(other)
    assert dates.key(("3.3.98", "1998-03-03")) == dates.key(("mar 3, 98", "1998-03-03"))
    assert sort.key(("312", "123")) == sort.key(("231", "123"))


def test_a_task_without_so_many_held_out_examples_says_so() -> None:
    """add2 has 1,204 held-out sums."""
    assert len(draw_held_out(TASKS["add2"], 1204)) == 1204
    with pytest.raises(UsageError, match="add2 has 1,204 held-out examples, not 5,000"):
        draw_held_out(TASKS["add2"], 5000)


def test_the_worked_examples_of_the_tasks_hold() -> None:
    """The table at the top of the module."""
    solved = {name: task.solve for name, task in TASKS.items()}
    for name, source, target in (
        *(("copy", "krz", "krz"), ("reverse", "krz", "zrk"), ("sort", "3121", "1123")),
        *(("add2", "09+47", "650"), ("add3", "120+985", "5011")),
    ):
        solve = solved[name]
        assert solve is not None
        assert solve(source) == target


def test_dates_are_what_strptime_reads() -> None:
    """2,000 drawn dates mean the day beside them, two-digit years and weekdays included."""
    pairs = TASKS["dates"].draw(np.random.default_rng(3), 2000)
    forms = set()
    for source, target in pairs:
        text = source.replace("the ", "").replace(" of ", " ").replace(",", "")
        head = [word[:-2] if word[:-2].isdigit() and not word.isdigit() else word
                for word in text.split()]  # fmt: skip
        found = {}
        for form in FORMATS:
            try:
                day = datetime.datetime.strptime(" ".join(head), form)  # noqa: DTZ007 - a day
            except ValueError:
                continue
            found[form] = day
            forms.add(form)
        days = {day.date().isoformat() for day in found.values()}
        assert target in days, source
        for form, day in found.items():
            if "%a" in form.lower() and day.date().isoformat() == target:
                assert source.startswith(day.strftime("%A").lower()[:3])
    assert forms == set(FORMATS)


def test_a_batch_is_what_the_docstring_shows() -> None:
    """Sources end with END and are padded; the decoder reads START and the target."""
    reverse = TASKS["reverse"]
    source, target_in, targets = reverse.batch([("ab", "ba"), ("c", "c")])
    assert source.tolist() == [[3, 4, END], [5, END, PAD]]
    assert target_in.tolist() == [[START, 4, 3], [START, 5, END]]
    assert targets.tolist() == [[4, 3, END], [5, END, -100]]
    assert {each.dtype for each in (source, target_in, targets)} == {torch.int64}


@EVERY
def test_decoding_gives_back_what_was_encoded(task: Task) -> None:
    """Texts survive ids and padding; what no text has becomes a question mark."""
    texts = [target for _, target in task.draw(np.random.default_rng(0), 50)]
    assert [task.decode(row) for row in task.encode(texts).tolist()] == texts
    assert task.decode([START, 3, PAD]) == f"?{task.alphabet[0]}?"
    assert task.block_size >= task.encode(texts).shape[1]


def test_endless_examples_are_a_function_of_seed_and_number() -> None:
    """The same numbers give the same batch in any order; another seed or number another one."""
    zeros = np.zeros(8, np.int64)

    def sources(seed: int, first: int) -> list[list[int]]:
        batch = Endless(TASKS["add3"], seed).batch(np.arange(first, first + 8), zeros)
        rows: list[list[int]] = batch[0].tolist()
        return rows

    first, second = sources(0, 0), sources(0, 8)
    assert sources(0, 0) == first
    assert first != second
    assert sources(1, 0) != first
    assert len(Endless(TASKS["add3"], 0)) == ENDLESS


def test_fixed_examples_come_as_asked_and_weigh_their_targets() -> None:
    """Rows by number; the weight is the number of targets, padding aside."""
    fixed = Fixed(TASKS["copy"], [("a", "a"), ("bcd", "bcd"), ("ef", "ef")])
    batch = fixed.batch(np.array([2, 0]), np.zeros(2, np.int64))
    assert batch[0].tolist() == [[7, 8, END], [3, END, PAD]]
    assert fixed.weight(batch) == 5.0
    assert len(fixed) == 3


@pytest.mark.parametrize(
    ("name", "typed", "source"),
    [
        ("sort", "3 1 2", "312"),
        ("copy", " Hello ", "hello"),
        ("reverse", "a, b", "ab"),
        ("dates", "  Mar  3, 98", "mar 3, 98"),
        ("add2", "7+5=", "07+05"),
        ("add3", "0012 + 900", "012+900"),
    ],
)
def test_what_a_person_types_becomes_a_source(name: str, typed: str, source: str) -> None:
    """Blanks, capitals and missing zeros are no mistakes."""
    assert TASKS[name].read(typed) == source


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("sort", "3 x 2", "expected digits such as '012'"),
        ("sort", "", "expected digits"),
        ("copy", "a" * 17, "17 characters, trained for 16 at most"),
        ("dates", "3rd of März", "expected day, month and year"),
        ("dates", " ", "expected day, month and year"),
        ("dates", "hello", "'hello': expected day, month and year"),
        ("dates", "march", "expected day, month and year"),
        ("dates", "1998", "expected day, month and year"),
        ("dates", "3 mar apr 98", "expected day, month and year"),
        ("dates", "3 mar 98" * 99, r"'(3 mar 98){5}\.\.\.': expected"),
        ("copy", "a" * 999, r"'a{40}\.\.\.': 999 characters"),
        ("add2", "100+1", "expected a sum of two numbers, 0 to 99"),
        ("add2", "1+2+3", "expected a sum"),
        ("add3", "٣+٤", "expected a sum"),
    ],
)
def test_what_a_task_cannot_mean_is_refused(name: str, typed: str, said: str) -> None:
    """The error says what is expected."""
    with pytest.raises(DataError, match=said):
        TASKS[name].read(typed)


def test_every_date_that_is_drawn_may_be_typed_and_has_no_flaw() -> None:
    """All formats are understood; a day that the calendar lacks has a flaw."""
    dates = TASKS["dates"]
    for source, target in dates.draw(np.random.default_rng(4), 2000):
        assert dates.read(source) == source
        assert dates.flaw(target) == ""
    for wrong in ("1999-02-31", "2002-07-00", "1999-2-3", "19990203", "", "?"):
        assert dates.flaw(wrong) == "no such day"
    assert TASKS["sort"].flaw("21") == ""


def test_a_sum_is_shown_as_people_write_it() -> None:
    """The highest digit first, without leading zeros."""
    show = TASKS["add2"].show
    assert [show(target) for target in ("650", "811", "000", "")] == ["56", "118", "0", ""]


def test_unknown_characters_are_named() -> None:
    """The error says which, and what there are."""
    with pytest.raises(DataError, match=r"'1 2': task sort knows no ' ', only '0123456789'"):
        TASKS["sort"].encode(["12", "1 2"])

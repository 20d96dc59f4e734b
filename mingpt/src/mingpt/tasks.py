"""Six small translations whose right answer is known: copy, reverse, sort, dates, add2 and add3.

A task draws pairs of texts from a numpy generator, without end. Whether a pair may be trained on
or is held out for the test is decided by a hash of what the pair is about, so that the two can
never meet, whatever the seed:

    task     source                  target         held out together
    copy     krz                     krz            all pairs of this target
    reverse  krz                     zrk
    sort     3121                    1123           every order of the same digits
    dates    mar 3, 98               1998-03-03     every way to write this day
    add2     09+47                   650            09+47 and 47+09
    add3     120+985                 5011

The sums are written from the lowest digit up, as in minGPT's adder: a digit then depends on the two
of its place and on the carry out of the place below, whose digits and sum have been seen. From the
highest down it would depend on carries that are still to come. Numbers are padded with zeros to a
fixed width there, so that a place always means the same power of ten. `Task.read` and `Task.show`
are between these forms and what a person writes.

Shapes: B batch, S source time, T target time; ids 0 to 2 are padding, start and end.
"""

import datetime
import hashlib
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mingpt.model import IGNORED
from mingpt.transformer import END, N_SPECIAL, PAD, START
from shared.errors import DataError, UsageError
from shared.sampler import IntArray

TaskName = Literal["copy", "reverse", "sort", "dates", "add2", "add3"]
Pair = tuple[str, str]  # source and target
Batch = tuple[Tensor, Tensor, Tensor]  # source (B, S), target_in (B, T), targets (B, T)

HELD_OUT_SHARE = 1 / 8  # of all there is to ask; add2, the smallest, keeps 1,204 of 10,000 sums
TEST_SEED = 20170612  # of the held-out examples, the same for every run: the paper's first day
ENDLESS = 2**40  # examples of an epoch: more than anyone will draw
LONGEST_ECHO = 40  # characters of a question that an error message repeats


@dataclass(frozen=True)
class Task:
    """A translation: what its texts are made of, and how to draw, read, solve and show them."""

    name: str
    idea: str
    """What is to be done, for a person."""
    alphabet: str
    """The characters of sources and targets."""
    max_source: int
    """Characters of the longest source."""
    max_target: int
    """Characters of the longest target."""
    draw: Callable[[np.random.Generator, int], list[Pair]]
    """Draw so many pairs."""
    read: Callable[[str], str]
    """Turn what a person typed into a source; raises DataError for what the task cannot mean."""
    solve: Callable[[str], str] | None = None
    """Return the target of a source by other means than a network; None: there are none here."""
    show: Callable[[str], str] = str
    """Write a target as a person would."""
    flaw: Callable[[str], str] = lambda _: ""
    """Say why a text can be the target of no source; "" if it can, or where nothing is known."""
    key: Callable[[Pair], str] = lambda pair: pair[1]
    """Name what a pair is about: pairs of one key are held out together, or not at all."""

    @property
    def vocab_size(self) -> int:
        """Ids of the characters, padding, start and end."""
        return N_SPECIAL + len(self.alphabet)

    @property
    def block_size(self) -> int:
        """Places of the longest source or target, its end included."""
        return max(self.max_source, self.max_target) + 1

    def held_out(self, pair: Pair) -> bool:
        """Say whether a pair is for the test only: one key in eight, by its hash."""
        digest = hashlib.sha256(f"{self.name} {self.key(pair)}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    def encode(self, texts: Sequence[str]) -> IntArray:
        """Return the ids of each text and its end, padded to the longest: (B, T) int64.

        In an alphabet "ab": `["ab", "b"] -> [[3, 4, 2], [4, 2, 0]]`. Raises DataError for a
        character outside the alphabet.
        """
        ids = {character: number for number, character in enumerate(self.alphabet, N_SPECIAL)}
        found = np.full((len(texts), 1 + max(map(len, texts), default=0)), PAD, np.int64)
        for row, text in zip(found, texts, strict=True):
            if strange := sorted(set(text) - ids.keys()):
                raise DataError(
                    f"{text!r}: task {self.name} knows no {', '.join(map(repr, strange))}, only "
                    f"{self.alphabet!r}"
                )
            row[: len(text)] = [ids[character] for character in text]
            row[len(text)] = END
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text up to the end: `[3, 4, 2, 0] -> "ab"` in an alphabet "ab".

        Padding and start, which a model may say as well, become "?".
        """
        letters = ["?"] * N_SPECIAL + list(self.alphabet)
        said = list(ids)
        return "".join(letters[id_] for id_ in said[: said.index(END) if END in said else None])

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        """Return pairs as source (B, S), target_in (B, T) and targets (B, T), int64.

        The decoder reads the start and then the target; it is to say the target and then the end.
        Padding is `PAD` in what is read, and -100 in `targets`. In an alphabet "abc", reverse:

        [("ab", "ba"), ("c", "c")] -> source [[3, 4, 2], [5, 2, 0]],
                                      target_in [[1, 4, 3], [1, 5, 2]],
                                      targets [[4, 3, 2], [5, 2, -100]]
        """
        source = self.encode([source for source, _ in pairs])
        targets = self.encode([target for _, target in pairs])
        target_in = np.concatenate([np.full((len(pairs), 1), START), targets[:, :-1]], axis=1)
        targets[targets == PAD] = IGNORED
        return torch.from_numpy(source), torch.from_numpy(target_in), torch.from_numpy(targets)


# ---- examples, for training and for the test


class Endless:
    """Training examples that never repeat by plan and are never held out.

    Implements `shared.sampler.Examples`. A batch is drawn by a generator whose seed is the number
    of its first example and `seed`: so a resumed run sees what it would have seen.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed

    def __len__(self) -> int:
        return ENDLESS

    def batch(self, indices: IntArray, epochs: IntArray) -> Batch:
        """Build a batch of as many examples as there are `indices` (B,); see `Task.batch`."""
        generator = np.random.default_rng([self.seed, int(epochs[0]), int(indices[0])])
        return self.task.batch(draw_training(self.task, generator, len(indices)))

    def weight(self, batch: Batch) -> float:
        """Count the targets of a batch."""
        return count_targets(batch)


class Fixed:
    """The same few examples every time, in their order: a validation or test set."""

    def __init__(self, task: Task, pairs: Sequence[Pair]) -> None:
        self.task, self.pairs = task, pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: IntArray, epochs: IntArray) -> Batch:  # noqa: ARG002 - the protocol's
        """Build the batch of examples `indices` (B,); see `Task.batch`."""
        return self.task.batch([self.pairs[index] for index in indices])

    def weight(self, batch: Batch) -> float:
        """Count the targets of a batch."""
        return count_targets(batch)


def count_targets(batch: Batch) -> float:
    """Return how many targets a batch has, padding aside."""
    return float((batch[2] != IGNORED).sum())


def draw_training(task: Task, generator: np.random.Generator, number: int) -> list[Pair]:
    """Draw `number` pairs, none of which is held out."""
    pairs: list[Pair] = []
    while len(pairs) < number:
        drawn = task.draw(generator, number)
        pairs += [pair for pair in drawn if not task.held_out(pair)]
    return pairs[:number]


def draw_held_out(task: Task, number: int) -> list[Pair]:
    """Return `number` different held-out pairs, always the same ones.

    Raises UsageError where the task has fewer.
    """
    generator = np.random.default_rng(TEST_SEED)
    pairs: dict[Pair, None] = {}  # a set that keeps the order
    idle = 0
    while len(pairs) < number and idle < 50:  # then there are no more
        before = len(pairs)
        pairs |= dict.fromkeys(pair for pair in task.draw(generator, 1024) if task.held_out(pair))
        idle = idle + 1 if len(pairs) == before else 0
    if len(pairs) >= number:
        return list(pairs)[:number]
    raise UsageError(
        f"task {task.name} has {len(pairs):,} held-out examples, not {number:,}; ask for fewer"
    )


def _echo(typed: str) -> str:
    """Quote what a person typed, shortened."""
    return repr(typed if len(typed) <= LONGEST_ECHO else f"{typed[:LONGEST_ECHO]}...")


# ---- copy, reverse, sort

LONGEST = 16  # characters to copy, reverse or sort


def _draw_texts(
    alphabet: str, answer: Callable[[str], str]
) -> Callable[[np.random.Generator, int], list[Pair]]:
    """Return a function that draws texts of 1 to `LONGEST` characters, and what to answer them."""
    letters = np.frombuffer(alphabet.encode(), np.uint8)

    def draw(generator: np.random.Generator, number: int) -> list[Pair]:
        lengths = generator.integers(1, LONGEST + 1, number)
        drawn = letters[generator.integers(0, len(letters), (number, LONGEST))]
        texts = [row.tobytes()[:n].decode() for row, n in zip(drawn, lengths, strict=True)]
        return [(text, answer(text)) for text in texts]

    return draw


def _read_text(alphabet: str, name: str) -> Callable[[str], str]:
    """Return a function that reads a text of an alphabet; blanks and commas may divide it."""

    def read(typed: str) -> str:
        text = re.sub(r"[\s,]", "", typed.lower())
        if not text or set(text) - set(alphabet):
            raise DataError(f"{_echo(typed)}: expected {name} such as {alphabet[:3]!r}")
        if len(text) > LONGEST:
            raise DataError(
                f"{_echo(typed)}: {len(text)} characters, trained for {LONGEST} at most"
            )
        return text

    return read


def _reversed(text: str) -> str:
    return text[::-1]


def _sorted(text: str) -> str:
    return "".join(sorted(text))


def _text_task(
    name: str, idea: str, alphabet: str, kind: str, answer: Callable[[str], str]
) -> Task:
    return Task(
        name=name,
        idea=idea,
        alphabet=alphabet,
        max_source=LONGEST,
        max_target=LONGEST,
        draw=_draw_texts(alphabet, answer),
        read=_read_text(alphabet, kind),
        solve=answer,
    )


# ---- dates

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
FIRST_DAY, LAST_DAY = np.datetime64("1900-01-01"), np.datetime64("2099-12-31")
SHORT_YEARS = range(1969, 2069)  # that two digits can mean, by the rule of POSIX strptime


def _ordinal(day: int) -> str:
    """Write a day's number as it is said: `3 -> "3rd"`."""
    ending = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


@dataclass(frozen=True)
class _Day:
    """A day in the pieces that people write; `y` may have two digits, `year` has four."""

    year: str
    y: str
    month: int
    d: int
    weekday: str

    @property
    def month_name(self) -> str:
        return MONTHS[self.month - 1]

    @property
    def mon(self) -> str:
        return self.month_name[:3]

    @property
    def nth(self) -> str:
        return _ordinal(self.d)


# With dots the day comes first (3.12.1998, German), with slashes the month (12/3/1998, American):
# without such a rule nobody could tell.
FORMATS: tuple[Callable[[_Day], str], ...] = (
    lambda t: f"{t.nth} of {t.month_name} {t.y}",
    lambda t: f"the {t.nth} of {t.month_name}, {t.year}",
    lambda t: f"{t.d} {t.month_name} {t.y}",
    lambda t: f"{t.month_name} {t.d}, {t.y}",
    lambda t: f"{t.month_name} {t.nth}, {t.year}",
    lambda t: f"{t.mon} {t.d}, {t.y}",
    lambda t: f"{t.mon} {t.d} {t.year}",
    lambda t: f"{t.d} {t.mon} {t.y}",
    lambda t: f"{t.d}-{t.mon}-{t.y}",
    lambda t: f"{t.weekday}, {t.month_name} {t.d}, {t.year}",
    lambda t: f"{t.weekday[:3]} {t.d} {t.mon} {t.y}",
    lambda t: f"{t.d}.{t.month}.{t.y}",
    lambda t: f"{t.d:02d}.{t.month:02d}.{t.year}",
    lambda t: f"{t.month}/{t.d}/{t.y}",
    lambda t: f"{t.month:02d}/{t.d:02d}/{t.year}",
    lambda t: f"{t.year}/{t.month:02d}/{t.d:02d}",
    lambda t: f"{t.year}{t.month:02d}{t.d:02d}",
)
DATE_LETTERS = "".join(sorted(set(" ,-./" + string.digits + "".join(MONTHS + DAYS))))
LONGEST_DATE = len("wednesday, september 30, 1998")


def _draw_dates(generator: np.random.Generator, number: int) -> list[Pair]:
    """Draw days of two centuries, each in one of the formats; a year may have two digits."""
    days = FIRST_DAY + generator.integers(0, int((LAST_DAY - FIRST_DAY).astype(int)) + 1, number)
    weekdays = (days.astype(np.int64) + 3) % 7  # day 0, 1970-01-01, was a Thursday
    formats = generator.integers(0, len(FORMATS), number)
    short = generator.random(number) < 0.5
    pairs = []
    for text, weekday, form, brief in zip(
        days.astype(str).tolist(), weekdays.tolist(), formats.tolist(), short.tolist(), strict=True
    ):
        year, month, day = text.split("-")
        y = year[2:] if brief and int(year) in SHORT_YEARS else year
        pairs.append((FORMATS[form](_Day(year, y, int(month), int(day), DAYS[weekday])), text))
    return pairs


def _read_date(typed: str) -> str:
    text = " ".join(typed.lower().split())
    known = not set(text) - set(DATE_LETTERS) and len(text) <= LONGEST_DATE
    if not known or not _may_be_date(text):
        raise DataError(
            f"{_echo(typed)}: expected day, month and year in at most {LONGEST_DATE} characters, "
            "such as '3rd of March 1998', 'Mar 3, 98', '3.12.1998' (day first), '12/3/1998' (month "
            "first) or '19981203'"
        )
    return text


def _may_be_date(text: str) -> bool:
    """Say whether a text has the parts of a date: a month's name and two numbers, or numbers."""
    months = {month[:3] for month in MONTHS}
    named = sum(word[:3] in months for word in re.findall("[a-z]+", text))
    numbers = re.findall(r"\d+", text)
    if named:
        return named == 1 and len(numbers) == 2
    return len(numbers) == 3 or [len(number) for number in numbers] == [8]


def _date_flaw(target: str) -> str:
    """Say that a text is no day of the calendar, written as targets are."""
    try:
        day = datetime.date.fromisoformat(target).isoformat()
    except ValueError:
        day = ""
    return "" if target and day == target else "no such day"


# ---- additions


def _adder(digits: int) -> Task:
    """Return the addition of two numbers of up to so many digits."""

    def source(a: int, b: int) -> str:
        return f"{a:0{digits}d}+{b:0{digits}d}"

    def solve(source: str) -> str:
        return f"{sum(map(int, source.split('+'))):0{digits + 1}d}"[::-1]

    def draw(generator: np.random.Generator, number: int) -> list[Pair]:
        numbers = generator.integers(0, 10**digits, (number, 2)).tolist()
        sources = [source(a, b) for a, b in numbers]
        return [(each, solve(each)) for each in sources]

    def read(typed: str) -> str:
        found = re.fullmatch(rf"\s*0*(\d{{1,{digits}}})\s*\+\s*0*(\d{{1,{digits}}})[\s=]*", typed)
        if found is None or not typed.isascii():
            largest = 10**digits - 1
            raise DataError(
                f"{_echo(typed)}: expected a sum of two numbers, 0 to {largest}: '7+{largest}'"
            )
        return source(int(found[1]), int(found[2]))

    def show(target: str) -> str:
        return target[::-1].lstrip("0") or target[:1]

    return Task(
        name=f"add{digits}",
        idea=f"add two numbers of up to {digits} digits; the sum's lowest digit comes first",
        alphabet="+" + string.digits,
        max_source=2 * digits + 1,
        max_target=digits + 1,
        draw=draw,
        read=read,
        solve=solve,
        show=show,
        key=lambda pair: "+".join(sorted(pair[0].split("+"))),
    )


LETTERS = string.ascii_lowercase
_TASKS = (
    _text_task("copy", f"say 1 to {LONGEST} letters again", LETTERS, "letters", str),
    _text_task("reverse", f"say 1 to {LONGEST} letters backwards", LETTERS, "letters", _reversed),
    _text_task("sort", f"sort 1 to {LONGEST} digits", string.digits, "digits", _sorted),
    Task(
        name="dates",
        idea=f"write a date in one of {len(FORMATS)} formats as 1998-03-03",
        alphabet=DATE_LETTERS,
        max_source=LONGEST_DATE,
        max_target=len("1998-03-03"),
        draw=_draw_dates,
        read=_read_date,
        flaw=_date_flaw,
    ),
    _adder(2),
    _adder(3),
)
TASKS: dict[str, Task] = {task.name: task for task in _TASKS}
assert tuple(TASKS) == get_args(TaskName)

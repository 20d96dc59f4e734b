"""From a file of one item a line to batches: read, examine, split, encode.

    lines --examine--> report, or an error that names the line
    lines --split--> train | validation | test
    lines --encode--> one array:   . e m m a . o l i v i a . a v a .      "." is the boundary, id 0
                                   |         |             |
                          starts   0         5             12

Every item is read with the boundary before it and predicts the boundary after it, so a model
learns where items begin and end. Items lie in one array; a batch is cut out of it by indexing.
"""

import io
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.datasets import Dataset, resolve, resolve_default
from shared.errors import DataError
from shared.sampler import IntArray

DEFAULT_DATA, FALLBACK_DATA = "names", "words"
BOUNDARY = 0
BOUNDARY_SIGN = "."  # how it is shown; items may hold full stops of their own
UNKNOWN_SIGN = "\N{WHITE SQUARE}"
IGNORED = -100  # a target that does not count; torch's own default for ignore_index
MAX_LENGTH = 256  # characters of an item: these models are for names, not for documents
MIN_ITEMS = 10  # with fewer, an 80/10/10 split leaves a part empty
FEW_ITEMS = 500  # below, a validation loss is mostly noise
KARPATHY_SEED, KARPATHY_TEST = 3407, 1000  # makemore.py's --seed, and its size of the test set

SplitName = Literal["karpathy", "random"]


@dataclass(frozen=True)
class Report:
    """What the doctor found in a file that can be trained on."""

    items: int
    distinct: int
    characters: str
    """All characters, the most frequent first."""
    shortest: int
    longest: int
    mean_length: float
    warnings: tuple[str, ...]
    """What can be trained on, but should be looked at."""


def find_data(data: str, quiet: bool = False) -> Dataset:
    """Return the data set asked for, or where `data` is empty the default one or its stand-in.

    Says in a line on stderr that it is the stand-in, unless `quiet`.
    """
    if data:
        return resolve(data)
    dataset, excuse = resolve_default(DEFAULT_DATA, FALLBACK_DATA)
    if excuse and not quiet:
        print(excuse, file=sys.stderr)
    return dataset


def read_items(dataset: Dataset) -> list[str]:
    """Return the lines of a data set without surrounding blanks; empty lines are left out.

    Raises what `Dataset.text` and `examine` raise.
    """
    return examined_items(dataset)[0]


def examined_items(dataset: Dataset) -> tuple[list[str], Report]:
    """Return what `read_items` does, and what the doctor says of it."""
    text = dataset.text().removeprefix("\ufeff")  # a byte order mark, as Windows writes it
    # Lines as an editor counts them: str.splitlines() also splits at form feeds and the like.
    lines = [line.strip() for line in io.StringIO(text, newline=None)]
    report = examine(lines, dataset.name)
    return [line for line in lines if line], report


def examine(lines: Sequence[str], name: str = "the data") -> Report:
    """Look a file's lines over before anything is spent on training.

    Raises `DataError`, naming the line, for a file without items, with fewer than `MIN_ITEMS`,
    with the same item throughout, or with a line longer than `MAX_LENGTH` or holding control
    characters. What is merely odd is listed in the report's warnings.
    """
    items = [line for line in lines if line]
    if not items:
        raise DataError(f"{name} holds no items; it needs one a line")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LENGTH:
            raise DataError(
                f"{name}, line {number}: {len(line):,} characters; an item has at most "
                f"{MAX_LENGTH}. One item a line is expected"
            )
        bad = next((c for c in line if unicodedata.category(c) in ("Cc", "Cs")), None)
        if bad is not None:
            raise DataError(f"{name}, line {number}: holds the control character {bad!r}")
    counts = Counter(items)
    if len(items) < MIN_ITEMS:
        raise DataError(
            f"{name} has {len(items)} item{'s' * (len(items) > 1)}, the last in line "
            f"{max(n for n, line in enumerate(lines, 1) if line)}; at least {MIN_ITEMS} are needed"
        )
    if len(counts) == 1:
        raise DataError(
            f"{name}: all {len(items):,} lines from line 1 on say {items[0]!r}; there is nothing "
            "to learn from a single item"
        )
    lengths = [len(item) for item in items]
    return Report(
        items=len(items),
        distinct=len(counts),
        characters="".join(c for c, _ in Counter("".join(items)).most_common()),
        shortest=min(lengths),
        longest=max(lengths),
        mean_length=sum(lengths) / len(lengths),
        warnings=tuple(_warnings(lines, counts)),
    )


def _warnings(lines: Sequence[str], counts: Counter[str]) -> list[str]:
    """List what is odd: empty lines, duplicates, rare or decomposed characters, few items."""
    found, items = [], counts.total()
    if items < FEW_ITEMS:
        found.append(f"only {items} items: the test loss will be mostly noise")
    if len(counts) < MIN_ITEMS:
        found.append(f"only {len(counts)} different items: all of them will be in every part")
    if empty := len(lines) - items:
        found.append(f"empty lines, left out: {empty:,}")
    if repeats := items - len(counts):
        (most, times) = counts.most_common(1)[0]
        found.append(
            f"items that repeat an earlier one: {repeats:,} ({most!r} {times} times): a copy "
            "of a training item may be in the test part"
        )
    rare: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        for character in dict.fromkeys(line):  # a set's order differs from run to run
            rare[character] = -1 if character in rare else number
    if once := {c: number for c, number in rare.items() if number > 0}:
        shown = ", ".join(f"{c!r} (line {number})" for c, number in list(once.items())[:5])
        more = f" and {len(once) - 5} more" if len(once) > 5 else ""
        found.append(f"characters of a single item: {shown}{more}")
    if odd := sum(unicodedata.normalize("NFC", item) != item for item in counts):
        found.append(f"items not in Unicode's normal form NFC: {odd:,}; their accents count apart")
    return found


@dataclass(frozen=True)
class Splits:
    """The three parts of a list of items."""

    train: list[str]
    val: list[str]
    test: list[str]


def split_items(items: Sequence[str], split: SplitName, seed: int = 42) -> Splits:
    """Divide `items` into training, validation and test parts.

    `karpathy` is makemore.py's own: a permutation by torch with seed 3407, whose last 1000 items
    (or last tenth of a short list) are the test part; the same number before them is held out for
    validation here, as makemore.py chose its model by the test part. `random` is 80/10/10 by
    Python's shuffle with `seed`; 42 gives the split of his lectures.
    """
    if split == "karpathy":
        generator = torch.Generator().manual_seed(KARPATHY_SEED)
        order = torch.randperm(len(items), generator=generator).tolist()
        mixed = [items[i] for i in order]
        held = min(KARPATHY_TEST, len(items) // 10)
        cuts = len(items) - 2 * held, len(items) - held
    else:
        mixed = list(items)
        random.Random(seed).shuffle(mixed)
        cuts = int(0.8 * len(items)), int(0.9 * len(items))
    return Splits(mixed[: cuts[0]], mixed[cuts[0] : cuts[1]], mixed[cuts[1] :])


@dataclass(frozen=True)
class Vocabulary:
    """Characters as ids: 0 is the boundary, 1, 2, ... the characters in their order.

    With `unknown`, the last id stands for every other character.
    """

    characters: str
    unknown: bool = False

    @classmethod
    def of(cls, items: Sequence[str], min_count: int = 0) -> "Vocabulary":
        """Collect the characters of `items`.

        With `min_count` above 0, those in fewer items than that become the unknown character.
        """
        counts = Counter(character for item in items for character in set(item))
        kept = sorted(c for c, count in counts.items() if count >= min_count)
        return cls("".join(kept), min_count > 0)

    def __len__(self) -> int:
        """Count the ids: characters, the boundary, and the unknown character if there is one."""
        return len(self.characters) + 1 + self.unknown

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown character, which is never sampled; None where there is none."""
        return len(self) - 1 if self.unknown else None

    def encode(self, text: str) -> IntArray:
        """Return the ids of the characters of `text`.

        Raises `DataError` listing the characters that are not in the vocabulary, if it has no
        unknown character.
        """
        known = np.array([ord(c) for c in self.characters], dtype=np.int64)  # ascending
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        places = np.minimum(np.searchsorted(known, codes), max(len(known) - 1, 0))
        found = known[places] == codes if len(known) else np.zeros(len(codes), bool)
        if self.unknown:
            return np.where(found, places + 1, len(self) - 1).astype(np.int64)
        if not found.all():
            strange = "".join(sorted({chr(code) for code in codes[~found]}))
            raise DataError(
                f"characters the model has never seen: {strange!r}; it knows {self.characters!r}. "
                "Train with --unk 2 to have a stand-in for unseen characters"
            )
        return (places + 1).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, the boundary as "." and the unknown character as a square."""
        signs = BOUNDARY_SIGN + self.characters + UNKNOWN_SIGN * self.unknown
        return "".join(signs[i] for i in ids)


Batch = tuple[Tensor, Tensor]
"""`idx` (B, T) and `targets` (B, T), longest item first; targets past an item's end are -100."""


class Items:
    """Encoded items, in one array with a boundary between any two: the trainer's examples."""

    def __init__(self, items: Sequence[str], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        lengths = np.array([len(item) for item in items], dtype=np.int64)
        self.lengths: IntArray = lengths + 1  # an item's targets: its characters and its end
        self.starts: IntArray = np.cumsum(self.lengths) - self.lengths
        self.ids: IntArray = np.zeros(int(self.lengths.sum()) + 1, dtype=np.int64)
        places = np.ones(len(self.ids), dtype=bool)
        places[self.starts] = places[-1] = False
        self.ids[places] = vocabulary.encode("".join(items))

    def __len__(self) -> int:
        """Count the items."""
        return len(self.starts)

    @property
    def characters(self) -> int:
        """The number of targets: all characters and one boundary an item."""
        return int(self.lengths.sum())

    def batch(self, indices: npt.ArrayLike, _epochs: npt.ArrayLike | None = None) -> Batch:
        """Cut items `indices` (B,) out of the array, the longest first; epochs do not matter."""
        chosen = np.asarray(indices, dtype=np.int64)
        chosen = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
        lengths = self.lengths[chosen, None]
        time = np.arange(lengths.max(initial=0))
        inside = time < lengths
        places = np.where(inside, self.starts[chosen, None] + time, 0)
        idx = np.where(inside, self.ids[places], BOUNDARY)
        targets = np.where(inside, self.ids[places + 1], IGNORED)
        return torch.from_numpy(idx), torch.from_numpy(targets)

    def weight(self, batch: Batch) -> float:
        """Return the number of targets that count."""
        return float((batch[1] != IGNORED).sum())


def context_windows(idx: Tensor, block_size: int) -> Tensor:
    """Return the last `block_size` ids at every place: (B, T) to (B, T, block_size).

    Before an item's beginning stand boundaries, as in Bengio et al. (2003) and the lectures:

    >>> context_windows(torch.tensor([[0, 5, 13]]), 3).tolist()
    [[[0, 0, 0], [0, 0, 5], [0, 5, 13]]]
    """
    return F.pad(idx, (block_size - 1, 0), value=BOUNDARY).unfold(1, block_size, 1)

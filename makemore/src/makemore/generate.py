"""Make up items: `python -m makemore.generate --run runs/makemore/... --prefix mar`.

Every item starts at the boundary; a character after the other is drawn from the model's
distribution, until the boundary is drawn again. Each item is then looked up: a model that has
learnt its training items by heart makes up no names.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

from makemore.data import BOUNDARY, MAX_LENGTH, Splits, Vocabulary
from makemore.load import Loaded, check_length, choose_run, find_data, load_run, load_splits
from makemore.model import CharacterModel
from shared import cli
from shared.errors import DataError, ResourceError, UsageError
from shared.sampling import check_sampling, sample

AT_ONCE = 1024  # items drawn together; bounds the memory
NAMES_AT_ONCE = 2**16  # rows of the distances' table; the same
MARKS = ("train", "val", "test", "new")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to make up, with which model, and how boldly."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if not given."""
    number: int = 20
    """Items to make up."""
    prefix: str = ""
    """How each item begins."""
    temperature: float = 1.0
    """Divides the scores: below 1 is safer, above 1 bolder; 0 takes the likeliest character."""
    top_k: int | None = None
    """Draw among the k likeliest characters."""
    max_length: int | None = None
    """Characters after which an item is cut off; those of the longest item of the data if not
    given."""
    seed: int = 0
    """Same seed, same items."""
    data: str = ""
    """Where the training data are now, if they were moved."""
    json: bool = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k)
        if self.number < 1:
            raise ValueError(f"number={self.number} must be at least 1")
        if self.max_length is not None and not 1 <= self.max_length <= MAX_LENGTH:
            raise ValueError(f"max_length={self.max_length} must be from 1 to {MAX_LENGTH}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} must be from 0 to 2**64 - 1")


# ---- drawing


@torch.no_grad()
def sample_items(
    model: CharacterModel,
    vocabulary: Vocabulary,
    number: int,
    *,
    prefix: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    max_length: int = MAX_LENGTH,
) -> list[str]:
    """Make up `number` items that begin with `prefix`, each of 1 to `max_length` characters.

    The unknown character is never drawn. Raises DataError for a prefix with characters that the
    vocabulary lacks, ValueError for one that fills `max_length`, NumericalError for a model whose
    scores are not numbers.
    """
    check_sampling(temperature, top_k)
    if len(prefix) >= max_length:
        raise ValueError(
            f"prefix {prefix!r} has {len(prefix)} characters, which leaves none to add: "
            f"max_length={max_length}"
        )
    start = torch.from_numpy(vocabulary.encode(prefix))
    start = torch.cat([torch.tensor([BOUNDARY]), start])  # (T,)
    settings = {"temperature": temperature, "top_k": top_k, "generator": generator}
    was_training = model.training
    model.eval()
    items: list[str] = []
    while len(items) < number:
        rows = min(AT_ONCE, number - len(items))
        drawn = _draw(model, start.repeat(rows, 1), max_length, vocabulary.unknown_id, settings)
        items += [prefix + vocabulary.decode(ids) for ids in drawn]
    model.train(was_training)
    return items


def _draw(
    model: CharacterModel,
    idx: Tensor,
    max_length: int,
    unknown: int | None,
    settings: dict[str, Any],
) -> list[list[int]]:
    """Continue rows (B, T) up to their boundary; return the ids that each row got, without it."""
    found: list[list[int]] = [[] for _ in range(idx.size(0))]
    rows = torch.arange(idx.size(0))  # which item each row that is not finished yet belongs to
    while len(rows) and idx.size(1) <= max_length:
        scores = model.logits(idx)[:, -1].float()  # (B, V)
        if idx.size(1) == 1:
            scores[:, BOUNDARY] = -torch.inf  # an item has a character at least
        if unknown is not None:
            scores[:, unknown] = -torch.inf
        ids = sample(scores, **settings)  # (B,)
        going = ids != BOUNDARY
        rows, ids = rows[going], ids[going]
        idx = torch.cat([idx[going], ids[:, None]], dim=1)
        for row, id_ in zip(rows.tolist(), ids.tolist(), strict=True):
            found[row].append(id_)
    return found


# ---- looking up


@dataclass(frozen=True)
class Sample:
    """A made-up item, and where it was seen."""

    item: str
    mark: str
    """The first part of the data that has it: train, val or test; else new, or "" if not known."""
    nearest: str = ""
    """The training item of the smallest edit distance; of several, the first."""
    distance: int | None = None
    """Characters to insert, delete or replace between the two."""


def edit_distances(text: str, others: Sequence[str]) -> npt.NDArray[np.int16]:
    """Return the edit distance (Levenshtein, 1966) of a text to each of `others`: (N,).

    >>> edit_distances("anna", ["anna", "ana", "hanna", ""]).tolist()
    [0, 1, 1, 4]

    The table of Wagner and Fischer (1974) is filled for all others at once, a row per character of
    the text: D[i, j] = min(D[i-1, j] + 1, D[i-1, j-1] + (a_i != b_j), D[i, j-1] + 1). The last
    depends on its own row; less j, it is a running minimum: D[i, j] - j = min over k <= j.
    """
    parts = [
        _distances(text, others[i : i + NAMES_AT_ONCE])
        for i in range(0, len(others), NAMES_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)


def _distances(text: str, others: Sequence[str]) -> npt.NDArray[np.int16]:
    lengths = np.array([len(other) for other in others])
    letters = np.array(others, dtype=np.str_).reshape(-1, 1).view("<U1").view(np.uint32)
    letters = letters.reshape(len(others), -1)  # (N, L) code points, 0 past the end
    steps = np.arange(letters.shape[1] + 1, dtype=np.int16)
    row = np.broadcast_to(steps, (len(others), len(steps)))  # D[0, j] = j
    for i, letter in enumerate(text, 1):
        new = np.empty(row.shape, np.int16)
        new[:, 0] = i
        new[:, 1:] = np.minimum(row[:, 1:] + np.int16(1), row[:, :-1] + (letters != ord(letter)))
        row = np.minimum.accumulate(new - steps, axis=1) + steps
    found: npt.NDArray[np.int16] = row[np.arange(len(others)), lengths].astype(np.int16)
    return found


def look_up(items: Iterable[str], splits: Splits) -> list[Sample]:
    """Say of each item where it was seen, and which training item is nearest."""
    parts = {"train": set(splits.train), "val": set(splits.val), "test": set(splits.test)}
    training = list(dict.fromkeys(splits.train))
    items, known = list(items), dict[str, Sample]()
    for item in _progress(list(dict.fromkeys(items))):
        mark = next((mark for mark, part in parts.items() if item in part), "new")
        if mark == "train":
            known[item] = Sample(item, mark, item, 0)
        else:
            distances = edit_distances(item, training)
            at = int(distances.argmin())
            known[item] = Sample(item, mark, training[at], int(distances[at]))
    return [known[item] for item in items]


def shares(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the share of each mark among the samples, 0 to 1; empty without marks."""
    counts = Counter(each.mark for each in samples if each.mark)
    return {mark: counts[mark] / len(samples) for mark in MARKS} if counts else {}


def samples_table(samples: Sequence[Sample]) -> Table:
    """Lay out samples, a line each."""
    table = Table("item", "seen in", "nearest training item", box=None, pad_edge=False)
    table.add_column("edit distance", justify="right")
    for each in samples:
        distance = "" if each.distance is None else str(each.distance)
        table.add_row(Text(each.item), each.mark, Text(each.nearest), distance)
    return table


def told_shares(samples: Sequence[Sample]) -> str:
    """Put the shares in words: `train 25%, val 0%, test 5%, new 70% of 20 items`."""
    told = ", ".join(f"{mark} {share:.0%}" for mark, share in shares(samples).items())
    return f"{told} of {len(samples):,} items"


def _progress(items: list[str]) -> Iterable[str]:
    """Show a bar on stderr while looking up many items, if that is a terminal."""
    console = Console(stderr=True)
    hide = not console.is_terminal or len(items) < 100
    return track(items, "looking up", console=console, disable=hide, transient=True)


# ---- the command


def find_splits(loaded: Loaded, data: str) -> Splits | None:
    """Return the parts of the training data; None, saying so, where they can't be had.

    Raises ArtefactError for data that were changed.
    """
    try:
        dataset = find_data(loaded, data)
    except (UsageError, DataError, ResourceError) as error:
        if data:
            raise
        print(f"no marks: {cli.one_line(str(error))}", file=sys.stderr)
        return None
    return load_splits(loaded, dataset)


def main(config: GenerateConfig) -> None:
    """Make up items with a trained model, and say which of them it has seen."""
    torch.set_num_threads(1)  # the models are small: threads would mostly wait for each other
    loaded = load_run(choose_run(config.run))
    splits = find_splits(loaded, config.data)
    number, max_length = config.number, config.max_length or loaded.longest
    if config.temperature == 0.0 and number > 1:
        print("temperature 0: all items are the same, here is one", file=sys.stderr)
        number = 1
    if len(config.prefix) >= max_length:
        raise UsageError(
            f"--prefix {config.prefix!r} has {len(config.prefix)} characters, items have at most "
            f"{max_length}; shorten it or raise --max-length"
        )
    check_length(loaded.model, max_length - 1)  # the last character is not read
    items = sample_items(
        loaded.model,
        loaded.vocabulary,
        number,
        prefix=config.prefix,
        temperature=config.temperature,
        top_k=config.top_k,
        generator=torch.Generator().manual_seed(config.seed),
        max_length=max_length,
    )
    samples = [Sample(item, "") for item in items] if splits is None else look_up(items, splits)
    if config.json:
        rows = [vars(each) for each in samples]
        told = {"run": str(loaded.path), "model": loaded.name, "seed": config.seed}
        print(json.dumps({**told, "samples": rows, "shares": shares(samples)}, indent=2))
        return
    console = Console()
    console.print(samples_table(samples))
    if splits is not None:
        console.print(f"\n{told_shares(samples)}", highlight=False)


if __name__ == "__main__":
    cli.run(main)

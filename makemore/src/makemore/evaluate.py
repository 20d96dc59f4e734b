"""Measure a model: `python -m makemore.evaluate --run runs/makemore/... [--data FILE]`.

The measure is the mean of -log p(character | the characters before it), over all characters of
the items and their ends, which are predicted like any character. In nats; divided by log 2, bits.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from makemore.data import IGNORED, Items, Splits, Vocabulary, read_items
from makemore.load import (
    Loaded,
    check_length,
    choose_run,
    find_data,
    load_run,
    load_splits,
    trained_on,
)
from makemore.model import CharacterModel
from shared import cli
from shared.errors import NumericalError
from shared.parallel import to_device

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model to measure, and on what."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if not given."""
    data: str = ""
    """A file of one item a line, or a data set's name, to measure as a whole. If not given, the
    data of the run, part by part."""
    number: int = 5
    """Most and least surprising items to show, of the test part or of --data."""
    json: bool = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number={self.number} must be at least 0")


@torch.no_grad()
def target_log_probs(model: CharacterModel, items: Items, batch_size: int = 512) -> FloatArray:
    """Return log p of every target: (items.characters,), in the items' order, in nats.

    Item i's are at `items.starts[i]` and the `items.lengths[i] - 1` places after. The model is in
    evaluation mode meanwhile. Raises NumericalError when one is not a number.
    """
    found = np.zeros(items.characters)
    # Items of like length together leave little padding; batch() keeps the longest first.
    order = np.argsort(-items.lengths, kind="stable")
    device = next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
    was_training = model.training
    model.eval()
    for chosen in _progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)]):
        idx, targets = to_device(items.batch(chosen), device)
        keep = targets != IGNORED
        log_probs = model.scores(idx, keep).double().log_softmax(-1)  # (N, V)
        picked = log_probs.gather(-1, targets[keep][:, None]).squeeze(-1)
        places = items.starts[chosen, None] + np.arange(idx.size(1))
        found[places[keep.cpu().numpy()]] = picked.cpu().numpy()
    model.train(was_training)
    if np.isnan(found).any():
        raise NumericalError("the model gave scores that are not numbers; its weights are broken")
    return found


def mean_nats(model: CharacterModel, items: Items, batch_size: int = 512) -> float:
    """Return the mean of -log p over all targets of the items, in nats per character.

    Raises NumericalError when it is not a number.
    """
    return -float(target_log_probs(model, items, batch_size).mean())


def bits(nats: float) -> float:
    """Turn nats into bits."""
    return nats / math.log(2)


@dataclass(frozen=True)
class Surprise:
    """How unexpected an item was."""

    item: str
    nats: float
    """Mean per character, its end included."""
    hardest: str
    """The item up to the least expected character, which stands in brackets: `q[z]`."""


def surprises(
    log_probs: FloatArray, texts: Sequence[str], items: Items, number: int
) -> tuple[list[Surprise], list[Surprise]]:
    """Return the `number` items with most nats per character, and those with fewest.

    `log_probs` are those of `target_log_probs` for `items`, which encode `texts`. Of equal items
    only the first counts.
    """
    nats = -np.add.reduceat(log_probs, items.starts) / items.lengths
    order = np.argsort(-nats, kind="stable")
    distinct = list({texts[i]: int(i) for i in order}.values())

    def surprise(i: int) -> Surprise:
        start, text = items.starts[i], texts[i]
        at = int(log_probs[start : start + items.lengths[i]].argmin())
        return Surprise(text, float(nats[i]), f"{text[:at]}[{text[at : at + 1] or 'end'}]")

    most, least = distinct[:number], distinct[::-1][:number]
    return [surprise(i) for i in most], [surprise(i) for i in least]


def evaluate(loaded: Loaded, parts: dict[str, list[str]], number: int) -> dict[str, Any]:
    """Measure a model on lists of items by name; the last one's surprises are told.

    Raises DataError, listing them, for characters that the model does not know, and for items that
    are too long for it.
    """
    check_length(loaded.model, max(len(text) for texts in parts.values() for text in texts))
    result = {}
    for part, texts in parts.items():
        items = Items(texts, loaded.vocabulary)
        log_probs = target_log_probs(loaded.model, items)
        nats = -float(log_probs.mean())
        result[part] = {
            "items": len(items),
            "characters": items.characters,
            "unknown": count_unknown(items, loaded.vocabulary),
            "nats_per_character": nats,
            "bits_per_character": bits(nats),
        }
    most, least = surprises(log_probs, texts, items, number)
    return {
        "run": str(loaded.path),
        "model": loaded.name,
        "parts": result,
        "most_surprising": [vars(each) for each in most],
        "least_surprising": [vars(each) for each in least],
    }


def count_unknown(items: Items, vocabulary: Vocabulary) -> int:
    """Count the characters that the model sees as the unknown one."""
    return int((items.ids == vocabulary.unknown_id).sum()) if vocabulary.unknown else 0


def parts_of(splits: Splits) -> dict[str, list[str]]:
    """Return the parts by their names, in the order of a table."""
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def losses_table(parts: dict[str, dict[str, float]]) -> Table:
    """Lay out what `evaluate` found of each part."""
    table = Table("part", box=None, pad_edge=False)
    for heading in ("items", "characters", "nats per character", "bits per character"):
        table.add_column(heading, justify="right")
    for part, found in parts.items():
        counts = f"{found['items']:,}", f"{found['characters']:,}"
        nats, in_bits = found["nats_per_character"], found["bits_per_character"]
        table.add_row(Text(part), *counts, f"{nats:.4f}", f"{in_bits:.4f}")
    return table


def surprises_table(result: dict[str, Any]) -> Table:
    """Lay out the surprising items that `evaluate` found."""
    table = Table("", "item", box=None, pad_edge=False)
    table.add_column("nats per character", justify="right")
    table.add_column("least expected")
    for kind in ("most", "least"):
        for each in result[f"{kind}_surprising"]:
            nats = f"{each['nats']:.2f}"
            table.add_row(f"{kind} surprising", Text(each["item"]), nats, Text(each["hardest"]))
    return table


def _progress(batches: list[npt.NDArray[np.int64]]) -> Any:
    """Show a bar on stderr while going through batches, if that is a terminal."""
    console = Console(stderr=True)
    hide = not console.is_terminal or len(batches) < 20
    return track(batches, "evaluating", console=console, disable=hide, transient=True)


def main(config: EvaluateConfig) -> None:
    """Measure a trained model: nats and bits per character, and what surprised it."""
    torch.set_num_threads(1)  # the models are small: threads would mostly wait for each other
    loaded = load_run(choose_run(config.run))
    dataset = find_data(loaded, config.data)
    if config.data and not trained_on(loaded, dataset):
        parts = {dataset.name: read_items(dataset)}
    else:
        parts = parts_of(load_splits(loaded, dataset))
    result = evaluate(loaded, parts, config.number)
    if config.json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    console.print(f"{loaded.name} of {loaded.path}", markup=False, soft_wrap=True)
    console.print(losses_table(result["parts"]))
    for part, found in result["parts"].items():
        if found["unknown"]:
            told = f"{part}: {found['unknown']:,} characters are unknown to the model"
            console.print(told, markup=False)
    console.print(surprises_table(result))


if __name__ == "__main__":
    cli.run(main)

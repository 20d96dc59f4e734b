"""Measure a model: `python -m mingpt.evaluate --run runs/mingpt/... [--data FILE]`.

The measure is the mean of -log p(character | the characters before it in its window), over every
character of the text but its first. In nats; divided by log 2, bits. Models that read other units
are compared by bits per byte: the bits of all these characters, divided by their bytes in UTF-8.

A window's first character has one character before it, its last has block_size: with windows that
do not overlap a model is measured at every length of context alike, and the loss by position tells
what context is worth. `--stride` lets windows overlap, so that a character is predicted from more.

A hybrid sees more than the window: its n-grams read on across windows, so that its first character
too is predicted from the n - 1 before it (the transformer's part sees the window alone). With
`--within-windows` they begin where the window does, as in `generate`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text as RichText

from mingpt.data import FloatArray, Text, Vocabulary, Windowed, Windows, cut, target_nats
from mingpt.hybrid import Hybrid
from mingpt.load import Loaded, choose_run, find_data, load_run, read_text, trained_on
from mingpt.model import LanguageModel
from shared import cli
from shared.errors import UsageError
from shared.sampler import IntArray

SplitName = Literal["val", "train", "all"]
BAR = 40  # characters of the longest bar


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model to measure, and on what."""

    run: Path | None = None
    """Folder of a training run (its best checkpoint) or of one checkpoint in it; the run started
    last if not given."""
    data: str = ""
    """A text file or a data set's name; that of the run if not given."""
    split: SplitName | None = None
    """The last tenth (val), what comes before it (train), or all. If not given, val of the text
    that the run was trained on, all of any other. A hybrid has counted the former's other parts,
    and so would look them up: only val can be measured."""
    stride: int | None = None
    """Characters from one window to the next: each character is predicted from more than
    block_size - stride others. block_size if not given: windows that do not overlap."""
    within_windows: bool = False
    """Have a hybrid's n-grams see the window alone, as its transformer does; without, they read on
    across windows. Other models see the window alone anyhow."""
    batch_size: int = 64
    """Windows per forward pass; they change nothing but the speed."""
    json: bool = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        for name in ("stride", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def bits(nats: float) -> float:
    """Turn nats into bits."""
    return nats / math.log(2)


def bits_per_byte(nats: float, targets: IntArray, vocabulary: Vocabulary) -> float:
    """Turn the mean nats of characters `targets` (N,) into bits for each of their UTF-8 bytes."""
    size = len(vocabulary.decode(targets.tolist()).encode("utf-8", "surrogatepass"))
    return bits(nats) * len(targets) / size


def by_position(nats: FloatArray, positions: IntArray) -> list[dict[str, float]]:
    """Return the mean of `nats` (N,) over positions 0, 1, 2..3, 4..7, ... in the window.

    >>> by_position(np.array([4.0, 3.0, 2.0, 1.0]), np.array([0, 1, 2, 3]))[-1]
    {'from': 2, 'to': 3, 'targets': 2, 'nats_per_character': 1.5}

    Ranges double, as what a context adds shrinks with its length. Positions that predict nothing
    are left out.
    """
    counts = np.bincount(positions)
    sums = np.bincount(positions, weights=nats)
    rows, begin = [], 0
    while begin < len(counts):
        end = min(max(2 * begin, begin + 1), len(counts))
        if count := int(counts[begin:end].sum()):
            mean = float(sums[begin:end].sum()) / count
            rows.append(
                {"from": begin, "to": end - 1, "targets": count, "nats_per_character": mean}
            )
        begin = end
    return rows


def measure(
    model: LanguageModel,
    ids: IntArray,
    stride: int | None = None,
    batch_size: int = 64,
    within_windows: bool = False,
) -> dict[str, Any]:
    """Measure a model on ids, every target of which counts once.

    See `EvaluateConfig` for the stride and `within_windows`, which is returned as it was in fact.
    Raises DataError for fewer than two ids, ValueError for a stride above the model's block_size,
    NumericalError for a model whose scores are not numbers.
    """
    within_windows = within_windows or not isinstance(model, Windowed)
    if within_windows:  # without hints, a hybrid looks up what the window shows
        windows = Windows(ids, model.block_size, jitter=False, stride=stride)
    else:
        windows = cut(model, ids, stride)
    nats = target_nats(model, windows, batch_size)
    mean = float(nats.mean())
    return {
        "targets": len(nats),
        "block_size": windows.block_size,
        "stride": windows.stride,
        "within_windows": within_windows,
        "nats_per_character": mean,
        "bits_per_character": bits(mean),
        "by_position": by_position(nats, windows.positions()),
    }


def choose_part(text: Text, split: SplitName | None, own: bool) -> tuple[SplitName, IntArray]:
    """Return the part to measure, and its name: see `EvaluateConfig.split`.

    `own` says whether the model was trained on this text.
    """
    part: SplitName = split or ("val" if own else "all")
    if part == "all":
        return part, np.concatenate([text.train, text.val])
    return part, text.val if part == "val" else text.train


def evaluate(loaded: Loaded, config: EvaluateConfig) -> dict[str, Any]:
    """Measure a trained model as `config` says; return what `main` tells.

    Raises UsageError for data that are not found, a stride that is too long or a text that a
    hybrid has counted, DataError, listing them, for characters that the model does not know, and
    what `measure` raises.
    """
    model = loaded.model
    if config.stride is not None and config.stride > model.block_size:
        raise UsageError(
            f"stride={config.stride} must be at most the model's block_size={model.block_size}"
        )
    dataset = find_data(loaded, config.data)
    own = trained_on(loaded, dataset)
    split, ids = choose_part(read_text(loaded, dataset), config.split, own)
    if own and split != "val" and isinstance(model, Hybrid):
        raise UsageError(
            f"--split {split}: the hybrid has counted this text, and would look it up; "
            "take --split val, or another text with --data"
        )
    measured = measure(model, ids, config.stride, config.batch_size, config.within_windows)
    nats = measured["nats_per_character"]
    return {
        "run": str(loaded.path),
        "model": loaded.name,
        "data": {"name": dataset.name, "sha256": dataset.sha256, "split": split},
        **measured,
        "bits_per_byte": bits_per_byte(nats, ids[1:], loaded.vocabulary),
    }


def positions_table(rows: Sequence[dict[str, float]]) -> Table:
    """Lay out the loss by position in the window, each with a bar."""
    table = Table("position", box=None, pad_edge=False)
    for heading in ("targets", "nats per character"):
        table.add_column(heading, justify="right")
    table.add_column("")
    largest = max(row["nats_per_character"] for row in rows)
    for row in rows:
        begin, end, nats = int(row["from"]), int(row["to"]), row["nats_per_character"]
        position = f"{begin}" if begin == end else f"{begin} to {end}"
        bar = "█" * round(BAR * nats / largest) if largest > 0 else ""
        table.add_row(position, f"{int(row['targets']):,}", f"{nats:.4f}", RichText(bar))
    return table


def main(config: EvaluateConfig) -> None:
    """Measure a trained model: nats and bits per character, and the loss by position."""
    torch.set_num_threads(1)  # the models are small: threads would mostly wait for each other
    loaded = load_run(choose_run(config.run))
    result = evaluate(loaded, config)
    if config.json:
        print(json.dumps(result, indent=2))
        return
    console, data = Console(soft_wrap=True), result["data"]
    overlap = "which do not overlap" if result["stride"] == result["block_size"] else "overlapping"
    reach = "see the window" if result["within_windows"] else "read on across windows"
    n_grams = {"n-grams": reach} if isinstance(loaded.model, Hybrid) else {}
    cli.print_settings(
        console,
        f"{loaded.name} of {loaded.path} on {data['name']} ({data['split']})",
        {
            "nats per character": f"{result['nats_per_character']:.4f}",
            "bits per character": f"{result['bits_per_character']:.4f}",
            "bits per byte": f"{result['bits_per_byte']:.4f}",
            "targets": f"{result['targets']:,}, each once",
            "windows": f"{result['block_size']}, every {result['stride']}: {overlap}",
            **n_grams,
        },
    )
    console.print("\nby position in the window, from 0:")
    console.print(positions_table(result["by_position"]))


if __name__ == "__main__":
    cli.run(main)

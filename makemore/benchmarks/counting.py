"""How good counting gets: every smoothing at its best n, on both splits, and what it costs.

    python makemore/benchmarks/counting.py --out makemore/results

Models are counted on the training names. The last columns count the validation names too, which is
what makemore.py's split leaves for training, and what others' figures on it are measured with. The
choice of n and k is made by the validation names, counted on the training names alone.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from makemore.data import (
    DEFAULT_DATA,
    Items,
    SplitName,
    Splits,
    Vocabulary,
    read_items,
    split_items,
)
from makemore.evaluate import mean_nats
from makemore.ngram import NGram, NGramConfig
from makemore.whole import Whole, WholeConfig
from shared import cli, files
from shared.datasets import resolve

# The n and k of each smoothing with the least validation loss, and their neighbours for the eye.
MODELS: list[dict[str, object]] = [
    {"smoothing": "add_k", "n": 2, "k": 1.0},
    {"smoothing": "add_k", "n": 3, "k": 0.1},
    {"smoothing": "add_k", "n": 4, "k": 0.1},
    {"smoothing": "add_k", "n": 5, "k": 0.1},
    {"smoothing": "witten_bell", "n": 4},
    {"smoothing": "witten_bell", "n": 5},
    {"smoothing": "witten_bell", "n": 6},
    {"smoothing": "kneser_ney", "n": 5},
    {"smoothing": "kneser_ney", "n": 6},
    {"smoothing": "kneser_ney", "n": 7},
]


@dataclass(frozen=True, kw_only=True)
class CountingConfig:
    """Where to keep the table."""

    out: Path
    """Folder for counting.json."""


def count(shape: dict[str, object], items: Items) -> tuple[NGram, float]:
    """Return a counted model and the CPU seconds that counting took."""
    model = NGram(NGramConfig(vocab_size=len(items.vocabulary), **shape))  # type: ignore[arg-type]
    begin = time.process_time()
    model.fit(items)
    return model, time.process_time() - begin


def measure(shape: dict[str, object], splits: Splits, vocabulary: Vocabulary) -> dict[str, float]:
    """Return a model's nats per character, alone and with whole names, and its CPU seconds."""
    train, val, test, both = (
        Items(texts, vocabulary)
        for texts in (splits.train, splits.val, splits.test, splits.train + splits.val)
    )
    model, seconds = count(shape, train)
    found = {"val": mean_nats(model, val), "test": mean_nats(model, test), "cpu_s": seconds}
    whole = Whole(WholeConfig(vocab_size=len(vocabulary)), model)
    whole.fit(train, val)
    found["whole names, test"] = mean_nats(whole, test)
    model.fit(both)  # the ratios stay those of the validation names
    whole.remember(both)
    found["test, counted on both"] = mean_nats(model, test)
    found["whole names, both"] = mean_nats(whole, test)
    return found


def main(config: CountingConfig) -> None:
    """Measure all models on both splits."""
    torch.set_num_threads(1)
    items = read_items(resolve(DEFAULT_DATA))
    vocabulary = Vocabulary.of(items)
    kept: list[dict[str, object]] = []
    names: tuple[SplitName, ...] = ("karpathy", "random")
    for split in names:
        rows = [
            {**shape, **measure(shape, split_items(items, split), vocabulary)} for shape in MODELS
        ]
        columns = list(rows[-1])
        table = Table(*columns, title=f"{split} split, nats per character", box=None)
        for row in rows:
            cells = [row.get(name, "") for name in columns]
            table.add_row(*(f"{x:.4f}" if isinstance(x, float) else str(x) for x in cells))
        Console(width=140).print(table)
        kept += [{"split": split, **row} for row in rows]
    files.make_folder(config.out)
    files.write_json(config.out / "counting.json", kept)


if __name__ == "__main__":
    cli.run(main)

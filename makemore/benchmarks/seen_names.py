"""How much of a ladder's figures is chance of the test names, and how much goes to seen names.

    python makemore/benchmarks/seen_names.py --ladder runs/LADDER --out makemore/results

Reads the jobs that `python -m makemore.ladder --split karpathy` left: standard errors over test
names, and the probability that a model gives to the training names, each counted once.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from makemore.data import DEFAULT_DATA, read_items, split_items
from makemore.evaluate import FloatArray
from makemore.measure import read_log_probs
from shared import cli, files
from shared.datasets import resolve


@dataclass(frozen=True, kw_only=True)
class SeenConfig:
    """Which ladder, and where to keep the figures."""

    ladder: Path
    """Folder of a ladder on karpathy's split."""
    out: Path
    """Folder for seen_names.json."""


def of_items(log_probs: FloatArray, items: list[str]) -> FloatArray:
    """Return the log-probability of each item from those of its characters."""
    ends = np.cumsum([len(item) + 1 for item in items])
    sums: FloatArray = np.add.reduceat(log_probs, np.r_[0, ends[:-1]])
    return sums


def standard_error(values: FloatArray, items: list[str]) -> float:
    """Return that of the mean per character, by items: the ratio estimator's."""
    lengths = np.array([len(item) + 1 for item in items])
    rest = values - values.sum() / lengths.sum() * lengths
    return float(np.sqrt((rest**2).sum()) / lengths.sum())


def main(config: SeenConfig) -> None:
    """Compute and keep the figures of the README."""
    splits = split_items(read_items(resolve(DEFAULT_DATA)), "karpathy")
    seen = Counter(splits.train)
    found: dict[str, float] = {
        f"test names seen {times}": sum(seen[item] == times for item in splits.test)
        for times in (0, 1, 2)
    }
    test: dict[str, FloatArray] = {}
    for name in ("ngram", "transformer", "gru", "lstm"):
        log_probs = read_log_probs(config.ladder / "jobs" / f"{name}-karpathy-0")
        test[name] = of_items(log_probs["test"], splits.test)
        each = dict(zip(splits.train, of_items(log_probs["train"], splits.train), strict=True))
        found[f"{name}: standard error of test nats"] = standard_error(test[name], splits.test)
        found[f"{name}: probability of training names"] = float(np.exp(list(each.values())).sum())
    apart = test["transformer"] - test["gru"]
    found["transformer - gru: standard error"] = standard_error(apart, splits.test)
    for told, value in found.items():
        print(f"{told:45} {value:.4g}")
    files.write_json(config.out / "seen_names.json", found)


if __name__ == "__main__":
    cli.run(main)

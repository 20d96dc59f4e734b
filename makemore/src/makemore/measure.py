"""What the ladder needs to know of a trained model: `python -m makemore.measure --run FOLDER`.

Writes into the run folder:

    log_probs.safetensors  log p of every character of the parts `train`, `val` and `test`; what a
                           mixture of models needs of each
    measured.json          sizes, nats per part, samples; written last, so a folder with it is done

`makemore.evaluate` tells a person the same nats.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file

from makemore.data import Items
from makemore.evaluate import FloatArray, target_log_probs
from makemore.generate import look_up, sample_items
from makemore.load import find_data, load_run, load_splits
from makemore.model import CharacterModel
from shared import cli, files
from shared.errors import ArtefactError

LOG_PROBS, MEASURED = "log_probs.safetensors", "measured.json"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Which run to measure."""

    run: Path
    """Folder of a training run; its best checkpoint is measured."""
    data: str = ""
    """Where the training data are now, if they were moved."""
    samples: int = 10
    """Items to make up."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples={self.samples} must be at least 0")


def stored_numbers(model: CharacterModel) -> tuple[int, int]:
    """Return how many numbers training adjusts, and how many counting stored."""
    parameters = sum(each.numel() for each in model.parameters())
    counts = 0 if parameters else sum(each.numel() for each in model.buffers())
    return parameters, counts


def read_log_probs(run: Path) -> dict[str, FloatArray]:
    """Return what `main` saved of a run: part -> (characters,), in the items' order.

    Raises ArtefactError for a damaged file.
    """
    try:
        return load_file(run / LOG_PROBS)
    except Exception as error:  # safetensors has errors of its own
        raise ArtefactError(f"{run / LOG_PROBS}: damaged ({error}); measure it again") from error


def main(config: MeasureConfig) -> None:
    """Measure a trained model on its training, validation and test items, and keep the numbers."""
    torch.set_num_threads(1)
    loaded = load_run(config.run)
    splits = load_splits(loaded, find_data(loaded, config.data))
    log_probs = {
        part: target_log_probs(loaded.model, Items(texts, loaded.vocabulary))
        for part, texts in asdict(splits).items()
    }
    drawn = sample_items(
        loaded.model,
        loaded.vocabulary,
        config.samples,
        generator=torch.Generator().manual_seed(config.seed),
        max_length=loaded.longest,
    )
    parameters, counts = stored_numbers(loaded.model)
    measured: dict[str, Any] = {
        "parameters": parameters,
        "counts": counts,
        "flops_per_character": loaded.model.flops_per_character(),
        "vocab_size": len(loaded.vocabulary),
        "nats": {part: -float(values.mean()) for part, values in log_probs.items()},
        "samples": [asdict(sample) for sample in look_up(drawn, splits)],
    }
    files.write_file(config.run / LOG_PROBS, lambda path: save_file(log_probs, path))
    files.write_json(config.run / MEASURED, measured)
    told = "  ".join(f"{part} {nats:.4f}" for part, nats in measured["nats"].items())
    print(f"{config.run}: {told} nats per character")


if __name__ == "__main__":
    cli.run(main)

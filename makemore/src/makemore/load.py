"""Find a trained model, its vocabulary and the items it was trained on.

`generate` and `evaluate` start here. What they need to know is in the `config.json` of the
checkpoint: `model` (a recipe's name and the model's shape), `vocabulary`, `split`, `split_seed`
and `corpus` (name, digest and longest item of the data).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from makemore.data import BOUNDARY, Splits, Vocabulary, read_items, split_items
from makemore.model import CharacterModel
from makemore.ngram import NGram
from makemore.recipes import build_saved
from shared.checkpoint import Checkpoint, misfits, open_checkpoint
from shared.datasets import Dataset, resolve_again
from shared.errors import ArtefactError, DataError
from shared.runs import newest_folder

PACKAGE = "makemore"
RUNS = Path("runs") / PACKAGE


@dataclass(frozen=True)
class Loaded:
    """A trained model with what belongs to it."""

    model: CharacterModel
    """In evaluation mode, on the CPU."""
    vocabulary: Vocabulary
    name: str
    """The recipe's."""
    config: dict[str, Any]
    """What config.json of the checkpoint holds."""
    path: Path
    """The checkpoint's folder."""

    @property
    def longest(self) -> int:
        """Characters of the longest item of the data."""
        return int(self.config["corpus"]["longest"])


def choose_run(run: Path | None) -> Path:
    """Return the run that `--run` means: by default the one started last.

    Raises UsageError where there is none.
    """
    return newest_folder(RUNS) if run is None else run


def load_run(path: Path) -> Loaded:
    """Load the best checkpoint of a run folder (else the newest), or one step's folder.

    Raises UsageError where there is none, ArtefactError when it is damaged, is another package's,
    or its parts do not fit each other, naming them.
    """
    checkpoint = open_checkpoint(path, best=True)
    config = checkpoint.json()
    vocabulary = _vocabulary(checkpoint, config)
    model = _model(checkpoint, config)
    return Loaded(model.eval(), vocabulary, config["model"]["name"], config, checkpoint.path)


@torch.no_grad()
def check_length(model: CharacterModel, longest: int) -> None:
    """Raise DataError unless the model has places for items of `longest` characters."""
    if isinstance(model, NGram):  # looks back and has no places, nor anything to ask yet
        return
    was_training = model.training
    try:
        model.eval().logits(torch.full((1, longest + 1), BOUNDARY))
    except ValueError as error:
        raise DataError(f"items of up to {longest} characters: {error}") from error
    finally:
        model.train(was_training)


def find_data(loaded: Loaded, data: str = "") -> Dataset:
    """Find the data that a model was trained on, or those that `data` names.

    Raises what `resolve_again` raises.
    """
    return resolve_again(data, loaded.config)


def trained_on(loaded: Loaded, dataset: Dataset) -> bool:
    """Say whether these are the very data that a model was trained on."""
    return bool(dataset.sha256 == loaded.config["corpus"]["sha256"])


def load_splits(loaded: Loaded, dataset: Dataset) -> Splits:
    """Read the items that a model was trained on and divide them as its training did.

    Raises ArtefactError when they are others than at training.
    """
    if not trained_on(loaded, dataset):
        digest = loaded.config["corpus"]["sha256"]
        raise ArtefactError(
            f"{dataset.name} is not what the model was trained on, or was changed since: sha256 "
            f"{dataset.sha256[:12]}..., at training {digest[:12]}..."
        )
    return split_items(read_items(dataset), loaded.config["split"], loaded.config["split_seed"])


def _vocabulary(checkpoint: Checkpoint, config: Any) -> Vocabulary:
    """Read the vocabulary, and with it whether this is a run of ours at all."""
    match config:
        case {
            "model": {"name": str(), "vocab_size": int(size)},
            "vocabulary": {"characters": str(characters), "unknown": bool(unknown)},
            "corpus": {"name": str(), "sha256": str(), "longest": int()},
            "data": str(),
            "split": "karpathy" | "random",
            "split_seed": int(),
        }:
            pass
        case _:
            raise ArtefactError(f"{checkpoint.path}: not a run of makemore.train")
    if list(characters) != sorted(set(characters)):
        raise ArtefactError(f"{checkpoint.path}: its vocabulary {characters!r} is not in order")
    vocabulary = Vocabulary(characters, unknown)
    if len(vocabulary) != size:
        raise ArtefactError(
            f"{checkpoint.path}: the model has vocab_size={size}, its vocabulary has "
            f"{len(vocabulary)} ids"
        )
    return vocabulary


def _model(checkpoint: Checkpoint, config: dict[str, Any]) -> CharacterModel:
    """Build the model and give it the checkpoint's weights."""
    try:
        model = build_saved(config["model"])
    except ArtefactError as error:
        raise ArtefactError(f"{checkpoint.path}: {error}") from error
    tensors = checkpoint.tensors()
    if wrong := misfits(model, tensors):
        raise ArtefactError(
            f"{checkpoint.path}: the weights do not fit the configuration: {'; '.join(wrong)}"
        )
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:  # counts, which check themselves
        raise ArtefactError(f"{checkpoint.path}: {error}") from error
    return model

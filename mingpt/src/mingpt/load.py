"""Find a trained model, its vocabulary and the text it was trained on.

`generate`, `evaluate` and `look` start here. What they need to know is in the `config.json` of the
checkpoint: `model` (the recipe's name and the model's shape), `vocabulary`, and `corpus` (name and
digest of the data).

A model and a configuration that do not belong together are refused with a line for each field
that differs. Sizes that weights show by their own shapes are compared as well, so that a wrong
config.json is found out: `n_layer: checkpoint 4, asked 6`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mingpt import recipes
from mingpt.data import Text, Vocabulary, load_text
from mingpt.model import LanguageModel
from shared.checkpoint import Checkpoint, open_checkpoint
from shared.datasets import Dataset, resolve
from shared.errors import ArtefactError, UsageError
from shared.runs import newest_folder

PACKAGE = "mingpt"
RUNS = Path("runs") / PACKAGE
MOST_TENSORS = 3  # named in an error; what the fields say is of more use


@dataclass(frozen=True)
class Loaded:
    """A trained model with what belongs to it."""

    model: LanguageModel
    """In evaluation mode, on the CPU."""
    vocabulary: Vocabulary
    name: str
    """The recipe's."""
    config: dict[str, Any]
    """What config.json of the checkpoint holds."""
    path: Path
    """The checkpoint's folder."""


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
    try:
        model = recipes.build_saved(config["model"])
    except ArtefactError as error:
        raise ArtefactError(f"{checkpoint.path}: {error}") from error
    assert isinstance(model, nn.Module)  # as all language models are
    check_fit(checkpoint, model, config["model"])
    try:
        model.load_state_dict(checkpoint.tensors())
    except (RuntimeError, ValueError) as error:  # counts, which check themselves
        raise ArtefactError(f"{checkpoint.path}: {error}") from error
    return Loaded(model.eval(), vocabulary, config["model"]["recipe"], config, checkpoint.path)


def _vocabulary(checkpoint: Checkpoint, config: Any) -> Vocabulary:
    """Read the vocabulary, and with it whether this is a run of ours at all."""
    match config:
        case {
            "model": {"recipe": str(), "vocab_size": int(size)},
            "vocabulary": {"characters": str(characters)},
            "corpus": {"name": str(), "sha256": str()},
            "data": str(),
        }:
            pass
        case _:
            raise ArtefactError(f"{checkpoint.path}: not a run of mingpt.train")
    if list(characters) != sorted(set(characters)):
        raise ArtefactError(f"{checkpoint.path}: its vocabulary {characters!r} is not in order")
    if len(characters) != size:
        raise ArtefactError(
            f"{checkpoint.path}: the model has vocab_size={size}, its vocabulary has "
            f"{len(characters)} characters"
        )
    return Vocabulary(characters)


# ---- does a checkpoint belong to a configuration?


def check_fit(checkpoint: Checkpoint, model: nn.Module, asked: Mapping[str, Any]) -> None:
    """Raise ArtefactError unless a checkpoint is one of `model`, which was built as `asked`.

    The error has a line for each field that differs from the checkpoint's own description or from
    what the shapes of its weights say, and then the tensors that do not fit.
    """
    tensors, described = checkpoint.tensors(), checkpoint.json().get("model", {})
    shown = {name: size for name, size in sizes(tensors).items() if name in asked}
    fields = differences({**described, **shown}, asked)
    misfits = _misfits(model, tensors)
    if fields or misfits:
        more = len(misfits) - MOST_TENSORS
        told = [*fields, *misfits[:MOST_TENSORS], *([f"{more} more tensors"] if more > 0 else [])]
        raise ArtefactError(f"{checkpoint.path}: of another configuration: {'; '.join(told)}")


def differences(checkpoint: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Compare two configurations field by field.

    >>> differences({"n_layer": 4, "n_head": 2}, {"n_layer": 6, "n_head": 2})
    ['n_layer: checkpoint 4, asked 6']
    """
    return [
        f"{name}: checkpoint {checkpoint.get(name, 'none')}, asked {asked.get(name, 'none')}"
        for name in dict.fromkeys([*asked, *checkpoint])
        if checkpoint.get(name) != asked.get(name)
    ]


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the fields of a configuration that weights show by their names and shapes.

    n_layer is the number of blocks, vocab_size and n_embd are the shape of wte, block_size is the
    rows of a learned wpe.
    """
    found: dict[str, int] = {}
    if layers := {match[1] for name in tensors if (match := re.search(r"\bblocks\.(\d+)\.", name))}:
        found["n_layer"] = len(layers)
    for name, tensor in tensors.items():
        if re.search(r"\bwte\b", name) and tensor.ndim == 2:
            found["vocab_size"], found["n_embd"] = tensor.shape
        if re.search(r"\bwpe\b", name) and tensor.ndim == 2:
            found["block_size"] = tensor.size(0)
    return found


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is absent, foreign or of another shape.

    The shapes of counts depend on the data, so that those of buffers are left to the model.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    lines = []
    for name in sorted(model.state_dict().keys() | tensors.keys()):
        if name not in tensors:
            lines.append(f"{name}: absent")
        elif name not in model.state_dict():
            lines.append(f"{name}: unknown")
        elif name in shapes and tuple(tensors[name].shape) != shapes[name]:
            lines.append(f"{name}: {tuple(tensors[name].shape)}, expected {shapes[name]}")
    return lines


# ---- the text


def find_data(loaded: Loaded, data: str = "") -> Dataset:
    """Find the data that a model was trained on, or those that `data` names.

    Raises UsageError where they are not found, and whatever else `resolve` raises.
    """
    try:
        return resolve(data or loaded.config["data"] or loaded.config["corpus"]["name"])
    except UsageError as error:
        if data:
            raise
        raise UsageError(
            f"the data of the training are not where they were ({error}); name them with --data"
        ) from error


def trained_on(loaded: Loaded, dataset: Dataset) -> bool:
    """Say whether these are the very data that a model was trained on."""
    return bool(dataset.sha256 == loaded.config["corpus"]["sha256"])


def read_text(loaded: Loaded, dataset: Dataset) -> Text:
    """Read a text with a model's vocabulary, divided as for training.

    Raises DataError listing the characters that the vocabulary lacks.
    """
    return load_text(dataset, loaded.vocabulary)

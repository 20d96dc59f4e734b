"""Find a trained model, its vocabulary and the text it was trained on.

`generate`, `evaluate` and `look` start here. What they need to know is in the `config.json` of the
checkpoint: `model` (the recipe's name and the model's shape), `vocabulary`, and `corpus` (name and
digest of the data).

A model and a configuration that do not belong together are refused with a line for each field
that differs. Sizes that weights show by their own shapes are compared as well, so that a wrong
config.json is found out: `n_layer: checkpoint 4, asked 6`.
"""

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mingpt import recipes
from mingpt.data import Text, Vocabulary, load_text
from mingpt.model import LanguageModel
from shared.checkpoint import Checkpoint, misfits, open_checkpoint
from shared.datasets import Dataset, resolve_again
from shared.errors import ArtefactError
from shared.runs import newest_folder

PACKAGE = "mingpt"
RUNS = Path("runs") / PACKAGE
HYBRID_SIZES = ("n", "shortest", "recent")
MOST_TENSORS = 3  # named in an error; what the fields say is of more use
MOST_CONTEXT = 1 << 20  # characters: tables of angles or sines are not saved, and show no size


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
    tensors = checkpoint.tensors()
    try:
        check_description(config["model"], tensors)
        model = recipes.build_saved(config["model"])
    except ValueError as error:  # of ours, some of torch's words in it: their first line will do
        raise ArtefactError(f"{checkpoint.path}: {str(error).splitlines()[0]}") from error
    assert isinstance(model, nn.Module)  # as all language models are
    check_fit(checkpoint, model, config["model"])
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:  # counts, which check themselves
        raise ArtefactError(f"{checkpoint.path}: {error}") from error
    if (counted := tensors.get("ngram.text")) is not None and not counted.numel():
        raise ArtefactError(f"{checkpoint.path}: the text that its n-grams counted is empty")
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
    shown = {name: size for name, size in sizes(tensors).items() if asked.get(name)}  # 0: derived
    fields = differences({**described, **shown}, asked)
    wrong = misfits(model, tensors)
    if fields or wrong:
        more = len(wrong) - MOST_TENSORS
        told = [*fields, *wrong[:MOST_TENSORS], *([f"{more} more tensors"] if more > 0 else [])]
        raise ArtefactError(f"{checkpoint.path}: of another configuration: {'; '.join(told)}")


def check_description(asked: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ArtefactError for a description that the tensors contradict, before it is built.

    What it describes may be of any size, so that building it first could take all memory. Compared
    are the types of its fields and the sizes that decide what is allocated.
    """
    kind = type(recipes.find(asked["recipe"]).config)
    if wrong := wrong_types(kind, asked):
        raise ArtefactError(f"config.json does not describe a model ({'; '.join(wrong)})")
    found = {**sizes(tensors), **_head_widths(tensors, asked)}
    named = {"n_layer", "n_embd", "vocab_size", "n_hidden", "d_k", "conv", *HYBRID_SIZES}
    if asked.get("positions") == "learned":
        named.add("block_size")
    sized = {name: size for name, size in asked.items() if name in named and size}  # 0: derived
    if fields := differences({name: found[name] for name in sized if name in found}, sized):
        raise ArtefactError(f"of another configuration: {'; '.join(fields)}")
    if (length := asked.get("block_size", 0)) > MOST_CONTEXT:
        raise ArtefactError(f"block_size={length} is above {MOST_CONTEXT}, the most there can be")


def _head_widths(tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> dict[str, int]:
    """Return `d_k`, where it shows: queries and keys of `n_head` heads are rows of qkv."""
    for name, tensor in tensors.items():
        if name.endswith("attention.qkv.weight") and tensor.ndim == 2:
            rows, width = tensor.shape
            return {"d_k": (rows - width) // (2 * max(1, asked.get("n_head", 1)))}
    return {}


def wrong_types(kind: type, values: Any) -> list[str]:
    """Compare what JSON has for the fields of a dataclass with their types; a line for each wrong.

    >>> wrong_types(Vocabulary, {"characters": 3})
    ['characters=3 must be str']
    """
    if not isinstance(values, Mapping):
        return [f"{values!r} must be an object with fields"]
    hints = typing.get_type_hints(kind)
    return [
        f"{name}={value!r} must be {getattr(hint, '__name__', hint)}"
        for name, value in values.items()
        if (hint := hints.get(name)) and not _is_a(value, hint)
    ]


def _is_a(value: Any, hint: Any) -> bool:
    """Say whether a value of JSON is one of a type; True for a type that JSON does not have."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_a(value, choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (int, float):
        accepted = int if hint is int else (int, float)
        return isinstance(value, accepted) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True


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
    rows of a learned wpe, n_hidden those of the feed-forward layer's first matrix, conv those of a
    convolution, recent the strengths. A hybrid's n and shortest follow from its experts and hints:
    M = n - shortest + 1 and M V + n, to which `recent` adds 1 and V + recent - 1 (hybrid.py).
    """
    found: dict[str, int] = {}
    if layers := {match[1] for name in tensors if (match := re.search(r"\bblocks\.(\d+)\.", name))}:
        found["n_layer"] = len(layers)
    for name, tensor in tensors.items():
        if re.search(r"\bwte\b", name) and tensor.ndim == 2:
            found["vocab_size"], found["n_embd"] = tensor.shape
        if re.search(r"\bwpe\b", name) and tensor.ndim == 2:
            found["block_size"] = tensor.size(0)
        if name.endswith("feed_forward.into.weight") and tensor.ndim == 2:
            found["n_hidden"] = tensor.size(0)
        if name.endswith("conv_embed") and tensor.ndim == 2:
            found["conv"] = tensor.size(0)
    trust, hint = tensors.get("trust_head"), tensors.get("hint_embed")
    if "vocab_size" in found and trust is not None and hint is not None and hint.ndim == 2:
        experts, strength = trust.size(0) if trust.ndim else 0, tensors.get("log_strength")
        contexts = 0 if strength is None else strength.numel()
        found["recent"] = contexts + 1 if contexts else 0
        lengths = experts - (contexts > 0)
        found["n"] = hint.size(1) - experts * found["vocab_size"] - contexts
        found["shortest"] = found["n"] - lengths + 1
    return found


# ---- the text


def find_data(loaded: Loaded, data: str = "") -> Dataset:
    """Find the data that a model was trained on, or those that `data` names.

    Raises what `resolve_again` raises.
    """
    return resolve_again(data, loaded.config)


def trained_on(loaded: Loaded, dataset: Dataset) -> bool:
    """Say whether these are the very data that a model was trained on."""
    return bool(dataset.sha256 == loaded.config["corpus"]["sha256"])


def read_text(loaded: Loaded, dataset: Dataset) -> Text:
    """Read a text with a model's vocabulary, divided as for training.

    Raises DataError listing the characters that the vocabulary lacks.
    """
    return load_text(dataset, loaded.vocabulary)

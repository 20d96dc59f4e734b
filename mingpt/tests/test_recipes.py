"""The presets: each builds what it says, again from what a run has saved, and errors help."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mingpt.data import Text, Vocabulary
from mingpt.hybrid import HintedWindows, Hybrid, HybridConfig
from mingpt.model import IGNORED, LanguageModel
from mingpt.recipes import RECIPES, build, build_saved, examples, find
from shared.errors import ArtefactError, UsageError

V = 5
SMALL: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "block_size": 8}
IDS = np.random.default_rng(0).integers(0, V, 100)
every_preset = pytest.mark.parametrize("name", RECIPES)


def small(name: str, **changes: Any) -> Any:
    """Build a small model of a preset."""
    return build(name, V, **{**SMALL, **changes})


def saved(name: str, model: Any) -> dict[str, Any]:
    """Return what config.json holds of a model."""
    return {"recipe": name, **asdict(model.config)}


@every_preset
def test_a_preset_builds(name: str) -> None:
    """In its full size, for any vocabulary; what it is called is a word for a command line."""
    model = build(name, 65)
    assert isinstance(model, LanguageModel)
    assert isinstance(model, nn.Module)
    assert (model.vocab_size, model.block_size) == (65, find(name).config.block_size)
    assert isinstance(model, Hybrid) == isinstance(find(name).config, HybridConfig)
    assert re.fullmatch("[a-z0-9-]+", name)
    assert find(name).idea
    assert not find(name).idea.endswith(".")


@every_preset
def test_changes_are_of_the_shape(name: str) -> None:
    """What is asked for is what is built; all else is the preset's."""
    model = small(name, dropout=0.25)
    got, usual = asdict(model.config), asdict(find(name).config)
    assert got == {**usual, **SMALL, "dropout": 0.25, "vocab_size": V}


@every_preset
def test_a_saved_description_builds_the_same_model(name: str) -> None:
    """The configuration is the same, and the weights fit."""
    model = small(name)
    again: Any = build_saved(saved(name, model))
    assert type(again) is type(model)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    idx = torch.from_numpy(IDS[None, :8])
    assert torch.equal(again(idx), model(idx))


@every_preset
def test_a_preset_brings_its_windows(name: str) -> None:
    """Those of the training text, which move, and those of the validation text, which do not."""
    text = Text("text", "0" * 64, Vocabulary("abcde"), IDS[:80], IDS[80:])
    model = small(name)
    train, val = examples(model, text)
    assert (train.jitter, val.jitter) == (True, False)
    assert np.array_equal(train.ids, text.train)
    assert np.array_equal(val.ids, text.val)
    assert train.block_size == val.block_size == 8
    assert isinstance(train, HintedWindows) == isinstance(model, Hybrid)
    loss = model(*train.batch(np.arange(4), np.arange(4)))
    assert loss.isfinite()
    assert int((val.batch(np.arange(len(val)))[1] != IGNORED).sum()) == 19


def test_a_hybrid_counts_the_training_text_only() -> None:
    """The validation text has no part in its model."""
    text = Text("text", "0" * 64, Vocabulary("abcde"), IDS[:80], IDS[80:])
    model = small("hybrid")
    examples(model, text)
    assert np.array_equal(model.ngram.text.numpy(), text.train)


@pytest.mark.parametrize("name", ["hybird", "nano-gpt"])
def test_a_preset_that_is_not_there_is_told_with_the_nearest(name: str) -> None:
    """A typing error is answered with the name meant."""
    meant = {"hybird": "hybrid", "nano-gpt": "nanogpt"}[name]
    for ask in (lambda: find(name), lambda: build(name, V)):
        with pytest.raises(UsageError, match=f"no preset '{name}'; did you mean {meant}"):
            ask()


def test_a_part_that_is_not_there_is_told_as_a_flag() -> None:
    """Folds are the hybrid's."""
    with pytest.raises(UsageError, match="--folds: the default has no such part"):
        build("default", V, folds=3)
    assert small("hybrid", folds=3).config.folds == 3
    with pytest.raises(ValueError, match="n_head=0"):
        build("default", V, n_head=0)


@pytest.mark.parametrize(
    "broken",
    [
        {"recipe": "other"},
        {"n_head": 3},
        {"n_layer": "two"},
        {"strange": 1},
        {"positions": "turning"},
        {"vocab_size": 0},
    ],
    ids=str,
)
def test_a_description_of_no_model_is_refused(broken: dict[str, Any]) -> None:
    """As an artefact that is damaged, whatever is wrong with it."""
    right = saved("default", small("default"))
    with pytest.raises(ArtefactError, match=r"config.json does not describe a model"):
        build_saved({**right, **broken})
    del right["recipe"]
    with pytest.raises(ArtefactError, match="recipe"):
        build_saved(right)


def test_the_readme_names_every_preset() -> None:
    """As a reader would type it."""
    readme = Path(__file__).parent.parent / "README.md"
    if not readme.exists():
        pytest.skip("the chapter is not written yet")
    missing = [name for name in RECIPES if f"`{name}`" not in readme.read_text()]
    assert not [name for name in missing if f"--preset {name}" not in readme.read_text()]

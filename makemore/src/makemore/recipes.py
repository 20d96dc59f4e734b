"""The rungs of the ladder by name: each a model, its tuned settings, its idea and its paper.

The settings were found on the validation part of the names (held out of training); how, and what
did not help, is in the README.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from makemore.bigram import Bigram, BigramConfig
from makemore.bow import Bow, BowConfig
from makemore.mlp import MLP, MLPConfig
from makemore.model import CharacterModel
from makemore.ngram import NGram, NGramConfig
from makemore.rnn import RNN, RNNConfig
from makemore.transformer import Transformer, TransformerConfig
from makemore.wavenet import WaveNet, WaveNetConfig
from shared import cli
from shared.config import TrainerConfig
from shared.errors import ArtefactError, UsageError


@dataclass(frozen=True)
class Recipe:
    """A rung: what it is made of, and what it adds to the one below."""

    model: type[CharacterModel]
    config: Any
    """The model's frozen dataclass, with its tuned values."""
    trainer: TrainerConfig | None
    """How it is trained; None where it is counted."""
    idea: str
    paper: str


def _trainer(**changes: Any) -> TrainerConfig:
    """Return the settings that all rungs share, with some replaced.

    Muon for the hidden matrices did better than AdamW where both were tried (see the README). An
    epoch of karpathy's split is 235 steps of 128 names.
    """
    common: dict[str, Any] = {
        "batch_size": 128,
        "optimizer": "muon",
        "learning_rate": 4e-3,
        "muon_learning_rate": 0.03,
        "beta2": 0.98,
        "weight_decay": 0.1,
        "schedule": "linear",
        "warmup_steps": 100,
        "precision": "fp32",
        "eval_every": 500,
        "eval_batch_size": 512,
        "checkpoint_every": 500,
        "log_every": 25,
    }
    return TrainerConfig(**{**common, **changes})


RECIPES: dict[str, Recipe] = {
    "ngram": Recipe(
        NGram,
        NGramConfig(),
        None,
        "counts contexts of every length and smooths them into one another",
        "Kneser & Ney, 1995; Chen & Goodman, 1998",
    ),
    "bigram": Recipe(
        Bigram,
        BigramConfig(),
        _trainer(
            max_steps=600, batch_size=512, optimizer="adamw", learning_rate=0.1, weight_decay=0.0
        ),
        "a table of logits, learned by gradient: the counted bigram again",
        "makemore part 1",
    ),
    "bow": Recipe(
        Bow,
        BowConfig(n_embd=96, n_hidden=256),
        _trainer(max_steps=2800, learning_rate=5e-3, muon_learning_rate=0.02),
        "the mean of all characters so far, and the last one",
        "makemore.py",
    ),
    "mlp": Recipe(
        MLP,
        MLPConfig(block_size=4, n_embd=32, n_hidden=256, dropout=0.05),
        _trainer(max_steps=2000, optimizer="adamw", learning_rate=3e-3),
        "learned vectors of the last four characters, in order, through a hidden layer",
        "Bengio et al., 2003",
    ),
    "mlp-bn": Recipe(
        MLP,
        MLPConfig(block_size=8, n_embd=32, n_hidden=384, batch_norm=True, dropout=0.05),
        _trainer(max_steps=2800, muon_learning_rate=0.02),
        "every activation normalised over the batch, and twice the context",
        "Ioffe & Szegedy, 2015",
    ),
    "rnn": Recipe(
        RNN,
        RNNConfig(cell="rnn", n_embd=64, n_hidden=320, dropout=0.1, noise=0.03),
        _trainer(max_steps=3300, learning_rate=3e-3),
        "one state, updated at every character: no limit to the context",
        "Elman, 1990; Mikolov et al., 2010",
    ),
    "wavenet": Recipe(
        WaveNet,
        WaveNetConfig(
            n_embd=32, n_hidden=160, norm="layer", gated=True, residual=True, dropout=0.05,
            noise=0.03,
        ),
        _trainer(max_steps=2800),
        "eight characters, merged two by two in a tree of gated nodes",
        "van den Oord et al., 2016",
    ),
    "transformer": Recipe(
        Transformer,
        TransformerConfig(
            block_size=16, n_layer=4, n_embd=64, n_head=4, positions="rotary", qk_norm=True,
            activation="relu2", residual_init="zero", dropout=0.03, attention_dropout=0.05,
            noise=0.03,
        ),
        _trainer(max_steps=4700),
        "every character looks at all before it",
        "Vaswani et al., 2017",
    ),
    "gru": Recipe(
        RNN,
        RNNConfig(cell="gru", n_embd=64, n_hidden=256, dropout=0.2, noise=0.06),
        _trainer(max_steps=4700),
        "gates that decide what of the state is kept",
        "Cho et al., 2014",
    ),
    "lstm": Recipe(
        RNN,
        RNNConfig(cell="lstm", n_embd=64, n_hidden=320, dropout=0.2, noise=0.06),
        _trainer(max_steps=5200),
        "a second state that is only added to",
        "Hochreiter & Schmidhuber, 1997; Gers et al., 2000",
    ),
}  # fmt: skip


def find(name: str) -> Recipe:
    """Return the recipe of that name; raise `UsageError` naming the nearest where there is none."""
    if name not in RECIPES:
        raise UsageError(f"no model {name!r}{cli.suggest(name, RECIPES)}")
    return RECIPES[name]


def shape(name: str, vocab_size: int, **changes: Any) -> Any:
    """Return the configuration of a recipe's model, with `vocab_size` and `changes` put in.

    Raises `UsageError` for a setting that the model does not have, ValueError for a bad value.
    """
    config = find(name).config
    has = [field.name for field in dataclasses.fields(config) if field.name != "vocab_size"]
    for setting in changes:
        if setting not in has:
            flags = ", ".join(f"--{each.replace('_', '-')}" for each in has)
            raise UsageError(
                f"--{setting.replace('_', '-')}: the {name} has no such part; "
                f"it has {flags or 'none that can be changed'}"
            )
    return dataclasses.replace(config, vocab_size=vocab_size, **changes)


def build(name: str, vocab_size: int, **changes: Any) -> CharacterModel:
    """Build the model of a recipe, with weights from torch's global generator.

    Raises what `shape` raises.
    """
    return find(name).model(shape(name, vocab_size, **changes))


def saved(name: str, model: CharacterModel) -> dict[str, Any]:
    """Return what config.json keeps of a model, for `build_saved`."""
    return {"name": name, **asdict(model.config)}  # type: ignore[call-overload]


def build_saved(values: Mapping[str, Any]) -> CharacterModel:
    """Build the model that a run's config.json describes: {"name": ..., settings ...}.

    Raises `ArtefactError` where it does not describe one.
    """
    settings = dict(values)
    try:
        recipe = find(settings.pop("name"))
        return recipe.model(type(recipe.config)(**settings))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # the last: absurd sizes
        raise ArtefactError(f"config.json does not describe a model ({error})") from error

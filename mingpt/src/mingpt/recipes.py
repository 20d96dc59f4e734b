"""The presets of `mingpt.train`: a model's shape and how to train it, tuned together.

Tuned on the last tenth of Shakespeare's training text; the validation text took no part.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mingpt.data import Text, Windows
from mingpt.gpt import GPT, GPTConfig
from mingpt.hybrid import Hybrid, HybridConfig
from mingpt.model import LanguageModel
from shared import cli
from shared.config import TrainerConfig
from shared.errors import ArtefactError, UsageError

# Today's parts, all of them; what each gives is in the README's table.
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "norm": "plain",
    "embed_norm": True,
    "qk_norm": True,
    "activation": "relu2",
    "conv": 4,
    "zero_init": True,
    "tied": False,
    "bias": False,
    "softcap": 15.0,
    "init_std": 0.0,
}
MUON: dict[str, Any] = {
    "optimizer": "muon",
    "muon_learning_rate": 0.01,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "schedule": "wsd",
    "decay_fraction": 0.6,
    "batch_size": 4,
    "grad_clip": 0.0,
}
# Windows of four times the length: the longer, the more of what comes has been there before.
HYBRID: dict[str, Any] = {**MODERN, "block_size": 1024, "recent": 6}
HYBRID_MUON: dict[str, Any] = {**MUON, "batch_size": 1}
# For trainings that read the text six times and more, and would learn it by heart.
LONG: dict[str, Any] = {"dropout": 0.1}
# nanoGPT, config/train_shakespeare_char.py with the README's changes for a CPU.
NANOGPT = TrainerConfig(
    max_steps=2000,
    batch_size=12,
    learning_rate=1e-3,
    beta2=0.99,
    warmup_steps=100,
    final_lr_fraction=0.1,
    precision="fp32",
)


@dataclass(frozen=True)
class Recipe:
    """What to train, and how."""

    config: GPTConfig | HybridConfig
    trainer: TrainerConfig
    idea: str
    """A line for the screen."""


RECIPES: dict[str, Recipe] = {
    "default": Recipe(
        GPTConfig(**MODERN),
        TrainerConfig(max_steps=1600, eval_every=400, **MUON),
        "one transformer with today's parts, in the time of nanoGPT's recipe for a CPU",
    ),
    "default-5min": Recipe(
        GPTConfig(**MODERN),
        TrainerConfig(max_steps=3200, eval_every=800, **MUON),
        "the same for five CPU minutes, which two cores have in three",
    ),
    "hybrid": Recipe(
        HybridConfig(**HYBRID),
        TrainerConfig(max_steps=900, eval_every=300, **HYBRID_MUON),
        "the default's transformer, correcting Kneser-Ney n-grams, in nanoGPT's time",
    ),
    "hybrid-5min": Recipe(
        HybridConfig(**HYBRID),
        TrainerConfig(max_steps=1800, eval_every=450, **HYBRID_MUON),
        "the same for five CPU minutes",
    ),
    "default-20min": Recipe(
        GPTConfig(**MODERN, **LONG),
        TrainerConfig(max_steps=8000, eval_every=2000, **MUON),
        "default-5min with dropout, and two and a half times its updates",
    ),
    "hybrid-20min": Recipe(
        HybridConfig(**HYBRID, **LONG),
        TrainerConfig(max_steps=6000, eval_every=1500, **HYBRID_MUON),
        "hybrid-5min with dropout, and more than three times its updates",
    ),
    "nanogpt": Recipe(
        GPTConfig(block_size=64, n_head=4, bias=False),
        NANOGPT,
        "nanoGPT's recipe for a CPU: GPT-2's parts and AdamW",
    ),
}


def find(name: str) -> Recipe:
    """Return a preset by its name; raises UsageError, with the nearest, for one there is not."""
    if name not in RECIPES:
        raise UsageError(f"no preset {name!r}{cli.suggest(name, RECIPES)}")
    return RECIPES[name]


def build(name: str, vocab_size: int, **changes: Any) -> LanguageModel:
    """Build the model of a preset, with changes to its shape, from torch's global generator.

    Raises UsageError for a part that the model does not have, ValueError for what cannot work.
    """
    config = find(name).config
    for setting in changes:
        if setting not in {field.name for field in dataclasses.fields(config)}:
            raise UsageError(f"--{setting.replace('_', '-')}: the {name} has no such part")
    return _build(dataclasses.replace(config, vocab_size=vocab_size, **changes))


def build_saved(saved: Mapping[str, Any]) -> LanguageModel:
    """Build the model that a run's config.json describes under "model".

    Raises ArtefactError for what describes none.
    """
    settings = dict(saved)
    try:
        return _build(type(find(settings.pop("recipe")).config)(**settings))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"config.json does not describe a model ({error})") from error


def _build(config: GPTConfig) -> LanguageModel:
    return Hybrid(config) if isinstance(config, HybridConfig) else GPT(config)


def examples(model: LanguageModel, text: Text) -> tuple[Windows, Windows]:
    """Return the windows to train on and to validate; a hybrid counts the text for them."""
    if isinstance(model, Hybrid):
        return model.examples(text)
    return (
        Windows(text.train, model.block_size, jitter=True),
        Windows(text.val, model.block_size, jitter=False),
    )

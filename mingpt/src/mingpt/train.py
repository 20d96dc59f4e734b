"""Train a language model on characters: `python -m mingpt.train`.

The run folder ends up with the model (`checkpoints/`), `metrics.jsonl`, `loss.png`, `sample.txt`
and `result.json`. Which models there are, and how each is trained, is in `recipes.py`.
"""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from mingpt import recipes
from mingpt.data import Text, check_length, find_data, load_text
from mingpt.evaluate import bits, bits_per_byte
from mingpt.generate import sample_text
from mingpt.load import PACKAGE, check_fit, wrong_types
from mingpt.model import LanguageModel, count_parameters
from shared import cli, files, parallel
from shared.checkpoint import CONFIG, open_checkpoint
from shared.config import TrainerConfig
from shared.errors import ArtefactError, UsageError
from shared.parallel import World
from shared.plots import plot_run
from shared.profiling import cpu_seconds
from shared.runs import Run, saved_config, shown_data
from shared.trainer import Trainer

DEFAULT_PRESET = "default"
PROMPT = "ROMEO:"  # to try first, where the text has these characters


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to change of the preset's model; a model does not have all of these."""

    block_size: int | None = None
    """Characters of context."""
    n_layer: int | None = None
    """Blocks of attention and feed-forward."""
    n_head: int | None = None
    """Attention heads per block."""
    n_embd: int | None = None
    """Width of the residual stream."""
    d_k: int | None = None
    """Numbers per head in queries and keys; 0 is n_embd / n_head."""
    n_hidden: int | None = None
    """Width of the feed-forward layer; 0 is 4 n_embd."""
    dropout: float | None = None
    """Share of numbers zeroed in training."""
    positions: str | None = None
    """How the model knows places: learned, sinusoidal, rotary or none."""
    scaled: bool | None = None
    """Multiply embeddings by sqrt(n_embd), as the paper does."""
    norm: str | None = None
    """Layer norm with gain and bias (layer), or without them (plain)."""
    norm_place: str | None = None
    """Normalise what a sub-layer reads (pre), or the sum that it adds to, as the paper (post)."""
    embed_norm: bool | None = None
    """Normalise the embeddings too."""
    qk_norm: bool | None = None
    """Normalise queries and keys."""
    conv: int | None = None
    """Taps of the short causal convolution before each sub-layer; 0 is none."""
    activation: str | None = None
    """What bends the feed-forward layer: relu, gelu or relu2."""
    zero_init: bool | None = None
    """Start what writes into the residual stream at zero."""
    tied: bool | None = None
    """Score characters by the vectors that embed them."""
    bias: bool | None = None
    """Add a vector after each matrix."""
    init_std: float | None = None
    """Deviation of weights at the start; 0 chooses it by the width."""
    softcap: float | None = None
    """Bound of the logits, by a tanh; 0 is none."""
    label_smoothing: float | None = None
    """Share of the target's probability spread over all characters in training."""
    n: int | None = None
    """Length of the hybrid's longest n-gram."""
    shortest: int | None = None
    """Length of its shortest one that is a hint of its own."""
    folds: int | None = None
    """Pieces of the text, each of which the hybrid trains on with counts of the others."""
    recent: int | None = None
    """Longest context that the hybrid counts in the window, too, from 2; 0 counts none there."""
    attention: str | None = None
    """lesson: the equations as layers.py spells them out; fused: torch's kernels, equal, faster."""

    def given(self) -> dict[str, Any]:
        """Return the parts that are to change."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train on what, and how."""

    data: str = ""
    """A text file, a folder of them or a data set's name (python -m shared.datasets lists them);
    shakespeare if not given, or python-docs where that can't be had. Its first 90% are trained on,
    the rest is for validation."""
    preset: str = DEFAULT_PRESET
    """What to train and, with it, how: default, default-5min, default-20min, hybrid, hybrid-5min,
    hybrid-20min or nanogpt. The flags below change parts of it; defaults shown are those of this
    preset. Its shape, whose flags show none, is printed at the start."""
    shape: Shape = Shape()
    out: Path | None = None
    """Run folder; runs/mingpt/<start time> if not given."""
    resume: bool = False
    """Continue the run in --out, or the one started last; its settings hold unless flags differ."""
    sample: int = 400
    """Characters to write at the end; 0 for none."""
    trainer: TrainerConfig = recipes.find(DEFAULT_PRESET).trainer

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise ValueError(f"sample={self.sample} must be at least 0")
        if self.trainer.max_steps < 1:
            raise ValueError(f"max_steps={self.trainer.max_steps} must be at least 1")
        config, given = recipes.find(self.preset).config, self.shape.given()
        parts = given.keys() & {field.name for field in fields(config)}
        replace(config, **{name: given[name] for name in parts})  # refuses what cannot work

    @property
    def block_size(self) -> int:
        """Characters of context that the model will have."""
        return self.shape.block_size or recipes.find(self.preset).config.block_size

    def saved(self, text: Text, model: LanguageModel) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the result, data and model included."""
        values = asdict(self)
        for name in ("out", "resume", "preset", "shape"):  # the model has the last two
            del values[name]
        return {
            **values,
            "model": saved_model(self.preset, model),
            "corpus": {"name": text.name, "sha256": text.sha256},
            "vocabulary": asdict(text.vocabulary),
        }


# What may differ between a run and its continuation without making it another run.
MAY_CHANGE = ["sample", *(f"trainer.{name}" for name in (
    "max_steps", "batch_size", "eval_every", "eval_batch_size",
    "checkpoint_every", "keep_checkpoints", "log_every", "device", "threads", "dist_timeout",
    "profile", "wandb", "compile",
))]  # fmt: skip


def saved_model(preset: str, model: LanguageModel) -> dict[str, Any]:
    """Return what config.json keeps of a model, for `recipes.build_saved`."""
    return {"recipe": preset, **asdict(model.config)}  # type: ignore[attr-defined]


# ---- training


def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats per character."""
    result: Tensor = module(*batch)
    return result


def fit(
    model: LanguageModel, text: Text, settings: TrainerConfig, run: Run, world: World
) -> dict[str, float]:
    """Train a model and leave it with the best weights, ready to use.

    Best are those of the lowest validation loss, also if a resumed run ends with worse ones.
    Returns the final and best metrics by name. `val_loss`, that of the final weights, is what a
    run is to be judged by: `best_val_loss` is the least of several on the same text, and so lower
    than on a new one.

    With them come `steps`, `seconds` and `cpu_seconds` of the training of all sessions; to the CPU
    seconds is added what this process took before: imports, reading and, for a hybrid, counting.
    What the sessions before a --resume took for that is lost. Raises what `Trainer` raises, and
    ArtefactError for a run to be resumed that has saved another model.
    """
    assert isinstance(model, nn.Module)  # as all language models are
    if run.resumed:
        check_resumable(run, model)  # first: a hybrid's counting takes seconds
    examples, validation = recipes.examples(model, text)
    before = cpu_seconds()
    trainer = Trainer(
        settings,
        model,
        loss,
        examples,
        run=run,
        world=world,
        validation=validation,
        # Backward takes twice what forward does: a product for the inputs, one for the weights.
        flops_per_example=3 * model.flops_per_character() * model.block_size,
    )
    metrics, state = trainer.fit(), trainer.state
    model.load_state_dict(open_checkpoint(run.folder, best=True).tensors())
    model.eval()
    clocks = {"seconds": state.seconds, "cpu_seconds": state.cpu_seconds + before}
    return {**metrics, "steps": state.step, **clocks}


def check_resumable(run: Run, model: nn.Module) -> None:
    """Raise ArtefactError unless what a run has saved is of this very model."""
    with contextlib.suppress(UsageError):  # nothing saved yet: it starts anew
        asked = files.read_json(run.folder / CONFIG)["model"]
        check_fit(open_checkpoint(run.folder), model, asked)


# ---- the command


def main(config: TrainConfig) -> None:
    """Train a language model; ends with its loss, a plot and a text."""
    settings = config.trainer
    with parallel.join(settings.device, settings.threads, settings.dist_timeout) as world:
        with world.main_first():  # a mistake in here leaves no run behind
            text = load_text(find_data(config.data, quiet=not world.is_main))
        world.same_everywhere(text.sha256, "data")
        check_length(text, config.block_size)  # before a model of any size is made
        torch.manual_seed(settings.seed)
        model = recipes.build(config.preset, len(text.vocabulary), **config.shape.given())
        with Run.open(
            PACKAGE,
            config.out,
            resume=config.resume,
            config=config.saved(text, model),
            may_change=MAY_CHANGE,
            rank=world.rank,
        ) as run:
            if world.is_main:
                describe(config, text, model, run, world)
            metrics = fit(model, text, settings, run, world)
            if world.is_main:
                report(config, text, model, metrics, run, world)


def describe(config: TrainConfig, text: Text, model: LanguageModel, run: Run, world: World) -> None:
    """Print what is about to be trained on what."""
    assert isinstance(model, nn.Module)  # as all language models are
    shape = ", ".join(f"{k} {v}" for k, v in saved_model(config.preset, model).items())
    train, val = len(text.train), len(text.val)
    cli.print_settings(
        Console(soft_wrap=True),
        f"{config.preset}: {recipes.find(config.preset).idea}",
        {
            "data": f"{text.name} ({text.sha256[:12]}), {train:,} characters to train on, "
            f"{val:,} to validate",
            "vocabulary": f"{len(text.vocabulary)} characters",
            "model": shape,
            "parameters": f"{count_parameters(model):,}",
            "FLOPs": f"{model.flops_per_character():,.0f} per character",
            "trainer": ", ".join(f"{k} {v}" for k, v in changed(config.trainer).items()),
            "seed": config.trainer.seed,
            "device": f"{world.device}, {torch.get_num_threads()} threads x {world.size} processes",
            "run": run.folder,
        },
    )


def changed(config: TrainerConfig) -> dict[str, Any]:
    """Return the settings that are not the trainer's defaults; config.json has all of them."""
    usual = asdict(TrainerConfig())
    return {name: value for name, value in asdict(config).items() if value != usual[name]}


def report(
    config: TrainConfig,
    text: Text,
    model: LanguageModel,
    metrics: dict[str, float],
    run: Run,
    world: World,
) -> None:
    """Write result.json and sample.txt, and show what a person wants."""
    assert isinstance(model, nn.Module)  # as all language models are
    val, best = metrics["val_loss"], metrics["best_val_loss"]
    per_byte = bits_per_byte(val, text.val[1:], text.vocabulary)
    clocks = {name: metrics[name] for name in ("seconds", "cpu_seconds")}
    rest = {name: value for name, value in metrics.items() if name not in (*clocks, "steps")}
    run.write_result(
        seed=config.trainer.seed,
        device=str(world.device),
        data_name=shown_data(text.name),
        data_sha256=text.sha256,
        parameters=count_parameters(model),
        steps=int(metrics["steps"]),
        metrics={**rest, "bits_per_character": bits(val), "bits_per_byte": per_byte},
        **clocks,
    )
    prompt = PROMPT if set(PROMPT) <= set(text.vocabulary.characters) else ""
    if config.sample:
        model.to("cpu")  # as `generate` has it
        sample = sample_text(model, text.vocabulary, prompt, config.sample, config.trainer.seed)
        files.write_file(run.folder / "sample.txt", f"{sample}\n".encode())
        print(f"\n{sample}\n")
    print(
        f"validation: {val:.4f} nats, {bits(val):.4f} bits per character ({per_byte:.4f} per "
        f"byte) over all {len(text.val) - 1:,} targets, {clocks['cpu_seconds']:,.0f} CPU seconds"
    )
    if best < val:
        print(f"the best weights, which were kept, had {best:.4f}: more steps than the text bears")
    if plot_run(run.folder, f"mingpt: {config.preset}", "nats per character"):
        print(f"plot: {run.folder / 'loss.png'}")
    flags = ["--run", str(run.folder), *(["--prompt", prompt] if prompt else [])]
    print(f"next: python -m mingpt.generate {shlex.join(flags)}")


def defaults(words: Sequence[str]) -> TrainConfig | None:
    """Return what holds where the command line is silent.

    With --resume that is what the run was started with, else what the recipe of --preset says.
    """
    saved = saved_config(PACKAGE, words)
    if saved is not None:
        return _restored(saved)
    name = cli.given("--preset", words, DEFAULT_PRESET)
    return None if name is None else TrainConfig(preset=name, trainer=recipes.find(name).trainer)


def _restored(saved: dict[str, Any]) -> TrainConfig:
    """Return the settings of a run from its config.json; its shape is the whole of its model's."""
    try:
        model, names = saved["model"], {field.name for field in fields(Shape)}
        shape = type(recipes.find(model["recipe"]).config)
        parts = ((TrainConfig, {"data": saved["data"], "sample": saved["sample"]}), (shape, model))
        for kind, values in (*parts, (TrainerConfig, saved["trainer"])):
            if wrong := wrong_types(kind, values):
                raise TypeError("; ".join(wrong))
        return TrainConfig(
            data=saved["data"],
            preset=model["recipe"],
            shape=Shape(**{name: value for name, value in model.items() if name in names}),
            sample=saved["sample"],
            trainer=TrainerConfig(**saved["trainer"]),
        )
    except (KeyError, TypeError, ValueError) as error:  # UsageError, too
        raise ArtefactError(
            f"config.json is not that of a run of mingpt.train ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=defaults)

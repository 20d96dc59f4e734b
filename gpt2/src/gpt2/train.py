"""Train a GPT-2 on a text: `python -m gpt2.train`, or `torchrun --nproc-per-node 2 -m gpt2.train`.

The run folder ends up with the model (`checkpoints/`), its tokenizer, `metrics.jsonl`, `loss.png`,
`sample.txt` and `result.json`.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from gpt2.data import DEFAULT_DATA, END_OF_TEXT, TOKENIZER, Corpus, load_corpus
from gpt2.generate import sample_text
from gpt2.model import GPT, PRESETS, GPTConfig, estimate_flops
from shared import cli, files, parallel
from shared.callbacks import Callback
from shared.config import TrainerConfig
from shared.datasets import Dataset, resolve, resolve_default
from shared.errors import ArtefactError
from shared.parallel import World
from shared.runs import Run, saved_config, shown_data
from shared.trainer import Trainer

# Three minutes of one core for `tiny` on a megabyte of text; how it was found is in the README.
QUICKSTART = TrainerConfig(
    max_steps=1400,
    batch_size=8,
    optimizer="muon",
    learning_rate=1e-2,
    muon_learning_rate=0.02,
    weight_decay=0.3,
    schedule="linear",
    warmup_steps=28,
    eval_every=350,
    eval_batch_size=32,
    checkpoint_every=350,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train on what, and how."""

    data: str = ""
    """A data set's name (python -m shared.datasets lists them), a text file or a folder of them;
    shakespeare if not given, or python-docs where that can't be had."""
    preset: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "tiny"
    """The shape of the model; the flags below change parts of it."""
    vocab_size: int | None = None
    """Size of the tokenizer trained on the data, and of the model's vocabulary."""
    block_size: int | None = None
    """Context length in tokens."""
    n_layer: int | None = None
    """Transformer blocks."""
    n_head: int | None = None
    """Attention heads per block."""
    n_embd: int | None = None
    """Channels; a multiple of n_head."""
    dropout: float | None = None
    """Dropout probability."""
    residual_init: Literal["gpt2", "zero"] | None = None
    """Start of the projections back into the residual stream: GPT-2's scaled noise, or zero."""
    out: Path | None = None
    """Run folder; runs/gpt2/<start time> if not given."""
    resume: bool = False
    """Continue the run in --out, or the one started last; its settings hold unless flags differ."""
    sample_tokens: int = 200
    """Tokens of the text sampled at the end."""
    trainer: TrainerConfig = QUICKSTART

    def __post_init__(self) -> None:
        size = self.shape().vocab_size  # GPTConfig refuses shapes that cannot work
        if size < 257:
            raise ValueError(f"vocab_size={size} must be at least 257: all bytes and {END_OF_TEXT}")

    def shape(self) -> GPTConfig:
        """Return the preset with the given parts replaced."""
        names = [f.name for f in dataclasses.fields(GPTConfig)]
        given = {name: getattr(self, name, None) for name in names}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(PRESETS[self.preset], **changes)

    def saved(self, corpus: Corpus, model: GPTConfig) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the result, text and model included."""
        values = asdict(self)
        del values["out"], values["resume"]
        text = {"sha256": corpus.sha256, "tokenizer_sha256": corpus.tokenizer.digest()}
        return {**values, "model": asdict(model), "corpus": text}


# What may differ between a run and its continuation without making it another run.
MAY_CHANGE = ["sample_tokens", *(f"trainer.{name}" for name in (
    "max_steps", "batch_size", "eval_every", "eval_batch_size",
    "checkpoint_every", "keep_checkpoints", "log_every", "device", "threads", "dist_timeout",
    "profile", "wandb", "compile",
))]  # fmt: skip


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats per token."""
    result: Tensor = module(*batch)
    return result


class BitsPerByte(Callback):
    """Adds the measure that runs with different tokenizers share."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def on_evaluation(self, _trainer: Trainer[Any], values: dict[str, float]) -> None:
        """Turn nats per token into bits per byte of the validation text."""
        values["bits_per_byte"] = self.corpus.bits_per_byte(values["val_loss"])


def main(config: TrainConfig) -> None:
    """Train a GPT-2 on a text; ends with a loss plot and a sample."""
    settings = config.trainer
    with parallel.join(settings.device, settings.threads, settings.dist_timeout) as world:
        with world.main_first():  # a mistake in here leaves no run behind
            corpus = load_corpus(find_data(config, world), config.shape().vocab_size)
        world.same_everywhere(corpus.sha256, "data")
        # A small text gives fewer tokens than asked for; the model knows no others.
        shape = dataclasses.replace(config.shape(), vocab_size=corpus.tokenizer.vocab_size)
        with Run.open(
            "gpt2",
            config.out,
            resume=config.resume,
            config=config.saved(corpus, shape),
            may_change=MAY_CHANGE,
            rank=world.rank,
        ) as run:
            train(config, corpus, shape, run, world)


def train(config: TrainConfig, corpus: Corpus, shape: GPTConfig, run: Run, world: World) -> None:
    """Train a model of this shape, and tell what came of it."""
    settings, console = config.trainer, Console(soft_wrap=True)
    torch.manual_seed(settings.seed)
    model = GPT(shape)
    if world.is_main:
        corpus.tokenizer.save(run.folder / TOKENIZER.removesuffix(".model"))
    trainer = Trainer(
        settings,
        model,
        loss,
        corpus.train_windows(model.config.block_size, settings.seed),
        run=run,
        world=world,
        validation=corpus.validation_windows(model.config.block_size),
        flops_per_example=estimate_flops(model.config).total * model.config.block_size,
        callbacks=[BitsPerByte(corpus)],
    )
    if world.is_main:
        describe(console, config, corpus, model, run, world)
    metrics = trainer.fit()
    if world.is_main:
        report(console, config, corpus, trainer, metrics)


def find_data(config: TrainConfig, world: World) -> Dataset:
    """Return the data set asked for, or the default one or its stand-in."""
    if config.data:
        return resolve(config.data)
    dataset, excuse = resolve_default(DEFAULT_DATA)
    if excuse and world.is_main:
        print(excuse, file=sys.stderr)
    return dataset


def describe(
    console: Console, config: TrainConfig, corpus: Corpus, model: GPT, run: Run, world: World
) -> None:
    """Print what is about to be trained on what."""
    train, validation = len(corpus.train), len(corpus.validation)
    cli.print_settings(
        console,
        f"GPT-2 {config.preset} on {corpus.name}",
        {
            "data": f"{corpus.train_bytes:,} + {corpus.validation_bytes:,} bytes of text "
            f"({corpus.sha256[:12]}), {train:,} + {validation:,} tokens",
            "tokenizer": f"{corpus.tokenizer.vocab_size:,} tokens, "
            f"{corpus.train_bytes / train:.2f} bytes per token",
            "model": ", ".join(f"{k} {v}" for k, v in asdict(model.config).items()),
            "parameters": f"{model.num_parameters():,}",
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
    console: Console,
    config: TrainConfig,
    corpus: Corpus,
    trainer: Trainer[tuple[Tensor, Tensor]],
    metrics: dict[str, float],
) -> None:
    """Write result.json and sample.txt, and print them as a person would want to see them."""
    state, run, model = trainer.state, trainer.run, trainer.module
    assert isinstance(model, GPT)
    sample = sample_text(model, corpus.tokenizer, "\n", config.sample_tokens, config.trainer.seed)
    files.write_file(run.folder / "sample.txt", sample.encode())
    result = run.write_result(
        seed=config.trainer.seed,
        device=str(trainer.world.device),
        data_name=shown_data(corpus.name),
        data_sha256=corpus.sha256,
        parameters=model.num_parameters(),
        steps=state.step,
        metrics=metrics,
        seconds=state.seconds,
        cpu_seconds=state.cpu_seconds,
    )
    console.print(sample, markup=False)
    cli.print_settings(console, "\nresult", result)
    print(f"plot: {run.folder / 'loss.png'}")
    print(f"next: python -m gpt2.generate --run {run.folder} --prompt 'ROMEO:'")


def resumed(words: Sequence[str]) -> TrainConfig | None:
    """Return the settings of the run that the command line asks to resume, as its defaults."""
    saved = saved_config("gpt2", words)
    if saved is None:
        return None
    try:
        del saved["model"], saved["corpus"]
        return TrainConfig(**{**saved, "trainer": TrainerConfig(**saved["trainer"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"config.json is not that of a run of gpt2.train ({error})") from error


if __name__ == "__main__":
    cli.run(main, defaults=resumed)

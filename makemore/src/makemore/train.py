"""Train a model of names: `python -m makemore.train --model gru`.

The run folder ends up with the model (`checkpoints/`), `metrics.jsonl`, `loss.png`, `sample.txt`
and `result.json`. Which models there are, and how each is trained, is in `recipes.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from makemore import recipes
from makemore.data import (
    Items,
    Report,
    SplitName,
    Splits,
    Vocabulary,
    examined_items,
    find_data,
    split_items,
)
from makemore.evaluate import bits, losses_table, mean_nats, parts_of
from makemore.generate import look_up, sample_items, samples_table, told_shares
from makemore.load import PACKAGE, check_length
from makemore.model import CharacterModel
from makemore.ngram import NGram
from shared import cli, files, parallel
from shared.callbacks import Callback
from shared.checkpoint import CONFIG, MODEL, Checkpoints, open_checkpoint
from shared.config import TrainerConfig
from shared.datasets import Dataset
from shared.errors import ArtefactError, DataError
from shared.metrics import JsonLines
from shared.parallel import World
from shared.plots import plot_run
from shared.runs import Run, saved_config, shown_data
from shared.trainer import Trainer

DEFAULT_MODEL = "wavenet"
NOT_TRAINED = TrainerConfig(max_steps=0)  # where a model is counted; only seed and device matter


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to change of the recipe's model; a model does not have all of these."""

    cell: str | None = None
    """The recurrence: rnn, gru or lstm."""
    n: int | None = None
    """Characters of the longest n-gram."""
    smoothing: str | None = None
    """How an n-gram shares out its counts: add_k, witten_bell or kneser_ney."""
    k: float | None = None
    """What add-k smoothing adds to each count."""
    block_size: int | None = None
    """Characters of context, or places of the longest item."""
    n_embd: int | None = None
    """Numbers that stand for a character."""
    n_hidden: int | None = None
    """Units of a hidden layer or state."""
    n_layer: int | None = None
    """Layers."""
    n_head: int | None = None
    """Attention heads per layer."""
    batch_norm: bool | None = None
    """Normalise over the batch (MLP)."""
    init: str | None = None
    """First weights of the MLP: naive, xavier or he."""
    activation: str | None = None
    """What bends a hidden layer: tanh or relu (MLP), gelu or relu2 (transformer)."""
    norm: str | None = None
    """What the WaveNet normalises over: batch, layer or none."""
    gated: bool | None = None
    """Gated activations (WaveNet)."""
    residual: bool | None = None
    """Connections past a level (WaveNet)."""
    positions: str | None = None
    """How the transformer knows places: learned or rotary."""
    qk_norm: bool | None = None
    """Normalise queries and keys (transformer)."""
    residual_init: str | None = None
    """Start of the layers that write into the residual stream: gpt2 or zero (transformer)."""
    share_prefixes: bool | None = None
    """Compute what several items begin with only once (transformer)."""
    dropout: float | None = None
    """Share of units zeroed in training."""
    embed_dropout: float | None = None
    """The same of the embedding."""
    weight_dropout: float | None = None
    """The same of recurrent weights."""
    attention_dropout: float | None = None
    """The same of attention weights."""
    noise: float | None = None
    """Share of characters read as a blank in training."""

    def given(self) -> dict[str, Any]:
        """Return the parts that are to change."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train on what, and how."""

    data: str = ""
    """A file of one item a line, or a data set's name (python -m shared.datasets lists them); names
    if not given, or words where that can't be had."""
    model: str = DEFAULT_MODEL
    """What to train and, with it, how: ngram, bigram, bow, mlp, mlp-bn, wavenet, rnn, gru, lstm or
    transformer. The flags below change parts of it; defaults shown are those of this model."""
    split: SplitName = "karpathy"
    """karpathy: the last 1000 items of a fixed permutation are the test part, the 1000 before them
    the validation part; random: 80/10/10 by a shuffle with --split-seed."""
    split_seed: int = 42
    """Seed of the random split."""
    unk: int = 0
    """Characters in fewer training items than this become the unknown character, as do all that
    appear later; 0: there is none, and unseen characters are an error."""
    shape: Shape = Shape()
    out: Path | None = None
    """Run folder; runs/makemore/<start time> if not given."""
    resume: bool = False
    """Continue the run in --out, or the one started last; its settings hold unless flags differ."""
    samples: int = 20
    """Items to make up at the end."""
    trainer: TrainerConfig = recipes.find(DEFAULT_MODEL).trainer or NOT_TRAINED

    def __post_init__(self) -> None:
        for name in ("unk", "samples", "split_seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        recipes.shape(self.model, 27, **self.shape.given())  # refuses what cannot work

    def saved(self, corpus: "Corpus", model: CharacterModel) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the result, data and model included."""
        values = asdict(self)
        del values["out"], values["resume"]
        shape = recipes.saved(self.model, model)
        text = {"name": corpus.name, "sha256": corpus.sha256, "longest": corpus.report.longest}
        vocabulary = asdict(corpus.vocabulary)
        return {**values, "model": shape, "corpus": text, "vocabulary": vocabulary}


# What may differ between a run and its continuation without making it another run.
MAY_CHANGE = ["samples", *(f"trainer.{name}" for name in (
    "max_steps", "batch_size", "eval_every", "eval_batch_size",
    "checkpoint_every", "keep_checkpoints", "log_every", "device", "threads", "dist_timeout",
    "profile", "wandb", "compile",
))]  # fmt: skip


# ---- data


@dataclass(frozen=True)
class Corpus:
    """The items of a file, looked over, divided and with their characters numbered."""

    name: str
    sha256: str
    report: Report
    splits: Splits
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Encoded:
    """The three parts of the items, as the trainer and the measures take them."""

    train: Items
    val: Items
    test: Items

    @classmethod
    def of(cls, splits: Splits, vocabulary: Vocabulary) -> "Encoded":
        """Encode the parts; raises DataError for characters that the vocabulary lacks."""
        parts = (splits.train, splits.val, splits.test)
        return cls(*(Items(part, vocabulary) for part in parts))


def load_corpus(dataset: Dataset, split: SplitName, split_seed: int, unk: int) -> Corpus:
    """Read, examine and divide items.

    Without an unknown character (`unk` 0) the vocabulary is that of all items, as makemore.py has
    it; with one, that of the training items: what is rare there stands for what is unseen. Raises
    DataError, naming the line, for what cannot be trained on.
    """
    items, report = examined_items(dataset)
    splits = split_items(items, split, split_seed)
    vocabulary = Vocabulary.of(splits.train if unk else items, unk)
    if not vocabulary.characters:
        raise DataError(
            f"--unk {unk}: no character is in as many training items; "
            "all of them would be the unknown one"
        )
    return Corpus(dataset.name, dataset.sha256, report, splits, vocabulary)


# ---- training


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats per character."""
    result: Tensor = module(*batch)
    return result


def fit(
    model: CharacterModel,
    encoded: Encoded,
    settings: TrainerConfig,
    run: Run,
    world: World,
    callbacks: Sequence[Callback] = (),
) -> dict[str, float]:
    """Train a network, or count n-grams, and leave `model` with the best weights, ready to use.

    Best are those of the lowest validation loss, also if a resumed run ends with worse ones.
    Returns the final and best metrics by name, and with them `steps`, `seconds` and `cpu_seconds`
    of the whole run. Raises what `Trainer` raises.
    """
    if isinstance(model, NGram):
        return _count(model, encoded, run)
    trainer = Trainer(
        settings,
        model,
        loss,
        encoded.train,
        run=run,
        world=world,
        validation=encoded.val,
        # Backward takes twice what forward does: a product for the inputs, one for the weights.
        flops_per_example=3 * model.flops_per_character() * float(encoded.train.lengths.mean()),
        callbacks=callbacks,
    )
    metrics, state = trainer.fit(), trainer.state
    model.load_state_dict(open_checkpoint(run.folder, best=True).tensors())
    clocks = {"seconds": state.seconds, "cpu_seconds": state.cpu_seconds}
    model.eval()
    return {**metrics, "steps": state.step, **clocks}


def _count(model: NGram, encoded: Encoded, run: Run) -> dict[str, float]:
    """Count n-grams; the counts are the run's only checkpoint and its best."""
    model.fit(encoded.train)
    val_loss = mean_nats(model.eval(), encoded.val)
    if run.rank == 0:
        checkpoints = Checkpoints(run.checkpoints)
        checkpoints.discard_leftovers()
        pending = checkpoints.begin(0)
        pending.write_tensors(MODEL, model.state_dict())
        pending.write_json(CONFIG, files.read_json(run.folder / CONFIG))
        checkpoints.commit(pending, best=True)
        lines = JsonLines(run.folder / "metrics.jsonl")
        lines.truncate_after(-1)  # a resumed run counts anew
        lines.log(0, {"val_loss": val_loss}, kind="val")
        lines.close()
    seconds, cpu_seconds = run.elapsed()
    clocks = {"seconds": seconds, "cpu_seconds": cpu_seconds}
    return {"val_loss": val_loss, "best_val_loss": val_loss, "steps": 0, **clocks}


# ---- the command


def main(config: TrainConfig) -> None:
    """Train a model of names; ends with its losses, a plot and made-up items."""
    settings = config.trainer
    with parallel.join(settings.device, settings.threads, settings.dist_timeout) as world:
        with world.main_first():  # a mistake in here leaves no run behind
            dataset = find_data(config.data, quiet=not world.is_main)
            corpus = load_corpus(dataset, config.split, config.split_seed, config.unk)
        world.same_everywhere(corpus.sha256, "data")
        torch.manual_seed(settings.seed)
        size = len(corpus.vocabulary)
        model = recipes.build(config.model, size, **config.shape.given())
        check_length(model, corpus.report.longest)
        with Run.open(
            PACKAGE,
            config.out,
            resume=config.resume,
            config=config.saved(corpus, model),
            may_change=MAY_CHANGE,
            rank=world.rank,
        ) as run:
            if world.is_main:
                describe(config, corpus, model, run, world)
            encoded = Encoded.of(corpus.splits, corpus.vocabulary)
            metrics = fit(model, encoded, settings, run, world)
            if world.is_main:
                report(config, corpus, encoded, model, metrics, run, world)


def describe(
    config: TrainConfig, corpus: Corpus, model: CharacterModel, run: Run, world: World
) -> None:
    """Print what the doctor found, and what is about to be trained."""
    console, settings = Console(soft_wrap=True), config.trainer
    cli.print_settings(console, f"{corpus.name} ({corpus.sha256[:12]})", examination(corpus))
    shape = ", ".join(f"{k} {v}" for k, v in asdict(model.config).items())  # type: ignore[call-overload]
    how = ", ".join(f"{k} {v}" for k, v in changed(settings).items())
    cli.print_settings(
        console,
        f"\n{config.model}: {recipes.find(config.model).idea}",
        {
            "model": shape,
            "parameters": f"{count_parameters(model):,}",
            "trainer": "none, it is counted" if isinstance(model, NGram) else how,
            "seed": settings.seed,
            "device": f"{world.device}, {torch.get_num_threads()} threads x {world.size} processes",
            "run": run.folder,
        },
    )


def examination(corpus: Corpus) -> dict[str, object]:
    """Return the doctor's report as names and values for a person."""
    found, parts = corpus.report, parts_of(corpus.splits)
    training = set(corpus.splits.train)
    twice = sum(item in training for item in corpus.splits.test)
    told: dict[str, object] = {
        "items": f"{found.items:,}, {found.distinct:,} of them distinct",
        "lengths": f"{found.shortest} to {found.longest}, {found.mean_length:.2f} on average",
        "characters": f"{len(found.characters)}: {found.characters}",
        "split": ", ".join(f"{len(items):,} {name}" for name, items in parts.items()),
        "overlap": f"{twice:,} of {len(corpus.splits.test):,} test items are training items too",
        **{f"warning {n}": text for n, text in enumerate(found.warnings, 1)},
    }
    if corpus.vocabulary.unknown:
        rare = set(found.characters) - set(corpus.vocabulary.characters)
        told["unknown"] = f"{len(rare)} characters: {''.join(sorted(rare))}"
    return told


def changed(config: TrainerConfig) -> dict[str, Any]:
    """Return the settings that are not the trainer's defaults; config.json has all of them."""
    usual = asdict(TrainerConfig())
    return {name: value for name, value in asdict(config).items() if value != usual[name]}


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training finds: parameters, or the counts of an n-gram model."""
    numbers = model.buffers() if isinstance(model, NGram) else model.parameters()
    return sum(each.numel() for each in numbers)


def report(
    config: TrainConfig,
    corpus: Corpus,
    encoded: Encoded,
    model: CharacterModel,
    metrics: dict[str, float],
    run: Run,
    world: World,
) -> None:
    """Measure the best model, write result.json and sample.txt, and show what a person wants."""
    console, parts = Console(), {}
    for name, items in (("train", encoded.train), ("val", encoded.val), ("test", encoded.test)):
        nats = mean_nats(model, items)
        told = {"nats_per_character": nats, "bits_per_character": bits(nats)}
        parts[name] = {"items": len(items), "characters": items.characters, **told}
    found = {f"{name}_loss": part["nats_per_character"] for name, part in parts.items()}
    best = {"train_loss": found["train_loss"], "test_loss": found["test_loss"]}
    clocks = {name: metrics[name] for name in ("seconds", "cpu_seconds")}
    rest = {name: value for name, value in metrics.items() if name not in (*clocks, "steps")}
    run.write_result(
        seed=config.trainer.seed,
        device=str(world.device),
        data_name=shown_data(corpus.name),
        data_sha256=corpus.sha256,
        parameters=count_parameters(model),
        steps=int(metrics["steps"]),
        metrics={**rest, **best, "bits_per_character": bits(found["test_loss"])},
        **clocks,
    )
    console.print(losses_table(parts))
    show_samples(console, config, corpus, model, run)
    if plot_run(run.folder, f"makemore: {config.model}", "nats per character"):
        print(f"plot: {run.folder / 'loss.png'}")
    print(f"next: python -m makemore.generate --run {run.folder} --prefix mar")


def show_samples(
    console: Console, config: TrainConfig, corpus: Corpus, model: CharacterModel, run: Run
) -> None:
    """Make up items, look them up, print them and write sample.txt."""
    generator = torch.Generator().manual_seed(config.trainer.seed)
    items = sample_items(
        model,
        corpus.vocabulary,
        config.samples,
        generator=generator,
        max_length=corpus.report.longest,
    )
    files.write_file(run.folder / "sample.txt", "".join(f"{item}\n" for item in items).encode())
    if items:
        samples = look_up(items, corpus.splits)
        console.print()
        console.print(samples_table(samples))
        console.print(f"\n{told_shares(samples)}", highlight=False)


def defaults(words: Sequence[str]) -> TrainConfig | None:
    """Return what holds where the command line is silent.

    With --resume that is what the run was started with, else what the recipe of --model says.
    """
    saved = saved_config(PACKAGE, words)
    if saved is not None:
        return _restored(saved)
    name = cli.given("--model", words, DEFAULT_MODEL)
    if name is None:
        return None
    return TrainConfig(model=name, trainer=recipes.find(name).trainer or NOT_TRAINED)


def _restored(saved: dict[str, Any]) -> TrainConfig:
    """Return the settings of a run from its config.json."""
    try:
        del saved["corpus"], saved["vocabulary"]
        values = {
            **saved,
            "model": saved["model"]["name"],
            "shape": Shape(**saved["shape"]),
            "trainer": TrainerConfig(**saved["trainer"]),
        }
        return TrainConfig(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"config.json is not that of a run of makemore.train ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=defaults)

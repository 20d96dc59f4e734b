"""Climb one rung of the ladder: `python -m mingpt.climb --rung one-head`.

Trains (or counts) the rung's model, measures it on the validation text and on as much of the
training text, and leaves `result.json` and `sample.txt` in the run folder. `mingpt.ladder` runs
this for every rung and seed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mingpt import rungs
from mingpt.data import Text, Windows, check_length, find_data, load_text, mean_nats
from mingpt.generate import sample_text
from mingpt.model import LanguageModel, count_parameters
from mingpt.ngram import NGram
from mingpt.train import loss
from shared import cli, files, parallel
from shared.parallel import World
from shared.runs import Run, shown_data
from shared.trainer import Trainer

PACKAGE = "mingpt-climb"
TUNING_SHARE = 0.1  # of the training text, its end
SAMPLE = "sample.txt"


@dataclass(frozen=True, kw_only=True)
class ClimbConfig:
    """Which rung to climb, and on what."""

    rung: str
    """Its name, such as bigram, mlp or layer-norm."""
    data: str = ""
    """A text file, a folder of them or a data set's name; shakespeare if not given, or python-docs
    where that can't be had."""
    seed: int = 0
    """Seed of the first weights, the order of examples and the sample."""
    max_steps: int | None = None
    """At most so many updates, to try things out."""
    tune: bool = False
    """Put the validation text aside: train on the first 90% of the training text and measure on
    the rest of it. Settings are chosen so."""
    sample: int = 200
    """Characters to write at the end."""
    out: Path | None = None
    """Run folder; runs/mingpt-climb/<start time> if not given."""
    resume: bool = False
    """Continue the run in --out, or the one started last; repeat its other flags."""

    def __post_init__(self) -> None:
        rungs.find(self.rung)
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1")
        if self.sample < 1:
            raise ValueError(f"sample={self.sample} must be at least 1")

    def saved(self, text: Text) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the numbers, the rung's settings too."""
        rung = rungs.find(self.rung)
        values = dataclasses.asdict(self)
        del values["out"], values["resume"], values["data"]
        corpus = {"name": shown_data(text.name), "sha256": text.sha256}
        return {**values, "corpus": corpus, "model": rung.settings, "trainer": rung.trainer}


def for_tuning(text: Text) -> Text:
    """Return a text whose validation part is the end of its training part, the true one gone."""
    cut = int((1 - TUNING_SHARE) * len(text.train))
    return dataclasses.replace(text, train=text.train[:cut], val=text.train[cut:])


def main(config: ClimbConfig) -> None:
    """Train one rung and measure it."""
    rung = rungs.find(config.rung)
    with parallel.join("cpu", 1) as world:
        text = load_text(find_data(config.data))
        text = for_tuning(text) if config.tune else text
        torch.manual_seed(config.seed)
        model = rung.make(len(text.vocabulary))
        assert isinstance(model, LanguageModel)
        # What is counted needs no window.
        check_length(text, model.block_size if rung.trainer else 1)
        with Run.open(PACKAGE, config.out, resume=config.resume, config=config.saved(text)) as run:
            clocks = fit(model, rung, text, config, run, world)
            report(model, text, config, run, clocks)


def fit(
    model: nn.Module, rung: rungs.Rung, text: Text, config: ClimbConfig, run: Run, world: World
) -> dict[str, float]:
    """Train or count; return `steps`, `seconds` and `cpu_seconds`.

    The weights are the last ones: choosing by the validation text would be training on it.
    """
    if rung.trainer is None:
        wall, cpu = run.elapsed()
        model.fit(text.train)  # type: ignore[operator]
        clocks = [after - before for after, before in zip(run.elapsed(), (wall, cpu), strict=True)]
        return {"steps": 0, "seconds": clocks[0], "cpu_seconds": clocks[1]}
    steps = rung.steps(config.max_steps)
    trainer = Trainer(
        dataclasses.replace(rung.trainer, max_steps=steps, seed=config.seed, device="cpu"),
        model,
        loss,
        Windows(text.train, model.block_size, jitter=True),  # type: ignore[arg-type]
        run=run,
        world=world,
    )
    trainer.fit()
    state = trainer.state
    return {"steps": state.step, "seconds": state.seconds, "cpu_seconds": state.cpu_seconds}


def stored_counts(model: nn.Module) -> int:
    """Count the numbers that counting stored; 0 for a model that is trained."""
    if isinstance(model, NGram):
        return sum(len(level.kept) + len(level.taken) for level in model.levels)
    return 0 if count_parameters(model) else sum(each.numel() for each in model.buffers())


def report(
    model: nn.Module, text: Text, config: ClimbConfig, run: Run, clocks: dict[str, float]
) -> None:
    """Measure, write `sample.txt` and `result.json`, and print the losses."""
    assert isinstance(model, LanguageModel)
    model.eval()
    size = model.block_size
    nats = {
        # As much as is validated on: comparable, and a tenth of the work.
        "train": mean_nats(model, text.train[: len(text.val)], size),
        "val": mean_nats(model, text.val, size),
    }
    sample = sample_text(model, text.vocabulary, "", config.sample, config.seed)
    files.write_file(run.folder / SAMPLE, sample.encode())
    run.write_result(
        seed=config.seed,
        device="cpu",
        data_name=shown_data(text.name),
        data_sha256=text.sha256,
        parameters=count_parameters(model),
        steps=int(clocks["steps"]),
        metrics={
            "train_loss": nats["train"],
            "val_loss": nats["val"],
            "flops_per_character": model.flops_per_character(),
            "counts": stored_counts(model),
        },
        seconds=clocks["seconds"],
        cpu_seconds=clocks["cpu_seconds"],
    )
    told = "  ".join(f"{part} {value:.4f}" for part, value in nats.items())
    held = "tuning" if config.tune else "validation"
    print(
        f"{config.rung}: {told} nats per character ({held} text), "
        f"{clocks['cpu_seconds']:,.1f} CPU s"
    )


if __name__ == "__main__":
    cli.run(main)

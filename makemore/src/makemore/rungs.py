"""The rungs of the ladder, the job that trains each, and the rows of the table from their results.

    counted    uniform -> unigram -> ... -> ngram         no chance, no seeds
    neural     bigram -> ... -> transformer               one job a seed
    mixtures   best + ngram -> all + ngram -> ...         no job: weights for what the jobs left

Every rung has to beat the one before it in its chain, by the mean of the test nats over seeds.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from makemore.data import SplitName, Splits
from makemore.evaluate import FloatArray
from makemore.measure import MEASURED, read_log_probs
from makemore.mixture import fit_weights, mix
from makemore.recipes import RECIPES, build
from makemore.report import PARTS, Chain, Part, Row
from makemore.whole import reweight
from shared.errors import ArtefactError
from shared.estimates import Estimate
from shared.files import read_json
from shared.runs import RESULT
from shared.workers import training_progress

UNIFORM, NGRAM = "uniform", "ngram"
BEST_PAIR, ALL, WHOLE = "best + ngram", "all + ngram", "all, whole names"
STEP_SECONDS, FLOPS_PER_SECOND = 2e-3, 3e10  # of one core, for guesses of a job's time
TYPICAL_LENGTH = 7  # characters of a name and its end; for the same guesses


@dataclass(frozen=True)
class Rung:
    """A step of the ladder."""

    name: str
    chain: Chain
    recipe: str = ""
    """What trains it; none for what needs no training of its own."""
    shape: tuple[str, ...] = ()
    """Flags that change the recipe's model."""
    beats: str = ""
    """The rung that it has to beat, where that is not the one before it in its chain."""
    tie: float = 0.0
    """Nats per character by which it may lose all the same."""


def _counted(name: str, n: int) -> Rung:
    """Return the rung that counts n-grams of one length, smoothed by adding to each count."""
    # 0.1 has the least validation loss of 1, 0.1 and 0.01 for the trigram; the others don't care.
    return Rung(name, "counted", NGRAM, ("--n", str(n), "--smoothing", "add_k", "--k", "0.1"))


def _neural(*names: str) -> Iterable[Rung]:
    """Return rungs that are recipes as they stand."""
    return (Rung(name, "neural", name) for name in names)


RUNGS = (
    Rung(UNIFORM, "counted"),
    _counted("unigram", 1),
    _counted("counted-bigram", 2),
    _counted("trigram", 3),
    Rung(NGRAM, "counted", NGRAM),
    # The same model as the counted one, found by gradient descent: it can only tie.
    Rung("bigram", "neural", "bigram", beats="counted-bigram", tie=0.01),
    *_neural("bow", "mlp", "mlp-bn", "rnn", "wavenet"),
    # Which of these three is ahead by a few thousandths depends on the split.
    Rung("transformer", "neural", "transformer", tie=0.01),
    Rung("gru", "neural", "gru", tie=0.01),
    *_neural("lstm"),
    Rung(BEST_PAIR, "mixtures"),
    Rung(ALL, "mixtures"),
    Rung(WHOLE, "mixtures"),
)


@dataclass(frozen=True)
class Job:
    """One training run and its measurement: a task for `shared.workers`."""

    rung: Rung
    split: SplitName
    seed: int
    folder: Path
    """The run folder."""
    data: str = ""
    max_steps: int | None = None
    """Fewer steps than the recipe's, to try things out."""

    @property
    def name(self) -> str:
        """How it is called on the screen."""
        seed = f", seed {self.seed}" if self.rung.chain == "neural" else ""
        return f"{self.rung.name} ({self.split}{seed})"

    @property
    def log(self) -> Path:
        """What its commands print; beside the run folder, which has to be empty at the start."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def steps(self) -> int:
        """Updates of the training; 0 for a model that is counted."""
        trainer = RECIPES[self.rung.recipe].trainer
        return min(trainer.max_steps, self.max_steps or trainer.max_steps) if trainer else 0

    @property
    def cost(self) -> float:
        """Guess the seconds it takes: what every step costs, and its arithmetic."""
        trainer = RECIPES[self.rung.recipe].trainer
        if trainer is None:
            return 5.0
        characters = trainer.batch_size * trainer.grad_accum_steps * TYPICAL_LENGTH
        flops = 3 * build(self.rung.recipe, 27).flops_per_character() * characters
        return 5.0 + self.steps * (STEP_SECONDS + flops / FLOPS_PER_SECOND)

    @property
    def done(self) -> bool:
        """Whether it is trained and measured."""
        return (self.folder / MEASURED).exists()

    def words(self) -> list[str]:
        """Return the words after `python -m` that train this model, for a reader to repeat."""
        words = ["makemore.train", "--model", self.rung.recipe, *self.rung.shape]
        words += ["--split", self.split]
        if self.rung.chain == "neural":
            words += ["--seed", str(self.seed)]
        if self.steps and self.max_steps:
            words += ["--max-steps", str(self.steps)]
        return words + (["--data", self.data] if self.data else [])

    def commands(self) -> list[list[str]]:
        """Train, unless that is done; then measure. What was begun is continued."""
        out = str(self.folder)
        measure = ["-m", "makemore.measure", "--run", out, "--seed", str(self.seed)]
        if (self.folder / RESULT).exists():
            return [measure]
        resume = ["--resume"] if self.folder.exists() else []
        return [["-m", *self.words(), "--out", out, *resume], measure]

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, and the losses last heard of."""
        if (self.folder / RESULT).exists():
            return 0.98, "measuring"
        part, said = training_progress(self.folder, self.steps)
        return 0.98 * part, said

    def outcome(self) -> str:
        """Return the nats of each part."""
        nats = Result.of(self).nats
        return "  ".join(f"{part} {nats[part]:.4f}" for part in PARTS)


@dataclass(frozen=True)
class Result:
    """What came of a job."""

    job: Job
    nats: Mapping[Part, float]
    parameters: int
    counts: int
    flops: float
    vocab_size: int
    cpu_seconds: float
    """CPU time of the training."""
    samples: Sequence[tuple[str, str]]
    """Items that it made up, each with the part of the data it was seen in, or "new"."""

    @classmethod
    def of(cls, job: Job) -> "Result":
        """Read what a finished job left. Raises ArtefactError for files that are not its own."""
        measured, result = read_json(job.folder / MEASURED), read_json(job.folder / RESULT)
        try:
            return cls(
                job=job,
                nats={part: float(measured["nats"][part]) for part in PARTS},
                parameters=int(measured["parameters"]),
                counts=int(measured["counts"]),
                flops=float(measured["flops_per_character"]),
                vocab_size=int(measured["vocab_size"]),
                cpu_seconds=float(result["cpu_seconds"]),
                samples=[(each["item"], each["mark"]) for each in measured["samples"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{job.folder / MEASURED}: not what makemore.measure writes ({error!r}); delete "
                "it and --resume"
            ) from error


@dataclass(frozen=True)
class Mixture:
    """A weighted mean of the probabilities of several models, of one seed."""

    name: str
    members: Sequence[Result]
    weights: Sequence[float]
    nats: Mapping[Part, float]

    log_probs: Mapping[Part, FloatArray] = dataclasses.field(repr=False)
    """Of every character of each part."""

    @classmethod
    def of(cls, name: str, members: Sequence[Result]) -> "Mixture":
        """Fit the weights on the validation items, which no member was trained on."""
        apart = [read_log_probs(member.job.folder) for member in members]
        weights = fit_weights(np.stack([each["val"] for each in apart]))
        log_probs = {part: mix([each[part] for each in apart], weights) for part in PARTS}
        nats = {part: -float(log_probs[part].mean()) for part in PARTS}
        return cls(name, members, weights.tolist(), nats, log_probs)

    def of_whole_items(self, name: str, splits: Splits) -> "Mixture":
        """Correct this mixture for how often whole items come back (see `makemore.whole`)."""
        items: dict[str, FloatArray] = {}
        for part in PARTS:
            ends = np.cumsum([len(text) + 1 for text in getattr(splits, part)])
            items[part] = np.add.reduceat(self.log_probs[part], np.r_[0, ends[:-1]])
        corrected = reweight(items, splits)
        nats = {part: -float(corrected[part].sum() / len(self.log_probs[part])) for part in PARTS}
        return dataclasses.replace(self, name=name, nats=nats)


def mixtures(results: Sequence[Result], splits: Splits) -> list[Mixture]:
    """Mix the n-gram with the best neural model, and with all of them, for every seed of a split.

    Then correct the mixture of all for whole items. The best is chosen by validation loss, so that
    the test items decide nothing.
    """
    counted = next((each for each in results if each.job.rung.name == NGRAM), None)
    neural = [each for each in results if each.job.rung.chain == "neural"]
    if counted is None or not neural:
        return []
    names = dict.fromkeys(each.job.rung.name for each in neural)
    val = {
        name: Estimate.of([each.nats["val"] for each in neural if each.job.rung.name == name]).mean
        for name in names
    }
    best = min(names, key=lambda name: val[name])
    found = []
    for seed in sorted({each.job.seed for each in neural}):
        members = [each for each in neural if each.job.seed == seed]
        pair = [each for each in members if each.job.rung.name == best]
        if pair:
            found.append(Mixture.of(BEST_PAIR, [*pair, counted]))
        if len(members) == len(names) > 1:  # else a job has failed, or it would be the same
            found.append(Mixture.of(ALL, [*members, counted]))
            found.append(found[-1].of_whole_items(WHOLE, splits))
    return found


def make_rows(results: Sequence[Result], mixed: Sequence[Mixture], uniform: bool) -> list[Row]:
    """Return the table's rows of one split, in the order of `RUNGS`, not judged yet."""
    split = results[0].job.split
    rows = []
    for rung in RUNGS:
        own = [each for each in results if each.job.rung == rung]
        mine = [each for each in mixed if each.name == rung.name]
        if own:
            rows.append(_row(rung, split, [[each] for each in own], [each.nats for each in own]))
        elif mine:
            members = [each.members for each in mine]
            rows.append(_row(rung, split, members, [each.nats for each in mine]))
        elif rung.name == UNIFORM and uniform:
            nats = math.log(results[0].vocab_size)
            same = {part: Estimate(nats) for part in PARTS}
            rows.append(Row(UNIFORM, "counted", split, 0, 0, 0, 0.0, 0.0, same))
    return rows


def _row(
    rung: Rung,
    split: str,
    members: Sequence[Sequence[Result]],
    nats: Sequence[Mapping[Part, float]],
) -> Row:
    """Return the row of a rung from each seed's members (one, but for a mixture) and nats."""
    cpu = [sum(each.cpu_seconds for each in one_seed) for one_seed in members]
    return Row(
        name=rung.name,
        chain=rung.chain,
        split=split,
        seeds=0 if rung.chain == "counted" else len(nats),
        parameters=sum(each.parameters for each in members[0]),
        counts=sum(each.counts for each in members[0]),
        flops=sum(each.flops for each in members[0]),
        cpu_seconds=Estimate.of(cpu).mean,
        nats={part: Estimate.of([each[part] for each in nats]) for part in PARTS},
    )


def judge(rows: Sequence[Row]) -> list[Row]:
    """Say of each row of one split which rung it has to beat, and whether it does.

    That is the nearest rung below which was trained; for the first mixture the best of all single
    models.
    """
    test = {row.name: row.nats["test"].mean for row in rows}
    judged: list[Row] = []
    for row in rows:
        rung = next(rung for rung in RUNGS if rung.name == row.name)
        below = rung.beats if rung.beats in test else _before(row, judged)
        beaten = not below or test[row.name] < test[below] + rung.tie
        tied = bool(below) and beaten and test[row.name] >= test[below]
        judged.append(dataclasses.replace(row, below=below, beaten=beaten, tied=tied))
    return judged


def _before(row: Row, others: Iterable[Row]) -> str:
    """Return the name of the last of the `others` in this row's chain; "" if it has none."""
    chain = [each.name for each in others if each.chain == row.chain]
    if not chain and row.chain == "mixtures":
        best = min(others, key=lambda each: each.nats["test"].mean, default=None)
        return best.name if best else ""
    return chain[-1] if chain else ""

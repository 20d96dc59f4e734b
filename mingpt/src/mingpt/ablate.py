"""What each part is worth: `python -m mingpt.ablate` trains models that differ by one thing each.

    --table paper     a small table 3 of Vaswani et al. (2017): their parts, one varied a row
    --table modern    the recipe `default`, one of today's parts left out a row
    --table nanogpt   nanoGPT's recipe, one of today's parts put in a row

Each row is a run of `mingpt.train` a seed, every one with the same number of updates and measured
once, at the end, so that nothing is chosen by the validation text. A row and its base share their
seeds and with them the order of the examples: differences are taken seed by seed, which cancels
what the two have in common.

The run folder ends up with `ablation.md`, `ablation.png` and `ablation.json`, and `jobs/` with the
run of every row and seed. Interrupted, it goes on with --resume where it was.
"""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from mingpt import recipes
from mingpt.data import DEFAULT_DATA, Text, check_length, find_data, load_text
from mingpt.gpt import GPT, GPTConfig
from mingpt.rungs import FLOPS_PER_SECOND, STEP_SECONDS
from shared import cli, files, plots
from shared.errors import ArtefactError, NumericalError, UsageError
from shared.estimates import Estimate, brief_count, brief_seconds, markdown_table
from shared.files import read_json
from shared.runs import RESULT, Run, saved_config, shown_data
from shared.workers import (
    RunTask,
    SweepConfig,
    make_clocks,
    refuse_failed,
    told_clocks,
    training_progress,
    work_off,
)

PACKAGE = "mingpt-ablate"
BASE = "base"
TableName = Literal["paper", "modern", "nanogpt"]
# Another run of the same table: more rows, more seeds, the same file at another place.
MAY_CHANGE = ["data", "seeds", "variants", "corpus.name"]
MODEL_PARTS = {field.name for field in fields(GPTConfig)}
# How all are run: what a result does not depend on, and no look at the validation text on the way.
RUNNING: dict[str, Any] = {
    "eval_every": 0,
    "eval_batch_size": 64,
    "keep_checkpoints": 1,
    "device": "cpu",
    "threads": 1,
    "sample": 0,
}
COLUMNS = (
    *("row", "instead of", "parameters", "CPU seconds", "validation"),
    *("difference", "interval excludes 0"),
)
BRIEF_COLUMNS = ("row", "params", "CPU s", "validation", "difference", "")
VERDICTS = {"better": plots.BLUE, "worse": plots.RED, "": plots.GREY}


# What is compared ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A row: what it changes of the base, by the names of `GPTConfig` and `TrainerConfig`."""

    changes: Mapping[str, Any]
    group: str = ""
    """Letter of the rows that belong together."""
    label: str = ""
    """Its name, where that is not the one change."""

    @property
    def name(self) -> str:
        """How it is called on the screen and in --variants."""
        return self.label or ",".join(f"{name}={value}" for name, value in self.changes.items())

    @property
    def title(self) -> str:
        """The name with its group before it."""
        return f"{self.group} {self.name}" if self.group else self.name


@dataclass(frozen=True)
class Study:
    """A table: a base, and the rows that differ from it."""

    title: str
    preset: str
    """The preset of `mingpt.train` that the base begins with."""
    settings: Mapping[str, Any]
    """What the base has otherwise."""
    max_steps: int
    """Updates of every run."""
    rows: Sequence[Variant]
    notes: str = ""
    """What else a reader of its figures should know, in sentences."""

    @property
    def variants(self) -> list[Variant]:
        """The base and its rows, in the order of the table."""
        return [Variant({}, label=BASE), *self.rows]

    @property
    def base(self) -> dict[str, Any]:
        """All settings of the base, by name."""
        return preset_values(self.preset) | dict(self.settings)

    def config(self, variant: Variant) -> GPTConfig:
        """Return the shape of a variant's model; raises ValueError for what cannot work."""
        values = self.base | dict(variant.changes)
        return GPTConfig(**{name: values[name] for name in MODEL_PARTS})

    def instead_of(self, variant: Variant) -> str:
        """Return what the base has where the variant has something else."""
        base = self.base | {"d_k": self.config(Variant({})).head_width}
        return ", ".join(str(base[name]) for name in variant.changes)

    def cost(self, variant: Variant) -> float:
        """Guess the seconds of a training: a fixed part, each step, and its arithmetic."""
        config, values = self.config(variant), self.base | dict(variant.changes)
        flops: float = (
            3 * GPT(config).flops_per_character() * values["batch_size"] * config.block_size
        )
        return 5.0 + self.max_steps * (STEP_SECONDS + flops / FLOPS_PER_SECOND)


def preset_values(preset: str) -> dict[str, Any]:
    """Return all settings of a preset of `mingpt.train`, of the model and of the trainer."""
    recipe = recipes.find(preset)
    return {**asdict(recipe.config), **asdict(recipe.trainer)}


def vary(group: str, **values: Sequence[Any]) -> list[Variant]:
    """Return a row for each value of each setting: `vary("A", n_head=(1, 2))` gives two."""
    return [Variant({name: each}, group) for name, many in values.items() for each in many]


WIDTH, WARMUP = 128, 300


def of_width(width: int) -> dict[str, Any]:
    """Return what follows a model's width in the paper: the rate (eq. 3) and the first weights.

    Embeddings of deviation d^-0.5 are what sec. 3.4 multiplies by sqrt(d). A square matrix of that
    deviation begins as Glorot and Bengio (2010) have it: queries, keys, values and, with
    norm_place=post, what attention returns.
    """
    return {
        "n_embd": width,
        "learning_rate": round((width * WARMUP) ** -0.5, 4),  # the highest, when warm
        "init_std": round(width**-0.5, 3),
    }


# The paper's base model and training (sec. 3, 5.3 and 5.4; table 3's first row), scaled down: 6
# layers of 512 become 2 of 128, d_ff = 4 d_model as there, the rate that of eq. 3 for our width.
PAPER: dict[str, Any] = {
    "block_size": 64,
    "n_layer": 2,
    "n_head": 4,
    **of_width(WIDTH),
    "n_hidden": 4 * WIDTH,
    "positions": "sinusoidal",
    "scaled": True,  # in every row, so that rows E differ in the positions only
    "norm": "layer",
    "norm_place": "post",
    "activation": "relu",
    "tied": True,
    "bias": True,
    "dropout": 0.1,
    "label_smoothing": 0.1,
    "batch_size": 12,
    "optimizer": "adamw",
    "beta1": 0.9,
    "beta2": 0.98,
    "weight_decay": 0.0,
    "grad_clip": 0.0,
    "schedule": "inverse_sqrt",
    "warmup_steps": WARMUP,
    "precision": "fp32",
}
PAPER_ROWS = [
    *vary("A", n_head=(1, 2, 8)),  # d_k = n_embd / n_head: the computation stays the same
    *vary("B", d_k=(8, 16)),
    *vary("C", n_layer=(1, 3, 4)),
    *(Variant(of_width(width), "C", f"n_embd={width}") for width in (64, 192)),
    *vary("C", n_hidden=(256, 1024)),
    *vary("D", dropout=(0.0, 0.2), label_smoothing=(0.0, 0.2)),
    *vary("E", positions=("learned", "rotary", "none")),
    # Not in the paper. `gpt.Writer` begins smaller with it: part of what pre-norm is since GPT-2.
    *vary("F", norm_place=("pre",)),
]
PAPER_NOTES = (
    "Dropout, label smoothing and depth pay only in longer training. Embeddings have a deviation"
    " of 1 after their scaling, sines one of 0.71; learned positions begin at 0.09. Rows n_embd"
    " have the learning rate of eq. 3 and the first weights of their width. With norm_place=pre"
    " the last matrices of sub-layers begin smaller by sqrt(2 L), and the first loss is over 1.5"
    " times that of guessing, as embeddings that reach the head unchanged score the character read."
)
# Today's parts, and the settings by which the two recipes that we compare differ in them.
PARTS = (
    *("positions", "norm", "embed_norm", "qk_norm", "activation", "conv", "zero_init"),
    *("tied", "softcap"),
)
# For everything, where Muon is left out: nobody tuned it, and one rate might be unfair to AdamW.
ADAMW_RATES = (1e-3, 3e-3, 1e-2)
MODERN_NOTES = (
    "AdamW has three rates, of which the best is to be compared. With positions=learned their"
    " vectors begin at a deviation of 0.02, beside embeddings of 1."
)


def exchanged(own: str, other: str, without: Sequence[str] = ()) -> list[Variant]:
    """Return a row for each of today's parts, in which preset `own` has it as `other` does.

    Settings that are the same in both give no row, nor do those of `without`. With another context
    the batch changes too: an update sees as many characters.
    """
    values, others = preset_values(own), preset_values(other)
    parts = [name for name in PARTS if values[name] != others[name] and name not in without]
    rows = [Variant({name: others[name]}) for name in parts]
    if values["optimizer"] != others["optimizer"]:
        rows += optimizer_rows(others)
    if values["block_size"] != others["block_size"]:
        size = others["block_size"]
        batch = max(1, values["batch_size"] * values["block_size"] // size)
        changes = {"block_size": size, "batch_size": batch}
        rows.append(Variant(changes, label=f"block_size={size}"))
    return rows


def optimizer_rows(other: Mapping[str, Any]) -> list[Variant]:
    """Return the rows that train with the optimizer of `other`: Muon at its rate, AdamW at some."""
    name = other["optimizer"]
    if name == "muon":
        changes = {"optimizer": name, "muon_learning_rate": other["muon_learning_rate"]}
        return [Variant(changes, label=f"optimizer={name}")]
    return [
        # No comma in the label: they part the names of --variants.
        Variant({"optimizer": name, "learning_rate": rate}, label=f"optimizer={name}@{rate:g}")
        for rate in ADAMW_RATES
    ]


STUDIES: dict[TableName, Study] = {
    "paper": Study("Table 3 of the paper, small", "nanogpt", PAPER, 600, PAPER_ROWS, PAPER_NOTES),
    "modern": Study(
        "The recipe `default`, a part left out",
        "default",
        {},
        300,
        # Tied, embeddings of deviation 1 would be the head: the first loss is four times that of
        # guessing, and the row would measure how fast a bad start is repaired.
        exchanged("default", "nanogpt", without=["tied"]),
        MODERN_NOTES,
    ),
    "nanogpt": Study(
        "nanoGPT's recipe, a part put in", "nanogpt", {}, 600, exchanged("nanogpt", "default")
    ),
}


# Jobs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job(RunTask):
    """One training run: a task for `shared.workers`."""

    study: Study
    variant: Variant
    seed: int
    folder: Path
    """The run folder."""
    steps: int
    """Updates."""
    cost: float = 1.0
    """A guess of the seconds it takes."""
    data: str = ""

    @property
    def name(self) -> str:
        """How it is called on the screen."""
        return f"{self.variant.name}, seed {self.seed}"

    def words(self) -> list[str]:
        """Return the words after `python -m` that do this job, for a reader to repeat."""
        ask = {"max_steps": self.steps, "seed": self.seed}
        values = {**self.study.settings, **self.variant.changes, **RUNNING, **ask}
        words = ["mingpt.train", "--preset", self.study.preset]
        for name, value in values.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words + (["--data", self.data] if self.data else [])

    def command(self) -> str:
        """Return the command of `words`, for a file that others will read."""
        return f"python -m {shlex.join(replace(self, data=shown_data(self.data)).words())}"

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, and the loss last heard of."""
        return training_progress(self.folder, self.steps)

    def outcome(self) -> str:
        """Return the nats per character."""
        return f"val {Result.of(self).nats:.4f}"


@dataclass(frozen=True)
class Result:
    """What came of a job."""

    job: Job
    nats: float
    """Mean over every target of the validation text, in windows that do not overlap."""
    parameters: int
    cpu_seconds: float

    @classmethod
    def of(cls, job: Job) -> "Result":
        """Read what a finished job left.

        Raises NumericalError where its loss did not stay finite, ArtefactError for files that are
        not its own.
        """
        path = job.folder / RESULT
        result = read_json(path)
        try:
            nats = result["val_loss"]
            if nats is None or not math.isfinite(nats):  # JSON has null for it
                raise NumericalError(f"{job.name}: the loss did not stay finite ({path})")
            return cls(
                job=job,
                nats=float(nats),
                parameters=int(result["parameters"]),
                cpu_seconds=float(result["cpu_seconds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{path}: not what mingpt.train writes ({error!r}); delete it and --resume"
            ) from error


def read_results(jobs: Sequence[Job]) -> tuple[list[Result], list[NumericalError]]:
    """Return what came of the jobs that are done, and the errors of those that diverged.

    Raises ArtefactError for files that are not theirs.
    """
    results, diverged = [], []
    for job in jobs:
        if job.done:
            try:
                results.append(Result.of(job))
            except NumericalError as error:
                diverged.append(error)
    return results, diverged


# The table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A variant over all seeds."""

    variant: Variant
    instead_of: str
    """What the base has there."""
    seeds: int
    parameters: int
    cpu_seconds: float
    """Of one run with the measurement at its end, the mean over seeds."""
    nats: Estimate
    """Validation nats per character."""
    difference: Estimate | None
    """Nats of the row less those of the base with the same seed; None for the base."""

    @property
    def verdict(self) -> str:
        """Return better or worse where the interval of the difference excludes 0, else nothing."""
        if self.difference is None or self.difference.half is None:
            return ""
        if abs(self.difference.mean) <= self.difference.half:
            return ""
        return "better" if self.difference.mean < 0 else "worse"

    def cells(self) -> list[str]:
        """Return the texts of `COLUMNS`, in full."""
        return [
            self.variant.title,
            self.instead_of,
            f"{self.parameters:,}",
            brief_seconds(self.cpu_seconds),
            str(self.nats),
            signed(self.difference),
            self.verdict,
        ]

    def brief(self) -> list[str]:
        """Return the texts of `BRIEF_COLUMNS`, for a narrow screen."""
        title, _, _, seconds, nats, difference, verdict = self.cells()
        return [title, brief_count(self.parameters), seconds, nats, difference, verdict]


def signed(difference: Estimate | None) -> str:
    """Write a difference with its sign: `+0.0210 ± 0.0034`."""
    if difference is None:
        return ""
    return f"{'+' if difference.mean >= 0 else ''}{difference}"


def make_rows(study: Study, results: Sequence[Result]) -> list[Row]:
    """Return the rows of the variants that have results, in the order of the table.

    Differences are between runs of the same seed, over the seeds that row and base both have.
    """
    nats = {(each.job.variant.name, each.job.seed): each.nats for each in results}
    rows = []
    for variant in study.variants:
        own = [each for each in results if each.job.variant.name == variant.name]
        seeds = [each.job.seed for each in own if (BASE, each.job.seed) in nats]
        pairs = [nats[variant.name, seed] - nats[BASE, seed] for seed in seeds]
        if own:
            rows.append(
                Row(
                    variant=variant,
                    instead_of=study.instead_of(variant),
                    seeds=len(own),
                    parameters=own[0].parameters,
                    cpu_seconds=Estimate.of([each.cpu_seconds for each in own]).mean,
                    nats=Estimate.of([each.nats for each in own]),
                    difference=Estimate.of(pairs) if pairs and variant.name != BASE else None,
                )
            )
    return rows


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as rich shows them, a gap between the groups."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # two blanks between columns
    )
    for number, column in enumerate(BRIEF_COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    styles = {"better": "green", "worse": "red", "": ""}
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].variant.group != row.variant.group
        table.add_row(*map(Cell, row.brief()), end_section=last, style=styles[row.verdict])
    return table


def draw(rows: Sequence[Row], out: Path, *, title: str, subtitle: str) -> None:
    """Draw the difference of each row to the base, a dot with its 95% interval, as a PNG.

    The colour says whether the interval excludes 0. The base is the line at 0.
    """
    shown = [row for row in rows if row.difference is not None]
    groups = list(dict.fromkeys(row.variant.group for row in shown))
    places = [i + 0.5 * groups.index(row.variant.group) for i, row in enumerate(shown)]
    with plots.picture_style():
        figure = plots.new_figure(9.0, 1.9 + 0.34 * len(shown))
        axes = figure.add_subplot()
        axes.axvline(0, color="#333333", linewidth=1.2)
        labels = {"better": "better", "worse": "worse", "": "interval holds 0"}
        for row, place in zip(shown, places, strict=True):
            difference, verdict = row.difference, row.verdict
            assert difference is not None  # `shown` has no other
            axes.errorbar(
                difference.mean, place, xerr=difference.half or 0.0, fmt="o", markersize=6,
                color=VERDICTS[verdict], capsize=3, linewidth=1.6, label=labels.pop(verdict, None),
            )  # fmt: skip
            axes.annotate(
                f"{difference.mean:+.3f}", (1, place), (6, 0), va="center", color=VERDICTS[verdict],
                xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            )  # fmt: skip
        axes.set_yticks(places, [row.variant.title for row in shown])
        axes.set_ylim(max(places) + 0.6, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor="#333333")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("validation nats per character above the base (left is better)")
        figure.legend(loc="outside lower right", ncols=3)
        plots.headline(axes, title, subtitle)
        plots.save_figure(figure, out)


# The command -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AblateConfig(SweepConfig):
    """Which table to fill, how often, and on what."""

    table: TableName = "paper"
    """paper: a small table 3, one setting varied a row; modern: the recipe default, one of today's
    parts left out a row; nanogpt: nanoGPT's recipe, one of them put in a row."""
    variants: str = ""
    """Rows with commas between them, such as n_head=1,d_k=8; all if not given. The base is always
    there."""
    max_steps: int | None = None
    """Updates of every run; the table's own number if not given."""
    data: str = ""
    """A text file, a folder of them or a data set's name; shakespeare if not given, or python-docs
    where that can't be had."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [variant.name for variant in self.study.rows]
        for name in self.names:
            if name not in (BASE, *known):
                raise UsageError(
                    f"no row {name!r} in the table {self.table}"
                    f"{cli.suggest(name, known) or '; it has ' + ', '.join(known)}"
                )

    @property
    def study(self) -> Study:
        """The table, with the number of updates asked for."""
        study = STUDIES[self.table]
        return replace(study, max_steps=self.max_steps or study.max_steps)

    @property
    def names(self) -> list[str]:
        """The rows asked for."""
        return [name.strip() for name in self.variants.split(",") if name.strip()]

    @property
    def chosen(self) -> list[Variant]:
        """The base and the rows to train."""
        wanted = {BASE, *self.names} if self.names else None
        return [each for each in self.study.variants if wanted is None or each.name in wanted]

    def saved(self, text: Text) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the numbers, the settings included."""
        study = self.study
        rows = {variant.name: dict(variant.changes) for variant in study.rows}
        how = {"base": study.base, "rows": rows, "max_steps": study.max_steps}
        corpus = {"name": shown_data(text.name), "sha256": text.sha256}
        return {**self.deciding(), "corpus": corpus, "how": how}

    def jobs(self, folder: Path, text: Text) -> list[Job]:
        """Return the jobs of all rows and seeds, in the order of the table."""
        # That the default can't be had need not be found out again by every job.
        data = self.data or ("" if text.name == DEFAULT_DATA else text.name)
        study, steps = self.study, self.study.max_steps
        jobs = []
        for variant in self.chosen:
            cost = study.cost(variant)
            for seed in range(self.seeds):
                own = folder / f"{variant.name}-{seed}"
                jobs.append(Job(study, variant, seed, own, steps, cost, data))
        return jobs

    def command(self) -> str:
        """Return the command that repeats the table anywhere: without folders."""
        words = ["python", "-m", "mingpt.ablate", "--table", self.table, "--seeds", str(self.seeds)]
        words += ["--variants", self.variants] if self.variants else []
        words += ["--max-steps", str(self.max_steps)] if self.max_steps else []
        return shlex.join(words + (["--data", shown_data(self.data)] if self.data else []))


def main(config: AblateConfig) -> None:
    """Train a base and models that differ from it by one thing each; tell what each is worth."""
    text = load_text(find_data(config.data))
    for variant in config.chosen:
        check_length(text, config.study.config(variant).block_size)  # before anything is spent
    with Run.open(
        PACKAGE,
        config.out,
        resume=config.resume,
        config=config.saved(text),
        may_change=MAY_CHANGE,
    ) as run:
        ablate(config, text, run)


def ablate(config: AblateConfig, text: Text, run: Run) -> None:
    """Do the jobs that are not done yet, write what came of all, and say what failed.

    Raises a Failure with the exit code of the first job that failed, NumericalError where one
    diverged; the rest is in the table.
    """
    console, started = Console(), time.monotonic()
    files.make_folder(run.folder / "jobs")
    jobs = config.jobs(run.folder / "jobs", text)
    open_jobs = [job for job in jobs if not job.done]
    done = len(jobs) - len(open_jobs)
    describe(console, config, text, run, config.plan(len(jobs), done))
    remedy = f"; continue with --resume --out {run.folder}"
    failed = work_off(open_jobs, config.processes, remedy)
    results, diverged = read_results(jobs)
    rows = make_rows(config.study, results)
    clocks = make_clocks(started, [each.cpu_seconds for each in results], kept=done)
    write(config, text, run, results, rows, clocks)
    console.print(terminal_table(rows, config.study.title))
    console.print(explanation(config.study, text, rows), soft_wrap=True)
    cli.print_settings(console, "", told_clocks(clocks) | {"chart": run.folder / "ablation.png"})
    refuse_failed(failed, len(open_jobs), remedy)
    if diverged:
        raise NumericalError(
            f"{len(diverged)} of {len(jobs)} runs left out, the first: {diverged[0]}"
        )


def describe(
    console: Console, config: AblateConfig, text: Text, run: Run, plan: Mapping[str, str]
) -> None:
    """Print what is about to be trained on what."""
    study = config.study
    cli.print_settings(
        console,
        study.title,
        {
            "data": f"{shown_data(text.name)} ({text.sha256[:12]}), {len(text.train):,} "
            f"characters to train on, {len(text.val):,} to validate",
            "rows": ", ".join(variant.name for variant in config.chosen),
            "base": ", ".join(f"{name} {value}" for name, value in study.settings.items())
            or f"the preset {study.preset}",
            "updates": f"{study.max_steps:,} each",
            **plan,
            "run": run.folder,
        },
    )


def explanation(study: Study, text: Text, rows: Sequence[Row]) -> str:
    """Say how the figures are to be read."""
    base = study.base
    characters = study.max_steps * base["batch_size"] * base["block_size"]
    told = (
        f"Nats per character after {study.max_steps:,} updates, which read {characters:,}"
        f" characters, {characters / len(text.train):,.2f} epochs of the text; negative differences"
        " are better. CPU seconds have the measurement in them."
    )
    if max((row.seeds for row in rows), default=0) > 1:
        told += (
            " After ± is half the 95% interval over seeds (differences: seed by seed), so that of"
            " 20 rows without effect about one is marked by chance."
        )
    return f"{told} {study.notes}".rstrip()


def write(
    config: AblateConfig,
    text: Text,
    run: Run,
    results: Sequence[Result],
    rows: Sequence[Row],
    clocks: Mapping[str, float],
) -> None:
    """Write ablation.json, ablation.md and, where there is a difference, ablation.png."""
    study, name = config.study, shown_data(text.name)
    content = {
        "command": config.command(),
        "commit": run.commit,
        "data": {"name": name, "sha256": text.sha256},
        "table": config.table,
        "max_steps": study.max_steps,
        **clocks,
        "base": study.base,
        "rows": [row_json(row) for row in rows],
        "jobs": [job_json(each) for each in results],
    }
    told = "".join(f"- {name}: {text}\n" for name, text in told_clocks(clocks).items())
    page = (
        f"{study.title}. {explanation(study, text, rows)}\n\n"
        f"{markdown_table(COLUMNS, [row.cells() for row in rows])}\n"
        f"```\n{config.command()}\n```\n\n{told}"
    )
    files.write_json(run.folder / "ablation.json", content)
    files.write_file(run.folder / "ablation.md", page.encode())
    if any(row.difference for row in rows):
        seeds = max(row.seeds for row in rows)
        told = f", whiskers: 95% intervals over {seeds} seeds" * (seeds > 1)
        draw(
            rows,
            run.folder / "ablation.png",
            title=study.title.replace("`", ""),
            subtitle=f"{name}, {study.max_steps:,} updates each{told}",
        )


def row_json(row: Row) -> dict[str, Any]:
    """Return a row as ablation.json has it."""
    return {
        "name": row.variant.name,
        "group": row.variant.group,
        "changes": dict(row.variant.changes),
        "instead_of": row.instead_of,
        "seeds": row.seeds,
        "parameters": row.parameters,
        "cpu_seconds": row.cpu_seconds,
        "val_loss": asdict(row.nats),
        "difference": asdict(row.difference) if row.difference else None,
        "interval_excludes_0": bool(row.verdict),
    }


def job_json(result: Result) -> dict[str, Any]:
    """Return a job's numbers, and the command to repeat it."""
    return {
        "row": result.job.variant.name,
        "seed": result.job.seed,
        "command": result.job.command(),
        "cpu_seconds": result.cpu_seconds,
        "val_loss": result.nats,
    }


def resumed(words: Sequence[str]) -> AblateConfig | None:
    """Return the settings of the run that the command line asks to resume, as its defaults."""
    saved = saved_config(PACKAGE, words)
    if saved is None:
        return None
    names = ("table", "variants", "seeds", "max_steps", "data")
    try:
        return AblateConfig(**{name: saved[name] for name in names})
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ArtefactError(
            f"config.json is not that of a run of mingpt.ablate ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=resumed)

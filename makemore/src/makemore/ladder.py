"""All models on one scale: `python -m makemore.ladder` trains every rung and draws the table.

The run folder ends up with `ladder.md`, `ladder.png` and `ladder.json` (the table, the chart, and
all numbers), `samples.md` (what each rung makes up), and `jobs/` with the run of every rung and
seed. Interrupted, the ladder goes on with --resume where it was.

The exit code is 6 where a rung does not beat the one below: the promise of a ladder is that each
idea pays, and numbers that break it are a numerical failure, not the user's mistake or a crash.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from makemore.data import DEFAULT_DATA, SplitName, find_data, read_items, split_items
from makemore.recipes import RECIPES
from makemore.report import Row, draw, markdown, terminal_table
from makemore.rungs import NGRAM, RUNGS, UNIFORM, Job, Mixture, Result, judge, make_rows, mixtures
from shared import cli, files
from shared.datasets import Dataset
from shared.errors import ArtefactError, NumericalError, UsageError
from shared.runs import Run, command, saved_config, shown_data
from shared.workers import Failed, SweepConfig, make_clocks, refuse_failed, told_clocks, work_off

PACKAGE = "makemore-ladder"
CHOICES = tuple(rung.name for rung in RUNGS if rung.chain != "mixtures")


@dataclass(frozen=True, kw_only=True)
class LadderConfig(SweepConfig):
    """Which rungs to climb, how often, and on what."""

    data: str = ""
    """A file of one item a line, or a data set's name; names if not given, or words where that
    can't be had."""
    split: Literal["karpathy", "random", "both"] = "karpathy"
    """How the items are divided; see python -m makemore.train --help."""
    seeds: int = 1
    """Runs of each neural rung, with seeds 0, 1, ...; from two on there are intervals."""
    rungs: str = ""
    """Names with commas between them, such as mlp,gru,ngram; all if not given. Mixtures come along
    where there is something to mix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if name not in CHOICES:
                raise UsageError(
                    f"--rungs: no rung {name!r}{cli.suggest(name, CHOICES)}; there are "
                    f"{', '.join(CHOICES)}"
                )
        if self.names == (UNIFORM,):
            raise UsageError(f"--rungs: {UNIFORM} alone needs no training; name another rung too")

    @property
    def names(self) -> tuple[str, ...]:
        """The rungs to climb."""
        names = tuple(name.strip() for name in self.rungs.split(",") if name.strip())
        return names or CHOICES

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits to climb them on."""
        return ("karpathy", "random") if self.split == "both" else (self.split,)

    def saved(self, dataset: Dataset) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the numbers, recipes included."""
        recipes = {
            name: {"model": recipe.config, "trainer": recipe.trainer}
            for name, recipe in RECIPES.items()
        }
        corpus = {"name": shown_data(dataset.name), "sha256": dataset.sha256}
        return {**self.deciding(), "corpus": corpus, "recipes": recipes}

    def jobs(self, folder: Path, dataset: Dataset) -> list[Job]:
        """Return the jobs of all rungs, splits and seeds, in the order of the table."""
        # That the default can't be had need not be found out again by every job.
        data = self.data or ("" if dataset.name == DEFAULT_DATA else dataset.name)
        return [
            Job(
                rung=rung,
                split=split,
                seed=seed,
                folder=folder / "jobs" / f"{rung.name}-{split}-{seed}",
                data=data,
                max_steps=self.max_steps,
            )
            for split in self.splits
            for rung in RUNGS
            if rung.name in self.names and rung.recipe
            for seed in range(self.seeds if rung.chain == "neural" else 1)
        ]


FITTED = "Mixtures are fitted to the validation names: their val is of what they were fitted to."

# Another ladder on the same numbers: more rungs, more seeds, the same file at another place.
MAY_CHANGE = ["data", "split", "seeds", "rungs", "corpus.name"]


def main(config: LadderConfig) -> None:
    """Train every rung with its tuned settings; write the table, the chart and the samples."""
    dataset = find_data(config.data)
    items = read_items(dataset)  # what is wrong with them is said before anything is spent
    with Run.open(
        PACKAGE,
        config.out,
        resume=config.resume,
        config=config.saved(dataset),
        may_change=MAY_CHANGE,
    ) as run:
        climb(config, dataset, items, run)


def climb(config: LadderConfig, dataset: Dataset, items: Sequence[str], run: Run) -> None:
    """Do the jobs that are not done yet, write what came of all, and say what failed.

    Raises NumericalError where a rung does not beat the one below, or a Failure with the exit
    code of the first job that failed.
    """
    console, started = Console(), time.monotonic()
    jobs = config.jobs(run.folder, dataset)
    open_jobs = [job for job in jobs if not job.done]
    done = len(jobs) - len(open_jobs)
    describe(console, config, dataset, run, config.plan(len(jobs), done))
    files.make_folder(run.folder / "jobs")
    remedy = f"; continue with --resume --out {run.folder}"
    failed = work_off(open_jobs, config.processes, remedy)
    ladder = Ladder.of(config, items, [Result.of(job) for job in jobs if job.done])
    training = [each.cpu_seconds for each in ladder.results]
    clocks = make_clocks(started, training, kept=done)
    ladder.write(run, dataset, clocks)
    ladder.show(console)
    cli.print_settings(console, "", told_clocks(clocks) | {"chart": run.folder / "ladder.png"})
    complain(failed, ladder.rows, len(open_jobs), remedy)


def describe(
    console: Console, config: LadderConfig, dataset: Dataset, run: Run, plan: Mapping[str, str]
) -> None:
    """Print what is about to be trained on what."""
    cli.print_settings(
        console,
        f"The ladder on {shown_data(dataset.name)}",
        {
            "data": f"{shown_data(dataset.name)} ({dataset.sha256[:12]}), {config.split} split",
            "rungs": ", ".join(config.names),
            **plan,
            "run": run.folder,
        },
    )


@dataclass(frozen=True)
class Ladder:
    """What came of all jobs: the numbers, the mixtures made of them, and the judged rows."""

    results: Sequence[Result]
    mixed: Sequence[Mixture]
    rows: Sequence[Row]
    judged: bool

    @classmethod
    def of(cls, config: LadderConfig, items: Sequence[str], results: Sequence[Result]) -> "Ladder":
        """Mix, tabulate and judge; a ladder with capped steps is not judged."""
        judged = all(each.job.max_steps is None for each in results)
        mixed: list[Mixture] = []
        rows: list[Row] = []
        for split in config.splits:
            own = [each for each in results if each.job.split == split]
            if own:
                found = mixtures(own, split_items(items, split))
                of_split = make_rows(own, found, uniform=UNIFORM in config.names)
                mixed += found
                rows += judge(of_split) if judged else of_split
        return cls(results, mixed, rows, judged)

    def tables(self) -> dict[str, list[Row]]:
        """Return the rows of each split."""
        splits = dict.fromkeys(row.split for row in self.rows)
        return {split: [row for row in self.rows if row.split == split] for split in splits}

    def show(self, console: Console) -> None:
        """Print a table a split."""
        for split, rows in self.tables().items():
            console.print(terminal_table(rows, f"{split} split, nats per character"))
        if self.mixed:
            console.print(FITTED, soft_wrap=True)
        if not self.judged:
            console.print("Not judged: with --max-steps the rungs are not fully trained.")

    def write(self, run: Run, dataset: Dataset, clocks: Mapping[str, float]) -> None:
        """Write ladder.json, ladder.md, ladder.png and samples.md."""
        name = shown_data(dataset.name)
        content = {
            "command": command(),
            "commit": run.commit,
            "data": {"name": name, "sha256": dataset.sha256},
            "judged": self.judged,
            **clocks,
            "rows": [row_json(row) for row in self.rows],
            "jobs": [job_json(each) for each in self.results],
            "mixtures": [mixture_json(each) for each in self.mixed],
        }
        files.write_json(run.folder / "ladder.json", content)
        files.write_file(run.folder / "ladder.md", self.markdown(clocks).encode())
        files.write_file(run.folder / "samples.md", self.samples().encode())
        if self.rows:
            seeds = max(row.seeds for row in self.rows)
            draw(
                self.rows,
                run.folder / "ladder.png",
                title=f"The ladder on {name}",
                subtitle="from counting to the transformer"
                + (f"; whiskers: 95% intervals over {seeds} seeds" if seeds > 1 else ""),
                line=NGRAM,
            )

    def markdown(self, clocks: Mapping[str, float]) -> str:
        """Return the tables, and under them each rung's command and what all of it took."""
        parts = []
        for split, rows in self.tables().items():
            parts.append(f"Nats per character, {split} split:\n\n{markdown(rows)}")
        if self.mixed:
            parts.append(f"{FITTED}\n")
        lines = [f"python -m {shlex.join(each.job.words())}" for each in self.first()]
        parts.append("\n".join(["```", *lines, "```\n"]))
        parts.append("".join(f"- {name}: {text}\n" for name, text in told_clocks(clocks).items()))
        return "\n".join(parts)

    def samples(self) -> str:
        """Return what each rung made up, as Markdown."""
        return "\n".join(
            f"**{each.job.rung.name}**: "
            + ", ".join(f"{item} ({mark})" for item, mark in each.samples)
            + "\n"
            for each in self.first()
        )

    def first(self) -> list[Result]:
        """Return the results of the first split and seed, one a rung."""
        return [
            each
            for each in self.results
            if each.job.split == self.results[0].job.split and each.job.seed == 0
        ]


def complain(failed: Sequence[Failed], rows: Sequence[Row], jobs: int, remedy: str) -> None:
    """Raise where jobs failed, with the code of the first, or where a rung fails."""
    refuse_failed(failed, jobs, remedy)
    short = [row for row in rows if not row.beaten]
    if short:
        test = {(row.split, row.name): row.nats["test"].mean for row in rows}
        told = [
            f"{row.name} ({row.split}) has {row.nats['test'].mean:.4f} test nats per character, "
            f"{row.below} below it {test[row.split, row.below]:.4f}"
            for row in short
        ]
        count = f"{len(short)} rung does" if len(short) == 1 else f"{len(short)} rungs do"
        raise NumericalError(f"{count} not beat the one below: {'; '.join(told)}")


def row_json(row: Row) -> dict[str, Any]:
    """Return a row as ladder.json has it: asdict, with bits."""
    values = asdict(row)
    values["bits_per_character"] = row.bits_per_character
    return values


def job_json(result: Result) -> dict[str, Any]:
    """Return a job's numbers, and the command to repeat it."""
    job = result.job
    return {
        "rung": job.rung.name,
        "split": job.split,
        "seed": job.seed,
        "command": f"python -m {shlex.join(job.words())}",
        "cpu_seconds": result.cpu_seconds,
        "nats": dict(result.nats),
    }


def mixture_json(mixture: Mixture) -> dict[str, Any]:
    """Return a mixture's weights and numbers."""
    first = mixture.members[0].job
    names = [each.job.rung.name for each in mixture.members]
    return {
        "rung": mixture.name,
        "split": first.split,
        "seed": first.seed,
        "weights": dict(zip(names, mixture.weights, strict=True)),
        "nats": dict(mixture.nats),
    }


def resumed(words: Sequence[str]) -> LadderConfig | None:
    """Return the settings of the ladder that the command line asks to resume, as its defaults."""
    saved = saved_config(PACKAGE, words)
    if saved is None:
        return None
    try:
        names = ("data", "split", "seeds", "rungs", "max_steps")
        return LadderConfig(**{name: saved[name] for name in names})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"config.json is not that of a run of makemore.ladder ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=resumed)

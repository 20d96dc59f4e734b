"""All models on one scale: `python -m mingpt.ladder` trains every rung and draws the table.

The run folder ends up with `ladder.md`, `ladder.png` and `ladder.json` (the table, the chart, and
all numbers), `samples.md` (what each rung writes), and `jobs/` with the run of every rung and
seed. Interrupted, the ladder goes on with --resume where it was.

The exit code is 6 where a rung does not beat the ones below it: the promise of a ladder is that
each idea pays, and numbers that break it are a numerical failure, not the user's mistake.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mingpt.climb import SAMPLE
from mingpt.data import DEFAULT_DATA, Text, check_length, find_data, load_text
from mingpt.report import PARTS, Part, Row, draw, judge, markdown, terminal_table
from mingpt.rungs import BLOCK_SIZE, RUNGS, Rung, find
from shared import cli, files
from shared.errors import ArtefactError, NumericalError, UsageError
from shared.estimates import Estimate
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

PACKAGE = "mingpt-ladder"
# Another ladder on the same numbers: more rungs, more seeds, the same file at another place.
MAY_CHANGE = ["data", "seeds", "rungs", "corpus.name"]


@dataclass(frozen=True)
class Job(RunTask):
    """One training run and its measurement: a task for `shared.workers`."""

    rung: Rung
    seed: int
    folder: Path
    """The run folder."""
    data: str = ""
    max_steps: int | None = None
    cost: float = 1.0
    """A guess of the seconds it takes."""

    @property
    def name(self) -> str:
        """How it is called on the screen."""
        return self.rung.name + (f", seed {self.seed}" if self.rung.trainer else "")

    @property
    def steps(self) -> int:
        """Updates of the training; 0 for a model that is counted."""
        return self.rung.steps(self.max_steps)

    def words(self) -> list[str]:
        """Return the words after `python -m` that do this job, for a reader to repeat."""
        words = ["mingpt.climb", "--rung", self.rung.name]
        if self.rung.trainer:
            words += ["--seed", str(self.seed)]
            words += ["--max-steps", str(self.max_steps)] if self.max_steps else []
        return words + (["--data", self.data] if self.data else [])

    def command(self) -> str:
        """Return the command of `words`, for a file that others will read."""
        return f"python -m {shlex.join(replace(self, data=shown_data(self.data)).words())}"

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, and the loss last heard of."""
        return training_progress(self.folder, self.steps)

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
    cpu_seconds: float
    sample: str

    @classmethod
    def of(cls, job: Job) -> "Result":
        """Read what a finished job left. Raises ArtefactError for files that are not its own."""
        result = read_json(job.folder / RESULT)
        try:
            return cls(
                job=job,
                nats={part: float(result[f"{part}_loss"]) for part in PARTS},
                parameters=int(result["parameters"]),
                counts=int(result["counts"]),
                flops=float(result["flops_per_character"]),
                cpu_seconds=float(result["cpu_seconds"]),
                sample=(job.folder / SAMPLE).read_text(),
            )
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ArtefactError(
                f"{job.folder / RESULT}: not what mingpt.climb writes ({error!r}); delete "
                "it and --resume"
            ) from error


@dataclass(frozen=True, kw_only=True)
class LadderConfig(SweepConfig):
    """Which rungs to climb, how often, and on what."""

    data: str = ""
    """A text file, a folder of them or a data set's name; shakespeare if not given, or python-docs
    where that can't be had."""
    rungs: str = ""
    """Names with commas between them, such as ngram,bigram,one-head; all if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            find(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The rungs to climb."""
        names = tuple(name.strip() for name in self.rungs.split(",") if name.strip())
        return names or tuple(rung.name for rung in RUNGS)

    def saved(self, text: Text) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the numbers, the rungs included."""
        how = {rung.name: {"model": rung.settings, "trainer": rung.trainer} for rung in RUNGS}
        corpus = {"name": shown_data(text.name), "sha256": text.sha256}
        return {**self.deciding(), "corpus": corpus, "how": how}

    def jobs(self, folder: Path, text: Text) -> list[Job]:
        """Return the jobs of all rungs and seeds, in the order of the table."""
        # That the default can't be had need not be found out again by every job.
        data = self.data or ("" if text.name == DEFAULT_DATA else text.name)
        jobs = []
        for rung in [rung for rung in RUNGS if rung.name in self.names]:
            cost = rung.cost(self.max_steps)
            for seed in range(self.seeds if rung.trainer else 1):
                own = folder / "jobs" / f"{rung.name}-{seed}"
                jobs.append(Job(rung, seed, own, data, self.max_steps, cost))
        return jobs

    def command(self) -> str:
        """Return the command that repeats the ladder anywhere: without folders."""
        words = ["python", "-m", "mingpt.ladder", "--seeds", str(self.seeds)]
        words += ["--rungs", self.rungs] if self.rungs else []
        words += ["--max-steps", str(self.max_steps)] if self.max_steps else []
        return shlex.join(words + (["--data", shown_data(self.data)] if self.data else []))


def main(config: LadderConfig) -> None:
    """Train every rung with its settings; write the table, the chart and the samples."""
    text = load_text(find_data(config.data))
    check_length(text, BLOCK_SIZE)  # said before anything is spent
    with Run.open(
        PACKAGE,
        config.out,
        resume=config.resume,
        config=config.saved(text),
        may_change=MAY_CHANGE,
    ) as run:
        climb(config, text, run)


def climb(config: LadderConfig, text: Text, run: Run) -> None:
    """Do the jobs that are not done yet, write what came of all, and say what failed.

    Raises NumericalError where a rung does not beat the ones below, or a Failure with the exit
    code of the first job that failed.
    """
    console, started = Console(), time.monotonic()
    jobs = config.jobs(run.folder, text)
    open_jobs = [job for job in jobs if not job.done]
    done = len(jobs) - len(open_jobs)
    describe(console, config, text, run, config.plan(len(jobs), done))
    files.make_folder(run.folder / "jobs")
    remedy = f"; continue with --resume --out {run.folder}"
    failed = work_off(open_jobs, config.processes, remedy)
    ladder = Ladder.of([Result.of(job) for job in jobs if job.done])
    training = [each.cpu_seconds for each in ladder.results]
    clocks = make_clocks(started, training, kept=done)
    ladder.write(run, text, config.command(), clocks)
    ladder.show(console)
    cli.print_settings(console, "", told_clocks(clocks) | {"chart": run.folder / "ladder.png"})
    refuse_failed(failed, len(open_jobs), remedy)
    complain(ladder.rows)


def describe(
    console: Console, config: LadderConfig, text: Text, run: Run, plan: Mapping[str, str]
) -> None:
    """Print what is about to be trained on what."""
    cli.print_settings(
        console,
        f"The ladder on {shown_data(text.name)}",
        {
            "data": f"{shown_data(text.name)} ({text.sha256[:12]}), {len(text.train):,} "
            f"characters to train on, {len(text.val):,} to validate",
            "rungs": ", ".join(config.names),
            **plan,
            "run": run.folder,
        },
    )


@dataclass(frozen=True)
class Ladder:
    """What came of all jobs: the numbers, and the judged rows made of them."""

    results: Sequence[Result]
    rows: Sequence[Row]
    judged: bool

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Ladder":
        """Tabulate and judge; a ladder with capped steps is not judged."""
        judged = all(each.job.max_steps is None for each in results)
        rows = make_rows(results)
        return cls(results, judge(rows) if judged else rows, judged)

    def show(self, console: Console) -> None:
        """Print the table."""
        console.print(terminal_table(self.rows, "nats per character"))
        if not self.judged:
            console.print("Not judged: with --max-steps the rungs are not fully trained.")

    def write(self, run: Run, text: Text, command: str, clocks: Mapping[str, float]) -> None:
        """Write ladder.json, ladder.md, ladder.png and samples.md."""
        name = shown_data(text.name)
        content = {
            "command": command,
            "commit": run.commit,
            "data": {"name": name, "sha256": text.sha256},
            "judged": self.judged,
            **clocks,
            "rows": [row_json(row) for row in self.rows],
            "jobs": [job_json(each) for each in self.results],
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
                subtitle="from guessing to the transformer"
                + (f"; whiskers: 95% intervals over {seeds} seeds" if seeds > 1 else ""),
            )

    def markdown(self, clocks: Mapping[str, float]) -> str:
        """Return the table and what each rung added, the commands and what all of it took."""
        lines = [each.job.command() for each in self.first()]
        told = "".join(f"- {name}: {text}\n" for name, text in told_clocks(clocks).items())
        commands = "\n".join(["```", *lines, "```\n"])
        return f"Nats per character:\n\n{markdown(self.rows)}\n{commands}\n{told}"

    def samples(self) -> str:
        """Return what each rung wrote, as Markdown."""
        return "\n".join(
            f"**{each.job.rung.name}**\n\n```\n{each.sample.strip()}\n```\n"
            for each in self.first()
        )

    def first(self) -> list[Result]:
        """Return the results of the first seed, one a rung."""
        return [each for each in self.results if each.job.seed == 0]


def make_rows(results: Sequence[Result]) -> list[Row]:
    """Return the table's rows in the order of `RUNGS`, not judged yet."""
    rows = []
    for rung in RUNGS:
        own = [each for each in results if each.job.rung == rung]
        if own:
            rows.append(
                Row(
                    rung=rung,
                    seeds=len(own) if rung.trainer else 0,
                    parameters=own[0].parameters,
                    counts=own[0].counts,
                    flops=own[0].flops,
                    cpu_seconds=Estimate.of([each.cpu_seconds for each in own]).mean,
                    nats={part: Estimate.of([each.nats[part] for each in own]) for part in PARTS},
                )
            )
    return rows


def complain(rows: Sequence[Row]) -> None:
    """Raise NumericalError where a rung does not beat one below it."""
    val = {row.name: row.nats["val"].mean for row in rows}
    told = [
        f"{row.name} has {val[row.name]:.4f} validation nats per character, "
        + " and ".join(f"{name} {val[name]:.4f}" for name in row.short_of)
        for row in rows
        if not row.beaten
    ]
    if told:
        count = "1 rung does" if len(told) == 1 else f"{len(told)} rungs do"
        raise NumericalError(f"{count} not keep what the ladder promises: {'; '.join(told)}")


def row_json(row: Row) -> dict[str, Any]:
    """Return a row as ladder.json has it."""
    return {
        "name": row.name,
        "chain": row.rung.chain,
        "adds": row.rung.adds,
        "seeds": row.seeds,
        "parameters": row.parameters,
        "counts": row.counts,
        "flops_per_character": row.flops,
        "cpu_seconds": row.cpu_seconds,
        "nats": {part: asdict(estimate) for part, estimate in row.nats.items()},
        "has_to_beat": row.rung.after,
        "short_of": row.short_of,
        "tied": row.tied,
        "earlier_project": row.rung.reference,
    }


def job_json(result: Result) -> dict[str, Any]:
    """Return a job's numbers, and the command to repeat it."""
    return {
        "rung": result.job.rung.name,
        "seed": result.job.seed,
        "command": result.job.command(),
        "cpu_seconds": result.cpu_seconds,
        "nats": dict(result.nats),
    }


def resumed(words: Sequence[str]) -> LadderConfig | None:
    """Return the settings of the ladder that the command line asks to resume, as its defaults."""
    saved = saved_config(PACKAGE, words)
    if saved is None:
        return None
    try:
        return LadderConfig(
            **{name: saved[name] for name in ("data", "seeds", "rungs", "max_steps")}
        )
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ArtefactError(
            f"config.json is not that of a run of mingpt.ladder ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=resumed)

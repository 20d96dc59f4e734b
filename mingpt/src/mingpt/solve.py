"""Train the paper's encoder-decoder on a task with known answers: `python -m mingpt.solve sort`.

The tasks are copy, reverse, sort, dates, add2 and add3 (`tasks.py`). Each takes about a minute of
one core and ends with the share of held-out examples that are answered to the last character, by
greedy and by beam search. The run folder has the model (`checkpoints/`), `metrics.jsonl`,
`loss.png`, `examples.md` and `result.json`. Then:

    python -m mingpt.solve --ask "3 1 2"            ask the model trained last (or --run FOLDER)
    python -m mingpt.solve all --seeds 3 --out DIR  every task with seeds 0, 1, 2: tasks.md, .json

`all` ends with exit code 6 where a run stays below 99 %; interrupted, it goes on with --resume.

The model is the paper's, but small (2 + 2 layers, 64 channels) and with learned positions for the
sums. It is trained otherwise than the paper's: by Muon and a rate that falls to zero on a line, not
by Adam and the schedule of section 5.3, and without dropout and label smoothing.
"""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mingpt.load import check_fit
from mingpt.model import count_parameters
from mingpt.tasks import TASKS, Endless, Fixed, Pair, Task, draw_held_out
from mingpt.transformer import Transformer, TransformerConfig, beam_search, greedy, loss
from shared import cli, files, parallel
from shared.checkpoint import open_checkpoint
from shared.config import TrainerConfig
from shared.errors import ArtefactError, NumericalError, UsageError
from shared.estimates import markdown_table
from shared.parallel import World, usable_cores
from shared.plots import plot_loss
from shared.runs import RESULT, Run, command, newest_folder, saved_config
from shared.trainer import Trainer
from shared.workers import RunTask, refuse_failed, training_progress, work_off

PACKAGE = "mingpt-solve"
ALL = "all"
GOAL = 0.99  # share of the test that a trained model answers to the last character
VALIDATION = 200  # held-out examples beside the test, to follow the training by
MAX_TESTS, MAX_BEAM, MAX_ALPHA = 10_000, 64, 10.0
SHOWN = 5  # right answers in the table; of wrong ones there may be ten
AT_ONCE = 250  # examples answered together

# What all recipes share. Examples are always new, so that there is nothing to regularize. The
# paper's schedule is --schedule inverse_sqrt; its rate never falls to zero, this one does.
SHAPE = TransformerConfig(n_layer=2, n_head=4, n_embd=64)
TRAINER = TrainerConfig(
    max_steps=0,  # the steps of the task, once it is known
    batch_size=128,
    optimizer="muon",
    learning_rate=3e-3,
    muon_learning_rate=0.02,
    weight_decay=0.0,
    schedule="linear",
    warmup_steps=20,
    precision="fp32",
    eval_every=100,
    eval_batch_size=AT_ONCE,
    checkpoint_every=0,
    device="cpu",
    threads=1,
)
NO_TASK = replace(SHAPE, vocab_size=4)  # until the task is known: fits none
STEPS = {"copy": 400, "reverse": 450, "sort": 500, "dates": 450, "add2": 400, "add3": 500}
# Sums have few places that must not be confused; neighbouring sinusoids are hard to tell apart with
# 64 channels: after 500 steps add3 was 6% right with them, 100% with learned positions.
LEARNED_POSITIONS = ("add2", "add3")


@dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """What to learn and how, or what to ask a model that has learnt."""

    task: tyro.conf.Positional[str] = ""
    """copy, reverse, sort, dates, add2 or add3, before any flag; or all of them."""
    ask: str | None = None
    """Train nothing: give this to a trained model and print what it answers."""
    run: Path | None = None
    """The run to ask; the one started last if not given."""
    json: bool = False
    """Print the answer to --ask as JSON for programs."""
    tests: int = 1000
    """Held-out examples to answer at the end."""
    beam: int = 4
    """Beginnings that beam search keeps, 1 to 64; 1 is greedy search."""
    alpha: float = 0.6
    """Beam search's length penalty (Wu et al., 2016), 0 to 10; 0 favours short answers."""
    seeds: int = 1
    """For all: runs of each task, with seeds 0, 1, ..."""
    workers: int = 0
    """For all: processes at a time, each on one thread; 0 takes the usable cores."""
    out: Path | None = None
    """Run folder; runs/mingpt-solve/<start time> if not given (for all: mingpt-solve-all)."""
    resume: bool = False
    """Continue the run in --out, or the one started last; its settings hold unless flags differ."""
    model: TransformerConfig = NO_TASK
    trainer: TrainerConfig = TRAINER

    def __post_init__(self) -> None:
        if self.task and self.task not in (*TASKS, ALL):
            raise UsageError(
                f"no task {self.task!r}{cli.suggest(self.task, (*TASKS, ALL))}; there are "
                f"{', '.join(TASKS)} and {ALL}"
            )
        for name in ("tests", "beam", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name, most in (("tests", MAX_TESTS), ("beam", MAX_BEAM)):
            if getattr(self, name) > most:
                raise ValueError(f"{name}={getattr(self, name)} must be at most {most}")
        if not 0 <= self.alpha <= MAX_ALPHA:  # refuses nan as well
            raise ValueError(f"alpha={self.alpha} must be at least 0 and at most {MAX_ALPHA:g}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must be at least 0")
        if self.task in TASKS and self.ask is None:
            self._check_model(TASKS[self.task])

    def _check_model(self, task: Task) -> None:
        """Raise ValueError for a model without the task's ids or places."""
        model = self.model
        if model.vocab_size != task.vocab_size or model.block_size < task.block_size:
            raise ValueError(
                f"vocab_size={model.vocab_size} and block_size={model.block_size} do not fit task "
                f"{task.name}, which has {task.vocab_size} ids and {task.block_size} places; name "
                f"the task before all flags and leave these out"
            )

    def saved(self, digest: str) -> dict[str, Any]:
        """Return what config.json keeps: all that decides the result."""
        values = asdict(self)
        for name in ("ask", "run", "json", "seeds", "workers", "out", "resume"):
            del values[name]
        return {**values, "test_sha256": digest}

    def saved_all(self) -> dict[str, Any]:
        """Return what config.json of all tasks keeps: all that decides the table."""
        how = {task.name: recipe(task) for task in TASKS.values()}
        return {
            "task": ALL,
            "seeds": self.seeds,
            "tests": self.tests,
            "max_steps": self.trainer.max_steps,
            "how": {
                name: {"model": asdict(each.model), "trainer": asdict(each.trainer)}
                for name, each in how.items()
            },
        }


# What may differ between a run and its continuation without making it another run.
MAY_CHANGE = ["tests", "beam", "alpha", "test_sha256", *(f"trainer.{name}" for name in (
    "max_steps", "eval_every", "eval_batch_size", "checkpoint_every", "keep_checkpoints",
    "log_every", "device", "threads", "dist_timeout", "profile", "wandb", "compile",
))]  # fmt: skip


MAY_CHANGE_ALL = ["seeds"]  # more runs of the same kind


def recipe(task: Task) -> SolveConfig:
    """Return the settings that reach `GOAL` on a task."""
    model = replace(
        SHAPE,
        vocab_size=task.vocab_size,
        block_size=task.block_size,
        positions="learned" if task.name in LEARNED_POSITIONS else "sinusoidal",
    )
    trainer = replace(TRAINER, max_steps=STEPS[task.name])
    return SolveConfig(task=task.name, model=model, trainer=trainer)


# ---- answering


Search = Callable[[Transformer, Tensor], Tensor]


@dataclass(frozen=True)
class Answer:
    """What a model made of a source, beside what it should have made of it."""

    source: str
    target: str
    said: str

    @property
    def right(self) -> bool:
        """Whether every character is as it should be."""
        return self.said == self.target


def answer(model: Transformer, task: Task, pairs: Sequence[Pair], search: Search) -> list[Answer]:
    """Let a model answer the sources of `pairs`, `AT_ONCE` at a time."""
    answers: list[Answer] = []
    for first in range(0, len(pairs), AT_ONCE):
        part = pairs[first : first + AT_ONCE]
        ids = search(model, torch.from_numpy(task.encode([source for source, _ in part])))
        answers += [
            Answer(source, target, task.decode(row))
            for (source, target), row in zip(part, ids.tolist(), strict=True)
        ]
    return answers


def by_beam(model: Transformer, source: Tensor, *, beam: int, alpha: float) -> Tensor:
    """Return the ids that beam search finds, without their scores."""
    return beam_search(model, source, beam=beam, alpha=alpha)[0]


def exact_match(answers: Sequence[Answer]) -> float:
    """Return the share of right answers, 0 to 1."""
    return sum(each.right for each in answers) / len(answers)


# ---- training


def solve(config: SolveConfig) -> None:
    """Train on a task, answer the held-out examples, and write and print what came of it."""
    task, settings = TASKS[config.task], config.trainer
    pairs = draw_held_out(task, VALIDATION + config.tests)
    validation, pairs = pairs[:VALIDATION], pairs[VALIDATION:]
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    with parallel.join(settings.device, settings.threads, settings.dist_timeout) as world:
        torch.manual_seed(settings.seed)
        model = Transformer(config.model)
        with Run.open(
            PACKAGE,
            config.out,
            resume=config.resume,
            config=config.saved(digest),
            may_change=MAY_CHANGE,
            rank=world.rank,
        ) as run:
            if world.is_main:
                describe(config, task, model, pairs[0], run, world)
            metrics = fit(config, task, model, validation, run, world)
            if world.is_main:
                report(config, task, model, pairs, digest, metrics, run)


def describe(
    config: SolveConfig, task: Task, model: Transformer, example: Pair, run: Run, world: World
) -> None:
    """Print what is about to be learnt, and how."""
    settings = config.trainer
    shown = ("max_steps", "batch_size", "optimizer", "learning_rate", "schedule", "warmup_steps")
    cli.print_settings(
        Console(soft_wrap=True),
        f"{task.name}: {task.idea}",
        {
            "example": " -> ".join(example),
            "model": ", ".join(f"{name} {value}" for name, value in asdict(config.model).items()),
            "parameters": f"{count_parameters(model):,}",
            "trainer": ", ".join(f"{name} {getattr(settings, name)}" for name in shown),
            "test": f"{config.tests:,} examples that are never trained on",
            "seed": settings.seed,
            "device": f"{world.device}, {torch.get_num_threads()} threads x {world.size} processes",
            "run": run.folder,
        },
    )


def fit(
    config: SolveConfig,
    task: Task,
    model: Transformer,
    validation: Sequence[Pair],
    run: Run,
    world: World,
) -> dict[str, float]:
    """Train and leave `model` with the weights of the last step, ready to answer.

    Validation examples choose nothing: they may share a day or a sum with the test. Returns the
    metrics by name, and with them `steps`, `seconds` and `cpu_seconds`.
    """
    trainer = Trainer(
        config.trainer,
        model,
        loss,
        Endless(task, config.trainer.seed),
        run=run,
        world=world,
        validation=Fixed(task, validation),
    )
    metrics, state = trainer.fit(), trainer.state
    model.to("cpu").eval()
    clocks = {"seconds": state.seconds, "cpu_seconds": state.cpu_seconds}
    return {**metrics, "steps": state.step, **clocks}


def report(
    config: SolveConfig,
    task: Task,
    model: Transformer,
    pairs: Sequence[Pair],
    digest: str,
    metrics: dict[str, float],
    run: Run,
) -> None:
    """Answer the test; write result.json, examples.md and loss.png; print a few answers."""
    started = time.monotonic(), time.process_time()
    plain = answer(model, task, pairs, greedy)
    beamed = answer(model, task, pairs, partial(by_beam, beam=config.beam, alpha=config.alpha))
    shares = {"exact_match": exact_match(plain), "exact_match_beam": exact_match(beamed)}
    clocks = ("seconds", "cpu_seconds", "steps")
    run.write_result(
        seed=config.trainer.seed,
        device=config.trainer.device,
        data_name=f"mingpt.tasks: {task.name}",
        data_sha256=digest,
        parameters=count_parameters(model),
        steps=int(metrics["steps"]),
        metrics={
            **{name: value for name, value in metrics.items() if name not in clocks},
            **shares,
            "tests": float(len(pairs)),
        },
        seconds=metrics["seconds"] + time.monotonic() - started[0],
        cpu_seconds=metrics["cpu_seconds"] + time.process_time() - started[1],
    )
    rows = example_rows(task, plain, beamed)
    columns = ("source", "target", "greedy", "beam")
    files.write_file(run.folder / "examples.md", markdown_table(columns, rows).encode())
    if metrics["steps"]:
        plot_loss(
            run.folder / "metrics.jsonl", run.folder / "loss.png", title=f"mingpt: {task.name}"
        )
    console = Console(soft_wrap=True)
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for name, answers in (("greedy", plain), (f"beam {config.beam}", beamed)):
        right = sum(each.right for each in answers)
        told = f"{name}: {right:,} of {len(answers):,} held-out examples right"
        console.print(f"{told}, {exact_match(answers):.2%} exact match", highlight=False)
    tell_next(console, run.folder, pairs[0])


def tell_next(console: Console, folder: Path, example: Pair) -> None:
    """Print the command that asks a run."""
    words = ["python", "-m", "mingpt.solve", "--run", str(folder), "--ask", example[0]]
    console.print(f"next: {shlex.join(words)}", markup=False, highlight=False)


def example_rows(task: Task, plain: Sequence[Answer], beamed: Sequence[Answer]) -> list[list[str]]:
    """Return rows of source, target and what each search said: a few right, and wrong ones."""
    both = list(zip(plain, beamed, strict=True))
    right = [each for each in both if each[0].right and each[1].right][:SHOWN]
    wrong = [each for each in both if not (each[0].right and each[1].right)][: 2 * SHOWN]
    rows = []
    for one, other in right + wrong:
        said = [task.show(each.said) + " (wrong)" * (not each.right) for each in (one, other)]
        rows.append([one.source, task.show(one.target), *said])
    return rows


# ---- asking


def load(path: Path) -> tuple[Transformer, Task]:
    """Load the model of a run of this command, in evaluation mode, and its task.

    The weights are those of the newest checkpoint. Raises UsageError where there is none,
    ArtefactError when it is damaged, another command's, or its weights do not fit its
    configuration, naming the fields that differ.
    """
    checkpoint = open_checkpoint(path)
    match checkpoint.json():
        case {"task": str(name), "model": dict(saved), "test_sha256": str()} if name in TASKS:
            task = TASKS[name]
        case _:
            raise ArtefactError(f"{checkpoint.path}: not a run of mingpt.solve")
    try:
        shape = TransformerConfig(**saved)
        replace(recipe(task), model=shape)  # refuses other ids than the task's
        model = Transformer(shape)
    except (TypeError, ValueError) as error:
        reason = cli.one_line(str(error))
        raise ArtefactError(f"{checkpoint.path}: no model of mingpt.solve: {reason}") from error
    check_fit(checkpoint, model, saved)
    model.load_state_dict(checkpoint.tensors())
    return model.eval(), task


def ask(config: SolveConfig) -> None:
    """Print what a trained model makes of a person's input."""
    assert config.ask is not None
    torch.set_num_threads(1)
    model, task = load(config.run or newest_folder(Path("runs") / PACKAGE))
    if config.task not in ("", task.name):
        raise UsageError(f"that run learnt {task.name}, not {config.task}; name another --run")
    source = task.read(config.ask)
    ids = torch.from_numpy(task.encode([source]))
    found, scores = beam_search(model, ids, beam=config.beam, alpha=config.alpha)
    said = task.decode(found[0].tolist())
    right = None if task.solve is None else said == task.solve(source)
    flaw = task.flaw(said)
    if config.json:
        told = {"task": task.name, "source": source, "target": said, "answer": task.show(said)}
        score = float(scores[0])
        print(json.dumps({**told, "score": score, "right": right, "flaw": flaw}, indent=2))
        return
    mark = "wrong" if right is False else flaw
    print(task.show(said) + (f"   ({mark})" if mark else ""))


# ---- all tasks


@dataclass(frozen=True)
class Job(RunTask):
    """One task and seed, a process of its own: a task for `shared.workers`."""

    task: Task
    seed: int
    folder: Path
    max_steps: int
    """Updates; 0 for the recipe's."""
    tests: int

    @property
    def name(self) -> str:
        """How it is called on the screen."""
        return f"{self.task.name} (seed {self.seed})"

    @property
    def steps(self) -> int:
        """Updates of the training."""
        return self.max_steps or STEPS[self.task.name]

    @property
    def cost(self) -> float:
        """Guess the seconds it takes: they go with the steps and the characters."""
        return self.steps * (self.task.max_source + self.task.max_target) / 300

    def words(self) -> list[str]:
        """Return the words after `python -m` that do this, for a reader to repeat."""
        words = ["mingpt.solve", self.task.name, "--seed", str(self.seed)]
        words += ["--max-steps", str(self.max_steps)] if self.max_steps else []
        return words + (["--tests", str(self.tests)] if self.tests != SolveConfig.tests else [])

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, and the losses last heard of."""
        return training_progress(self.folder, self.steps)

    def outcome(self) -> str:
        """Return the share of right answers."""
        return f"{self.result()['exact_match']:.2%} exact match"

    def result(self) -> dict[str, Any]:
        """Return what result.json holds; raises ArtefactError where it cannot be read."""
        found: dict[str, Any] = files.read_json(self.folder / RESULT)
        return found


def solve_all(config: SolveConfig) -> None:
    """Train every task with every seed, in a run folder that --resume goes on with."""
    with Run.open(
        f"{PACKAGE}-{ALL}",
        config.out,
        resume=config.resume,
        config=config.saved_all(),
        may_change=MAY_CHANGE_ALL,
    ) as run:
        work(config, run.folder)


def work(config: SolveConfig, folder: Path) -> None:
    """Do the runs that are not done; write tasks.json and tasks.md and print the table.

    Raises NumericalError where one misses `GOAL`, or a Failure with the exit code of the first
    run that failed.
    """
    console, jobs = Console(soft_wrap=True), all_jobs(config, folder)
    files.make_folder(folder / "runs")
    waiting = [job for job in jobs if not job.done]
    remedy = f"; continue with {ALL} --resume --out {folder}"
    failed = work_off(waiting, config.workers or usable_cores(), remedy)
    results = [(job, job.result()) for job in jobs if job.done]
    rows = [result_row(job, result) for job, result in results]
    files.write_json(folder / "tasks.json", {"command": command(), "runs": rows})
    files.write_file(folder / "tasks.md", results_markdown(rows).encode())
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    if results:
        job = results[-1][0]
        tell_next(console, job.folder, draw_held_out(job.task, 1)[0])
    refuse_failed(failed, len(waiting), remedy)
    short = [job.name for job, result in results if result["exact_match"] < GOAL]
    if short and not config.trainer.max_steps:
        raise NumericalError(f"below {GOAL:.0%} exact match: {', '.join(short)}")


def all_jobs(config: SolveConfig, folder: Path) -> list[Job]:
    """Return the runs of all tasks and seeds, in the order of the table."""
    steps, tests = config.trainer.max_steps, config.tests
    return [
        Job(task, seed, folder / "runs" / f"{task.name}-{seed}", steps, tests)
        for task in TASKS.values()
        for seed in range(config.seeds)
    ]


COLUMNS = ("task", "seed", "greedy", "beam", "steps", "CPU seconds", "parameters")


def result_row(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Return what tasks.json keeps of a run."""
    names = ("commit", "parameters", "steps", "seconds", "cpu_seconds", "val_loss")
    return {
        "task": job.task.name,
        "seed": job.seed,
        "command": f"python -m {shlex.join(job.words())}",
        "exact_match": result["exact_match"],
        "exact_match_beam": result["exact_match_beam"],
        "tests": int(result["tests"]),
        "test_sha256": result["data"]["sha256"],
        **{name: result[name] for name in names},
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Return the texts of `COLUMNS`."""
    shares = (f"{row[name]:.1%}" for name in ("exact_match", "exact_match_beam"))
    seconds = f"{row['cpu_seconds']:.0f}"
    return [
        row["task"],
        str(row["seed"]),
        *shares,
        str(row["steps"]),
        seconds,
        f"{row['parameters']:,}",
    ]


def results_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the runs as a Markdown table, and what its columns are."""
    tests = max((row["tests"] for row in rows), default=0)
    return (
        f"{markdown_table(COLUMNS, [cells(row) for row in rows])}\n"
        f"greedy, beam: share of {tests:,} held-out examples answered to the last character. CPU "
        "seconds: training and test, one thread.\n\n"
        "Unlike the paper: 2 + 2 layers of 64 channels; Muon (Adam for embeddings, norms and "
        "biases) and a learning rate that falls to zero on a line, not Adam and the schedule of "
        f"section 5.3; no dropout, no label smoothing; {' and '.join(LEARNED_POSITIONS)} with "
        "learned positions.\n\n"
        f"`{command()}`\n"
    )


# ---- the command


USED_BY_ALL = ("task", "tests", "seeds", "workers", "out", "resume", "max_steps")
USED_TO_ASK = ("task", "ask", "run", "json", "beam", "alpha")
UNUSED_BY_A_TASK = ("run", "json", "seeds", "workers")


def main(config: SolveConfig) -> None:
    """Train the paper's encoder-decoder on a task, or ask a trained one."""
    changed = changes(config)
    if config.ask is not None:
        refuse_unused("--ask", [name for name in changed if name not in USED_TO_ASK])
        ask(config)
    elif not config.task:
        raise UsageError(f"say which task to learn: {', '.join(TASKS)} or {ALL}; or --ask a run")
    elif config.task == ALL:
        refuse_unused(ALL, [name for name in changed if name not in USED_BY_ALL])
        solve_all(config)
    else:
        refuse_unused(config.task, [name for name in changed if name in UNUSED_BY_A_TASK])
        solve(config)


def changes(config: SolveConfig) -> list[str]:
    """Return the names of the fields that differ from those of a plain `SolveConfig`."""
    flat = [
        {
            **{
                name: value
                for name, value in vars(each).items()
                if name not in ("model", "trainer")
            },
            **vars(each.model),
            **vars(each.trainer),
        }
        for each in (SolveConfig(), config)
    ]
    return [name for name, value in flat[1].items() if value != flat[0][name]]


def refuse_unused(what: str, names: Sequence[str]) -> None:
    """Raise UsageError for flags that would change nothing."""
    if names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{flags}: not used with {what}; leave it out")


def defaults(words: Sequence[str]) -> SolveConfig | None:
    """Return what holds where the command line is silent.

    With --resume that is what the run was started with, else what the recipe of the task says.
    Whoever asks, or wants all tasks, gets what the dataclass says.
    """
    if any(word.partition("=")[0] == "--ask" for word in words):
        return None
    saved = saved_config(f"{PACKAGE}-{ALL}" if ALL in words else PACKAGE, words)
    if saved is not None:
        return _restored(saved)
    return recipe(TASKS[words[0]]) if words and words[0] in TASKS else None


def _restored(saved: Any) -> SolveConfig:
    """Return the settings of a run, or of all, from its config.json."""
    try:
        if saved["task"] == ALL:
            trainer = replace(TRAINER, max_steps=saved["max_steps"])
            return SolveConfig(
                task=ALL, seeds=saved["seeds"], tests=saved["tests"], trainer=trainer
            )
        if saved["task"] not in TASKS:
            raise ValueError(f"no task {saved['task']!r}")
        values = {name: value for name, value in saved.items() if name != "test_sha256"}
        values["model"] = TransformerConfig(**saved["model"])
        values["trainer"] = TrainerConfig(**saved["trainer"])
        return SolveConfig(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"config.json is not that of a run of mingpt.solve ({error})"
        ) from error


if __name__ == "__main__":
    cli.run(main, defaults=defaults)

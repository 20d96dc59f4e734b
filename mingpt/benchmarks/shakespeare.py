"""Train presets side by side, a few seeds each, and tabulate what they reach in which CPU time.

    python mingpt/benchmarks/shakespeare.py --presets nanogpt,default,hybrid --seeds 3

Every run is `python -m mingpt.train --preset P --seed S` in a process of one thread. The
loss is that of the last weights on every target of the validation text; nothing is chosen by it.
CPU seconds are of the whole process, imports and evaluations included. What was run before
into the same `--out` is kept and not run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mingpt import recipes
from shared import cli, files
from shared.errors import ArtefactError
from shared.estimates import Estimate, markdown_table
from shared.files import read_json
from shared.parallel import usable_cores
from shared.runs import RESULT
from shared.workers import RunTask, refuse_failed, training_progress, work_off

COLUMNS = (
    *("preset", "parameters", "steps", "CPU seconds", "validation, nats per character", "seeds"),
    "command",
)


@dataclass(frozen=True)
class Job(RunTask):
    """One run of a preset: a task for `shared.workers`."""

    preset: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """How it is called on the screen."""
        return f"{self.preset}, seed {self.seed}"

    @property
    def steps(self) -> int:
        """Updates of the training."""
        return recipes.find(self.preset).trainer.max_steps

    @cached_property
    def cost(self) -> float:
        """Guess the seconds it takes, by its FLOPs."""
        recipe = recipes.find(self.preset)
        model = recipes.build(self.preset, 65)
        characters = recipe.trainer.batch_size * model.block_size * self.steps
        return 3 * model.flops_per_character() * characters / 1e11

    def words(self) -> list[str]:
        """Return the words after `python -m`, for a reader to repeat."""
        return ["mingpt.train", "--preset", self.preset, "--seed", str(self.seed)]

    def progress(self) -> tuple[float, str]:
        """Return the part done so far, and the loss last heard of."""
        return training_progress(self.folder, self.steps)

    def outcome(self) -> str:
        """Return what it reached."""
        result = read_json(self.folder / RESULT)
        return f"{result['val_loss']:.4f} nats, {result['cpu_seconds']:,.0f} CPU s"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train how often."""

    presets: str = "nanogpt,default,hybrid"
    """Names of recipes with commas between them."""
    seeds: int = 3
    """Runs of each, with seeds 0, 1, ..."""
    workers: int = 0
    """Processes at a time, each on one thread; 0 takes the usable cores."""
    out: Path = Path("runs/mingpt-shakespeare")
    """Folder of the runs, of shakespeare.json and shakespeare.md."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for preset in self.names:
            recipes.find(preset)

    @property
    def names(self) -> list[str]:
        """The presets to train."""
        return [name.strip() for name in self.presets.split(",") if name.strip()]


def main(config: Config) -> None:
    """Train what has not been trained yet, and tabulate everything."""
    names = config.names
    jobs = [
        Job(name, seed, config.out / f"{name}-{seed}")
        for name in names
        for seed in range(config.seeds)
    ]
    files.make_folder(config.out)
    left = [job for job in jobs if not job.done]
    failed = work_off(left, config.workers or usable_cores(), "; the same command goes on")
    write(names, [job for job in jobs if job.done], config.out)
    refuse_failed(failed, len(left))


def write(names: Sequence[str], jobs: Sequence[Job], out: Path) -> None:
    """Write shakespeare.json and shakespeare.md, and print the table."""
    rows, found = [], []
    for name in names:
        own = [job for job in jobs if job.preset == name]
        if not own:
            continue
        results = [read_json(job.folder / RESULT) for job in own]
        for job, result in zip(own, results, strict=True):
            if result["steps"] != job.steps:
                raise ArtefactError(
                    f"{job.folder} is of another recipe: {result['steps']} steps, not {job.steps}; "
                    "take another --out"
                )
        nats = Estimate.of([result["val_loss"] for result in results])
        cpu = Estimate.of([result["cpu_seconds"] for result in results])
        found.append(
            {
                "preset": name,
                "val_loss": [result["val_loss"] for result in results],
                "cpu_seconds": [result["cpu_seconds"] for result in results],
                "seconds": [result["seconds"] for result in results],
                "parameters": results[0]["parameters"],
                "steps": results[0]["steps"],
                "commits": sorted({result["commit"] for result in results}),
                "data": results[0]["data"],
            }
        )
        rows.append(
            [
                *(name, f"{results[0]['parameters']:,}", f"{results[0]['steps']:,}"),
                *(f"{cpu.mean:,.0f}", str(nats), str(len(own))),
                f"`python -m mingpt.train --preset {name}`",
            ]
        )
    files.write_json(out / "shakespeare.json", {"presets": found})
    table = markdown_table(COLUMNS, rows)
    files.write_file(out / "shakespeare.md", table.encode())
    print(table)


if __name__ == "__main__":
    cli.run(main)

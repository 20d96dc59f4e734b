"""The ablation: its rows, the differences and their marks, the chart, and all of it at once."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mingpt import recipes
from mingpt.ablate import (
    BASE,
    PARTS,
    STUDIES,
    AblateConfig,
    Job,
    Result,
    Row,
    Study,
    TableName,
    Variant,
    draw,
    explanation,
    main,
    make_rows,
    preset_values,
    read_results,
    resumed,
    signed,
    terminal_table,
    vary,
)
from mingpt.data import Text, Vocabulary
from mingpt.gpt import GPT
from mingpt.train import TrainConfig
from shared import cli
from shared.errors import ArtefactError, NumericalError
from shared.estimates import Estimate
from shared.runs import RESULT

TABLES: list[TableName] = ["paper", "modern", "nanogpt"]
STUDY = Study("A table", "nanogpt", {"n_layer": 1}, 5, vary("A", n_head=(1, 2), d_k=(8,)))


def result(variant: Variant, seed: int, nats: float, folder: Path = Path("none")) -> Result:
    """Return what came of a run that was never made."""
    job = Job(STUDY, variant, seed, folder / f"{variant.name}-{seed}", 5)
    return Result(job, nats, parameters=7, cpu_seconds=3.0 + seed)


def rows_of(nats: Sequence[Sequence[float]]) -> list[Row]:
    """Return the rows of the base and the variants of `STUDY`, from their nats of each seed."""
    pairs = zip(STUDY.variants, nats, strict=False)
    return make_rows(
        STUDY,
        [result(variant, seed, each) for variant, own in pairs for seed, each in enumerate(own)],
    )


# ---- rows


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_another_model_or_training_than_the_base(table: TableName) -> None:
    """No change is what the base has anyway, and no name is taken twice or has a comma in it.

    A rate that goes with another optimizer may happen to be the base's.
    """
    study = STUDIES[table]
    names = [variant.name for variant in study.variants]
    assert len(set(names)) == len(names)
    assert not any("," in name for name in names)
    base = study.base | {"d_k": study.config(Variant({})).head_width}
    for variant in study.rows:
        same = {name for name, value in variant.changes.items() if value == base[name]}
        assert variant.changes.keys() - same
        assert same <= ({"learning_rate"} if "optimizer" in variant.changes else set())


def first_loss(model: GPT) -> float:
    """Return the loss of a new model on characters that follow no rule, over that of guessing."""
    idx = torch.randint(model.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(model.eval()(idx[:, :-1], idx[:, 1:])) / math.log(model.vocab_size)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_begins_near_the_loss_of_guessing(table: TableName) -> None:
    """No row measures how fast a bad start is repaired; pre-norm on top of the paper's is told.

    Where the embeddings, scaled, reach the tied head they score the character that was read.
    """
    study = STUDIES[table]
    for variant in study.variants:
        torch.manual_seed(0)
        ratio = first_loss(GPT(study.config(variant)))
        told = table == "paper" and variant.name == "norm_place=pre"
        low, high = (1.5, 1.8) if told else (0.98, 1.3)
        assert low < ratio < high, variant.name


def test_rows_of_positions_differ_in_the_positions_only() -> None:
    """Embeddings are of deviation 1 in all of them, and learned vectors begin as the notes say."""
    study = STUDIES["paper"]
    for variant in (study.variants[0], *(row for row in study.rows if row.group == "E")):
        torch.manual_seed(0)
        model = GPT(study.config(variant))
        assert float(model.wte.detach().std()) * model.wpe.scale == pytest.approx(1, abs=0.03)
        assert model.config == replace(
            study.config(study.variants[0]), positions=model.config.positions
        )
        if model.config.positions == "learned":
            deviation = float(next(model.wpe.parameters()).detach().std())
            assert f"learned positions begin at {deviation:.2f}" in study.notes


@pytest.mark.parametrize(
    ("width", "rate", "deviation"), [(64, 0.0072, 0.125), (192, 0.0042, 0.072)]
)
def test_the_rate_and_the_start_follow_the_width(width: int, rate: float, deviation: float) -> None:
    """Equation 3 with 300 updates of warm-up, and d^-0.5: by hand."""
    study = STUDIES["paper"]
    (row,) = (each for each in study.rows if each.name == f"n_embd={width}")
    assert row.changes == {"n_embd": width, "learning_rate": rate, "init_std": deviation}
    assert study.base["warmup_steps"] == 300


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_command_of_mingpt_train(table: TableName, tmp_path: Path) -> None:
    """Its words are read, by the command's own parser, as the base with the row's changes."""
    study = STUDIES[table]
    for variant in (study.variants[0], study.rows[-1]):
        job = Job(study, variant, 4, tmp_path / "out", 9)
        module, *words = job.words()
        assert module == "mingpt.train"
        default = TrainConfig(preset=study.preset, trainer=recipes.find(study.preset).trainer)
        read = cli.parse(TrainConfig, words, default=default)
        asked = {**study.settings, **variant.changes}
        assert {name: asked[name] for name in read.shape.given()} == read.shape.given()
        trainer = vars(read.trainer)
        asked |= {"max_steps": 9, "seed": 4, "eval_every": 0, "threads": 1}
        assert {name: asked[name] for name in asked.keys() & trainer} == {
            name: trainer[name] for name in asked.keys() & trainer
        }


def test_a_part_is_exchanged_for_what_the_other_recipe_has() -> None:
    """Left out of the one, put into the other: the same parts, the settings crosswise."""
    ours, theirs = preset_values("default"), preset_values("nanogpt")
    for study, own, other in (
        (STUDIES["modern"], ours, theirs),
        (STUDIES["nanogpt"], theirs, ours),
    ):
        changes = {name: value for row in study.rows for name, value in row.changes.items()}
        differing = {name for name in PARTS if own[name] != other[name]}
        left_out = {"tied"} if own is ours else set()
        assert differing - left_out == changes.keys() & set(PARTS)
        assert all(changes[name] == other[name] for name in differing - left_out)
        assert changes["optimizer"] == other["optimizer"]
        characters = own["batch_size"] * own["block_size"]
        assert changes["block_size"] == other["block_size"]
        assert changes["block_size"] * changes["batch_size"] == pytest.approx(characters, rel=0.1)


def test_adamw_is_tried_at_three_rates() -> None:
    """None of them was tuned, and the names are for --variants."""
    rows = [row for row in STUDIES["modern"].rows if "optimizer" in row.changes]
    assert [row.name for row in rows] == [
        f"optimizer=adamw@{rate}" for rate in (0.001, 0.003, 0.01)
    ]
    assert [row.changes["learning_rate"] for row in rows] == [0.001, 0.003, 0.01]
    assert AblateConfig(table="modern", variants=rows[1].name).chosen[1] == rows[1]


def test_the_page_says_how_much_is_read() -> None:
    """5 updates of 12 windows of 64 characters, and the notes of the table at the end."""
    none = np.zeros(0, dtype=np.int64)
    text = Text("text", "", Vocabulary("a"), np.zeros(7680, dtype=np.int64), none)
    told = explanation(replace(STUDY, notes="Mind the gap."), text, [])
    assert "after 5 updates, which read 3,840 characters, 0.50 epochs of the text" in told
    assert told.endswith(" Mind the gap.")


def test_what_the_base_has_is_told() -> None:
    """Where a setting means "as usual", it is what that comes to."""
    paper = STUDIES["paper"]
    assert paper.instead_of(Variant({"d_k": 8})) == "32"
    assert paper.instead_of(Variant({"n_head": 1, "dropout": 0.2})) == "4, 0.1"
    assert paper.instead_of(paper.variants[0]) == ""


def test_more_work_costs_more() -> None:
    """The guess that decides which job goes first grows with the model."""
    small, large = vary("", n_layer=(1, 4))
    assert STUDY.cost(large) > STUDY.cost(small) > 0


# ---- differences


def test_differences_are_taken_seed_by_seed() -> None:
    """What all runs of a seed share cancels: 1 ± 2.5 each, but 0.1 apart whatever the seed."""
    base, first, second = rows_of([(0.0, 1.0, 2.0), (0.1, 1.1, 2.1), (0.3, 1.1, 1.9)])
    assert base.difference is None
    assert str(first.nats) == "1.1000 ± 2.4843"
    assert signed(first.difference) == "+0.1000 ± 0.0000"
    assert signed(second.difference) == "+0.1000 ± 0.4969"
    assert first.cpu_seconds == 4.0


def test_an_interval_without_0_is_marked() -> None:
    """Better below, worse above; nothing where 0 is inside, nor where there is one seed."""
    nats = [(1.0, 1.0, 1.0), (0.9, 0.91, 0.89), (1.1, 1.11, 1.09), (0.9, 1.2, 1.0)]
    assert [row.verdict for row in rows_of(nats)] == ["", "better", "worse", ""]
    assert [row.verdict for row in rows_of([(1.0,), (0.9,)])] == ["", ""]


def test_a_seed_that_the_base_lacks_has_no_difference() -> None:
    """Where a job failed the other seeds are compared; without a base none are."""
    base, row = STUDY.variants[:2]
    both = [result(base, 1, 1.0), result(row, 0, 5.0), result(row, 1, 1.5)]
    assert make_rows(STUDY, both)[1].difference == Estimate(0.5)
    assert make_rows(STUDY, both[1:])[0].difference is None


# ---- the table and the chart


@pytest.mark.parametrize("table", TABLES)
def test_the_terminal_table_fits_eighty_columns(table: TableName) -> None:
    """Every row of every table is whole there."""
    console = Console(width=80, record=True, file=io.StringIO())
    difference = Estimate(-0.0123, 0.0101)
    rows = [
        Row(each, "", 3, 1_234_567, 123.4, Estimate(1.6543, 0.0123), difference)
        for each in STUDIES[table].variants
    ]
    console.print(terminal_table(rows, "A table"))
    shown = console.export_text()
    for row in rows:
        assert f"{row.variant.title} " in shown
    for part in ("1.6543 ± 0.0123", "-0.0123 ± 0.0101", "123"):
        assert part in shown
    assert shown.count("better") == len(rows)
    assert "…" not in shown


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    """Taller for more rows; without intervals it can be drawn too."""
    heights = []
    for rows in (rows_of([(1.0, 1.1), (1.2, 1.3), (0.9, 1.0)]), rows_of([(1.0,), (1.1,)])):
        draw(rows, tmp_path / "chart.png", title="t", subtitle="s")
        header = (tmp_path / "chart.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        heights.append(int.from_bytes(header[20:24], "big"))
    assert heights[0] > heights[1]


# ---- jobs


def test_a_job_goes_on_with_what_was_begun(tmp_path: Path) -> None:
    """Fresh: train; begun: the same with --resume; finished: done."""
    job = Job(STUDY, STUDY.rows[0], 2, tmp_path / "job", 9, data="my text.txt")
    (words,) = job.commands()
    assert words[-4:] == ["--data", "my text.txt", "--out", str(job.folder)]
    job.folder.mkdir()
    assert job.commands() == [[*words, "--resume"]]
    assert not job.done
    (job.folder / RESULT).write_text("{}")
    assert job.done


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    """A file that lacks a number is named with the remedy, never guessed at."""
    job = Job(STUDY, STUDY.rows[0], 0, tmp_path, 9)
    (tmp_path / RESULT).write_text('{"parameters": 3, "cpu_seconds": 1.0}')
    with pytest.raises(ArtefactError, match=r"result\.json: not what .* --resume"):
        Result.of(job)


def test_a_run_that_diverged_is_told_as_that(tmp_path: Path) -> None:
    """Its null is no foreign file: the other runs have their rows, and the exit code is 6."""
    jobs = [Job(STUDY, STUDY.rows[0], seed, tmp_path / str(seed), 9) for seed in range(3)]
    for job, loss in zip(jobs, ("null", "1.5"), strict=False):
        job.folder.mkdir()
        result = f'{{"val_loss": {loss}, "parameters": 3, "cpu_seconds": 1.0}}'
        (job.folder / RESULT).write_text(result)
    with pytest.raises(NumericalError, match="n_head=1, seed 0: the loss did not stay finite"):
        Result.of(jobs[0])
    results, diverged = read_results(jobs)
    assert [(each.job, each.nats) for each in results] == [(jobs[1], 1.5)]
    assert [error.exit_code for error in diverged] == [6]


def test_the_base_is_always_trained(tmp_path: Path) -> None:
    """Jobs are the product of the rows asked for, the base included, and the seeds."""
    none = np.zeros(0, dtype=np.int64)
    text = Text("shakespeare", "", Vocabulary("a"), none, none)
    config = AblateConfig(variants="d_k=8, n_head=1", seeds=2, max_steps=7)
    jobs = config.jobs(tmp_path, text)
    assert [(job.variant.name, job.seed) for job in jobs] == [
        (name, seed) for name in (BASE, "n_head=1", "d_k=8") for seed in range(2)
    ]
    assert len({job.folder for job in jobs}) == 6
    assert {(job.steps, job.data) for job in jobs} == {(7, "")}
    everything = AblateConfig(seeds=1).jobs(tmp_path, text)
    assert [job.variant for job in everything] == STUDIES["paper"].variants
    assert {job.steps for job in everything} == {STUDIES["paper"].max_steps}


# ---- the command


def run(*words: object) -> int:
    """Run the command in this process and return its exit code."""
    return cli.execute(main, [str(word) for word in words], "ablate", defaults=resumed)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--variants", "n_heads=1"],
            "no row 'n_heads=1' in the table paper; did you mean n_head=",
        ),
        (["--variants", "zzz"], "no row 'zzz' in the table paper; it has n_head=1, n_head=2"),
        (["--table", "tomorrow"], "--table tomorrow"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--max-steps", "0"], "max_steps=0 must be at least 1"),
        (["--workers", "-1"], "workers=-1 must be at least 0"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Value, rule and remedy, before anything is made."""
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_text_that_is_too_short_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, with code 3, and not by every job."""
    (tmp_path / "short.txt").write_text("to be or not to be")
    assert run("--data", tmp_path / "short.txt", "--out", tmp_path / "out") == 3
    assert "18 characters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_ablation_that_was_cut_short_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished jobs are kept, interrupted ones go on, all is written, and no file has our paths.

    The base is done before; the row's process gets a SIGTERM in its third step, saves and ends
    with 143.
    """
    data, out = tmp_path / "text.txt", tmp_path / "out"
    data.write_text("To be, or not to be, that is the question.\n" * 40)
    small = Study("Small", "nanogpt", {"n_embd": 8, "block_size": 8}, 4, vary("A", n_head=(2,)))
    monkeypatch.setitem(STUDIES, "paper", small)
    base = out / "jobs" / "base-0"
    base.mkdir(parents=True)
    (base / RESULT).write_text('{"val_loss": 1.0, "parameters": 5, "cpu_seconds": 2.0}')
    monkeypatch.setenv("MLE_KILL_AT", "step:3")
    monkeypatch.setenv("MLE_KILL_SIGNAL", "SIGTERM")
    assert run("--resume", "--data", data, "--seeds", 1, "--out", out) == 143
    assert "1 of 1 jobs failed, the first: n_head=2, seed 0" in capfd.readouterr().err
    written = (base / RESULT).stat().st_mtime_ns

    monkeypatch.delenv("MLE_KILL_AT")
    assert run("--resume", "--out", out) == 0
    assert "2, of which 1 are done" in capfd.readouterr().out
    assert (base / RESULT).stat().st_mtime_ns == written
    made = json.loads((out / "ablation.json").read_text())
    loss = json.loads((out / "jobs" / "n_head=2-0" / RESULT).read_text())["val_loss"]
    assert [row["name"] for row in made["rows"]] == [BASE, "n_head=2"]
    assert made["rows"][1]["difference"] == {"mean": pytest.approx(loss - 1.0), "half": None}
    assert '"n_head=2"' in (out / "ablation.json").read_text()
    assert "A n_head=2" in (out / "ablation.md").read_text()
    for name in ("ablation.json", "ablation.md"):
        assert str(tmp_path) not in (out / name).read_text()
    assert (out / "ablation.png").exists()

    (base / RESULT).write_text('{"val_loss": null, "parameters": 5, "cpu_seconds": 2.0}')
    assert run("--resume", "--out", out) == 6
    assert "1 of 2 runs left out, the first: base, seed 0: the" in capfd.readouterr().err
    assert [row["name"] for row in json.loads((out / "ablation.json").read_text())["rows"]] == [
        "n_head=2"
    ]

    monkeypatch.setitem(STUDIES, "paper", replace(small, max_steps=5))
    assert run("--resume", "--out", out) == 4
    assert "how.max_steps" in capfd.readouterr().err

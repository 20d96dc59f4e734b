"""The ladder: its judgement, the table, the mixtures, the jobs, and all of it at once."""

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from makemore.data import Splits
from makemore.ladder import LadderConfig, complain, main, resumed
from makemore.measure import LOG_PROBS, MEASURED
from makemore.recipes import RECIPES
from makemore.report import PARTS, Chain, Row, draw, markdown, terminal_table
from makemore.rungs import (
    ALL,
    BEST_PAIR,
    NGRAM,
    RUNGS,
    WHOLE,
    Job,
    Mixture,
    Result,
    judge,
    mixtures,
)
from shared import cli
from shared.datasets import resolve
from shared.errors import ArtefactError, NumericalError
from shared.estimates import Estimate
from shared.runs import RESULT

# ---- judgement


def row(name: str, chain: Chain, test: float, **changes: object) -> Row:
    """Return a row of the karpathy split."""
    nats = {part: Estimate(test) for part in PARTS}
    made = Row(name, chain, "karpathy", 1, 0, 0, 0.0, 0.0, nats)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def failing(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the rungs that fail, each with the one below."""
    return [(each.name, each.below) for each in judge(rows) if not each.beaten]


def test_a_rung_that_does_not_beat_the_one_below_fails() -> None:
    """Above the one below, or equal to it, it fails; a rung that was left out is passed over."""
    rows = [row("mlp", "neural", 2.1), row("rnn", "neural", 2.0), row("gru", "neural", 1.9)]
    assert failing(rows) == []
    assert failing([rows[0], row("rnn", "neural", 2.1), rows[2]]) == [("rnn", "mlp")]
    assert failing([rows[0], row("gru", "neural", 2.2)]) == [("gru", "mlp")]


def test_the_neural_bigram_may_tie_with_the_counted_one() -> None:
    """It is the same model: up to 0.01 nats above still passes."""
    counted = row("counted-bigram", "counted", 2.45)
    assert failing([counted, row("bigram", "neural", 2.459)]) == []
    assert failing([counted, row("bigram", "neural", 2.461)]) == [("bigram", "counted-bigram")]


def test_the_first_mixture_has_to_beat_every_single_model() -> None:
    """Also the n-gram, where that is better than the networks."""
    singles = [row(NGRAM, "counted", 1.93), row("mlp", "neural", 2.1)]
    assert failing([*singles, row(BEST_PAIR, "mixtures", 1.92)]) == []
    assert failing([*singles, row(BEST_PAIR, "mixtures", 1.94)]) == [(BEST_PAIR, NGRAM)]
    pair = row(BEST_PAIR, "mixtures", 1.92)
    assert failing([*singles, pair, row(ALL, "mixtures", 1.925)]) == [(ALL, BEST_PAIR)]


def test_a_failing_rung_is_told_with_both_numbers_and_code_6() -> None:
    """The message names split, rung and the one below."""
    rows = judge([row("mlp", "neural", 2.1), row("rnn", "neural", 2.15)])
    told = r"1 rung does not .*rnn \(karpathy\) has 2\.1500 .* mlp below it 2\.1000"
    with pytest.raises(NumericalError, match=told) as caught:
        complain([], rows, 2, "")
    assert caught.value.exit_code == 6
    complain([], judge(rows[:1]), 1, "")


def test_every_recipe_is_a_rung() -> None:
    """None is forgotten, none is twice, and what a rung names exists."""
    names = [rung.name for rung in RUNGS]
    assert len(set(names)) == len(names)
    assert {rung.recipe for rung in RUNGS if rung.recipe} == set(RECIPES)
    assert {rung.beats for rung in RUNGS if rung.beats} <= set(names)


# ---- the table and the chart


def example_rows() -> list[Row]:
    """Return a row of each chain, the second failing."""
    spread = {part: Estimate(1.95, 0.0123) for part in PARTS}
    return [
        row("ngram", "counted", 1.9375, counts=12345, cpu_seconds=0.51),
        row("gru", "neural", 1.95, parameters=21339, flops=41000.0, cpu_seconds=63.2, nats=spread,
            below="rnn", beaten=False),
        row("best + ngram", "mixtures", 1.9, parameters=21339, counts=12345, flops=41000.0),
    ]  # fmt: skip


def test_the_markdown_is_aligned_and_exact() -> None:
    """Full numbers, units of counts, intervals where there are seeds, failures in words."""
    head, rule, *rows = markdown(example_rows()).splitlines()
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert cells == [
        ["ngram", "12,345 counts", "0", "0.5", "1.9375", "1.9375", "1.9375", "2.795"],
        ["gru (does not beat rnn)", "21,339", "41,000", "63", *["1.9500 ± 0.0123"] * 3, "2.813"],
        ["best + ngram", "21,339 + 12,345 counts", "41,000", "0.0", *["1.9000"] * 3, "2.741"],
    ]
    assert set(rule) == set("|-: ")
    assert rule.count(":") == len(cells[0]) - 1


def test_the_terminal_table_fits_eighty_columns() -> None:
    """Names and losses are whole there, and a failing rung is marked."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(example_rows(), "karpathy split"))
    shown = console.export_text()
    assert "gru ✗" in shown
    assert "33.7k*" in shown
    assert "1.9500 ± 0.0123" in shown
    assert "best + ngram" in shown
    assert "…" not in shown


def test_the_chart_is_a_picture_of_every_split(tmp_path: Path) -> None:
    """A panel a split: two are wider than one."""
    rows = example_rows()
    widths = []
    for splits in (rows, [*rows, *(dataclasses.replace(each, split="random") for each in rows)]):
        draw(splits, tmp_path / "ladder.png", title="t", subtitle="s", line="ngram")
        header = (tmp_path / "ladder.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        widths.append(int.from_bytes(header[16:20], "big"))
    assert widths == [900, 1380]


# ---- mixtures

SPLITS = Splits(["ab"], ["cd"], ["ef"])  # each with two characters and an end


def make_result(folder: Path, name: str, seed: int = 0, **log_probs: Sequence[float]) -> Result:
    """Leave what a finished job leaves, with these log-probabilities, and read it."""
    rung = next(rung for rung in RUNGS if rung.name == name)
    job = Job(rung, "karpathy", seed, folder / f"{name}-{seed}")
    job.folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {
        part: np.asarray(log_probs.get(part, [-2.0, -2.0, -2.0])) for part in PARTS
    }
    save_file(arrays, job.folder / LOG_PROBS)
    sizes = {"parameters": 7, "counts": 0, "flops_per_character": 10.0, "vocab_size": 27}
    nats = {part: -float(values.mean()) for part, values in arrays.items()}
    measured = {**sizes, "nats": nats, "samples": [{"item": "mia", "mark": "new"}]}
    (job.folder / MEASURED).write_text(json.dumps(measured))
    (job.folder / RESULT).write_text(json.dumps({"cpu_seconds": 3.0}))
    return Result.of(job)


def test_mixture_weights_never_see_the_test_items(tmp_path: Path) -> None:
    """Other test log-probabilities change the test nats, and no weight."""
    good, bad = [-0.5, -3.0, -1.0, -0.7], [-3.0, -0.5, -1.1, -2.0]
    members = [
        make_result(tmp_path, "mlp", val=good, test=bad),
        make_result(tmp_path, NGRAM, val=bad, test=good),
    ]
    before = Mixture.of(BEST_PAIR, members)
    members[0] = make_result(tmp_path, "mlp", val=good, test=[-9.0, -9.0, -9.0, -9.0])
    after = Mixture.of(BEST_PAIR, members)
    assert after.weights == before.weights
    assert after.nats["test"] > before.nats["test"] + 0.1
    members[0] = make_result(tmp_path, "mlp", val=[-9.0, -9.0, -9.0, -0.1], test=bad)
    assert Mixture.of(BEST_PAIR, members).weights != before.weights


def test_the_best_model_is_chosen_by_validation(tmp_path: Path) -> None:
    """The one with the best test is not taken when another validates better."""
    results = [
        make_result(tmp_path, NGRAM),
        make_result(tmp_path, "mlp", val=[-1.0] * 3, test=[-3.0] * 3),
        make_result(tmp_path, "gru", val=[-2.0] * 3, test=[-1.0] * 3),
    ]
    pair, everything, whole = mixtures(results, SPLITS)
    assert [each.job.rung.name for each in pair.members] == ["mlp", NGRAM]
    assert [each.job.rung.name for each in everything.members] == ["mlp", "gru", NGRAM]
    assert whole.members == everything.members


def test_whole_items_are_corrected_by_what_validation_shows(tmp_path: Path) -> None:
    """Held-out items are new; so probability moves from the training item to all others.

    The model gives "ab" half of all probability. With one validation item, which is another, and
    one more spread as the model expects, the ratio of "ab" is (0 + 1/2) / 2 / (1/2) = 1/2, that of
    unseen items (1 + 1/2) / 2 / (1/2) = 3/2.
    """
    half = [math.log(0.5), 0.0, 0.0]
    result = make_result(tmp_path, "mlp", train=half, val=half, test=half)
    mixture = Mixture.of(ALL, [result]).of_whole_items(WHOLE, SPLITS)
    assert mixture.nats["train"] == pytest.approx(-math.log(0.5 / 2) / 3)
    assert mixture.nats["test"] == pytest.approx(-math.log(0.5 * 3 / 2) / 3)


def test_a_seed_whose_job_failed_is_not_mixed_with_the_others(tmp_path: Path) -> None:
    """All + n-gram means all; and without an n-gram nothing is mixed."""
    results = [
        make_result(tmp_path, NGRAM),
        *(make_result(tmp_path, "mlp", seed) for seed in (0, 1)),
        make_result(tmp_path, "gru", 0, val=[-5.0] * 3),
    ]
    found = [(each.name, each.members[0].job.seed) for each in mixtures(results, SPLITS)]
    assert found == [(BEST_PAIR, 0), (ALL, 0), (WHOLE, 0), (BEST_PAIR, 1)]
    assert mixtures(results[1:], SPLITS) == []


# ---- jobs


def test_a_job_does_what_is_not_done_yet(tmp_path: Path) -> None:
    """Fresh: train and measure; begun: resume; trained: measure alone."""
    trigram = next(rung for rung in RUNGS if rung.name == "trigram")
    job = Job(trigram, "random", 0, tmp_path / "jobs" / "trigram", data="my names.txt")
    train, measure = job.commands()
    assert train[:6] == ["-m", "makemore.train", "--model", "ngram", "--n", "3"]
    assert train[-4:] == ["--data", "my names.txt", "--out", str(job.folder)]
    assert measure[:2] == ["-m", "makemore.measure"]
    job.folder.mkdir(parents=True)
    assert job.commands() == [[*train, "--resume"], measure]
    (job.folder / RESULT).write_text("{}")
    assert job.commands() == [measure]
    assert not job.done


def test_a_damaged_measurement_is_refused(tmp_path: Path) -> None:
    """A file that lacks a number is named with the remedy, never guessed at."""
    result = make_result(tmp_path, "mlp")
    (result.job.folder / MEASURED).write_text('{"nats": {}}')
    with pytest.raises(ArtefactError, match=r"measured\.json: not what .* --resume"):
        Result.of(result.job)


# ---- the command


def ladder(*words: object) -> int:
    """Run the command in this process and return its exit code."""
    return cli.execute(main, [str(word) for word in words], "ladder", defaults=resumed)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rungs", "mlp,gruu"], "no rung 'gruu'; did you mean gru?"),
        (["--rungs", "uniform"], "uniform alone needs no training"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--max-steps", "0"], "max_steps=0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Value, rule and remedy, before anything is made."""
    assert ladder(*words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_data_that_cannot_be_trained_on_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, with code 3, and not by every job."""
    (tmp_path / "one.txt").write_text("mia\n" * 40)
    assert ladder("--data", tmp_path / "one.txt", "--out", tmp_path / "out") == 3
    assert "all 40 lines" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_jobs_are_the_product_of_rungs_splits_and_seeds(tmp_path: Path) -> None:
    """Counted rungs have no seeds, the uniform one no job; folders are all different."""
    (tmp_path / "names.txt").write_text("mia\nava\n")
    config = LadderConfig(rungs="uniform,ngram,mlp", split="both", seeds=3)
    jobs = config.jobs(tmp_path, resolve(tmp_path / "names.txt"))
    names = [(job.rung.name, job.split, job.seed) for job in jobs]
    assert names[:4] == [("ngram", "karpathy", 0), *(("mlp", "karpathy", s) for s in range(3))]
    assert len({job.folder for job in jobs}) == len(names) == 8
    assert all(job.data == str(tmp_path / "names.txt") for job in jobs)


def test_a_ladder_that_was_cut_short_goes_on(
    tmp_path: Path,
    names: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished jobs are kept, an interrupted one goes on from its checkpoint, and all is written.

    The bigram's process gets a SIGTERM in its fifth step, saves and ends with 143.
    """
    data, out = tmp_path / "names.txt", tmp_path / "out"
    data.write_text("\n".join(names))
    monkeypatch.setenv("MLE_KILL_AT", "step:5")
    monkeypatch.setenv("MLE_KILL_SIGNAL", "SIGTERM")
    asked = ["--data", data, "--rungs", "uniform,ngram,bigram", "--max-steps", 8, "--workers", 2]
    assert ladder(*asked, "--out", out) == 143
    first = capfd.readouterr()
    assert "1 of 2 jobs failed, the first: bigram (karpathy, seed 0)" in first.err
    assert "continue with --resume" in first.err
    counted = out / "jobs" / "ngram-karpathy-0" / MEASURED
    written = counted.stat().st_mtime_ns

    monkeypatch.delenv("MLE_KILL_AT")
    assert ladder("--resume", "--out", out) == 0
    second = capfd.readouterr()
    assert "2, of which 1 are done" in second.out
    assert counted.stat().st_mtime_ns == written
    run = json.loads((out / "jobs" / "bigram-karpathy-0" / RESULT).read_text())
    assert run["steps"] == 8
    assert "--resume" in run["command"]
    told = json.loads((out / "ladder.json").read_text())
    assert [each["name"] for each in told["rows"]] == ["uniform", "ngram", "bigram", BEST_PAIR]
    assert told["judged"] is False
    best = {each["name"]: each["nats"]["val"]["mean"] for each in told["rows"]}
    assert best[BEST_PAIR] <= min(best.values()) + 1e-6
    assert sum(told["mixtures"][0]["weights"].values()) == pytest.approx(1)
    assert "--model bigram --split karpathy --seed 0" in (out / "ladder.md").read_text()
    assert "**bigram**: " in (out / "samples.md").read_text()
    assert (out / "ladder.png").exists()

    settings = json.loads((out / "config.json").read_text())
    settings["recipes"]["bigram"]["trainer"]["learning_rate"] = 7.0
    (out / "config.json").write_text(json.dumps(settings))
    assert ladder("--resume", "--out", out) == 4
    assert "recipes.bigram.trainer.learning_rate: 7.0 ->" in capfd.readouterr().err

"""The ladder: its judgement, the table and the chart, the jobs, and all of it at once."""

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mingpt import climb
from mingpt.data import Text, Vocabulary, load_text
from mingpt.ladder import Job, LadderConfig, Result, complain, main, make_rows, resumed
from mingpt.ngram import NGram, NGramConfig
from mingpt.report import PARTS, Row, draw, judge, markdown, terminal_table
from mingpt.rungs import RUNGS, find
from shared import cli
from shared.datasets import resolve
from shared.errors import ArtefactError, NumericalError
from shared.estimates import Estimate
from shared.runs import RESULT


def row(name: str, val: float, **changes: object) -> Row:
    """Return a row with the same loss on both parts."""
    nats = {part: Estimate(val) for part in PARTS}
    made = Row(find(name), 3, 0, 0, 0.0, 0.0, nats)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def short(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Return the rungs that fail, each with those it should have beaten."""
    return {each.name: each.short_of for each in judge(rows) if not each.beaten}


# ---- judgement


def test_a_rung_that_does_not_beat_the_one_below_fails() -> None:
    """Equal is not better; a rung that was left out is passed over."""
    rows = [row("one-head", 2.4), row("many-heads", 2.3), row("feed-forward", 2.1)]
    assert short(rows) == {}
    assert short([rows[0], row("many-heads", 2.4), rows[2]]) == {"many-heads": ("one-head",)}
    assert short([rows[0], row("feed-forward", 2.5)]) == {"feed-forward": ("one-head",)}


def test_networks_are_compared_with_networks() -> None:
    """Neither has one head to beat the n-gram or the MLP, but the transformer has the MLP."""
    rows = [row("ngram", 1.5), row("bigram", 2.5), row("mlp", 1.8), row("one-head", 2.4)]
    assert short(rows) == {}
    assert short([*rows, row("transformer", 1.7)]) == {}
    assert short([*rows, row("transformer", 1.9)]) == {"transformer": ("mlp",)}
    both = [*rows, row("transformer", 2.45)]
    assert short(both) == {"transformer": ("one-head", "mlp")}


def test_the_learned_bigram_has_to_land_at_the_counted_one() -> None:
    """It is the same model: more than 0.02 nats off, on either side, is off."""
    counted = row("counted-bigram", 2.49)
    assert short([counted, row("bigram", 2.499)]) == {}
    assert judge([counted, row("bigram", 2.485)])[1].tied == "counted-bigram"
    for off in (2.4699, 2.5101):
        assert short([counted, row("bigram", off)]) == {"bigram": ("counted-bigram",)}


def test_a_tie_is_with_its_own_rung_alone() -> None:
    """Where the counted bigram was left out, the learned one has to beat the unigram."""
    unigram = row("unigram", 3.3)
    assert short([unigram, row("bigram", 2.5)]) == {}
    assert judge([unigram, row("bigram", 2.5)])[1].tied == ""
    assert short([unigram, row("bigram", 3.301)]) == {"bigram": ("unigram",)}


def test_the_default_data_are_not_named_in_a_command(tmp_path: Path) -> None:
    """Who repeats it has the default too; an empty name is no folder."""
    assert Job(find("unigram"), 0, tmp_path).command() == "python -m mingpt.climb --rung unigram"


def test_layer_norm_may_tie_and_may_win() -> None:
    """By up to 0.02 nats it may be worse than the blocks without; any better is welcome."""
    blocks = row("blocks", 1.75)
    for val, tied in ((1.7, ""), (1.735, "blocks"), (1.765, "blocks")):
        judged = judge([blocks, row("layer-norm", val)])[1]
        assert (judged.beaten, judged.tied) == (True, tied)
    assert short([blocks, row("layer-norm", 1.771)]) == {"layer-norm": ("blocks",)}
    assert short([row("residual", 1.75), row("layer-norm", 1.755)]) == {"layer-norm": ("residual",)}


def test_a_failing_rung_is_told_with_both_numbers_and_code_6() -> None:
    """The message names the rung, the ones below it and all losses."""
    rows = judge([row("bigram", 2.5), row("mlp", 1.8), row("transformer", 2.6)])
    told = r"^1 rung does not .*: transformer has 2\.6000 .*, bigram 2\.5000 and mlp 1\.8000$"
    with pytest.raises(NumericalError, match=told) as caught:
        complain(rows)
    assert caught.value.exit_code == 6
    complain(rows[:2])


# ---- the table and the chart


def example_rows() -> list[Row]:
    """Return a counted row and two of networks, the last failing."""
    spread = {part: Estimate(2.3, 0.0123) for part in PARTS}
    return [
        row("counted-bigram", 2.4958, seeds=0, counts=4225, cpu_seconds=0.02),
        row("bigram", 2.4967, parameters=4225, cpu_seconds=4.1, tied="counted-bigram"),
        row("many-heads", 2.3, parameters=55937, flops=110592.0, cpu_seconds=31.4, nats=spread,
            short_of=("one-head",)),
    ]  # fmt: skip


def test_the_markdown_says_what_each_rung_added() -> None:
    """Full numbers, an earlier project's beside them, ties and failures in words, the ideas."""
    text = markdown(example_rows())
    table, caption, ideas = text.split("\n\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    ties, fails = "bigram (ties with counted-bigram)", "many-heads (short of one-head)"
    assert cells[2:] == [
        ["counted-bigram", "4,225 counts", "0", "0.0", "2.4958", "2.4958", ""],
        [ties, "4,225", "0", "4.1", "2.4967", "2.4967", "2.72, with Adam 2.56"],
        [fails, "55,937", "110,592", "31", *["2.3000 ± 0.0123"] * 2, ""],
    ]
    assert "earlier project" in table.splitlines()[0]
    assert caption.startswith("Earlier project: what ")
    assert f"- **many-heads**: {find('many-heads').adds}" in ideas.splitlines()


def test_the_terminal_table_fits_eighty_columns() -> None:
    """Names and losses are whole there, counts starred, a failing rung marked."""
    console = Console(width=80, record=True, file=io.StringIO())
    rows = [*example_rows(), row("feed-forward", 1.9, nats={p: Estimate(1.9, 0.1) for p in PARTS})]
    console.print(terminal_table(rows, "nats per character"))
    shown = console.export_text()
    for part in (
        "counted-bigram ",
        "4.22k*",
        "bigram ≈",
        "many-heads ✗",
        "2.3000 ± 0.0123",
        "2.72",
        "2.17 (1 min)",
        "Earlier project: what ",
    ):
        assert part in shown
    assert "…" not in shown


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    """Taller for more rungs; networks alone can be drawn too."""
    heights = []
    for rows in (example_rows(), example_rows()[1:]):
        draw(rows, tmp_path / "ladder.png", title="t", subtitle="s")
        header = (tmp_path / "ladder.png").read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        heights.append(int.from_bytes(header[20:24], "big"))
    assert heights[0] > heights[1]


# ---- jobs


def leave(folder: Path, name: str, seed: int, val: float) -> Job:
    """Leave what a finished job leaves."""
    job = Job(find(name), seed, folder / f"{name}-{seed}")
    job.folder.mkdir(parents=True)
    sizes = {"parameters": 7, "counts": 0, "flops_per_character": 10.0, "cpu_seconds": 3.0 + seed}
    (job.folder / RESULT).write_text(json.dumps({"train_loss": 2.0, "val_loss": val, **sizes}))
    (job.folder / climb.SAMPLE).write_text("To be")
    return job


def test_seeds_of_a_rung_become_one_row(tmp_path: Path) -> None:
    """Losses with their interval and the mean of the times, in the order of the rungs."""
    jobs = [leave(tmp_path, "mlp", seed, val) for seed, val in enumerate((1.0, 2.0, 3.0))]
    jobs += [leave(tmp_path, "bigram", 0, 2.5)]
    bigram, mlp = make_rows([Result.of(job) for job in jobs])
    assert (bigram.name, bigram.seeds, str(bigram.nats["val"])) == ("bigram", 1, "2.5000")
    assert (mlp.name, mlp.seeds, str(mlp.nats["val"])) == ("mlp", 3, "2.0000 ± 2.4843")
    assert mlp.cpu_seconds == 4.0
    assert jobs[0].outcome() == "train 2.0000  val 1.0000"


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    """A file that lacks a number is named with the remedy, never guessed at."""
    job = leave(tmp_path, "mlp", 0, 2.0)
    (job.folder / RESULT).write_text('{"val_loss": 2.0}')
    with pytest.raises(ArtefactError, match=r"result\.json: not what .* --resume"):
        Result.of(job)


def test_a_job_goes_on_with_what_was_begun(tmp_path: Path) -> None:
    """Fresh: train; begun: the same with --resume; finished: done."""
    job = Job(find("mlp"), 2, tmp_path / "mlp-2", data="my text.txt", max_steps=9)
    words = ["-m", "mingpt.climb", "--rung", "mlp", "--seed", "2", "--max-steps", "9"]
    assert job.commands() == [[*words, "--data", "my text.txt", "--out", str(job.folder)]]
    job.folder.mkdir()
    assert job.commands()[0][-1] == "--resume"
    assert not job.done
    (job.folder / RESULT).write_text("{}")
    assert job.done


def test_jobs_are_the_product_of_rungs_and_seeds(tmp_path: Path) -> None:
    """Counted rungs have no seeds; folders are all different; the data are those asked for."""
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 20)
    config = LadderConfig(data=str(tmp_path / "text.txt"), rungs="mlp, uniform", seeds=3)
    jobs = config.jobs(tmp_path, load_text(resolve(tmp_path / "text.txt")))
    assert [(job.rung.name, job.seed) for job in jobs] == [
        ("uniform", 0),
        *(("mlp", seed) for seed in range(3)),
    ]
    assert len({job.folder for job in jobs}) == 4
    assert {job.data for job in jobs} == {config.data}
    assert [job.cost for job in jobs] == [find(job.rung.name).cost() for job in jobs]
    none = np.zeros(0, dtype=np.int64)
    default = Text("shakespeare", "", Vocabulary("a"), none, none)
    everything = LadderConfig(seeds=1).jobs(tmp_path, default)
    assert [job.rung for job in everything] == list(RUNGS)
    assert {job.data for job in everything} == {""}


def test_tuning_never_sees_the_validation_text(tmp_path: Path) -> None:
    """It is the last tenth of the training text that is held out; the true one is gone."""
    (tmp_path / "text.txt").write_text("0123456789" * 9 + "abcdefghij")
    text = load_text(resolve(tmp_path / "text.txt"))
    tuned = climb.for_tuning(text)
    assert (tuned.train.tolist(), tuned.val.tolist()) == (
        text.train[:81].tolist(),
        text.train[81:].tolist(),
    )


def test_a_rung_is_measured_on_as_much_training_as_validation_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 60 a, 30 b and, to validate, 10 b: the first 10 a are the training text's measure."""
    (tmp_path / "text.txt").write_text("a" * 60 + "b" * 40)
    words = ["--rung", "unigram", "--data", str(tmp_path / "text.txt")]
    assert cli.execute(climb.main, [*words, "--out", str(tmp_path / "out")], "climb") == 0
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    # 59 a and 30 b have a character before them; a tenth of a count more for each.
    assert result["train_loss"] == pytest.approx(-math.log(59.1 / 89.2))
    assert result["val_loss"] == pytest.approx(-math.log(30.1 / 89.2))
    assert (result["parameters"], result["counts"], result["steps"]) == (0, 2, 0)
    assert set((tmp_path / "out" / climb.SAMPLE).read_text()) == set("ab")
    assert "validation text" in capsys.readouterr().out
    tuned = [*words, "--tune", "--out", str(tmp_path / "tuned")]
    assert cli.execute(climb.main, tuned, "climb") == 0
    assert "tuning text" in capsys.readouterr().out
    result = json.loads((tmp_path / "tuned" / RESULT).read_text())
    assert result["val_loss"] == pytest.approx(-math.log(21.1 / 80.2))


def test_what_counting_stored_is_counted() -> None:
    """`abab` has 2 characters, 2 pairs, and contexts: the empty one, a and b."""
    ngram = NGram(NGramConfig(vocab_size=2, n=2))
    ngram.fit(np.array([0, 1, 0, 1]))
    assert climb.stored_counts(ngram) == (2 + 1) + (2 + 2)
    assert climb.stored_counts(find("mlp").make(5)) == 0


# ---- the command


def ladder(*words: object) -> int:
    """Run the command in this process and return its exit code."""
    return cli.execute(main, [str(word) for word in words], "ladder", defaults=resumed)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rungs", "mlp,one-haed"], "no rung 'one-haed'; did you mean one-head?"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--max-steps", "0"], "max_steps=0 must be at least 1"),
        (["--workers", "-1"], "workers=-1 must be at least 0"),
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


def test_a_text_that_is_too_short_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once, with code 3, and not by every job."""
    (tmp_path / "short.txt").write_text("to be or not to be")
    assert ladder("--data", tmp_path / "short.txt", "--out", tmp_path / "out") == 3
    assert "18 characters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_ladder_that_was_cut_short_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished jobs are kept, an interrupted one goes on from its checkpoint, and all is written.

    The bigram's process gets a SIGTERM in its fifth step, saves and ends with 143.
    """
    data, out = tmp_path / "text.txt", tmp_path / "out"
    data.write_text("To be, or not to be, that is the question.\n" * 60)
    monkeypatch.setenv("MLE_KILL_AT", "step:5")
    monkeypatch.setenv("MLE_KILL_SIGNAL", "SIGTERM")
    asked = ["--data", data, "--rungs", "unigram,bigram", "--max-steps", 8, "--workers", 2]
    assert ladder(*asked, "--seeds", 1, "--out", out) == 143
    first = capfd.readouterr()
    assert "1 of 2 jobs failed, the first: bigram, seed 0" in first.err
    assert "continue with --resume" in first.err
    counted = out / "jobs" / "unigram-0" / RESULT
    written = counted.stat().st_mtime_ns

    monkeypatch.delenv("MLE_KILL_AT")
    assert ladder("--resume", "--out", out) == 0
    second = capfd.readouterr()
    assert "2, of which 1 are done" in second.out
    assert "Not judged" in second.out
    assert counted.stat().st_mtime_ns == written
    run = json.loads((out / "jobs" / "bigram-0" / RESULT).read_text())
    assert run["steps"] == 8
    told = json.loads((out / "ladder.json").read_text())
    assert [each["name"] for each in told["rows"]] == ["unigram", "bigram"]
    assert told["judged"] is False
    page = (out / "ladder.md").read_text()
    assert "mingpt.climb --rung bigram --seed 0 --max-steps 8 --data text.txt\n" in page
    # A folder of this machine is of no use to others.
    assert "python -m mingpt.ladder --seeds 1 --rungs unigram,bigram" in told["command"]
    assert str(tmp_path) not in page + json.dumps(told)
    assert "**bigram**\n" in (out / "samples.md").read_text()
    assert (out / "ladder.png").exists()

    settings = json.loads((out / "config.json").read_text())
    settings["how"]["bigram"]["trainer"]["learning_rate"] = 7.0
    settings["how"]["layer-norm"]["model"]["n_layer"] = 9
    (out / "config.json").write_text(json.dumps(settings))
    assert ladder("--resume", "--out", out) == 4
    error = capfd.readouterr().err
    assert "how.bigram.trainer.learning_rate: 7.0 ->" in error
    assert "how.layer-norm.model.n_layer: 9 -> 3" in error

    settings["rungs"] = "gone"
    (out / "config.json").write_text(json.dumps(settings))
    assert ladder("--resume", "--out", out) == 4
    error = capfd.readouterr().err
    assert "config.json is not that of a run of mingpt.ladder (no rung 'gone'" in error
    assert error.count("layer-norm") == 1

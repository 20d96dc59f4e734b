"""The command that learns a task: what it leaves, what it answers, what it refuses."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mingpt import solve
from mingpt.solve import ALL, STEPS, Answer, Job, exact_match, example_rows, load, recipe
from mingpt.tasks import TASKS
from shared import cli
from shared.checkpoint import Checkpoint, open_checkpoint
from shared.files import sha256_of, write_json

TINY = ("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--batch-size", "8", "--tests", "20")
SHORT = (*TINY, "--max-steps", "4", "--log-every", "1", "--eval-every", "2")
Command = Callable[..., tuple[int, str, str]]


def run_solve(*words: object) -> int:
    return cli.execute(
        solve.main, [str(word) for word in words], "python -m mingpt.solve", solve.defaults
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command and returns exit code, output and last error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = run_solve(*words)
        said = capsys.readouterr()
        return code, said.out, ["", *said.err.splitlines()][-1]

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on add2 that has learnt next to nothing; read only."""
    out = tmp_path_factory.mktemp("runs") / "add2"
    assert run_solve("add2", *SHORT, "--out", out) == 0
    return out


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


# -- training ------------------------------------------------------------------------------------


def test_a_run_leaves_model_result_examples_and_plot(trained: Path) -> None:
    """The result has both shares and says which test; examples.md has what is wrong."""
    result = result_of(trained)
    assert (result["steps"], result["seed"], result["tests"]) == (4, 0, 20.0)
    assert result["data"]["name"] == "mingpt.tasks: add2"
    assert 0 <= result["exact_match"] < 0.5
    assert 0 <= result["exact_match_beam"] < 0.5
    weights = open_checkpoint(trained).tensors()
    assert result["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert "(wrong)" in (trained / "examples.md").read_text()
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((trained / "config.json").read_text())
    assert (config["task"], config["model"]["n_embd"]) == ("add2", 16)
    assert config["model"]["positions"] == "learned"


def test_the_same_seed_gives_the_same_weights_and_a_resumed_run_ends_alike(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    """Bit for bit; what a finished run is resumed with changes nothing but the clocks."""
    again, other = tmp_path / "again", tmp_path / "other"
    for out, seed in ((again, 0), (other, 1)):
        assert command("add2", *SHORT, "--seed", seed, "--out", out)[0] == 0
    digests = [
        sha256_of(open_checkpoint(each).file("model.safetensors"))
        for each in (trained, again, other)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert command("--resume", "--out", again)[0] == 0
    before, after = result_of(trained), result_of(again)
    for name in ("val_loss", "exact_match", "exact_match_beam", "parameters", "steps"):
        assert before[name] == after[name]


def test_every_task_has_a_recipe_that_fits_it() -> None:
    """The model has the task's ids and places, and the steps are its own."""
    assert list(STEPS) == list(TASKS)
    for task in TASKS.values():
        config = recipe(task)
        assert config.model.vocab_size == task.vocab_size
        assert config.model.block_size >= task.block_size
        assert config.trainer.max_steps == STEPS[task.name]
        assert config == solve.defaults([task.name, "--seed", "3"])


def test_the_table_shows_a_few_right_answers_and_the_wrong_ones() -> None:
    """Five right rows, ten wrong ones, marked where they are wrong; sums as people write them."""
    plain = [Answer(f"{n:02d}+00", "810", "810" if n % 2 else "910") for n in range(40)]
    beamed = [Answer(each.source, each.target, "810") for each in plain]
    rows = example_rows(TASKS["add2"], plain, beamed)
    assert len(rows) == 15
    assert rows[0] == ["01+00", "18", "18", "18"]
    assert rows[5] == ["00+00", "18", "19 (wrong)", "18"]
    assert exact_match(plain) == 0.5


@pytest.mark.slow
def test_the_recipe_of_add2_reaches_its_goal(tmp_path: Path, command: Command) -> None:
    """At least 99% of a thousand sums that were never trained on, greedily and by beam."""
    assert command("add2", "--out", tmp_path / "run")[0] == 0
    result = result_of(tmp_path / "run")
    assert result["tests"] == 1000
    assert result["exact_match"] >= 0.99
    assert result["exact_match_beam"] >= 0.99
    assert command("--run", tmp_path / "run", "--ask", "7 + 5")[1] == "12\n"


# -- asking --------------------------------------------------------------------------------------


def test_a_trained_model_answers_a_person(trained: Path, command: Command) -> None:
    """The answer, marked where it is wrong; as JSON what a program needs."""
    code, out, _ = command("--run", trained, "--ask", "7 + 5", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["task"], told["source"]) == ("add2", "07+05")
    assert told["right"] == (told["target"] == "210")
    assert told["score"] < 0
    out = command("--run", trained, "--ask", "7 + 5")[1]
    assert out == told["answer"] + ("\n" if told["right"] else "   (wrong)\n")


def test_questions_that_cannot_be_answered_are_one_line(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a sum: 3; another task's run, no run at all: 2."""
    code, out, said = command("--run", trained, "--ask", "7 x 5")
    assert (code, out) == (3, "")
    assert said == "error: '7 x 5': expected a sum of two numbers, 0 to 99: '7+99'"
    code, _, said = command("sort", "--run", trained, "--ask", "7+5")
    assert (code, said) == (2, "error: that run learnt add2, not sort; name another --run")
    monkeypatch.chdir(tmp_path)
    code, _, said = command("--ask", "7+5")
    assert (code, said) == (2, "error: runs/mingpt-solve holds no run; name the folder of one")


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("model", "n_embd", 32, "n_embd: checkpoint 16, asked 32"),
        ("model", "n_layer", 2, "decoder.1.around_attention.norm.bias: absent"),
        ("model", "n_embd", 33, "n_embd=33 must be a multiple of n_head=2"),
        ("model", "vocab_size", 99, "do not fit task add2"),
        ("model", "colour", "red", "colour"),
        ("", "task", "sums", "not a run of mingpt.solve"),
    ],
)
def test_case_18_a_checkpoint_of_another_config_is_refused(
    trained: Path, tmp_path: Path, part: str, name: str, value: object, said: str
) -> None:
    """Exit code 4, and which fields differ."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    checkpoint = open_checkpoint(folder)
    config = checkpoint.json()
    (config[part] if part else config)[name] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(checkpoint), "json", lambda _: config)
        with pytest.raises(ValueError, match=said) as error:
            load(folder)
    assert getattr(error.value, "exit_code", None) == 4


def test_case_18_a_run_is_not_resumed_with_another_shape(trained: Path, command: Command) -> None:
    """Exit code 4 with the field, before any step."""
    code, _, said = command("--resume", "--out", trained, "--n-embd", "32")
    assert code == 4
    assert "model.n_embd: 16 -> 32" in said


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("", "", [1], "list indices"),
        ("model", "n_embd", 65, "n_embd=65 must be a multiple"),
        ("", "task", "srt", "no task 'srt'"),
        ("trainer", "max_steps", "many", "not supported between"),
    ],
)
def test_a_torn_config_of_a_run_is_refused_on_resume(
    tmp_path: Path, command: Command, part: str, name: str, value: object, said: str
) -> None:
    """Exit code 4 and one line, whatever config.json holds."""
    config: Any = recipe(TASKS["sort"]).saved("d")
    if name:
        (config[part] if part else config)[name] = value
    write_json(tmp_path / "config.json", config if name else value)
    code, _, error = command("--resume", "--out", tmp_path)
    assert code == 4
    assert error.startswith("error: config.json is not that of a run of mingpt.solve (")
    assert said in error


def test_an_answer_that_is_no_day_is_marked(
    trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text and as JSON; a question without a date has exit code 3."""
    task = TASKS["dates"]
    said = torch.from_numpy(task.encode(["1999-02-31"]))
    monkeypatch.setattr(solve, "load", lambda _: (None, task))
    monkeypatch.setattr(solve, "beam_search", lambda *_, **__: (said, torch.zeros(1)))
    words = ("--run", trained, "--ask")
    assert command(*words, "31.2.1999")[:2] == (0, "1999-02-31   (no such day)\n")
    assert json.loads(command(*words, "31.2.1999", "--json")[1])["flaw"] == "no such day"
    assert command(*words, "hello")[0] == 3


def test_the_weights_of_the_last_step_are_the_ones_that_count(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation chooses nothing: the checkpoint marked best is not asked for."""
    asked: list[bool] = []

    def spy(path: Path, best: bool = False) -> Checkpoint:
        asked.append(best)
        return open_checkpoint(path, best)

    monkeypatch.setattr(solve, "open_checkpoint", spy)
    load(trained)
    assert asked == [False]
    assert open_checkpoint(trained).path.name == "step-00000004"


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say which task to learn: copy, reverse"),
        (("srt",), "no task 'srt'; did you mean sort?"),
        (("--seed", "1", "sort"), "name the task before all flags"),
        (("sort", "--tests", "0"), "tests=0 must be at least 1"),
        (("sort", "--tests", "99999"), "tests=99999 must be at most 10000"),
        (("sort", "--alpha", "-1"), "alpha=-1.0 must be at least 0"),
        (("sort", "--alpha", "nan"), "alpha=nan must be at least 0 and at most 10"),
        (("sort", "--alpha", "1e9"), "alpha=1000000000.0 must be at least 0 and at most 10"),
        (("sort", "--beam", "65"), "beam=65 must be at most 64"),
        (("sort", "--seeds", "3"), "--seeds: not used with sort; leave it out"),
        (("all", "--beam", "1"), "--beam: not used with all"),
        (("all", "--n-embd", "32", "--seed", "1"), "--n-embd, --seed: not used with all"),
        (("--ask", "1", "--tests", "5"), "--tests, --out: not used with --ask"),
        (("sort", "--n-head", "3", "--max-steps", "0"), "n_embd=64 must be a multiple"),
        (("sort", "--vocab-size", "99"), "vocab_size=99"),
        (("sort", "--sed", "1"), "unknown flag --sed; did you mean --seed?"),
        (("add2", "--tests", "5000"), "add2 has 1,204 held-out examples, not 5,200"),
    ],
)
def test_usage_errors_are_one_line(
    words: Sequence[str],
    said: str,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 2, the value and the remedy, and no run folder."""
    monkeypatch.setattr(solve, "solve_all", lambda _: None)  # were it reached, it would take long
    out = tmp_path / "run"
    code, _, error = command(*words, *(("--out", out) if words else ()))
    assert code == 2
    assert said in error
    assert not out.exists()


# -- all tasks -----------------------------------------------------------------------------------


def pretend(share: dict[str, float]) -> Callable[..., list[Any]]:
    """Return a stand-in for `work_off` that writes a result for every job it is given."""

    def work_off(jobs: Sequence[Job], *_: object) -> list[Any]:
        for job in jobs:
            job.folder.mkdir()
            numbers = {"parameters": 7, "steps": 3, "seconds": 1.0, "cpu_seconds": 20.4}
            shares = {"exact_match": share.get(job.name, 1.0), "exact_match_beam": 1.0}
            rest = {"commit": "c", "val_loss": 0.1, "tests": 1000.0, "data": {"sha256": "d"}}
            write_json(job.folder / "result.json", {**numbers, **shares, **rest})
        return []

    return work_off


def test_all_tabulates_every_task_and_seed_and_ends_with_6_below_the_goal(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tasks.json has a row a run with its command; one below 99% is named."""
    monkeypatch.setattr("mingpt.solve.work_off", pretend({"dates (seed 1)": 0.98}))
    code, out, said = command(ALL, "--seeds", "2", "--out", tmp_path)
    assert (code, said) == (6, "error: below 99% exact match: dates (seed 1)")
    rows = json.loads((tmp_path / "tasks.json").read_text())["runs"]
    assert [(row["task"], row["seed"]) for row in rows] == [(t, s) for t in TASKS for s in (0, 1)]
    assert rows[7]["command"] == "python -m mingpt.solve dates --seed 1"
    assert (rows[7]["exact_match"], rows[7]["cpu_seconds"]) == (0.98, 20.4)
    table = (tmp_path / "tasks.md").read_text()
    assert "| dates   |    1 |  98.0% | 100.0% |     3 |          20 |          7 |" in table
    assert "98.0%" in out


def test_all_goes_on_with_resume_only_and_does_not_judge_shortened_runs(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --resume only the new seed is to do; other settings are refused."""
    asked: list[list[str]] = []

    def count(jobs: Sequence[Job], *_: object) -> list[Any]:
        asked.append([f"{job.name} {job.max_steps}" for job in jobs])
        return pretend({"copy (seed 0)": 0.1})(jobs)

    monkeypatch.setattr("mingpt.solve.work_off", count)
    assert command(ALL, "--max-steps", "5", "--out", tmp_path)[0] == 0
    code, _, said = command(ALL, "--out", tmp_path)
    assert code == 2
    assert "is not empty" in said
    code, _, said = command(ALL, "--resume", "--max-steps", "6", "--out", tmp_path)
    assert code == 4
    assert "max_steps: 5 -> 6" in said
    assert command("--resume", "--seeds", "2", "--out", tmp_path)[0] == 0
    assert asked == [[f"{name} (seed {seed}) 5" for name in TASKS] for seed in (0, 1)]


def test_all_may_stand_behind_its_flags(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every task has its recipe's steps and is judged; the next command asks one of the runs."""
    monkeypatch.setattr("mingpt.solve.work_off", pretend({"add2 (seed 0)": 0.5}))
    code, out, said = command("--tests", "1000", "--out", tmp_path, ALL)
    assert (code, said) == (6, "error: below 99% exact match: add2 (seed 0)")
    rows = json.loads((tmp_path / "tasks.json").read_text())["runs"]
    assert rows[0]["command"] == "python -m mingpt.solve copy --seed 0"
    assert f"next: python -m mingpt.solve --run {tmp_path}/runs/add3-0 --ask " in out


def test_a_job_is_a_command_to_repeat(tmp_path: Path) -> None:
    """Its recipe's steps unless fewer are asked for; what was begun is resumed."""
    job = Job(TASKS["sort"], 2, tmp_path / "sort-2", 0, 1000)
    words = ["mingpt.solve", "sort", "--seed", "2"]
    assert job.commands() == [["-m", *words, "--out", str(tmp_path / "sort-2")]]
    assert job.steps == STEPS["sort"]
    job.folder.mkdir()
    assert job.commands()[0][-1] == "--resume"
    assert Job(TASKS["sort"], 2, tmp_path, 9, 50).words() == [
        *words, "--max-steps", "9", "--tests", "50",
    ]  # fmt: skip

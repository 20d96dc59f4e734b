"""The training command: what it writes, that it repeats, and how it ends when something is off."""

import json
from pathlib import Path
from typing import Any

import pytest

from micrograd import data, draw, train
from micrograd.nn import MLP
from micrograd.train import Epoch

QUICK = ["--samples", "12", "--max-steps", "3", "--hidden", "4"]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of a short run, and is tested in test_draw."""
    monkeypatch.setattr(train, "TEST_SAMPLES", 20)
    monkeypatch.setattr(draw, "plot_boundary", lambda *_, **__: None)
    monkeypatch.setattr(draw, "plot_loss", lambda *_, **__: None)


def result(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "result.json").read_text())
    return loaded


def test_the_circles_are_solved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every training point right; model, figures and pictures in the folder."""
    out = tmp_path / "run"
    assert train.main(["--data", "circles", "--samples", "60", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "boundary.png",
        "loss.png",
        "metrics.jsonl",
        "model.json",
        "result.json",
    ]
    found = result(out)
    assert found["train_accuracy"] == 1.0
    assert found["test_accuracy"] > 0.97
    assert found["parameters"] == 337
    assert found["steps"] == 400
    assert (found["data"], found["loss"], found["optimizer"]) == ("circles", "hinge", "adam")
    assert (found["hidden"], found["learning_rate"], found["seed"]) == ([16, 16], 0.02, 0)
    assert found["cpu_seconds"] > 0.0
    assert found["seconds"] > 0.0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(400))
    assert rows[-1]["train_loss"] == found["train_loss"] < 0.05 < rows[0]["train_loss"]
    assert rows[-1]["train_accuracy"] == 1.0
    for picture in ("boundary.png", "loss.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    points, labels = data.make("circles", 60)
    model = MLP.load(out / "model.json")
    assert train.accuracy([model(p) for p in points], labels) == 1.0
    said = capsys.readouterr()
    assert "data=circles" in said.out
    assert "test accuracy" in said.out
    assert said.err == ""


def test_the_same_seed_gives_the_same_model_and_another_another(
    tmp_path: Path, no_pictures: None
) -> None:
    """To the bit, batches included."""
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        flags = ["--batch-size", "5", "--seed", seed, "--out", str(tmp_path / name)]
        assert train.main([*QUICK, *flags]) == 0
    models = [(tmp_path / name / "model.json").read_bytes() for name in "abc"]
    assert models[0] == models[1]
    assert models[0] != models[2]
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab"]
    assert metrics[0] == metrics[1]


def test_the_seed_is_that_of_the_first_weights_too() -> None:
    """Not only of the points."""
    first = [train.build(train.parse(["--seed", s]))[0].state_dict() for s in ("5", "5", "6")]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", "blobs"],
        ["--data", "moons", "--loss", "softmax"],
        ["--data", "xor", "--loss", "bce", "--optimizer", "sgd", "--momentum", "0.5"],
        ["--data", "spiral", "--loss", "mse", "--activation", "tanh", "--init", "xavier"],
        ["--hidden"],
        ["--weight-decay", "0.1", "--l2", "0", "--noise", "0"],
    ],
)
def test_every_kind_of_run_ends_well(flags: list[str], tmp_path: Path, no_pictures: None) -> None:
    """Each loss, optimiser and activation, no hidden layer, no penalty."""
    assert train.main([*QUICK, *flags, "--out", str(tmp_path)]) == 0
    classes = 3 if "blobs" in flags else 2
    softmax = "softmax" in flags or classes == 3
    assert MLP.load(tmp_path / "model.json").sizes[-1] == (classes if softmax else 1)


def test_plain_and_fused_networks_train_alike(tmp_path: Path, no_pictures: None) -> None:
    """The same losses, to rounding."""
    losses = []
    for flags in ([], ["--plain"]):
        assert train.main([*QUICK, *flags, "--out", str(tmp_path)]) == 0
        text = (tmp_path / "metrics.jsonl").read_text()
        losses.append([json.loads(line)["train_loss"] for line in text.splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "moon"], "--data: invalid choice: 'moon'"),
        (["--frobnicate"], "--frobnicate"),
        (["--samples", "1"], "--samples 1 must be at least 2"),
        (["--samples", "0"], "--samples 0 must be at least 2"),
        (["--samples", "x"], "--samples: invalid int value: 'x'"),
        (["--noise", "-1"], "noise=-1.0 must be at least 0"),
        (["--hidden", "0"], "0 is no size of a layer"),
        (["--max-steps", "0"], "--max-steps 0 must be at least 1"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--l2", "-1"], "--l2 -1.0 must be at least 0"),
        (["--l2", "nan"], "--l2 nan must be"),
        (["--l2", "inf"], "--l2 inf must be"),
        (["--learning-rate", "0"], "learning_rate=0.0 must be a positive number"),
        (["--learning-rate", "nan"], "learning_rate=nan must be"),
        (["--momentum", "1", "--optimizer", "sgd"], "momentum=1.0 must be in"),
        (["--momentum", "5"], "--momentum 5.0 is of sgd alone: add --optimizer sgd"),
        (["--weight-decay", "1e9"], "times weight_decay=1000000000.0 must be at most 1"),
        (["--out", ""], "--out: the name is empty"),
        (["--weight-decay", "-1"], "weight_decay=-1.0 must be at least 0"),
        (["--data", "blobs", "--loss", "hinge"], "--data blobs has 3 classes: use --loss softmax"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    assert train.main(["--out", str(tmp_path / "out"), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("micrograd.train: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback() -> None:
    """That is, the exception itself gets out."""
    with pytest.raises(ValueError, match="--samples 1"):
        train.main(["--samples", "1", "--debug"])


def test_ctrl_c_saves_what_there_is_and_exits_130(
    tmp_path: Path,
    no_pictures: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model after the last full step, with its figures."""
    made = Epoch

    def interrupted(step: int, loss: float, accuracy: float) -> Epoch:
        if step == 2:
            raise KeyboardInterrupt
        return made(step, loss, accuracy)

    monkeypatch.setattr(train, "Epoch", interrupted)
    assert train.main([*QUICK, "--max-steps", "9", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "micrograd.train: interrupted\n"
    assert result(tmp_path)["steps"] == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert MLP.load(tmp_path / "model.json").sizes == [2, 4, 1]


def test_ctrl_c_before_the_first_step_is_fine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No figures, no plot of them, and a model that was not trained."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    assert train.main([*QUICK, "--out", str(tmp_path)]) == 130
    assert result(tmp_path)["train_loss"] is None
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert not (tmp_path / "loss.png").exists()
    assert (tmp_path / "model.json").exists()


def test_a_folder_that_cannot_be_written_ends_the_run_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5 and one line that names it."""
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        assert train.main([*QUICK, "--out", str(out)]) == 5
        err = capsys.readouterr().err
        assert f"--out {out} cannot be written: " in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--max-steps", "1", "--learning-rate", "1e300"], 1),
        (["--learning-rate", "1e300"], 1),
        (["--max-steps", "60", "--optimizer", "sgd", "--learning-rate", "10"], 5),
    ],
)
def test_a_run_that_overflows_saves_the_last_model_with_a_loss_and_exits_6(
    flags: list[str],
    steps: int,
    tmp_path: Path,
    no_pictures: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line has a remedy, and no line of our own source."""
    flags = [*flags, "--loss", "mse", "--l2", "0", "--out", str(tmp_path)]
    assert train.main([*QUICK, *flags]) == 6
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"training overflows after {steps} of " in err
    assert " steps; lower --learning-rate 1" in err
    assert err.endswith(f"is in {tmp_path}\n")
    assert ".py" not in err.replace(str(tmp_path), "")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == steps
    points, labels = data.make("moons", 12)
    model = MLP.load(tmp_path / "model.json")
    loss = train.loss_of("mse", [model(p) for p in points], labels)
    assert loss.data == rows[-1]["train_loss"]
    assert result(tmp_path)["train_accuracy"] == rows[-1]["train_accuracy"]


def test_a_model_that_overflows_on_new_points_alone_is_saved_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracy is null, and there is no boundary to draw."""
    monkeypatch.setattr(train, "measure", lambda *_: None)
    assert train.main([*QUICK, "--out", str(tmp_path)]) == 6
    assert "lower --learning-rate 0.02" in capsys.readouterr().err
    assert result(tmp_path)["test_accuracy"] is None
    assert not (tmp_path / "boundary.png").exists()
    assert (tmp_path / "model.json").exists()


def test_an_accuracy_that_overflows_is_none() -> None:
    """Rather than the end of the run."""
    model = MLP(2, [1])
    for p in model.parameters():
        p.data = 1e308
    assert train.measure(model, [[1.0, 1.0]], [1]) is None
    assert train.measure(model, [[0.0, 0.0]], [1]) == 1.0


def test_the_command_in_the_result_is_the_one_that_was_given(
    tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quoted for a shell; sys.argv's only when the program was run by it."""
    out = tmp_path / "my run"
    argv = [*QUICK, "--out", str(out)]
    given = f"python -m micrograd.train {' '.join(QUICK)} --out '{out}'"
    monkeypatch.setattr("sys.argv", ["pytest", "--something-else"])
    assert train.main(argv) == 0
    assert result(out)["command"] == given
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    assert train.main() == 0
    assert result(out)["command"] == given


def test_without_out_a_folder_is_named_after_the_time(
    tmp_path: Path, no_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under runs/micrograd, where the command is run."""
    monkeypatch.chdir(tmp_path)
    assert train.main(QUICK) == 0
    (out,) = (tmp_path / "runs" / "micrograd").iterdir()
    assert result(out)["steps"] == 3

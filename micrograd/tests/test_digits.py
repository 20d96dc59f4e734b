"""The digits are read as well as promised, in a run that repeats, from a command that explains."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from micrograd import digits
from micrograd.digits import MLP, Adam, Config
from micrograd.errors import UsageError
from micrograd.tensor import Tensor

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

QUICK = ["--epochs", "1", "--batch-size", "256"]


def test_the_defaults_read_97_in_100_unseen_digits() -> None:
    """The default run of seed 1 is right for at least 97% of the test digits."""
    training, (pixels, classes) = digits.load(seed=1)
    model = digits.train(training, Config(seed=1))
    assert (digits.read(model, pixels) == classes).mean() >= 0.97


def test_the_split_is_80_to_20_of_each_class_with_no_digit_in_both() -> None:
    """1437 and 360 digits, each class in proportion, pixels from 0 to 1."""
    (x, y), (x_test, y_test) = digits.load(seed=0)
    assert (len(x), len(x_test)) == (1437, 360)
    np.testing.assert_allclose(np.bincount(y) / 1437, np.bincount(y_test) / 360, atol=0.002)
    assert x.min() == 0.0
    assert x.max() == 1.0
    seen = {row.tobytes() for row in x}
    assert not any(row.tobytes() in seen for row in x_test)


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    """Two runs of a seed agree to the bit."""
    training, _ = digits.load(seed=0)
    losses: list[list[float]] = []
    for seed in (5, 5, 6):
        losses.append([])
        digits.train(training, Config(epochs=2, seed=seed), losses[-1].append)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0][1] < losses[0][0]


def test_adam_is_that_of_torch() -> None:
    """Ten steps on a curved loss, with another learning rate each, are torch.optim.Adam's."""
    start = np.random.default_rng(0).normal(size=(3, 4))
    ours = Tensor(start)
    theirs: Any = torch.tensor(start, requires_grad=True)
    adam, peer = Adam([ours]), torch.optim.Adam([theirs])
    for step in range(10):
        (ours**4).sum().backward()
        (theirs**4).sum().backward()
        adam.step(0.1 / (1 + step))
        peer.param_groups[0]["lr"] = 0.1 / (1 + step)
        peer.step()
        peer.zero_grad()
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-12)
        assert not ours.grad.any()


def test_the_first_weights_have_the_variance_of_he() -> None:
    """Variance 2 / inputs, biases zero."""
    (weight, bias), _ = MLP([1000, 300, 10], np.random.default_rng(0)).layers
    assert np.var(weight.data) == pytest.approx(2 / 1000, rel=0.02)
    assert not bias.data.any()


def test_the_command_prints_accuracy_and_what_was_misread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table on standard output, and nothing on standard error when that is no terminal."""
    assert digits.main(QUICK) == 0
    printed = capsys.readouterr()
    assert "64-64-10 on scikit-learn's digits, seed 0" in printed.out
    assert "│ test   │    360 │" in printed.out
    assert "misread most often: " in printed.out
    assert printed.err == ""


def test_the_command_writes_the_result_and_the_misread_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out` makes the folder with what `--json` prints, and a PNG."""
    folder = tmp_path / "new" / "run"
    assert digits.main([*QUICK, "--json", "--seed", "3", "--out", str(folder)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "result.json").read_text()) == result
    assert (result["seed"], result["epochs"], result["test_digits"]) == (3, 1, 360)
    assert 0.1 < result["test_accuracy"] < 1.0
    assert (folder / "misread.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["misread.png", "result.json"]


def test_a_picture_without_a_mistake_is_drawn_too() -> None:
    """No misread digit gives an empty picture, not an error."""
    assert digits.plot_misread(np.zeros((2, 64)), np.array([1, 2]), np.array([1, 2]))[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--epochs", "0"], 2, "epochs=0 must be at least 1 and below 1e9"),
        (["--noise", "nan"], 2, "noise=nan must be at least 0"),
        (["--learning-rate", "0"], 2, "learning_rate=0.0 must be at least"),
        (["--seed", "-1"], 2, "seed=-1 must be at least 0"),
        (["--hidden", "many"], 2, "argument --hidden: invalid int value: 'many' (--help lists"),
        (["--layers", "3"], 2, "unrecognized arguments: --layers 3"),
        (["--out", ""], 2, "--out: the name is empty"),
        ([*QUICK, "--out", "FILE/run"], 5, "--out FILE/run cannot be written: Not a directory"),
        (["--learning-rate", "1e200"], 2, "learning_rate=1e+200 must be at least 1e-09 and below"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    argv: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each says what is wrong on a line of standard error, with no traceback."""
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    assert digits.main(argv) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("micrograd.digits: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    """`--debug` lets the error through."""
    with pytest.raises(UsageError, match="epochs=0"):
        digits.main(["--epochs", "0", "--debug"])


def test_without_scikit_learn_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing scikit-learn is one line and exit code 2."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert digits.main([]) == 2
    assert "not installed: pip install scikit-learn\n" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C gives one line."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "train", interrupt)
    assert digits.main([]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When fsync fails the command ends with 5, and the folder is as it was."""

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert digits.main([*QUICK, "--out", str(tmp_path)]) == 5
    assert "misread.png cannot be written: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""What makemore survives: rows 5 to 8 of the project's list of faults, and a signal in training."""

import functools
import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore.data import read_items
from makemore.load import load_run
from shared.checkpoint import Checkpoints, open_checkpoint
from shared.datasets import resolve
from shared.errors import DataError
from shared.faults import run_and_kill
from shared.metrics import read_metrics
from shared.testing import check_interrupt_loses_nothing, check_strangers_are_refused, digests

Command = Callable[..., Any]
MEGABYTE = 10**6


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -- 5: data that cannot be trained on -----------------------------------------------------------

LINES = b"anna\nemma\nmia\n"
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "bad.txt is empty"),
    "blank": (b" \n\n \r\n", "bad.txt holds no items; it needs one a line"),
    "one name": (b"anna\n", "bad.txt has 1 item, the last in line 1; at least 10 are needed"),
    "few": (LINES, "bad.txt has 3 items, the last in line 3; at least 10 are needed"),
    "duplicates": (b"anna\n" * 99, "bad.txt: all 99 lines from line 1 on say 'anna'"),
    "long line": (
        LINES + b"a" * 10 * MEGABYTE,
        "bad.txt, line 4: 10,000,000 characters; an item has at most 256",
    ),
    "control": (LINES + b"a\0b\n", "bad.txt, line 4: holds the control character"),
    "not UTF-8": (LINES * 9 + b"caf\xe9\n", "bad.txt is not UTF-8 text: byte 0xe9 at offset 129"),
}


@pytest.mark.parametrize("why", BAD)
@pytest.mark.parametrize("model", ["gru", "ngram"])
def test_case_05_data_that_cannot_be_trained_on_are_refused_with_line_and_reason(
    why: str, model: str, command: Command, tmp_path: Path
) -> None:
    """One line on stderr, exit 3, nothing printed and no run folder made."""
    content, said = BAD[why]
    data, out = write(tmp_path / "bad.txt", content), tmp_path / "run"
    ended = command("train", "--data", data, "--model", model, "--out", out)
    assert said in ended.error
    assert (ended.code, ended.out, ended.error.count("\n")) == (3, "", 1)
    assert not out.exists()


def test_case_05_a_line_of_ten_megabytes_costs_little_memory(tmp_path: Path) -> None:
    """A few times its size, until it is refused; and the message does not repeat it."""
    data = write(tmp_path / "bad.txt", BAD["long line"][0])
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error:
            read_items(resolve(data))
        assert tracemalloc.get_traced_memory()[1] < 80 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 500


def test_case_05_a_folder_without_texts_is_refused(command: Command, tmp_path: Path) -> None:
    """A folder is the text files in it."""
    (tmp_path / "none").mkdir()
    ended = command("train", "--data", tmp_path / "none", "--out", tmp_path / "run")
    assert (ended.code, ended.error.count("\n")) == (3, 1)
    assert "none has no text files in it" in ended.said


def test_case_05_the_real_command_says_so_too(tmp_path: Path) -> None:
    """A process of its own: exit 3, one line, no traceback."""
    words = ["--data", str(write(tmp_path / "bad.txt", b"anna\n")), "--out", str(tmp_path / "run")]
    ended = run_and_kill([sys.executable, "-m", "makemore.train", *words])
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -- 6: unseen characters ------------------------------------------------------------------------


def test_case_06_unseen_characters_are_listed(
    command: Command, trained: tuple[Path, Any], names: list[str], tmp_path: Path
) -> None:
    """In a file to measure and in a prefix: exit 3, all of them in one line, and what to do."""
    other = write(tmp_path / "other.txt", "\n".join([*names, "zoë", "jürgen", "zoë"]).encode())
    before = digests(trained[0])
    for unseen, ended in (
        ("jëü", command("evaluate", "--run", trained[0], "--data", other)),
        ("ëü", command("generate", "--run", trained[0], "--prefix", "üë")),
    ):
        assert (ended.code, ended.out, ended.error.count("\n")) == (3, "", 1)
        assert f"characters the model has never seen: {unseen!r}" in ended.said
        assert "Train with --unk 2 to have a stand-in" in ended.said
    assert digests(trained[0]) == before


def test_case_06_a_model_with_an_unknown_character_takes_them(
    command: Command,
    names_file: Path,
    names: list[str],
    tiny: tuple[object, ...],
    tmp_path: Path,
) -> None:
    """They are counted; such a model never makes the unknown character up."""
    run, words = tmp_path / "run", ("--data", names_file, "--unk", 2)
    ended = command("train", *words, "--out", run, *tiny)
    assert ended.code == 0, ended.error
    assert "unknown     " in ended.out
    assert load_run(run).vocabulary.unknown
    other = write(tmp_path / "other.txt", "\n".join([*names, "zoëë", "jürgen"]).encode())
    ended = command("evaluate", "--run", run, "--data", other)
    assert (ended.code, ended.error) == (0, "")
    assert "characters are unknown to the model" in ended.out
    ended = command("generate", "--run", run, "--prefix", "ü", "--number", 50)
    assert (ended.code, ended.error) == (0, "")
    assert "\N{WHITE SQUARE}" not in ended.out


# -- 7: a resumed run that gets worse ------------------------------------------------------------


def test_case_07_a_worse_model_does_not_replace_the_best(
    command: Command, names_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """Resumed until it knows the few names by heart, and nothing else: the best is kept.

    Its bytes are as before, and it is what generate, evaluate and the result go by.
    """
    run, words = tmp_path / "run", ("--schedule", "constant", "--learning-rate", 0.02)
    shape = (*tiny, "--dropout", 0, "--max-steps", 120, "--eval-every", 20, "--log-every", 20)
    assert command("train", "--data", names_file, "--out", run, *shape, *words).code == 0
    best = open_checkpoint(run, best=True)
    before, said = digests(best.path), command("generate", "--run", run, "--json").out
    ended = command("train", "--resume", "--out", run, "--max-steps", 300, "--keep-checkpoints", 1)
    assert ended.code == 0, ended.error
    losses = {
        record["step"]: record["val_loss"]
        for record in read_metrics(run / "metrics.jsonl")
        if record["kind"] == "val"
    }
    assert losses[300] > min(losses.values()) + 0.5
    assert open_checkpoint(run).step == 300
    assert open_checkpoint(run, best=True).path == best.path
    assert digests(best.path) == before
    assert load_run(run).path == best.path
    assert command("generate", "--run", run, "--json").out == said
    assert f" {min(losses.values()):.4f}" in ended.out


# -- 8: numbers ----------------------------------------------------------------------------------


@pytest.fixture
def broken(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """Return a run whose best weights are not numbers."""
    best = open_checkpoint(trained[0], best=True)
    checkpoints = Checkpoints(tmp_path / "broken" / "checkpoints")
    pending = checkpoints.begin(best.step)
    weights = {name: torch.full_like(w, math.nan) for name, w in best.tensors().items()}
    pending.write_tensors("model.safetensors", weights)
    pending.write_json("config.json", best.json())
    checkpoints.commit(pending, best=True)
    return tmp_path / "broken"


@pytest.mark.parametrize("temperature", [0, 1])
def test_case_08_a_model_that_gives_nans_generates_nothing(
    temperature: int, command: Command, broken: Path
) -> None:
    """Exit 6 in one line, greedy or not."""
    ended = command("generate", "--run", broken, "--temperature", temperature, "--number", 1)
    assert (ended.code, ended.out, ended.error.count("\n")) == (6, "", 1)
    assert "scores that are not finite; its weights are broken" in ended.said


def test_case_08_nor_is_it_measured(command: Command, broken: Path) -> None:
    """Exit 6 in one line."""
    ended = command("evaluate", "--run", broken)
    assert (ended.code, ended.out, ended.error.count("\n")) == (6, "", 1)
    assert "not numbers; its weights are broken" in ended.said


# -- runs that are none, and signals -------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_folder_that_is_no_run_of_ours_is_refused(
    verb: str, command: Command, tmp_path: Path
) -> None:
    """None at all, one without a checkpoint, another package's, a damaged one."""
    check_strangers_are_refused(lambda run: command(verb, "--run", run), tmp_path, "makemore.train")


def test_ctrl_c_ends_training_after_a_save_and_resuming_gives_the_same_bits(
    command: Command, names_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """The real command in a process of its own, with dropout: exit 130, and no traceback."""
    train = functools.partial(command, "train")
    words = ("--data", names_file, *tiny)
    check_interrupt_loses_nothing(train, "makemore.train", words, 3, tmp_path)

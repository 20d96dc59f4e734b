"""What the commands survive: rows 16 and 18 of the project's list of faults, and their like."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from shared.errors import ArtefactError
from shared.testing import check_interrupt_loses_nothing, check_strangers_are_refused, digests

Command = Callable[..., Any]
Altered = Callable[..., Path]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -- texts that cannot be trained on -------------------------------------------------------------

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "bad.txt is empty"),
    "one character": (b"a", "bad.txt has 1 characters, 0 to train on and 1 to validate"),
    "short": (
        b"abcdefgh " * 2,
        "bad.txt has 18 characters, 16 to train on and 2 to validate; block_size=16 needs 17 and "
        "2. Take a longer text, or a --block-size of at most 15",
    ),
    "not UTF-8": (b"caf\xe9 " * 99, "bad.txt is not UTF-8 text: byte 0xe9 at offset 3"),
}


@pytest.mark.parametrize("why", BAD)
def test_texts_that_cannot_be_trained_on_are_refused_with_the_sizes(
    why: str, command: Command, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """One line on stderr, exit 3, nothing printed and no run folder made."""
    content, said = BAD[why]
    data, out = write(tmp_path / "bad.txt", content), tmp_path / "run"
    ended = command("train", *tiny, "--data", data, "--out", out)
    assert said in ended.error
    assert (ended.code, ended.out, ended.error.count("\n")) == (3, "", 1)
    assert not out.exists()


def test_a_window_longer_than_the_text_is_refused_before_the_model_is_made(
    command: Command, tiny: tuple[object, ...], text_file: Path, tmp_path: Path
) -> None:
    """Which could take all memory."""
    words = ("--data", text_file, "--out", tmp_path / "run", "--block-size", 10**13)
    ended = command("train", *tiny, *words, "--positions", "learned")
    assert (ended.code, ended.out, ended.error.count("\n")) == (3, "", 1)
    assert "block_size=10000000000000 needs " in ended.said


def test_a_text_of_just_enough_characters_trains(
    command: Command, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """One window to train on, one target to validate."""
    data = write(tmp_path / "short.txt", b"abcdefgh " * 2 + b"!")
    ended = command("train", *tiny, "--data", data, "--out", tmp_path / "run")
    assert ended.code == 0, ended.error
    assert "over all 1 targets" in ended.out


# -- 16: prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [15, 16, 17, 1000])
def test_case_16_of_a_prompt_longer_than_the_context_the_end_is_read(
    length: int, command: Command, trained: tuple[Path, Any], sonnet: str
) -> None:
    """It is told on stderr, the whole prompt is printed, the rest is as after its end alone."""
    words = ("generate", "--run", trained[0], "--max-new-tokens", 40, "--prompt")
    prompt = sonnet[3 : 3 + length]
    ended, short = command(*words, prompt), command(*words, prompt[-16:])
    assert ended.code == short.code == 0
    assert ended.out.startswith(prompt)
    assert ended.out[length:] == short.out[min(length, 16) :]
    told = f"the prompt has {length:,} characters; its last 16 are read\n"
    assert ended.error == (told if length > 16 else "")


def test_case_16_an_empty_prompt_begins_after_a_line_break(
    command: Command, trained: tuple[Path, Any]
) -> None:
    """The same text as after a line break, which is not printed."""
    words = ("generate", "--run", trained[0], "--max-new-tokens", 40)
    ended, explicit = command(*words), command(*words, "--prompt", "\n")
    assert (ended.code, ended.error) == (0, "")
    assert "\n" + ended.out == explicit.out


def test_case_16_unseen_characters_are_listed(
    command: Command, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    """In a prompt and in a text to measure: exit 3, all of them in one line, nothing printed."""
    other = write(tmp_path / "other.txt", "Öl und Übermut.\n".encode() * 9)
    for ended in (
        command("generate", "--run", trained[0], "--prompt", "ÜberÖl" * 99),
        command("evaluate", "--run", trained[0], "--data", other),
    ):
        assert (ended.code, ended.out, ended.error.count("\n")) == (3, "", 1)
        assert "characters the model has never seen: 'ÖÜ'; it knows " in ended.said


@pytest.mark.parametrize("temperature", [0, 1])
def test_case_16_a_model_that_gives_nans_writes_nothing(
    temperature: int, command: Command, trained: tuple[Path, Any], altered: Altered
) -> None:
    """Exit 6 in one line, greedy or not; nor is it measured."""

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights.update(
            {name: w.fill_(math.nan) for name, w in weights.items() if w.is_floating_point()}
        )

    run = altered(trained[0], tensors=spoil)
    for words in (("generate", "--temperature", temperature), ("evaluate",)):
        ended = command(words[0], "--run", run, *words[1:])
        assert (ended.code, ended.out, ended.error.count("\n")) == (6, "", 1)
        assert "weights are broken" in ended.said


# -- 18: checkpoints of another configuration ----------------------------------------------------


def test_case_18_a_checkpoint_of_another_configuration_is_refused_field_by_field(
    command: Command, trained: tuple[Path, Any], altered: Altered
) -> None:
    """Exit 4; each field in one line, also where only the weights' shapes tell it."""
    run = altered(trained[0], config=lambda c: c["model"].update(n_layer=3, n_embd=8))
    for verb in ("generate", "evaluate"):
        ended = command(verb, "--run", run)
        assert (ended.code, ended.out, ended.error.count("\n")) == (4, "", 1)
        assert "of another configuration: " in ended.said
        assert "n_layer: checkpoint 2, asked 3" in ended.said
        assert "n_embd: checkpoint 16, asked 8" in ended.said
        assert "n_head" not in ended.said
        assert len(ended.said) < 700


@pytest.fixture
def copied(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """Return a copy of the run, free to change."""
    return Path(shutil.copytree(trained[0], tmp_path / "copied"))


def test_case_18_a_run_is_not_resumed_with_another_model(command: Command, copied: Path) -> None:
    """Exit 4 before anything is computed or written, naming what differs and nothing else."""
    before = digests(copied)
    words = ("--n-layer", 3, "--dropout", 0.2, "--batch-size", 4)
    ended = command("train", "--resume", "--out", copied, *words)
    assert (ended.code, ended.out, ended.error.count("\n")) == (4, "", 1)
    assert ended.said.endswith(": model.dropout: 0.1 -> 0.2; model.n_layer: 2 -> 3")
    ended = command("train", "--resume", "--out", copied, "--preset", "nanogpt")
    assert ended.code == 4
    assert "model.recipe: default -> nanogpt" in ended.said
    after = digests(copied)
    for ours in ("owner.json", "run.lock"):
        before.pop(ours, None)
        after.pop(ours, None)
    assert after == before


def test_case_18_a_run_with_the_checkpoints_of_another_is_not_resumed(
    command: Command, copied: Path, text_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """Its folder says one thing and what is saved in it another: exit 4, field by field."""
    other = ("--out", tmp_path / "other", "--n-layer", 1, "--n-head", 4, "--max-steps", 3)
    assert command("train", "--data", text_file, *tiny, *other).code == 0
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", copied / "checkpoints")
    before = digests(copied / "checkpoints")
    ended = command("train", "--resume", "--out", copied)
    assert (ended.code, ended.error.count("\n")) == (4, 1)
    assert "n_layer: checkpoint 1, asked 2; n_head: checkpoint 4, asked 2" in ended.said
    assert digests(copied / "checkpoints") == before


def test_case_18_another_model_is_found_out_before_anything_is_counted(
    command: Command, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hybrid's counting takes seconds, and comes after."""
    monkeypatch.setattr("mingpt.train.check_fit", Mock(side_effect=ArtefactError("not mine")))
    counting = Mock()
    monkeypatch.setattr("mingpt.recipes.examples", counting)
    ended = command("train", "--resume", "--out", copied)
    assert (ended.code, ended.said.endswith("not mine")) == (4, True)
    counting.assert_not_called()


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("trainer", {"max_steps": -1}, "max_steps=-1 must be at least 0"),
        ("trainer", {"max_steps": 0}, "max_steps=0 must be at least 1"),
        ("trainer", {"seed": "3"}, "seed='3' must be int"),
        ("trainer", {"strange": 3}, "strange"),
        ("model", {"n_head": 3}, "n_embd=16 must be a multiple of n_head=3"),
        ("model", {"n_layer": True}, "n_layer=True must be int"),
        ("model", {"recipe": "defualt"}, "no preset 'defualt'"),
        ("model", {"recipe": []}, "unhashable"),
        ("", {"sample": -1}, "sample=-1 must be at least 0"),
        ("", {"sample": "30"}, "sample='30' must be int"),
        ("", {"data": 3}, "data=3 must be str"),
        ("", {"trainer": 3}, "3 must be an object"),
        ("", {"model": 3}, "int"),
    ],
)
def test_case_18_a_run_whose_settings_were_altered_is_not_resumed(
    part: str, changes: dict[str, object], said: str, command: Command, copied: Path
) -> None:
    """Exit 4 and one line with what is wrong in config.json."""
    config = json.loads((copied / "config.json").read_text())
    (config[part] if part else config).update(changes)
    (copied / "config.json").write_text(json.dumps(config))
    ended = command("train", "--resume", "--out", copied)
    assert (ended.code, ended.out, ended.error.count("\n")) == (4, "", 1)
    assert "config.json is not that of a run of mingpt.train (" in ended.said
    assert said in ended.said


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_case_18_a_folder_that_is_no_run_of_ours_is_refused(
    verb: str, command: Command, tmp_path: Path
) -> None:
    """None at all, one without a checkpoint, another package's, a damaged one."""
    check_strangers_are_refused(lambda run: command(verb, "--run", run), tmp_path, "mingpt.train")


# -- signals -------------------------------------------------------------------------------------


def test_ctrl_c_ends_training_after_a_save_and_resuming_gives_the_same_bits(
    command: Command, text_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """The real command in a process of its own, with dropout: exit 130, and no traceback."""
    train = functools.partial(command, "train")
    words = ("--data", text_file, *tiny)
    check_interrupt_loses_nothing(train, "mingpt.train", words, 4, tmp_path)

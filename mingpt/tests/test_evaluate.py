"""Measuring a model: the mean over every target, by position in the window, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mingpt.data import Text, Vocabulary, mean_nats
from mingpt.evaluate import bits, bits_per_byte, by_position, choose_part, measure
from mingpt.load import find_data, load_run, read_text

Command = Callable[..., Any]


def test_nats_by_position_double_their_ranges() -> None:
    """0, 1, 2 to 3, 4 to 7, ...; weighted by their targets they give the mean."""
    positions = np.concatenate([np.arange(11), np.arange(6)])
    nats = np.arange(17.0)
    rows = by_position(nats, positions)
    assert [(row["from"], row["to"], row["targets"]) for row in rows] == [
        *((0, 0, 2), (1, 1, 2), (2, 3, 4)),
        *((4, 7, 6), (8, 10, 3)),
    ]
    assert rows[2]["nats_per_character"] == pytest.approx((2 + 3 + 13 + 14) / 4)
    weighted = sum(row["targets"] * row["nats_per_character"] for row in rows)
    assert weighted / 17 == pytest.approx(nats.mean())
    assert [row["from"] for row in by_position(nats[:1], np.array([5]))] == [4]


def test_the_measure_agrees_with_mean_nats(trained: tuple[Path, Any]) -> None:
    """In windows that do not overlap; with overlap the model sees more, each target still once."""
    loaded = load_run(trained[0])
    text, model = read_text(loaded, find_data(loaded)), loaded.model
    found = measure(model, text.val)
    expected = mean_nats(model, text.val, model.block_size)
    assert found["nats_per_character"] == pytest.approx(expected, rel=1e-6)
    assert found["bits_per_character"] == pytest.approx(expected / math.log(2), rel=1e-6)
    assert (found["targets"], found["stride"]) == (len(text.val) - 1, model.block_size)
    sliding = measure(model, text.val, stride=1, batch_size=7)
    assert sliding["targets"] == found["targets"]
    assert sliding["nats_per_character"] != found["nats_per_character"]
    assert sliding["by_position"][-1]["targets"] == found["targets"] - model.block_size // 2


class Surer(nn.Module):
    """Says that the next id is one more than the last; with p + 1 before it, by p logits."""

    vocab_size, block_size = 12, 4

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits; the loss is not asked for here."""
        assert targets is None
        sure = torch.arange(idx.size(1))[:, None]
        return sure * torch.eye(self.vocab_size)[(idx + 1) % self.vocab_size]

    def flops_per_character(self) -> float:
        """Return what counting costs."""
        return 0.0


def test_overlap_is_worth_what_more_context_is_worth() -> None:
    """A model that is surer with more before it: the loss by position, and by stride."""
    ids = np.arange(12)  # eleven targets: three windows of at most four
    nats = [math.log(11 + math.exp(p)) - p for p in range(4)]
    apart = measure(Surer(), ids)
    assert [row["targets"] for row in apart["by_position"]] == [3, 3, 5]
    assert apart["by_position"][1]["nats_per_character"] == pytest.approx(nats[1])
    assert apart["nats_per_character"] == pytest.approx((3 * sum(nats) - nats[3]) / 11)
    sliding = measure(Surer(), ids, stride=1)
    assert sliding["nats_per_character"] == pytest.approx((sum(nats) + 7 * nats[3]) / 11)
    half = measure(Surer(), ids, stride=2)
    expected = sum(nats) + 3 * (nats[2] + nats[3]) + nats[2]
    assert half["nats_per_character"] == pytest.approx(expected / 11)


def test_the_part_is_validation_for_its_own_text_and_all_of_another() -> None:
    """Unless asked for."""
    text = Text("t", "", Vocabulary("abc"), np.array([0, 1]), np.array([2]))
    found = {
        (split, own): (name, ids.tolist())
        for split in (None, "val", "train", "all")
        for own in (True, False)
        for name, ids in [choose_part(text, split, own)]
    }
    assert found[None, True] == found["val", True] == found["val", False] == ("val", [2])
    assert found["train", True] == found["train", False] == ("train", [0, 1])
    assert found[None, False] == found["all", True] == found["all", False] == ("all", [0, 1, 2])


def test_bits_are_nats_by_log_2() -> None:
    """An even choice of two is one bit; of a character of two bytes, half a bit for each."""
    assert bits(math.log(2)) == 1.0
    vocabulary = Vocabulary("aß€")
    assert bits_per_byte(math.log(2), np.array([0, 0]), vocabulary) == 1.0
    assert bits_per_byte(math.log(2), np.array([1, 1, 1]), vocabulary) == 0.5
    assert bits_per_byte(math.log(2), np.array([0, 1, 2]), vocabulary) == 0.5


# -- the command ---------------------------------------------------------------------------------


def test_the_command_says_how_much_was_measured(
    command: Command, trained: tuple[Path, Any], sonnet: str
) -> None:
    """For a person: nats, bits, the count of targets, the windows, a row for each position."""
    ended = command("evaluate", "--run", trained[0])
    assert (ended.code, ended.error) == (0, "")
    result = json.loads(command("evaluate", "--run", trained[0], "--json").out)
    val = len(sonnet) - int(0.9 * len(sonnet))
    assert result["targets"] == val - 1
    assert result["data"]["split"] == "val"
    said = " ".join(ended.out.split())
    for words in (
        *("sonnet.txt (val)", f"{val - 1:,}, each once", "16, every 16: which do not overlap"),
        f"nats per character {result['nats_per_character']:.4f}",
        f"bits per character {result['bits_per_character']:.4f}",
        f"bits per byte {result['bits_per_byte']:.4f}",
        *("0 22 ", "8 to 15 "),
    ):
        assert words in said, (words, said)
    assert "n-grams" not in said
    assert result["within_windows"]


def test_a_text_of_ones_own_is_measured_as_a_whole(
    command: Command, trained: tuple[Path, Any], tmp_path: Path
) -> None:
    """Unless a part is asked for."""
    (tmp_path / "own.txt").write_text("Thou art fair.\n" * 4)
    words = ("evaluate", "--run", trained[0], "--json", "--data", tmp_path / "own.txt")
    assert json.loads(command(*words).out)["targets"] == 59
    assert json.loads(command(*words, "--split", "val").out)["targets"] == 5


def test_a_hybrids_n_grams_read_on_across_windows_unless_told(
    command: Command, hybrid_run: Path
) -> None:
    """Both are said; within windows it is measured as `model(idx)` scores a window alone."""
    words = ("evaluate", "--run", hybrid_run)
    assert "n-grams read on across windows" in " ".join(command(*words).out.split())
    within = (*words, "--within-windows")
    assert "n-grams see the window" in " ".join(command(*within).out.split())
    across, inside = (json.loads(command(*flags, "--json").out) for flags in (words, within))
    assert (across["within_windows"], inside["within_windows"]) == (False, True)
    assert across["nats_per_character"] < inside["nats_per_character"]
    first = [result["by_position"][0]["nats_per_character"] for result in (across, inside)]
    assert first[0] < first[1]
    loaded = load_run(hybrid_run)
    val = torch.from_numpy(read_text(loaded, find_data(loaded)).val)
    scores = [
        loaded.model(part[None, :-1]).log_softmax(-1)[0].gather(1, part[1:, None])
        for part in (val[start : start + 17] for start in range(0, len(val) - 1, 16))
    ]
    expected = -float(torch.cat(scores).detach().mean())
    assert inside["nats_per_character"] == pytest.approx(expected, rel=1e-5)


def test_a_hybrid_is_not_measured_on_what_it_has_counted(
    command: Command, trained: tuple[Path, Any], hybrid_run: Path, tmp_path: Path
) -> None:
    """Exit 2 in one line with what to do; a transformer may be, and a hybrid on another text."""
    for split in ("train", "all"):
        ended = command("evaluate", "--run", hybrid_run, "--split", split)
        assert (ended.code, ended.out, ended.error.count("\n")) == (2, "", 1)
        assert f"--split {split}: the hybrid has counted this text" in ended.said
        assert "take --split val, or another text with --data" in ended.said
    assert command("evaluate", "--run", trained[0], "--split", "train").code == 0
    (tmp_path / "own.txt").write_text("Thou art fair.\n" * 4)
    words = ("--data", tmp_path / "own.txt", "--split", "all")
    assert command("evaluate", "--run", hybrid_run, *words).code == 0


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--stride", 0, "stride=0 must be at least 1"),
        ("--stride", 17, "stride=17 must be at most the model's block_size=16"),
        ("--batch-size", 0, "batch_size=0 must be at least 1"),
        ("--split", "test", "--split test: expected"),
        ("--data", "nowhere.txt", "no data set and no file is called 'nowhere.txt'"),
    ],
)
def test_flags_that_cannot_work_end_with_2(
    flag: str, value: object, said: str, command: Command, trained: tuple[Path, Any]
) -> None:
    """In one line that names the value and the rule."""
    ended = command("evaluate", "--run", trained[0], flag, value)
    assert (ended.code, ended.out, ended.error.count("\n")) == (2, "", 1)
    assert said in ended.said

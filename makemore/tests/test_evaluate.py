"""Measures of a model, against an item at a time; and `python -m makemore.evaluate`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from makemore import recipes
from makemore.data import Items, Vocabulary
from makemore.evaluate import Surprise, bits, mean_nats, surprises, target_log_probs
from makemore.model import CharacterModel
from shared.errors import NumericalError

Command = Callable[..., Any]


@pytest.fixture
def items(names: list[str]) -> Items:
    return Items([*names, "o", "emma"], Vocabulary.of(names))


@pytest.fixture
def model(items: Items) -> CharacterModel:
    """Return an untrained recurrent model with dropout, as training leaves it."""
    return recipes.build("gru", len(items.vocabulary), n_embd=8, n_hidden=16, dropout=0.5).train()


def one_by_one(model: CharacterModel, items: Items) -> list[float]:
    """Return log p of each target, reading each item by itself."""
    found: list[float] = []
    for start, length in zip(items.starts, items.lengths, strict=True):
        idx, targets = (torch.from_numpy(items.ids[start + i : start + i + length]) for i in (0, 1))
        with torch.no_grad():
            log_probs = model.eval().logits(idx[None])[0].double().log_softmax(-1)
        found += log_probs.gather(-1, targets[:, None]).squeeze(-1).tolist()
    return found


def test_log_probs_are_those_of_each_item_by_itself(model: CharacterModel, items: Items) -> None:
    """In the items' order, whatever the batch size; without dropout, and training goes on after."""
    expected = one_by_one(model, items)
    model.train()
    for batch_size in (1, 7, 512):
        found = target_log_probs(model, items, batch_size)
        assert found.dtype == np.float64
        assert found.shape == (items.characters,)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.training


def test_the_mean_weighs_every_character_alike(model: CharacterModel, items: Items) -> None:
    """It is the loss of all items in one batch, not a mean of batches' means."""
    whole = float(model.eval().loss(*items.batch(np.arange(len(items)))).detach())
    assert mean_nats(model, items, batch_size=5) == pytest.approx(whole, rel=1e-6)
    assert bits(math.log(8)) == pytest.approx(3)


def test_broken_weights_are_an_error(model: CharacterModel, items: Items) -> None:
    """NaN raises what the command line turns into exit code 6."""
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(NumericalError, match="not numbers") as error:
        mean_nats(model, items)
    assert error.value.exit_code == 6


def test_surprises_are_ranked_by_nats_per_character() -> None:
    """The end counts; a repeated item is told once; the least expected character is marked."""
    texts = ["ab", "c", "ab", "dd"]
    encoded = Items(texts, Vocabulary("abcd"))
    log_probs = np.array([-1, -3, -2, -4, -5, -1, -3, -2, -1, -1, -2], dtype=np.float64)
    most, least = surprises(log_probs, texts, encoded, 2)
    assert most == [Surprise("c", 4.5, "c[end]"), Surprise("ab", 2.0, "a[b]")]
    assert least == [Surprise("dd", 4 / 3, "dd[end]"), Surprise("ab", 2.0, "a[b]")]


# -- the command ---------------------------------------------------------------------------------


def measured(ended: Any) -> dict[str, Any]:
    assert (ended.code, ended.error) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_the_parts_of_a_run_get_what_training_said_of_them(
    command: Command, trained: tuple[Path, Any]
) -> None:
    """The same losses as in result.json, in nats and bits, and the items of the test part."""
    run = trained[0]
    found = measured(command("evaluate", "--run", run, "--json", "--number", 2))
    result = json.loads((run / "result.json").read_text())
    assert {part: told["items"] for part, told in found["parts"].items()} == {
        "train": 32,
        "val": 4,
        "test": 4,
    }
    for part, name in (("train", "train_loss"), ("val", "best_val_loss"), ("test", "test_loss")):
        assert found["parts"][part]["nats_per_character"] == pytest.approx(result[name], rel=1e-5)
    told = found["parts"]["test"]
    assert told["bits_per_character"] == pytest.approx(result["bits_per_character"])
    assert len(found["most_surprising"]) == len(found["least_surprising"]) == 2


def test_the_command_shows_a_table(command: Command, trained: tuple[Path, Any]) -> None:
    """A line a part, and one for each surprising item."""
    ended = command("evaluate", "--run", trained[0], "--number", 3)
    assert (ended.code, ended.error) == (0, "")
    found = measured(command("evaluate", "--run", trained[0], "--number", 3, "--json"))
    nats = found["parts"]["test"]["nats_per_character"]
    assert [
        line for line in ended.out.splitlines() if line.startswith("test") and f"{nats:.4f}" in line
    ]
    assert ended.out.count("most surprising") == ended.out.count("least surprising") == 3
    assert found["most_surprising"][0]["item"] in ended.out


def test_another_file_is_measured_as_a_whole(
    command: Command, trained: tuple[Path, Any], names_file: Path, names: list[str], tmp_path: Path
) -> None:
    """The data of the run under another name are still divided."""
    other = tmp_path / "other.txt"
    other.write_text("\n".join(name[::-1] for name in names))
    found = measured(command("evaluate", "--run", trained[0], "--data", other, "--json"))
    assert list(found["parts"]) == [str(other)]
    assert found["parts"][str(other)]["items"] == 40
    other.write_bytes(names_file.read_bytes())
    found = measured(command("evaluate", "--run", trained[0], "--data", other, "--json"))
    assert list(found["parts"]) == ["train", "val", "test"]

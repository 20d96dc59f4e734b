"""A run folder gives back its best model, or says why it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore import recipes
from makemore.data import Items, read_items, split_items
from makemore.evaluate import mean_nats
from makemore.load import check_length, choose_run, find_data, load_run, load_splits
from shared.checkpoint import Checkpoints, open_checkpoint
from shared.datasets import resolve
from shared.errors import ArtefactError, DataError, UsageError

Command = Callable[..., Any]


@pytest.fixture
def run(trained: tuple[Path, Any]) -> Path:
    return trained[0]


@pytest.fixture
def altered(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a checkpoint like the run's, its parts changed by functions."""

    def write(
        config: Callable[[dict[str, Any]], object] = lambda _: None,
        tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None,
    ) -> Path:
        checkpoint = open_checkpoint(run, best=True)
        values, weights = checkpoint.json(), checkpoint.tensors()
        config(values)
        tensors(weights)
        checkpoints = Checkpoints(tmp_path / "altered" / "checkpoints")
        pending = checkpoints.begin(1)
        pending.write_json("config.json", values)
        pending.write_tensors("model.safetensors", weights)
        checkpoints.commit(pending)
        return tmp_path / "altered"

    return write


def test_the_best_model_is_loaded_ready_to_use(run: Path) -> None:
    """In evaluation mode, with its vocabulary, name and data; its loss is the best one."""
    loaded = load_run(run)
    best = open_checkpoint(run, best=True)
    assert (loaded.name, loaded.path, loaded.longest) == ("gru", best.path, 9)
    assert not loaded.model.training
    splits = load_splits(loaded, find_data(loaded))
    found = mean_nats(loaded.model, Items(splits.val, loaded.vocabulary))
    best_value = best.state()["trainer"]["best_value"]
    assert found == pytest.approx(best_value, rel=1e-5)
    assert load_run(best.path).path == best.path


def test_the_items_are_divided_as_at_training(run: Path, names_file: Path) -> None:
    """By the split and seed in config.json."""
    loaded, items = load_run(run), read_items(resolve(names_file))
    assert load_splits(loaded, find_data(loaded)) == split_items(items, "karpathy")
    loaded.config.update(split="random", split_seed=7)
    assert load_splits(loaded, find_data(loaded)) == split_items(items, "random", 7)


def test_without_a_name_the_run_started_last_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs/makemore holds no run"):
        choose_run(None)
    (tmp_path / "runs/makemore/2026-01-01T00-00-00").mkdir(parents=True)
    assert choose_run(None) == Path("runs/makemore/2026-01-01T00-00-00")
    assert choose_run(Path("x")) == Path("x")


def rename(tensors: dict[str, torch.Tensor]) -> None:
    """Give the first tensor another name."""
    tensors["strange"] = tensors.pop(min(tensors))


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "shape": (
        {"config": lambda c: c["model"].update(n_embd=9)},
        r"weights do not fit the configuration: embed.*: \(\d+, 8\), expected \(\d+, 9\)",
    ),
    "names": ({"tensors": rename}, r": absent; .*strange: unknown|strange: unknown; .*: absent"),
    "unknown setting": ({"config": lambda c: c["model"].update(n_legs=2)}, "n_legs"),
    "impossible": ({"config": lambda c: c["model"].update(n_hidden=0)}, "n_hidden=0 must be"),
    "unknown model": ({"config": lambda c: c["model"].update(name="grue")}, "no model 'grue'"),
    "vocabulary": (
        {"config": lambda c: c["vocabulary"].update(characters="abc")},
        "the model has vocab_size=22, its vocabulary has 4 ids",
    ),
    "order": (
        {"config": lambda c: c["vocabulary"].update(characters="cba")},
        "its vocabulary 'cba' is not in order",
    ),
    "another package": ({"config": lambda c: c.pop("vocabulary")}, "not a run of makemore.train"),
    "no settings": ({"config": lambda c: c.clear()}, "not a run of makemore.train"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_parts_that_do_not_fit_are_named(misfit: str, altered: Callable[..., Path]) -> None:
    """With the checkpoint and what is wrong with it; exit code 4."""
    changes, said = MISFITS[misfit]
    folder = altered(**changes)
    with pytest.raises(ArtefactError, match=said) as error:
        load_run(folder)
    assert str(error.value).startswith(str(folder))
    assert error.value.exit_code == 4


def test_counts_are_loaded_like_weights(command: Command, names_file: Path, tmp_path: Path) -> None:
    """A counted model comes back with its counts; of altered ones nothing is loaded."""
    folder = tmp_path / "counted"
    ended = command("train", "--data", names_file, "--model", "ngram", "--out", folder)
    assert ended.code == 0, ended.error
    loaded = load_run(folder)
    splits = load_splits(loaded, find_data(loaded))
    found = mean_nats(loaded.model, Items(splits.test, loaded.vocabulary))
    assert f"{found:.4f}" in ended.out
    checkpoint = open_checkpoint(folder)
    weights, checkpoints = checkpoint.tensors(), Checkpoints(folder / "checkpoints")
    name = max(weights, key=lambda each: weights[each].numel())
    pending = checkpoints.begin(0)
    pending.write_json("config.json", checkpoint.json())
    pending.write_tensors("model.safetensors", {**weights, name: weights[name][:-1]})
    checkpoints.commit(pending)
    with pytest.raises(ArtefactError):
        load_run(folder)


def test_items_that_are_too_long_for_a_model_are_refused() -> None:
    """Where it has a place for each character; the model says what to do."""
    places = recipes.build("bow", 27, block_size=8)
    check_length(places.train(), 7)
    assert places.training
    with pytest.raises(DataError, match=r"items of up to 8 characters: .*block_size=9"):
        check_length(places, 8)
    check_length(recipes.build("gru", 27), 250)
    check_length(recipes.build("ngram", 27), 250)


def test_data_that_were_moved_are_asked_for(run: Path) -> None:
    """Where they are not named; a name that leads nowhere is an error of its own."""
    loaded = load_run(run)
    loaded.config["data"] = "gone.txt"
    with pytest.raises(
        UsageError, match=r"not where they were .*'gone.txt'.* name them with --data"
    ):
        find_data(loaded)
    with pytest.raises(UsageError, match=r"'lost\.txt'") as error:
        find_data(loaded, "lost.txt")
    assert "--data" not in str(error.value)

"""A run folder gives back its best model, or says why it does not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from mingpt.data import mean_nats
from mingpt.gpt import GPT
from mingpt.hybrid import Hybrid
from mingpt.load import (
    HYBRID_SIZES,
    choose_run,
    differences,
    find_data,
    load_run,
    read_text,
    sizes,
    trained_on,
    wrong_types,
)
from mingpt.recipes import RECIPES, build
from shared.checkpoint import open_checkpoint
from shared.errors import ArtefactError, DataError, UsageError

Altered = Callable[..., Path]


@pytest.fixture
def run(trained: tuple[Path, Any]) -> Path:
    return trained[0]


def test_the_best_model_is_loaded_ready_to_use(run: Path) -> None:
    """In evaluation mode, with its vocabulary, name and data; its loss is the best one."""
    loaded = load_run(run)
    best = open_checkpoint(run, best=True)
    assert (loaded.name, loaded.path) == ("default", best.path)
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    dataset = find_data(loaded)
    assert trained_on(loaded, dataset)
    text = read_text(loaded, dataset)
    assert text.vocabulary == loaded.vocabulary
    found = mean_nats(loaded.model, text.val, loaded.model.block_size)
    assert found == pytest.approx(best.state()["trainer"]["best_value"], rel=1e-5)
    assert load_run(best.path).path == best.path


def test_other_data_are_read_with_the_vocabulary_of_the_model(run: Path, tmp_path: Path) -> None:
    """And are told from those of the training; what was moved can be named."""
    loaded = load_run(run)
    (tmp_path / "other.txt").write_text("Thou art fair.\n" * 9)
    other = find_data(loaded, str(tmp_path / "other.txt"))
    assert not trained_on(loaded, other)
    assert read_text(loaded, other).vocabulary == loaded.vocabulary
    (tmp_path / "other.txt").write_text("Thou art 2 fair.\n" * 9)
    with pytest.raises(DataError, match="never seen: '2'"):
        read_text(loaded, find_data(loaded, str(tmp_path / "other.txt")))
    loaded.config["data"] = str(tmp_path / "gone.txt")
    with pytest.raises(UsageError, match=r"are not where they were .*; name them with --data"):
        find_data(loaded)
    with pytest.raises(UsageError, match=r"^no data set and no file is called 'nothing'"):
        find_data(loaded, "nothing")


def test_without_a_name_the_run_started_last_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs/mingpt holds no run"):
        choose_run(None)
    (tmp_path / "runs/mingpt/2026-01-01T00-00-00").mkdir(parents=True)
    assert choose_run(None) == Path("runs/mingpt/2026-01-01T00-00-00")
    assert choose_run(Path("x")) == Path("x")


def test_every_field_that_differs_is_named() -> None:
    """In the order asked for; one that only one side has, too."""
    old, new = {"a": 1, "gone": 2, "same": 3}, {"new": 4, "same": 3, "a": 0}
    assert differences(old, new) == [
        "new: checkpoint none, asked 4",
        "a: checkpoint 1, asked 0",
        "gone: checkpoint 2, asked none",
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize("name", RECIPES)
def test_weights_show_their_sizes(name: str) -> None:
    """Of every recipe: layers, width and characters, by names and shapes alone."""
    model = build(name, 13, n_layer=3, n_head=2, n_embd=8, block_size=9)
    assert isinstance(model, GPT | Hybrid)
    found = sizes(model.state_dict())
    shown = {"n_layer": 3, "vocab_size": 13, "n_embd": 8, "block_size": 9, "n_hidden": 32}
    shown.update(conv=model.config.conv)
    if isinstance(model, Hybrid):
        shown.update({size: getattr(model.config, size) for size in HYBRID_SIZES})
        assert set(HYBRID_SIZES) <= found.keys()
    assert found.items() <= shown.items()
    assert {"n_layer", "vocab_size", "n_embd", "n_hidden"} <= found.keys()
    assert sizes({"wpe.weight": torch.zeros(5, 8)}) == {"block_size": 5}
    assert sizes({"strange": torch.zeros(2)}) == {}


def rename(tensors: dict[str, torch.Tensor]) -> None:
    """Give the first tensor another name."""
    tensors["strange"] = tensors.pop(min(tensors))


def model(**changes: object) -> dict[str, Any]:
    """Return what changes the described model, and leaves its weights."""
    return {"config": lambda c: c["model"].update(changes)}


HUGE = 10**12  # of anything: building it would take all memory, or the day
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "tensors": ({"tensors": rename}, ": absent; strange: unknown$"),
    "unknown setting": ({"config": lambda c: c["model"].update(n_legs=2)}, "n_legs"),
    "impossible": ({"config": lambda c: c["model"].update(n_layer=0)}, "n_layer=0 must be"),
    "unknown recipe": ({"config": lambda c: c["model"].update(recipe="defualt")}, "'defualt'"),
    "vocabulary": (
        {"config": lambda c: c["vocabulary"].update(characters="abc")},
        r"the model has vocab_size=\d+, its vocabulary has 3 characters",
    ),
    "order": (
        {"config": lambda c: c["vocabulary"].update(characters="cba")},
        "its vocabulary 'cba' is not in order",
    ),
    "another package": ({"config": lambda c: c.pop("vocabulary")}, "not a run of mingpt.train"),
    "layers": (model(n_layer=HUGE), f"n_layer: checkpoint 2, asked {HUGE}$"),
    "width": (model(n_embd=HUGE), f"n_embd: checkpoint 16, asked {HUGE}$"),
    "hidden": (model(n_hidden=HUGE), f"n_hidden: checkpoint 64, asked {HUGE}$"),
    "heads": (model(d_k=HUGE), f"d_k: checkpoint 8, asked {HUGE}$"),
    "taps": (model(conv=HUGE), f"conv: checkpoint 4, asked {HUGE}$"),
    "context": (model(block_size=HUGE), f"block_size={HUGE} is above 1048576"),
    "learned": (
        model(block_size=HUGE, positions="learned"),
        f"block_size: checkpoint none, asked {HUGE}$",
    ),
    "n-grams": (model(recipe="hybrid", n=HUGE), f"n: checkpoint none, asked {HUGE}$"),
    "yes": (model(n_layer=True), "n_layer=True must be int"),
    "text": (model(dropout="0.1"), "dropout='0.1' must be float"),
    "number": (model(tied=1), "tied=1 must be bool"),
    "fraction": (model(n_head=2.0), "n_head=2.0 must be int"),
    "no settings": ({"config": lambda c: c.clear()}, "not a run of mingpt.train"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_parts_that_do_not_fit_are_named(misfit: str, run: Path, altered: Altered) -> None:
    """With the checkpoint and what is wrong with it; exit code 4."""
    changes, said = MISFITS[misfit]
    folder = altered(run, **changes)
    with pytest.raises(ArtefactError, match=said) as error:
        load_run(folder)
    assert str(error.value).startswith(str(folder))
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tensors": lambda w: w.update({"ngram.text": w["ngram.text"][:0]})},
            "n-grams counted is empty$",
        ),
        (model(n=HUGE), f"n: checkpoint 4, asked {HUGE}$"),
        (model(shortest=2), "shortest: checkpoint 3, asked 2$"),
        (model(recent=HUGE), f"recent: checkpoint 6, asked {HUGE}$"),
        (model(recent=3), "recent: checkpoint 6, asked 3$"),
    ],
)
def test_a_hybrid_that_cannot_have_counted_is_refused(
    changes: dict[str, Any], said: str, hybrid_run: Path, altered: Altered
) -> None:
    """One without its text, or whose n-grams are of other lengths than its weights are for."""
    assert isinstance(load_run(hybrid_run).model, Hybrid)
    with pytest.raises(ArtefactError, match=said):
        load_run(altered(hybrid_run, **changes))


def test_types_are_those_of_the_fields() -> None:
    """As JSON has them: whole numbers are floats too, True is no number; others are not asked."""

    @dataclass
    class Parts:
        n: int = 0
        x: float = 0.0
        yes: bool = False
        maybe: int | None = None
        kind: Literal["a", "b"] = "a"

    right = {"n": 1, "x": 1, "yes": True, "maybe": None, "kind": "b", "other": 3}
    assert wrong_types(Parts, right) == []
    wrong = {"n": 1.0, "x": True, "yes": 0, "maybe": "1", "kind": "c"}
    assert [line.partition("=")[0] for line in wrong_types(Parts, wrong)] == list(wrong)

"""The training command from its flags to its result: `python -m makemore.train`."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from makemore import recipes
from makemore.data import Items, Vocabulary
from makemore.evaluate import mean_nats
from makemore.recipes import RECIPES
from makemore.train import Encoded, Shape, TrainConfig, defaults, fit
from shared.checkpoint import open_checkpoint
from shared.config import TrainerConfig
from shared.errors import ResourceError
from shared.files import sha256_of
from shared.metrics import read_metrics
from shared.parallel import World
from shared.runs import Run

Command = Callable[..., Any]
MEASURED = {"command", "seconds", "cpu_seconds", "step_ms", "tok_per_sec", "mfu", "peak_gib"}
KEYS = MEASURED | {
    *("commit", "seed", "device", "data", "parameters", "steps", "train_loss", "grad_norm"),
    *("val_loss", "best_val_loss", "test_loss", "bits_per_character"),
}


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return what the seed decides of a result, and the weights' digest."""
    rest = {key: value for key, value in result_of(folder).items() if key not in MEASURED}
    return {**rest, "weights": sha256_of(open_checkpoint(folder).file("model.safetensors"))}


# -- what a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(trained: tuple[Path, Any], names: list[str]) -> None:
    """Settings, metrics, plot, samples and a checkpoint that verifies."""
    out, ended = trained
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["name"] == "gru"
    assert (config["model"]["n_hidden"], config["shape"]["n_hidden"]) == (16, 16)
    assert (config["model"]["n_layer"], config["shape"]["n_layer"]) == (1, None)
    assert config["vocabulary"] == {
        "characters": "".join(sorted(set("".join(names)))),
        "unknown": False,
    }
    assert {record["kind"] for record in read_metrics(out / "metrics.jsonl")} == {"train", "val"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = (out / "sample.txt").read_text().splitlines()
    assert len(samples) == 5
    assert all(sample in ended.out for sample in samples)
    assert open_checkpoint(out).step == 80


def test_the_result_has_the_promised_keys_and_says_which_data(
    trained: tuple[Path, Any], names_file: Path
) -> None:
    """Flat, the losses those of the best model, and the data's name without folders."""
    result = result_of(trained[0])
    assert result.keys() == KEYS
    assert result["data"] == {"name": "names.txt", "sha256": sha256_of(names_file)}
    assert (result["seed"], result["steps"], result["device"]) == (0, 80, "cpu")
    assert result["best_val_loss"] <= result["val_loss"]
    assert result["bits_per_character"] == pytest.approx(result["test_loss"] / math.log(2))
    weights = open_checkpoint(trained[0]).tensors()
    assert result["parameters"] == sum(tensor.numel() for tensor in weights.values())


def test_a_model_learns_more_than_how_often_each_character_comes(
    trained: tuple[Path, Any], names: list[str]
) -> None:
    """Its loss on the training names is below the entropy of their characters."""
    counts = torch.tensor(Items(names, Vocabulary.of(names)).ids).bincount().double()
    share = counts[counts > 0] / counts.sum()
    assert result_of(trained[0])["train_loss"] < -float((share * share.log()).sum())


def test_the_doctor_reports_before_training(
    command: Command, tiny: tuple[object, ...], names: list[str], tmp_path: Path
) -> None:
    """Items, distinct ones, lengths, characters, parts, overlap and warnings; then the settings."""
    data = tmp_path / "names.txt"
    data.write_text("\n".join([*names, "", *names]))
    ended = command("train", "--data", data, "--out", tmp_path / "run", *tiny)
    assert ended.code == 0, ended.error
    before = " ".join(ended.out.partition("nats per character")[0].split())
    for said in (
        *(
            "80, 40 of them distinct",
            "3 to 9, 5.67 on average",
            "characters 21: ",
            "64 train, 8 val, 8 test",
        ),
        *("7 of 8 test items are training items too", "only 80 items", "empty lines, left out: 1"),
        *("repeat an earlier one: 40", "n_hidden 16", "max_steps 6", "seed 0", "device cpu"),
    ):
        assert said in before, (said, before)


def test_the_end_is_a_table_samples_and_what_to_do_next(trained: tuple[Path, Any]) -> None:
    """The parts' losses in nats and bits, each sample's mark, the shares."""
    out, ended = trained
    result = result_of(out)
    for name in ("train_loss", "best_val_loss", "test_loss", "bits_per_character"):
        assert f" {result[name]:.4f}" in ended.out
    assert "of 5 items" in ended.out
    assert (
        ended.out.splitlines()[-1] == f"next: python -m makemore.generate --run {out} --prefix mar"
    )


def test_a_counted_model_leaves_the_same_things(
    command: Command, names_file: Path, tmp_path: Path
) -> None:
    """But for a plot, as nothing falls; counting again, as resuming does, changes nothing."""
    words = ("--data", names_file, "--out", tmp_path / "run")
    ended = command("train", *words, "--model", "ngram", "--n", 3)
    assert ended.code == 0, ended.error
    assert "none, it is counted" in ended.out
    result, before = result_of(tmp_path / "run"), numbers_of(tmp_path / "run")
    assert KEYS - result.keys() <= {"grad_norm", "step_ms", "tok_per_sec", "mfu", "peak_gib"}
    assert result["val_loss"] == result["best_val_loss"] < math.log(27)
    assert result["parameters"] > 100
    [record] = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (record["kind"], record["val_loss"]) == ("val", result["val_loss"])
    assert not (tmp_path / "run" / "loss.png").exists()
    assert command("train", "--resume", "--out", tmp_path / "run").code == 0
    assert numbers_of(tmp_path / "run") == before
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1


# -- seeds and resuming --------------------------------------------------------------------------


def test_the_seed_decides_the_weights_to_the_bit(
    command: Command, names_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """And the numbers and samples; another seed gives others."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--data", names_file, "--out", tmp_path / name, "--seed", seed)
        assert command("train", *words, *tiny).code == 0
    assert numbers_of(tmp_path / "a") == numbers_of(tmp_path / "b")
    assert numbers_of(tmp_path / "a")["weights"] != numbers_of(tmp_path / "c")["weights"]
    samples = [(tmp_path / name / "sample.txt").read_bytes() for name in "abc"]
    assert samples[0] == samples[1] != samples[2]


def test_resume_needs_no_other_flag_and_goes_on_to_the_same_bits(
    command: Command,
    names_file: Path,
    tiny: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run started in the default folder, continued with more steps: as if never interrupted."""
    monkeypatch.chdir(tmp_path)
    words = ("--data", names_file, *tiny, "--schedule", "constant", "--seed", 3)
    assert command("train", *words).code == 0
    ended = command("train", "--resume", "--max-steps", 9, "--samples", 2)
    assert ended.code == 0, ended.error
    [run] = (tmp_path / "runs" / "makemore").glob("*-*")
    assert command("train", *words, "--max-steps", 9, "--out", "straight").code == 0
    weights = [numbers_of(folder)["weights"] for folder in (run, tmp_path / "straight")]
    assert weights[0] == weights[1]
    assert result_of(run)["steps"] == 9
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_resuming_as_another_model_is_refused(command: Command, trained: tuple[Path, Any]) -> None:
    """Exit 4, naming the field with both values; the run stays as it was."""
    before = (trained[0] / "config.json").read_bytes()
    for flag, said in (
        (("--n-hidden", 9), "model.n_hidden: 16 -> 9"),
        (("--model", "lstm"), "model.name: gru -> lstm"),
        (("--learning-rate", 0.5), "trainer.learning_rate: 0.02 -> 0.5"),
        (("--split", "random"), "split: karpathy -> random"),
        (("--unk", 2), "vocabulary.unknown: False -> True"),
    ):
        ended = command("train", "--resume", "--out", trained[0], *flag)
        assert ended.code == 4, ended.error
        assert said in ended.said
    assert (trained[0] / "config.json").read_bytes() == before


def test_fit_leaves_the_best_weights_in_the_model(names: list[str], tmp_path: Path) -> None:
    """Not the last ones, and ready to be measured."""
    vocabulary = Vocabulary.of(names)
    encoded = Encoded(*(Items(part, vocabulary) for part in (names[:30], names[30:35], names[35:])))
    model = recipes.build("bigram", len(vocabulary))
    settings = TrainerConfig(
        max_steps=12, eval_every=1, learning_rate=4.0, schedule="constant", device="cpu", threads=1
    )
    with Run.open("makemore", tmp_path / "run", resume=False, config={}) as run:
        found = fit(model, encoded, settings, run, World(torch.device("cpu")))
    assert found["best_val_loss"] < found["val_loss"]
    assert mean_nats(model, encoded.val) == pytest.approx(found["best_val_loss"], rel=1e-5)
    assert not model.training
    assert (found["steps"], found["cpu_seconds"] > 0) == (12, True)


# -- data ----------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no data set here, and none to be had."""

    def no_network(*_: object, **__: object) -> None:
        raise ResourceError("no network in tests")

    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLE_DATA", raising=False)
    monkeypatch.setattr("shared.datasets.download", no_network)


@pytest.mark.usefixtures("offline")
def test_without_names_the_embedded_words_are_taken(
    command: Command,
    tiny: tuple[object, ...],
    tmp_path: Path,
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line says so, and the result records it; a data set that was named has no stand-in."""
    monkeypatch.setattr("shared.corpora.build", lambda _name: "\n".join(names))
    ended = command("train", "--out", tmp_path / "run", *tiny)
    assert ended.code == 0, ended.error
    assert [line for line in ended.error.splitlines() if "embedded corpus words" in line]
    assert result_of(tmp_path / "run")["data"]["name"] == "words"
    ended = command("train", "--data", "names", "--out", tmp_path / "named", *tiny)
    assert (ended.code, ended.error.count("\n")) == (5, 1)
    assert "names can't be had: no network in tests" in ended.said


# -- mistakes and settings -----------------------------------------------------------------------


MISTAKES = {
    "model": (("--model", "wavnet"), 2, "no model 'wavnet'; did you mean wavenet?"),
    "no such part": (
        ("--n-head", 2),
        2,
        "--n-head: the gru has no such part; it has ",
    ),
    "shape": (("--n-hidden", 0), 2, "n_hidden=0 must be at least 1"),
    "flag": (("--n-hiden", 3), 2, "unknown flag --n-hiden; did you mean --n-hidden?"),
    "value": (("--dropout", "much"), 2, "--dropout much: expected None or a number"),
    "steps": (("--max-steps", -1), 2, "max_steps=-1 must be at least 0"),
    "unk": (("--unk", -1), 2, "unk=-1 must be at least 0"),
    "all unknown": (("--unk", 99), 3, "--unk 99: no character is in as many training items"),
    "places": (
        ("--model", "bow", "--max-steps", 1, "--block-size", 5),
        3,
        "items of up to 9 characters: an item of 10 places is longer than block_size=5",
    ),
    "split": (("--split", "half"), 2, "--split half: expected karpathy or random"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_exit_code(
    mistake: str, command: Command, names_file: Path, tmp_path: Path
) -> None:
    """The line names what is wrong and what would be right; no folder is made."""
    flags, code, said = MISTAKES[mistake]
    out = tmp_path / "run"
    given = ("--model", "gru") if flags[0] != "--model" else ()
    ended = command("train", "--data", names_file, "--out", out, *given, *flags)
    assert said in ended.error
    assert (ended.code, ended.out, ended.error.count("\n")) == (code, "", 1)
    assert not out.exists()


def test_every_part_of_every_model_has_a_flag() -> None:
    """But for the size of the vocabulary, which the data decide."""
    flags = {field.name for field in fields(Shape)} | {"vocab_size"}
    for name, recipe in RECIPES.items():
        assert {field.name for field in fields(recipe.config)} <= flags, name


def test_the_model_in_the_command_line_brings_its_settings() -> None:
    """Each recipe's trainer holds where no flag says otherwise, also with an equals sign."""
    for name, recipe in RECIPES.items():
        for words in (["--seed", "1", "--model", name], [f"--model={name}"]):
            chosen = defaults(words)
            assert chosen is not None
            assert chosen.model == name
            assert recipe.trainer in (chosen.trainer, None)
    assert defaults([]) == TrainConfig()
    assert TrainConfig().trainer == RECIPES[TrainConfig().model].trainer

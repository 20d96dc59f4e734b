"""The training command from its flags to its result: `python -m mingpt.train`."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mingpt import recipes
from mingpt.data import mean_nats
from mingpt.generate import sample_text
from mingpt.load import find_data, load_run, read_text
from mingpt.recipes import RECIPES
from mingpt.train import Shape, defaults
from shared.checkpoint import open_checkpoint
from shared.datasets import resolve
from shared.files import sha256_of
from shared.metrics import read_metrics

Command = Callable[..., Any]
MEASURED = {"command", "seconds", "cpu_seconds", "step_ms", "tok_per_sec", "mfu", "peak_gib"}
KEYS = MEASURED | {
    *("commit", "seed", "device", "data", "parameters", "steps", "train_loss", "grad_norm"),
    *("val_loss", "best_val_loss", "bits_per_character", "bits_per_byte"),
}


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return what the seed decides of a result, and the weights' digest."""
    rest = {key: value for key, value in result_of(folder).items() if key not in MEASURED}
    return {**rest, "weights": sha256_of(open_checkpoint(folder).file("model.safetensors"))}


# -- what a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(trained: tuple[Path, Any], sonnet: str) -> None:
    """Settings, metrics, plot, sample and a checkpoint that verifies."""
    out, ended = trained
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["recipe"] == "default"
    assert (config["model"]["n_layer"], config["model"]["block_size"]) == (2, 16)
    assert config["vocabulary"] == {"characters": "".join(sorted(set(sonnet)))}
    assert {record["kind"] for record in read_metrics(out / "metrics.jsonl")} == {"train", "val"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    sample = (out / "sample.txt").read_text()
    assert sample in ended.out
    assert len(sample) == 30 + 1
    assert open_checkpoint(out).step == 60


def test_the_result_has_the_promised_keys_and_says_which_data(
    trained: tuple[Path, Any], text_file: Path
) -> None:
    """Flat, the final model's loss in bits too, and the data's name without folders."""
    out, ended = trained
    result = result_of(out)
    assert result.keys() == KEYS
    assert result["data"] == {"name": "sonnet.txt", "sha256": sha256_of(text_file)}
    assert (result["seed"], result["steps"], result["device"]) == (0, 60, "cpu")
    assert result["best_val_loss"] <= result["val_loss"]
    assert result["bits_per_character"] == pytest.approx(result["val_loss"] / math.log(2))
    assert result["bits_per_byte"] == pytest.approx(result["bits_per_character"])  # all ASCII
    assert 0 < result["cpu_seconds"] < 600
    weights = open_checkpoint(out).tensors()
    assert result["parameters"] <= sum(tensor.numel() for tensor in weights.values())
    assert ended.out.splitlines()[-1] == f"next: python -m mingpt.generate --run {out}"


def test_the_loss_is_that_of_every_target_of_the_validation_split(
    trained: tuple[Path, Any], sonnet: str
) -> None:
    """As `mean_nats` has it of the weights that were kept; the final ones' is what is told."""
    out, ended = trained
    loaded = load_run(out)
    text = read_text(loaded, find_data(loaded))
    best, final = (result_of(out)[name] for name in ("best_val_loss", "val_loss"))
    assert mean_nats(loaded.model, text.val, 16) == pytest.approx(best, rel=1e-5)
    weights = open_checkpoint(out).tensors()  # the newest ones
    assert isinstance(loaded.model, nn.Module)
    loaded.model.load_state_dict(weights)
    assert mean_nats(loaded.model, text.val, 16) == pytest.approx(final, rel=1e-5)
    targets = len(sonnet) - int(0.9 * len(sonnet)) - 1
    in_bits = f"{final / math.log(2):.4f}"
    said = f"{final:.4f} nats, {in_bits} bits per character ({in_bits} per byte) over all "
    assert f"{said}{targets:,} targets" in ended.out


def test_a_model_learns_more_than_how_often_each_character_comes(
    trained: tuple[Path, Any], sonnet: str
) -> None:
    """Its loss is below the entropy of the text's characters."""
    shares = [count / len(sonnet) for count in Counter(sonnet).values()]
    assert result_of(trained[0])["best_val_loss"] < -sum(p * math.log(p) for p in shares)


def test_settings_are_told_before_training(trained: tuple[Path, Any], sonnet: str) -> None:
    """Data and their split, model, parameters, FLOPs, what the trainer does, seed and device."""
    before = " ".join(trained[1].out.partition("validation:")[0].split())
    train = int(0.9 * len(sonnet))
    for said in (
        *(f"{train:,} characters to train on, {len(sonnet) - train:,} to validate", "n_layer 2"),
        *(f"vocabulary {len(set(sonnet))} characters", "parameters ", " per character"),
        *("max_steps 60", "learning_rate 0.02", "seed 0", "device cpu"),
    ):
        assert said in before, (said, before)


def test_a_text_with_romeo_in_it_is_sampled_from_romeo(
    command: Command, tiny: tuple[object, ...], sonnet: str, tmp_path: Path
) -> None:
    """That is the prompt to try; of other texts the sample begins with a new line."""
    (tmp_path / "play.txt").write_text("ROMEO:\n" + sonnet)
    words = ("--data", tmp_path / "play.txt", "--out", tmp_path / "run", "--max-steps", 1)
    ended = command("train", *tiny, *words)
    assert ended.code == 0, ended.error
    assert (tmp_path / "run" / "sample.txt").read_text().startswith("ROMEO:")
    assert ended.out.splitlines()[-1].endswith(" --prompt ROMEO:")
    assert command("generate", "--run", tmp_path / "run", "--prompt", "ROMEO:").code == 0


def test_the_best_model_is_kept_and_not_the_last(
    command: Command, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """What is learnt of a text whose end is of another kind makes it worse there at every step."""
    (tmp_path / "text.txt").write_text("ab" * 180 + "a" * 40)
    words = ("--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--schedule", "constant")
    steps = ("--max-steps", 12, "--eval-every", 6, "--learning-rate", 0.02)
    ended = command("train", *tiny, *words, *steps)
    assert ended.code == 0, ended.error
    result, loaded = result_of(tmp_path / "run"), load_run(tmp_path / "run")
    assert loaded.path.name == "step-00000006"
    assert result["best_val_loss"] < result["val_loss"]
    sample = sample_text(loaded.model, loaded.vocabulary, "", 30, seed=0)
    assert (tmp_path / "run" / "sample.txt").read_text() == sample + "\n"
    assert f"validation: {result['val_loss']:.4f} nats" in ended.out
    assert f"which were kept, had {result['best_val_loss']:.4f}: " in ended.out
    assert result["bits_per_character"] == pytest.approx(result["val_loss"] / math.log(2))


def test_a_text_of_ones_own_may_have_new_characters_at_its_end(
    command: Command, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """The vocabulary is that of the whole text; the line to go on with can be pasted as it is."""
    text = "mein eigener Text " * 10 + "zum Schluß: größer"
    (tmp_path / "own.txt").write_text(text)
    out = tmp_path / "my run's"
    ended = command("train", *tiny, "--data", tmp_path / "own.txt", "--out", out)
    assert ended.code == 0, ended.error
    assert "ß" in load_run(out).vocabulary.characters
    assert shlex.split(ended.out.splitlines()[-1])[-2:] == ["--run", str(out)]
    result, targets = result_of(out), text[int(0.9 * len(text)) + 1 :]
    share = len(targets) / len(targets.encode())
    assert share < 1
    assert result["bits_per_byte"] == pytest.approx(share * result["bits_per_character"])


# -- seeds and resuming --------------------------------------------------------------------------


def test_the_seed_decides_the_weights_to_the_bit(
    command: Command, text_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """And the numbers and the sample; another seed gives others."""
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = ("--data", text_file, "--out", tmp_path / name, "--seed", seed, "--max-steps", 3)
        assert command("train", *tiny, *out).code == 0
        found.append((numbers_of(tmp_path / name), (tmp_path / name / "sample.txt").read_text()))
    assert found[0] == found[1]
    assert found[0][0]["weights"] != found[2][0]["weights"]
    assert found[0][1] != found[2][1]


def test_a_run_resumes_without_its_flags_and_ends_with_the_same_bits(
    command: Command, text_file: Path, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    """Data, preset, shape and settings are read from its folder; more steps may be asked for."""
    words = ("--data", text_file, *tiny, "--preset", "nanogpt", "--schedule", "constant")
    assert command("train", *words, "--out", tmp_path / "straight").code == 0
    assert command("train", *words, "--out", tmp_path / "run", "--max-steps", 3).code == 0
    ended = command("train", "--resume", "--out", tmp_path / "run", "--max-steps", 6)
    assert ended.code == 0, ended.error
    assert numbers_of(tmp_path / "run") == numbers_of(tmp_path / "straight")


# -- flags ---------------------------------------------------------------------------------------


def test_every_part_of_every_model_has_a_flag() -> None:
    """And every flag changes a part of some model; the vocabulary is the text's to decide."""
    parts = {part.name for recipe in RECIPES.values() for part in fields(recipe.config)}
    assert {field.name for field in fields(Shape)} >= parts - {"vocab_size"}


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_are_those_of_the_preset(name: str) -> None:
    """The trainer's settings change with it."""
    found = defaults(["--preset", name, "--max-steps", "3"])
    assert found is not None
    assert (found.preset, found.trainer) == (name, recipes.find(name).trainer)


def test_the_default_data_are_shakespeare_or_what_stands_in(
    command: Command,
    tiny: tuple[object, ...],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line that says so is on stderr, and the result says which data were used."""
    monkeypatch.setattr(
        "mingpt.data.resolve_default", lambda *_: (resolve(text_file), "no network")
    )
    ended = command("train", *tiny, "--out", tmp_path / "run", "--max-steps", 1)
    assert ended.code == 0
    assert ended.error.startswith("no network\n")
    assert result_of(tmp_path / "run")["data"]["name"] == "sonnet.txt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "nanogtp"), "did you mean nanogpt?"),
        (("--n-layers", 3), "unknown flag --n-layers; did you mean --n-layer?"),
        (("--n-layer", "three"), "--n-layer three: expected"),
        (("--n-head", 3), "n_embd=128 must be a multiple of n_head=3"),
        (("--preset", "hybrid", "--n", 0), "n=0 must be at least 1"),
        (("--sample", -1), "sample=-1 must be at least 0"),
        (("--max-steps", -1), "max_steps=-1 must be at least 0"),
        (("--max-steps", 0), "max_steps=0 must be at least 1"),
        (("--data", "nowhere.txt"), "no data set and no file is called 'nowhere.txt'"),
    ],
)
def test_flags_that_cannot_work_end_with_2_and_leave_no_folder(
    words: tuple[object, ...], said: str, command: Command, tmp_path: Path
) -> None:
    """In one line that names the value, and what would be right."""
    ended = command("train", "--out", tmp_path / "run", *words)
    assert (ended.code, ended.out, ended.error.count("\n")) == (2, "", 1)
    assert said in ended.said
    assert not (tmp_path / "run").exists()


def test_help_names_the_flags(command: Command) -> None:
    """With what they do."""
    ended = command("train", "--help")
    assert ended.code == 0
    for flag in ("--preset", "--n-layer", "--attention", "--muon-learning-rate", "--resume"):
        assert flag in ended.out

"""The training command from its flags to its result: `python -m gpt2.train`, in this process."""

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2.data import load_corpus
from gpt2.model import PRESETS
from gpt2.train import TrainConfig, main, resumed
from minbpe import RegexTokenizer
from shared import cli
from shared.checkpoint import open_checkpoint
from shared.datasets import resolve
from shared.errors import ResourceError
from shared.files import sha256_of
from shared.metrics import read_metrics

TEXT = "".join(f"The {n}th king sat on throne number {n * n}.\n" for n in range(400))
SHAPE = ("--vocab-size", 280, "--block-size", 16, "--n-layer", 1, "--n-head", 2, "--n-embd", 16)
TINY = (*SHAPE, "--batch-size", 8, "--device", "cpu", "--threads", 1, "--sample-tokens", 20)
SHORT = (*TINY, "--max-steps", 6, "--log-every", 1, "--learning-rate", 1e-3)
STEPS = 200
KEYS = {
    *("command", "commit", "seed", "device", "data", "parameters", "steps", "seconds"),
    *(
        "cpu_seconds",
        "train_loss",
        "grad_norm",
        "val_loss",
        "best_val_loss",
        "best_bits_per_byte",
        "bits_per_byte",
    ),
    *("step_ms", "tok_per_sec", "mfu", "peak_gib"),
}
MEASURED = {"command", "seconds", "cpu_seconds", "step_ms", "tok_per_sec", "mfu", "peak_gib"}


@dataclasses.dataclass
class Ended:
    """The exit code of a command and what it printed, both streams in one."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """The last line."""
        return self.output.splitlines()[-1]


def train(*flags: object) -> Ended:
    """Run the command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = cli.execute(main, [str(flag) for flag in flags], "python -m gpt2.train", resumed)
    return Ended(code, printed.getvalue())


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def numbers_of(folder: Path) -> dict[str, Any]:
    """Return what the seed decides of a result."""
    return {key: value for key, value in result_of(folder).items() if key not in MEASURED}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a text and a cache; no named data set is here or can be had."""

    def no_network(*_: object, **__: object) -> None:
        raise ResourceError("no network in tests")

    folder, threads = tmp_path_factory.mktemp("train"), torch.get_num_threads()
    (folder / "kings.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLE_CACHE", str(folder / "cache"))
        patch.delenv("MLE_DATA", raising=False)
        patch.setattr("shared.datasets.download", no_network)
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def text(place: Path) -> Path:
    return place / "kings.txt"


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, str]:
    """Return the folder and the output of a run that is long enough to learn something."""
    out, rate = place / "trained", ("--learning-rate", 1e-2, "--warmup-steps", 20)
    ended = train("--data", place / "kings.txt", "--out", out, *TINY, "--max-steps", STEPS, *rate)
    assert ended.code == 0, ended.output
    return out, ended.output


# -- what a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(trained: tuple[Path, str]) -> None:
    """Settings, metrics, plot, tokenizer, sample and a checkpoint that verifies."""
    out, printed = trained
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["n_embd"] == config["n_embd"] == 16
    assert config["trainer"]["max_steps"] == STEPS
    kinds = {record["kind"] for record in read_metrics(out / "metrics.jsonl")}
    assert kinds == {"train", "val"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    tokenizer = RegexTokenizer()
    tokenizer.load(str(out / "tokenizer.model"))
    assert tokenizer.vocab_size == 280
    sample = (out / "sample.txt").read_text(errors="replace")
    assert len(tokenizer.encode_ordinary(sample)) >= 10
    assert sample in printed
    assert open_checkpoint(out).step == STEPS


def test_the_result_has_the_promised_keys_and_says_which_data(
    trained: tuple[Path, str], text: Path
) -> None:
    """Flat, with bits per byte, and the data's name without a machine's folders."""
    result = result_of(trained[0])
    assert result.keys() == KEYS
    assert result["data"] == {"name": "kings.txt", "sha256": sha256_of(text)}
    assert (result["seed"], result["steps"], result["device"]) == (0, STEPS, "cpu")
    assert result["parameters"] == sum(
        tensor.numel() for tensor in open_checkpoint(trained[0]).tensors().values()
    )
    assert result["best_val_loss"] <= result["val_loss"]
    assert all(math.isfinite(v) for v in result.values() if isinstance(v, float))


def test_a_model_learns_more_than_how_often_each_token_comes(
    trained: tuple[Path, str], text: Path
) -> None:
    """The validation loss is below the entropy of the tokens' frequencies, by half and more."""
    corpus = load_corpus(resolve(text), 280)
    tokens = corpus.validation.read(1, len(corpus.validation) - 1)
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    unigram = -float(np.sum(shares * np.log(shares)))
    result = result_of(trained[0])
    assert result["val_loss"] < unigram / 2
    assert result["bits_per_byte"] == pytest.approx(corpus.bits_per_byte(result["val_loss"]))


def test_every_run_prints_its_config_seed_and_device_first(trained: tuple[Path, str]) -> None:
    """Before the first step; the last lines say what to do next."""
    printed = trained[1]
    before, step, _ = printed.partition("step  10/")
    assert step
    for line in (
        "n_embd 16",
        "max_steps 200",
        "\n  seed        0",
        "\n  device      cpu, 1 thread",
    ):
        assert line in before
    assert f"python -m gpt2.generate --run {trained[0]}" in printed


# -- seeds and resuming --------------------------------------------------------------------------


def test_the_seed_decides_the_result(text: Path, tmp_path: Path) -> None:
    """The same seed gives the same numbers and sample; another one does not."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = ("--data", text, "--out", tmp_path / name, "--seed", seed, "--dropout", 0.1)
        assert train(*words, *SHORT).code == 0
    assert numbers_of(tmp_path / "a") == numbers_of(tmp_path / "b")
    same, other = (result_of(tmp_path / name)["val_loss"] for name in "bc")
    assert same != other
    samples = [(tmp_path / name / "sample.txt").read_bytes() for name in "abc"]
    assert samples[0] == samples[1] != samples[2]


def test_resume_needs_no_other_flag_and_takes_the_newest_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run with more steps goes on, with its own settings."""
    monkeypatch.chdir(tmp_path)
    for seed in (3, 4):
        assert train("--data", text, *SHORT, "--seed", seed).code == 0
    older, newer = sorted((tmp_path / "runs" / "gpt2").glob("*-*"))
    before = read_metrics(newer / "metrics.jsonl")
    ended = train("--resume", "--max-steps", 9)
    assert ended.code == 0, ended.output
    assert (result_of(newer)["steps"], result_of(newer)["seed"]) == (9, 4)
    assert result_of(older)["steps"] == 6
    after = read_metrics(newer / "metrics.jsonl")
    assert after[: len(before)] == before
    assert [record["step"] for record in after[len(before) :]] == [7, 8, 9, 9]
    assert open_checkpoint(newer).step == 9


def test_resume_takes_the_run_that_out_names(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the newest one; a finished run without more steps ends as it did before."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        assert train("--data", text, "--out", name, *SHORT).code == 0
    before = numbers_of(tmp_path / "a")
    assert train("--resume", "--out", "a").code == 0
    assert numbers_of(tmp_path / "a") == before
    ended = train("--resume")
    assert ended.code == 2
    assert "holds no run; name the folder of one" in ended.error


def test_resuming_as_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    """Exit 4, naming the field with both values; the run stays as it was."""
    words = ("--data", text, "--out", tmp_path / "run")
    assert train(*words, *SHORT).code == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    for flag, said in (
        (("--n-layer", 2), "model.n_layer: 1 -> 2"),
        (("--learning-rate", 0.5), "trainer.learning_rate: 0.001 -> 0.5"),
        (("--seed", 5), "trainer.seed: 0 -> 5"),
    ):
        ended = train("--resume", "--out", tmp_path / "run", *flag)
        assert ended.code == 4, ended.output
        assert said in ended.error
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_folder_is_not_taken_twice(text: Path, tmp_path: Path) -> None:
    """Without --resume a used folder is refused, and the remedy named."""
    words = ("--data", text, "--out", tmp_path / "run", *SHORT)
    assert train(*words).code == 0
    ended = train(*words)
    assert ended.code == 2
    assert "continue that run with --resume, or choose another --out" in ended.error


# -- data ----------------------------------------------------------------------------------------


def test_a_folder_of_texts_is_one_data_set(tmp_path: Path, place: Path) -> None:
    """All its files are read, and the folder's name is the data's."""
    (tmp_path / "texts").mkdir()
    for n in range(3):
        (tmp_path / "texts" / f"{n}.txt").write_text(TEXT[n * 900 : (n + 1) * 900])
    assert train("--data", tmp_path / "texts", "--out", tmp_path / "run", *SHORT).code == 0
    assert result_of(tmp_path / "run")["data"]["name"] == "texts"


def test_without_the_default_data_the_embedded_corpus_is_taken(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, and the result records which data were really used."""
    monkeypatch.setattr("shared.corpora.build", lambda _name: TEXT)  # the real one takes seconds
    ended = train("--out", tmp_path / "run", *SHORT)
    assert ended.code == 0, ended.output
    said = [line for line in ended.output.splitlines() if "embedded corpus" in line]
    assert len(said) == 1
    assert "shakespeare can't be had" in said[0]
    data = result_of(tmp_path / "run")["data"]
    kept = next((place / "cache" / "embedded").glob("python-docs-*"))
    assert data == {"name": "python-docs", "sha256": sha256_of(kept)}


def test_a_data_set_that_was_named_has_no_stand_in(place: Path, tmp_path: Path) -> None:
    """--data shakespeare without shakespeare is an error with a remedy."""
    ended = train("--data", "shakespeare", "--out", tmp_path / "run", *SHORT)
    assert ended.code == 5
    assert "shakespeare can't be had: no network in tests; put it into $MLE_DATA" in ended.error
    assert ended.output.count("\n") == 1


# -- mistakes ------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


MISTAKES: dict[str, tuple[Callable[[Path], tuple[object, ...]], int, str]] = {
    "unknown flag": (
        lambda _: ("--max-stepz", 3),
        2,
        "unknown flag --max-stepz; did you mean --max-steps?",
    ),
    "heads": (
        lambda _: ("--n-embd", 10, "--n-head", 3),
        2,
        "n_embd=10 must be a multiple of n_head=3; try 9 or 12",
    ),
    "bad value": (lambda _: ("--max-steps", "many"), 2, "--max-steps many: expected a whole"),
    "small vocabulary": (lambda _: ("--vocab-size", 100), 2, "vocab_size=100 must be at least 257"),
    "negative": (lambda _: ("--warmup-steps", -1), 2, "warmup_steps=-1 must be at least 0"),
    "no data": (lambda tmp: ("--data", tmp / "missing.txt"), 2, "missing.txt"),
    "no data set": (lambda _: ("--data", "shakespear"), 2, "did you mean shakespeare?"),
    "empty": (lambda tmp: ("--data", write(tmp / "no.txt", b"")), 3, "no.txt is empty"),
    "not UTF-8": (
        lambda tmp: ("--data", write(tmp / "latin.txt", b"caf\xe9 " * 99)),
        3,
        "latin.txt is not UTF-8 text: byte 0xe9 at offset 3",
    ),
    "too short": (
        lambda tmp: ("--data", write(tmp / "dot.txt", b".")),
        3,
        "dot.txt is too short to be split",
    ),
    "no room": (lambda tmp: ("--out", write(tmp / "file", b"")), 2, "file: is a file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_exit_code(mistake: str, text: Path, tmp_path: Path) -> None:
    """The line names what is wrong and what would be right."""
    flags, code, said = MISTAKES[mistake]
    ended = train("--data", text, "--out", tmp_path / "run", *SHORT, *flags(tmp_path))
    assert said in ended.error
    assert ended.code == code, ended.output
    assert ended.output.count("\n") == 1


@pytest.mark.parametrize("mistake", ["heads", "no data", "not UTF-8"])
def test_after_a_mistake_the_folder_is_free_for_the_right_command(
    mistake: str, text: Path, tmp_path: Path
) -> None:
    """What failed before it began leaves no run behind that --resume or --out would find."""
    words = ("--data", text, "--out", tmp_path / "run", *SHORT)
    assert train(*words, *MISTAKES[mistake][0](tmp_path)).code in (2, 3)
    assert train(*words).code == 0


# -- settings ------------------------------------------------------------------------------------


def test_flags_change_parts_of_the_preset() -> None:
    """Without flags the preset's shape; each flag replaces its part and nothing else."""
    for preset, shape in PRESETS.items():
        assert TrainConfig(preset=preset).shape() == shape  # type: ignore[arg-type]
    shape = TrainConfig(preset="gpt2", n_layer=3, dropout=0.5).shape()
    assert shape == dataclasses.replace(PRESETS["gpt2"], n_layer=3, dropout=0.5)


def test_zero_is_a_value_like_any_other() -> None:
    """--n-layer 0 is refused, not taken as "not given"."""
    with pytest.raises(ValueError, match="n_layer=0 must be at least 1"):
        TrainConfig(n_layer=0)

"""Fixtures of the mingpt tests: one thread, a seed, a short text, and commands to run on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mingpt import evaluate, generate, train
from shared import cli
from shared.checkpoint import Checkpoints, open_checkpoint
from shared.testing import Ended, call

SONNET = """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance or nature's changing course untrimm'd.

"""
PROGRAMS: dict[str, tuple[cli.Verb, cli.Defaults | None]] = {
    "train": (train.main, train.defaults),
    "generate": (generate.main, None),
    "evaluate": (evaluate.main, None),
}


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    """Make tests independent of the number of cores and of which ran before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sonnet() -> str:
    """Return a text of 3,460 characters, 38 different ones."""
    return SONNET * 10


@pytest.fixture(scope="session")
def text_file(sonnet: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the text; not to be changed."""
    path = tmp_path_factory.mktemp("data") / "sonnet.txt"
    path.write_text(sonnet)
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Return a function that runs a command in this process: `command("train", "--seed", 1)`."""

    def run(name: str, *flags: object) -> Ended:
        program, defaults = PROGRAMS[name]
        with pytest.MonkeyPatch.context() as patch:
            # mingpt.train draws loss.png again, with its unit; once is enough here.
            patch.setattr("shared.callbacks.plot_loss", lambda *_, **__: None)
            return call(program, flags, f"mingpt.{name}", defaults)

    return run


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Return the flags of a run that takes a fraction of a second."""
    shape = ("--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--dropout", 0.1)
    steps = ("--max-steps", 6, "--batch-size", 8, "--eval-batch-size", 64, "--warmup-steps", 0)
    often = ("--eval-every", 3, "--checkpoint-every", 3, "--log-every", 1, "--sample", 30)
    return (*shape, *steps, *often, "--precision", "fp32", "--device", "cpu", "--threads", 1)


@pytest.fixture(scope="session")
def trained(
    command: Command,
    text_file: Path,
    tiny: tuple[object, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Ended]:
    """Return the folder of a run that has learnt something, and what it printed; read only."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    longer = ("--max-steps", 60, "--eval-every", 30, "--learning-rate", 0.02)
    ended = command("train", "--data", text_file, "--out", out, *tiny, *longer)
    assert ended.code == 0, ended.error
    return out, ended


@pytest.fixture(scope="session")
def hybrid_run(
    command: Command,
    text_file: Path,
    tiny: tuple[object, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the folder of a run of a hybrid with 3- and 4-grams; read only."""
    out = tmp_path_factory.mktemp("runs") / "hybrid"
    words = ("--preset", "hybrid", "--n", 4, "--data", text_file, "--out", out)
    ended = command("train", *tiny, *words)
    assert ended.code == 0, ended.error
    return out


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run like another, its parts changed by functions."""

    def write(
        run: Path,
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
        checkpoints.commit(pending, best=True)
        return tmp_path / "altered"

    return write

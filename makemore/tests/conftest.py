"""Fixtures of the makemore tests: one thread, a seed, a few names, and commands to run on them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from makemore import evaluate, generate, train
from shared import cli
from shared.testing import Ended, call

NAMES = (
    *("emma", "olivia", "ava", "isabella", "sophia", "charlotte", "mia", "amelia", "harper"),
    *("evelyn", "abigail", "emily", "elizabeth", "mila", "ella", "avery", "sofia", "camila"),
    *("aria", "scarlett", "victoria", "madison", "luna", "grace", "chloe", "penelope", "layla"),
    *("riley", "zoey", "nora", "lily", "eleanor", "hannah", "lillian", "addison", "aubrey"),
    *("ellie", "stella", "natalie", "zoe"),
)
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
def names() -> list[str]:
    """Return forty names, all different."""
    return list(NAMES)


@pytest.fixture(scope="session")
def names_file(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of the forty names; not to be changed."""
    path = tmp_path_factory.mktemp("data") / "names.txt"
    path.write_text("\n".join(names) + "\n")
    return path


@pytest.fixture(scope="session")
def command() -> Command:
    """Return a function that runs a command in this process: `command("train", "--seed", 1)`."""

    def run(name: str, *flags: object) -> Ended:
        program, defaults = PROGRAMS[name]
        with pytest.MonkeyPatch.context() as patch:
            # makemore.train draws loss.png again, with its unit; once is enough here.
            patch.setattr("shared.callbacks.plot_loss", lambda *_, **__: None)
            return call(program, flags, f"makemore.{name}", defaults)

    return run


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Return the flags of a run that takes a fraction of a second."""
    shape = ("--model", "gru", "--n-embd", 8, "--n-hidden", 16, "--dropout", 0.1)
    steps = ("--max-steps", 6, "--batch-size", 8, "--log-every", 1, "--samples", 5)
    return (*shape, *steps, "--device", "cpu", "--threads", 1)


@pytest.fixture(scope="session")
def trained(
    command: Command,
    names_file: Path,
    tiny: tuple[object, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Ended]:
    """Return the folder of a run that has learnt something, and what it printed; read only."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    longer = ("--max-steps", 80, "--eval-every", 40, "--learning-rate", 0.02)
    ended = command("train", "--data", names_file, "--out", out, *tiny, *longer)
    assert ended.code == 0, ended.error
    return out, ended

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from shared import cli
from shared.errors import DataError, Interrupted, NumericalError, UsageError


@dataclass(frozen=True)
class ModelConfig:
    """The model."""

    n_layer: int = 4
    """Number of blocks."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Between the two layers of an MLP."""

    def __post_init__(self) -> None:
        if self.n_layer < 1:
            raise ValueError(f"n_layer={self.n_layer} must be positive;\n try 4")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    max_steps: int = 100
    """Updates to make."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    compile: bool = False
    """Compile the model."""
    seed: int | None = None
    """Where randomness starts."""
    data: str = "shakespeare"
    """A data set's name."""

    def __post_init__(self) -> None:
        if not self.data:
            raise DataError("data is empty")


@dataclass(frozen=True)
class FetchConfig:
    """What to fetch."""

    name: str
    """Of the data set."""


def train(config: TrainConfig) -> None:
    """Train a model."""
    print(config)


def fetch(config: FetchConfig) -> None:
    """Get a data set.

    And more about it.
    """
    print(f"fetch {config.name}")


def list_all() -> None:
    """List all data sets."""
    print("listed")


def raising(error: BaseException) -> Callable[[], None]:
    """Return a command that fails with an error."""

    def command() -> None:
        raise error

    return command


VERBS: dict[str, cli.Verb] = {"train": train, "fetch": fetch, "list": list_all}


def test_fields_of_nested_configs_are_flags_without_prefix() -> None:
    """A field is a flag by its own name wherever it lies, with hyphens or underscores."""
    words = ["--n-layer", "2", "--max_steps=7", "--betas", "0.8", "-0.5", "--compile"]
    expected = TrainConfig(ModelConfig(n_layer=2), max_steps=7, betas=(0.8, -0.5), compile=True)
    assert cli.parse(TrainConfig, words) == expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--max-stepz", "3"], "unknown flag --max-stepz; did you mean --max-steps?"),
        (["--n_layers=3"], "unknown flag --n_layers; did you mean --n-layer?"),
        (["--max-stepz", "3", "--seed", "x"], "unknown flag --max-stepz; did you mean --max-steps"),
        (["--xyzzy"], "unknown flag --xyzzy (flags"),
        (["-q"], "unknown flag -q (flags"),
    ],
)
def test_case_40_unknown_flag_names_the_nearest_one(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in a flag costs one line with the flag that was meant, and exit code 2."""
    assert cli.execute(train, words, prog="train") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {line}")
    assert captured.err.endswith("train --help)\n")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--max-steps", "1e4"], "--max-steps 1e4: expected a whole number"),
        (["--max_steps=many"], "--max-steps many: expected a whole number"),
        (["--seed", "x"], "--seed x: expected None or a whole number"),
        (["--activation", "tanh"], "--activation tanh: expected gelu or relu"),
        (["--betas", "0.9"], "--betas 0.9: expected a number and a number"),
        (["--betas", "0.9", "y"], "--betas 0.9 y: expected a number and a number"),
        (["--max-steps"], "--max-steps: missing value, expected a whole number"),
        (["--max-steps", "--compile"], "--max-steps: missing value, expected a whole number"),
        (["--compile", "yes"], "--compile takes no value, got 'yes'"),
        (["shakespeare"], "unexpected argument 'shakespeare'"),
        (["--max-steps", "3", "4"], "unexpected argument '4'"),
    ],
)
def test_case_40_bad_value_names_flag_value_and_what_is_expected(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that cannot be read costs one plain line and exit code 2."""
    assert cli.execute(train, words, prog="train") == 2
    assert capsys.readouterr().err == f"error: {line} (flags: train --help)\n"


def test_case_40_value_out_of_range_gives_the_configs_own_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A ValueError of `__post_init__` is shown as it is, on one line, with exit code 2."""
    assert cli.execute(train, ["--n-layer", "0"]) == 2
    assert capsys.readouterr().err == "error: n_layer=0 must be positive; try 4\n"


def test_an_error_of_a_config_keeps_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """A DataError raised while the config is built exits 3, though it is a ValueError."""
    assert cli.execute(train, ["--data", ""]) == 3
    assert capsys.readouterr().err == "error: data is empty\n"


def test_a_missing_flag_is_named_and_a_typo_in_it_recognised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--nam x` says that `--name` was meant, not that `--name` is missing."""
    assert cli.execute(fetch, [], prog="fetch") == 2
    assert capsys.readouterr().err == "error: --name is required (a text) (flags: fetch --help)\n"
    assert cli.execute(fetch, ["--nam", "x"], prog="fetch") == 2
    assert "unknown flag --nam; did you mean --name?" in capsys.readouterr().err


def test_messages_do_not_depend_on_the_terminal() -> None:
    """A narrow terminal without box characters gets the same line."""
    choices = "['red', 'green-as-grass', 'blue-as-the-sea']"
    code = (
        "from dataclasses import dataclass\nfrom typing import Literal\nfrom shared import cli\n"
        "@dataclass\nclass C:\n    colour: Literal" + choices + " = 'red'\n"
        "def main(config: C) -> None: pass\ncli.run(main, prog='main')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    done = subprocess.run(
        [sys.executable, "-c", code, "--colour", "pink"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    named = "red or green-as-grass or blue-as-the-sea"
    expected = f"error: --colour pink: expected {named} (flags: main --help)\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_help_shows_fields_defaults_and_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` exits 0 and says what each flag means, with its default."""
    assert cli.execute(train, ["--help"], prog="train") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Train a model." in shown
    assert "--max-steps INT Updates to make. (default: 100)" in shown
    assert "--n-layer INT Number of blocks. (default: 4)" in shown
    assert "--debug" in shown


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no"), 2, "no"),
        (NumericalError("loss is\n   nan\x1b[0m"), 6, "loss is nan\\x1b[0m"),
        (NumericalError(), 6, "NumericalError"),
        (Interrupted("saved", 15), 143, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "a.txt: No such file"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "b"), 2, "b: Is a directory"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), 2, "c: Permission denied"),
        (OSError(errno.ENOSPC, "No space left", "d"), 5, "d: No space left"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 5, "Quota exceeded"),
        (OSError(errno.EROFS, "Read-only", "e"), 5, "e: Read-only"),
        (MemoryError(), 5, "out of memory; try a smaller --batch-size (an allocation failed)"),
        (
            RuntimeError("CPU: can't allocate memory"),
            5,
            "out of memory; try a smaller --batch-size (CPU: can't allocate memory)",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA is full"),
            5,
            "out of memory; try a smaller --batch-size (CUDA is full)",
        ),
    ],
)
def test_an_error_that_a_user_can_mend_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of failure has its exit code, and no traceback."""
    assert cli.execute(raising(error), []) == code
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("x"), ValueError("x"), FileNotFoundError("x"), RuntimeError("x")],
)
def test_a_defect_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """What the user cannot mend exits 1 with the traceback, as we need it."""
    assert cli.execute(raising(error), []) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith(f"{type(error).__name__}: x\n")


@pytest.mark.parametrize(
    "words", [["--debug", "fetch", "--name", ""], ["fetch", "--name", "", "--debug"]]
)
def test_debug_anywhere_adds_the_traceback(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--debug` the line comes after the traceback, wherever the flag stands."""

    def refuse(config: FetchConfig) -> None:
        raise UsageError(f"no data set {config.name!r}")

    assert cli.execute({"fetch": refuse}, words) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("\nerror: no data set ''\n")


def test_verbs_choose_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    """The first word picks a verb; a verb without a config takes no flags."""
    assert cli.execute(VERBS, ["fetch", "--name", "names"]) == 0
    assert capsys.readouterr().out == "fetch names\n"
    assert cli.execute(VERBS, ["list"]) == 0
    assert capsys.readouterr().out == "listed\n"
    assert cli.execute(VERBS, ["list", "names"], prog="data") == 2
    expected = "error: unexpected argument 'names' (flags: data list --help)\n"
    assert capsys.readouterr().err == expected


def test_verbs_are_listed_and_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or misspelt verb exits 2; `--help` lists each with its first line."""
    assert cli.execute(VERBS, ["fech"]) == 2
    assert capsys.readouterr().err == "error: unknown verb fech; did you mean fetch?\n"
    assert cli.execute(VERBS, [], prog="data") == 2
    assert capsys.readouterr().err == "error: say what to do: data train|fetch|list\n"
    assert cli.execute(VERBS, ["--help"], prog="data") == 0
    shown = capsys.readouterr().out
    assert "  fetch  Get a data set.\n" in shown
    assert "data VERB --help" in shown
    assert "And more" not in shown


def test_a_flag_is_read_before_the_line_is_parsed() -> None:
    """Its last value, in both spellings, or the default; None where the value is missing."""
    for words, value in (
        (["--seed", "1", "--preset", "large"], "large"),
        (["--preset=a", "--preset", "b"], "b"),
        (["--presets", "large"], "small"),
        ([], "small"),
        (["--preset"], None),
    ):
        assert cli.given("--preset", words, "small") == value


def test_suggest_lists_few_choices_when_none_is_near() -> None:
    """A near choice is proposed, a few others are listed, many are not."""
    assert cli.suggest("nmaes", ["names", "words"]) == "; did you mean names?"
    assert cli.suggest("xyz", ["names", "words"]) == "; choose from names, words"
    assert cli.suggest("xyz", [f"names{i}" for i in range(13)]) == ""


def test_run_exits_with_the_code() -> None:
    """`run` is `execute` and then the exit; a function's own exit code passes through."""
    with pytest.raises(SystemExit) as end:
        cli.run(raising(NumericalError("x")), [])
    assert end.value.code == 6
    assert cli.execute(raising(SystemExit(9)), []) == 9
    assert cli.execute(raising(SystemExit()), []) == 0


def test_a_closed_pipe_ends_the_program_silently() -> None:
    """`program | head -1` prints its line and no complaint."""
    code = (
        "from shared import cli\n"
        "def main() -> None:\n    for i in range(200_000): print(i)\ncli.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), complaint) == (141, "")


def test_a_pipe_that_is_not_ours_is_a_defect(capfd: pytest.CaptureFixture[str]) -> None:
    """A broken pipe to a worker is not taken for a reader that has left."""
    assert cli.execute(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), []) == 1
    assert "BrokenPipeError" in capfd.readouterr().err


def test_importing_cli_leaves_torch_alone() -> None:
    """`--help` need not wait for seconds of imports."""
    code = "import sys, shared.cli; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_the_program_is_named_as_it_was_started(tmp_path: Path) -> None:
    """Help and errors show the command that was typed: `python -m package.verb`."""
    (tmp_path / "demo").mkdir()
    code = "from shared import cli\ndef main() -> None: pass\ncli.run(main)\n"
    (tmp_path / "demo" / "try_it.py").write_text(code)
    (tmp_path / "demo" / "__main__.py").write_text(code)
    for module, name in (("demo.try_it", "demo.try_it"), ("demo", "demo")):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"usage: python -m {name} ")


def test_settings_are_printed_name_by_name() -> None:
    """The title, then a name and its value a line, with brackets left as they are."""
    stream = StringIO()
    console = Console(file=stream, width=60)
    cli.print_settings(console, "gpt2 [tiny]", {"seed": 1337, "data": "[bold]"})
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert lines == ["gpt2 [tiny]", "  seed  1337", "  data  [bold]"]


def test_defaults_come_from_a_function_of_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    """What the words leave out is taken from the config returned; what they say still counts."""
    seen: list[list[str]] = []

    def saved(words: Sequence[str]) -> TrainConfig:
        seen.append(list(words))
        return TrainConfig(max_steps=7, model=ModelConfig(n_layer=9))

    assert cli.execute(train, ["--max-steps", "8"], "demo", saved) == 0
    printed = capsys.readouterr().out
    assert "max_steps=8" in printed
    assert "n_layer=9" in printed
    assert seen == [["--max-steps", "8"]]
    assert cli.execute(train, [], "demo", lambda _: None) == 0
    assert "max_steps=100" in capsys.readouterr().out

"""The READMEs tell the truth: their examples run, their commands and files exist."""

import ast
import contextlib
import importlib
import re
from pathlib import Path

import pytest

COMMAND = re.compile(r"^(?:python|torchrun [^\n]*?) ?-m (\w+(?:\.\w+)*)(.*)$", re.MULTILINE)
ROOT = Path(__file__).resolve().parent.parent
READMES = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("README.md"), *ROOT.glob("*/README.md")]
)


def blocks(text: str, language: str = "") -> list[str]:
    """Return the fenced blocks of a language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_example(code: str) -> int:
    """Run an example; check each `expression  # literal` in it; return how many there were."""
    names: dict[str, object] = {"__name__": "readme"}
    checked = 0
    for statement in ast.parse(code).body:
        source = ast.get_source_segment(code, statement)
        line = code.splitlines()[(statement.end_lineno or 1) - 1]
        comment = line[statement.end_col_offset :].strip().removeprefix("# ")
        if isinstance(statement, ast.Expr) and comment:
            value = eval(source or "", names)
            try:
                expected = ast.literal_eval(comment)
            except (SyntaxError, ValueError):
                continue  # a remark, not a value
            assert value == expected, f"{source} is {value!r}, the README says {comment}"
            checked += 1
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), names)
    return checked


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_the_python_examples_run_as_shown(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block runs, and shows the values that its comments say."""
    examples = blocks((ROOT / readme).read_text(), "python")
    if not examples:
        pytest.skip("no Python example in this README")
    monkeypatch.chdir(tmp_path)
    for code in examples:
        run_example(code)


def test_a_wrong_value_in_an_example_is_noticed() -> None:
    """The check above can fail."""
    assert run_example("x = 2\nx + 1  # 3\n") == 1
    with pytest.raises(AssertionError, match="the README says 4"):
        run_example("x = 2\nx + 1  # 4\n")


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_the_commands_name_modules_and_flags_that_exist(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m package.verb --flag` in a README: the module is there and knows the flag."""
    text = (ROOT / readme).read_text()
    seen = 0
    for module, rest in COMMAND.findall("\n".join(blocks(text))):
        if module == "pip":
            continue
        source = Path(str(importlib.import_module(module).__file__)).read_text()
        assert '__name__ == "__main__"' in source, f"python -m {module} does nothing"
        known = help_of(module, capsys)
        for flag in re.findall(r"--[a-z][\w-]*", rest.partition("#")[0]):
            assert flag in known, f"{readme}: {module} has no {flag}"
        seen += 1
    assert seen or "python -m" not in "\n".join(blocks(text))


def help_of(module: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command prints for --help, called in this process."""
    loaded = importlib.import_module(module)
    if module.startswith(("micrograd", "minbpe")):
        with contextlib.suppress(SystemExit):  # argparse's way, which some turn into a code
            loaded.main(["--help"])
        return capsys.readouterr().out
    if module in ("shared.datasets", "shared.tokens"):  # with verbs: the flags are in the source
        return Path(str(loaded.__file__)).read_text()
    from shared import cli

    assert cli.execute(loaded.main, ["--help"], f"python -m {module}") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_and_pictures_lead_somewhere(readme: Path) -> None:
    """Relative links in a README are files of the project."""
    for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / readme).read_text()):
        if not target.startswith("http"):
            assert (ROOT / readme.parent / target).exists(), target


def test_no_path_or_host_of_one_machine_is_in_the_project() -> None:
    """What is committed runs anywhere: no absolute paths of the machine it was written on."""
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|tmp)/[a-z]\w*")
    found = []
    for path in sorted(ROOT.rglob("*")):
        hidden = any(
            part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts
        )
        texts = {".py", ".md", ".toml", ".json", ".txt", ".yml", ""}
        if path.is_file() and not hidden and path.suffix in texts and "runs" not in path.parts:
            for match in pattern.finditer(path.read_text(errors="ignore")):
                found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert found == []

"""The packages hang together as ARCHITECTURE says: imports, dependencies, no pickles."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Which of ours each package may import.
ARROWS = {
    "micrograd": set(),
    "minbpe": set(),
    "shared": set(),
    "makemore": {"shared"},
    "mingpt": {"shared"},
    "bert": {"shared", "minbpe"},
    "gpt2": {"shared", "minbpe"},
    "recsys": {"shared"},
    "retrieval": {"shared", "bert", "minbpe"},
}
# Calls that run what a file says, and the argument that makes torch.load one of them.
PICKLES = re.compile(
    r"pickle\.loads?\(|Unpickler\(|weights_only\s*=\s*False|allow_pickle\s*=\s*True|joblib\.load"
)


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_imports_point_along_the_arrows_only(root: Path, packages: list[str]) -> None:
    """No package imports one of ours that the architecture does not allow it."""
    wrong = [
        f"{path.relative_to(root)} imports {name}"
        for package in packages
        for path in sorted((root / package / "src").rglob("*.py"))
        for name in set(imported(path)) & (ARROWS.keys() - ARROWS[package] - {package})
    ]
    assert wrong == []
    assert "shared" in {
        name for path in (root / "gpt2/src").rglob("*.py") for name in imported(path)
    }


def test_every_package_is_imported_from_this_tree(root: Path, packages: list[str]) -> None:
    """An installed copy would hide the code under test."""
    for package in packages:
        file = importlib.import_module(package).__file__
        assert file is not None
        assert Path(file).is_relative_to(root / package / "src")


def test_dependencies_cover_those_of_the_siblings(root: Path, packages: list[str]) -> None:
    """An editable install of one package alone can run all the siblings it imports."""
    declared = {p: read_toml(root / p / "pyproject.toml") for p in packages}
    for package, settings in declared.items():
        own = set(settings["project"]["dependencies"])
        siblings = siblings_of(settings)
        assert siblings == ARROWS[package] & siblings, package
        for sibling in siblings:
            missing = set(declared[sibling]["project"]["dependencies"]) - own
            assert missing == set(), f"{package} lacks what {sibling} needs"
        folders = {f"../{sibling}/src" for sibling in siblings} | {"src"}
        assert set(settings["tool"]["hatch"]["build"]["dev-mode-dirs"]) == folders
    workspace = read_toml(root / "pyproject.toml")
    everything = set(workspace["project"]["dependencies"])
    assert all(set(d["project"]["dependencies"]) <= everything for d in declared.values())
    listed = workspace["tool"]["hatch"]["build"]["dev-mode-dirs"]
    assert set(listed) == {f"{package}/src" for package in packages}


def siblings_of(settings: dict[str, Any]) -> set[str]:
    hooks = settings["tool"]["hatch"]["build"].get("hooks", {})
    return set(hooks.get("custom", {}).get("siblings", []))


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_a_package_names_the_siblings_it_imports(root: Path, package: str) -> None:
    """What a package imports of ours is in its build hook, or a wheel of it would not work."""
    if not (root / package).exists():
        pytest.skip(f"{package} is not built yet")
    used = {n for path in (root / package / "src").rglob("*.py") for n in imported(path)}
    hooked = siblings_of(read_toml(root / package / "pyproject.toml"))
    assert used & ARROWS.keys() - {package} <= hooked


def test_no_shipped_code_loads_a_pickle(root: Path, packages: list[str]) -> None:
    """Nothing under src/ unpickles; torch.load always says weights_only=True."""
    found = []
    for package in packages:
        for path in sorted((root / package / "src").rglob("*.py")):
            text = path.read_text()
            found += [f"{path.name}: {match[0]}" for match in PICKLES.finditer(text)]
            for call in re.finditer(r"torch\.load\((?!path, weights_only=True\))[^)]*\)", text):
                if "weights_only=True" not in call[0]:
                    found.append(f"{path.name}: {call[0]}")
    assert found == []
    assert PICKLES.search("pickle.load(file)")

"""The three ways to install, each in a fresh environment, from the root and from elsewhere.

Third-party packages are taken from the environment that runs the tests (a path file makes them
visible, without making ours so); what pip does with our own packages is the real thing.
"""

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WHERE = (
    "import gpt2, minbpe, shared; print(*(m.__file__ for m in (gpt2, minbpe, shared)), sep='\\n')"
)


class Environment:
    """A fresh virtual environment that sees the third-party packages of this one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder)  # without a pip of its own: the outer one installs into it
        self.python = folder / "bin" / "python"
        if not self.python.exists():
            self.python = folder / "Scripts" / "python.exe"
        purelib = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        # A path in a .pth file is added as it is: the .pth files in it, ours among them, are not
        # read.
        (Path(purelib) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Run the environment's Python; return what it printed."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "GIT_"))}
        done = subprocess.run(
            [self.python, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *words: str | Path, cwd: Path) -> None:
        """Run its pip install."""
        # No index: all that is needed is here, and a test takes nothing from a network.
        offline = ("--no-index", "--no-build-isolation", "--quiet")
        self.run("-m", "pip", "install", *offline, *words, cwd=cwd)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    pytest.importorskip("hatchling", reason="hatchling is not installed; it is in the dev extra")
    return Environment(tmp_path / "env")


def sources(environment: Environment, cwd: Path) -> list[Path]:
    return [Path(line) for line in environment.run("-c", WHERE, cwd=cwd).splitlines()]


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the workspace: a build must not leave anything in the tree under test."""
    hidden = shutil.ignore_patterns(".*", "__pycache__", "runs", "*.egg-info")
    return Path(shutil.copytree(root, tmp_path / "copy of the workspace", ignore=hidden))


@pytest.mark.parametrize("from_root", [True, False], ids=["from the root", "from elsewhere"])
def test_an_editable_install_of_one_package_uses_the_tree(
    environment: Environment, copy: Path, tmp_path: Path, from_root: bool
) -> None:
    """`pip install -e gpt2` is enough, and every import of ours then comes from the tree."""
    cwd = copy if from_root else tmp_path
    environment.install("-e", "gpt2" if from_root else copy / "gpt2", cwd=cwd)
    for file in sources(environment, tmp_path):
        assert file.is_relative_to(copy), file
    # The folder gpt2/ in the working folder shadows nothing.
    assert sources(environment, copy) == sources(environment, tmp_path)
    assert "--max-steps" in environment.run("-m", "gpt2.train", "--help", cwd=copy)


@pytest.mark.parametrize("from_root", [True, False], ids=["from the root", "from elsewhere"])
def test_a_wheel_of_one_package_brings_its_siblings(
    environment: Environment, copy: Path, tmp_path: Path, from_root: bool
) -> None:
    """`pip install ./gpt2` copies gpt2, shared and minbpe, and works without the tree."""
    environment.install(
        "./gpt2" if from_root else copy / "gpt2", cwd=copy if from_root else tmp_path
    )
    shutil.rmtree(copy)
    for file in sources(environment, tmp_path):
        assert file.is_relative_to(tmp_path / "env"), file
    assert "--max-steps" in environment.run("-m", "gpt2.train", "--help", cwd=tmp_path)
    assert "shakespeare" in environment.run("-m", "shared.datasets", cwd=tmp_path)


def test_the_workspace_installs_every_package_at_once(
    environment: Environment, copy: Path, tmp_path: Path
) -> None:
    """`pip install -e ".[dev]"` makes all packages importable from the tree."""
    environment.install("-e", ".[dev]", cwd=copy)
    for file in sources(environment, tmp_path):
        assert file.is_relative_to(copy), file
    # Two editable installs side by side resolve, and neither brings a copy of the other.
    environment.install("-e", "gpt2", "-e", "minbpe", cwd=copy)
    for file in sources(environment, tmp_path):
        assert file.is_relative_to(copy), file


def test_a_package_that_imports_nothing_of_ours_installs_alone(
    environment: Environment, copy: Path, tmp_path: Path
) -> None:
    """`pip install ./micrograd ./minbpe` brings the pages' templates along, and no torch."""
    environment.install("./micrograd", "./minbpe", cwd=copy)
    shutil.rmtree(copy)
    environment.run("-m", "micrograd.player", "--out", "player.html", cwd=tmp_path)
    assert "<svg" in (tmp_path / "player.html").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text("hug hugs thugs " * 20)
    environment.run(
        "-m", "minbpe.train", "text.txt", "--vocab-size", "260", "--out", "t", cwd=tmp_path
    )
    page = ("text.txt", "--tokenizer", "t.model", "--out", "view.html")
    environment.run("-m", "minbpe.view", *page, cwd=tmp_path)
    assert "<html" in (tmp_path / "view.html").read_text(encoding="utf-8")
    modules = "import micrograd.train, minbpe.encode, sys; print('torch' in sys.modules)"
    assert environment.run("-c", modules, cwd=tmp_path).strip() == "False"

"""What the tests that span packages share."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the workspace."""
    return ROOT


@pytest.fixture(scope="session")
def packages(root: Path) -> list[str]:
    """Return the names of the packages, which are those of their folders."""
    return sorted(path.parent.name for path in root.glob("*/pyproject.toml"))


@pytest.fixture(scope="session")
def more_ranks() -> Path:
    """Return a folder of rank files that we may lack: litellm's, or one that does not exist."""
    litellm = importlib.util.find_spec("litellm")
    brings = Path(litellm.origin).parent if litellm and litellm.origin else Path("none")
    return brings / "litellm_core_utils" / "tokenizers"

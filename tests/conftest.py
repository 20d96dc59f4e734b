"""What the tests that span packages share."""

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

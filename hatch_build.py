"""Make a plain `pip install ./gpt2` bring along the sibling packages it imports.

An editable install finds the siblings in the tree (`dev-mode-dirs`), and must not depend on them:
pip would then fetch a copy that hides the tree. A wheel has no tree beside it, so only standard
builds get `mle-shared @ file:...` added to their dependencies.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SiblingHook(BuildHookInterface):  # type: ignore[type-arg]  # generic only in newer hatchling
    """Add the folders named by `siblings` in the package's pyproject.toml as dependencies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend `build_data["dependencies"]` unless this is an editable build."""
        if version == "editable":
            return
        workspace = Path(self.root).resolve().parent
        for name in self.config["siblings"]:
            folder = workspace / name
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder} is missing: build {self.root} inside its workspace"
                )
            build_data["dependencies"].append(f"mle-{name} @ {folder.as_uri()}")

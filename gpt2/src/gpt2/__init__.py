"""GPT-2 (Radford et al., 2019)."""

import shared  # noqa: F401 - before torch: see there
from gpt2.model import GPT, PRESETS, GPTConfig

__all__ = ["GPT", "PRESETS", "GPTConfig"]

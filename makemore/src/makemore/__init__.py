"""makemore: language models of names, from counting to the transformer."""

import shared  # noqa: F401 - before torch: see there

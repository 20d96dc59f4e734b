"""mingpt: "Attention Is All You Need" from the smallest pieces, and Shakespeare on it."""

import shared  # noqa: F401 - before torch: see there

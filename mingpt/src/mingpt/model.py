"""What every language model here has in common, counted or trained.

Shapes: B batch, T time, V = vocab_size characters.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

IGNORED = -100  # a target that does not count: what follows it is padding


@runtime_checkable
class LanguageModel(Protocol):
    """A model of the next character, given those before it in a window."""

    vocab_size: int
    block_size: int

    def __call__(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Map idx (B, T) to logits (B, T, V); with targets (B, T), to the mean loss in nats.

        Targets of -100 do not count. Raises ValueError when T > block_size.
        """

    def flops_per_character(self) -> float:
        """Count the FLOPs of a forward pass per character, the context full."""


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that training adjusts."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

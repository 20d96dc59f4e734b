"""Whether a step may update the weights: non-finite numbers and sudden spikes of the loss."""

import math
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What to do with the gradients of a step."""

    UPDATE = "update"
    SPIKE = "loss spike"
    NON_FINITE = "non-finite loss or gradient"


@dataclass
class Health:
    """The running mean and variance of the loss, and what was skipped so far.

    Its fields are plain numbers and part of every checkpoint, so that a resumed run judges as the
    uninterrupted one would have.
    """

    mean: float = 0.0
    variance: float = 0.0
    observed: int = 0
    skipped: int = 0
    non_finite_in_a_row: int = 0
    rolled_back: bool = False

    # The averages look back about this many steps, and judge nobody before they have.
    HORIZON = 50

    def judge(self, loss: float, grad_norm: float, spike_sigma: float) -> Verdict:
        """Judge one step by its mean loss and gradient norm over all processes; remember it."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped += 1
            self.non_finite_in_a_row += 1
            return Verdict.NON_FINITE
        self.non_finite_in_a_row = 0
        excess = loss - self.mean
        limit = spike_sigma * math.sqrt(self.variance)
        spike = spike_sigma > 0 and self.observed >= self.HORIZON and excess > limit > 0
        self._observe(excess)
        self.skipped += spike
        return Verdict.SPIKE if spike else Verdict.UPDATE

    def _observe(self, excess: float) -> None:
        """Move the averages; a spike moves them too, so that a lasting change is soon normal."""
        self.observed += 1
        rate = max(1 / self.observed, 1 / self.HORIZON)
        self.mean += rate * excess
        self.variance = (1 - rate) * (self.variance + rate * excess * excess)

"""Draw what comes next from a model's scores: temperature, the k likeliest, the nucleus."""

import torch
from torch import Tensor

from shared.errors import NumericalError


def check_sampling(temperature: float, top_k: int | None = None, top_p: float = 1.0) -> None:
    """Raise ValueError unless the three can be sampled with."""
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0 or more; 1 is the model's own")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to draw among all")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1; 1 draws among all")


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw an id per row: logits (B, V) to (B,); one of -inf is never drawn.

    Temperature first, where 0 takes the likeliest, then the k likeliest, then of these the fewest
    whose probabilities add up to top_p (Holtzman et al., 2020, sec. 3.1). Raises NumericalError
    for logits that are not numbers, or that leave nothing to draw.
    """
    largest = logits.amax(-1, keepdim=True)  # (B, 1); NaN where there is one in the row
    if not largest.isfinite().all():
        raise NumericalError("the model gave scores that are not finite; its weights are broken")
    if temperature == 0.0:
        return logits.argmax(-1)
    logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))  # the likeliest first
    # The largest is 0 from here, so that a tiny temperature cannot overflow; and in float64 no
    # temperature becomes 0 or infinite.
    probs = ((logits - largest).double() / temperature).softmax(-1)
    if top_p < 1.0:
        before = probs.cumsum(-1) - probs  # of all likelier ids; 0 for the first, which stays
        probs = probs.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(probs, 1, generator=generator)  # (B, 1), needs no sum of 1
    return ids.gather(-1, drawn).squeeze(-1)

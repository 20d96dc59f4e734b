"""Several models as one: the weighted mean of their probabilities (Jelinek and Mercer, 1980).

    p(w | h) = sum_m weight[m] p_m(w | h)        the weights sum to one

The weights make held-out items most likely: items that the models were not trained on, as a model
that knows an item by heart would get all the weight for it. EM finds them (Dempster, Laird and
Rubin, 1977): share the credit for every character among the models, then average the credit.

Shapes: M models, N places.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
MAX_STEPS = 1000
TOLERANCE = 1e-10  # nats per place that a step of EM must still gain


def mix(log_probs: Sequence[npt.ArrayLike], weights: npt.ArrayLike) -> FloatArray:
    """Return the logarithm of the weighted mean of probabilities: M arrays of one shape to one.

    >>> mix([[0.0, -np.inf], [-np.inf, 0.0]], [0.25, 0.75]).round(2).tolist()
    [-1.39, -0.29]
    """
    stacked = np.stack([np.asarray(values, dtype=np.float64) for values in log_probs])
    with np.errstate(divide="ignore"):  # a weight of 0 is log-weight minus infinity
        logs = np.log(np.asarray(weights, dtype=np.float64))
    logs = logs.reshape(-1, *[1] * (stacked.ndim - 1))
    return np.asarray(np.logaddexp.reduce(stacked + logs, axis=0), dtype=np.float64)


def em_step(probs: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weights (M,) after one step of EM on the probabilities of the targets (M, N).

    The likelihood of the targets never falls.
    """
    credit = weights[:, None] * probs
    return np.asarray((credit / credit.sum(0)).mean(1), dtype=np.float64)


def fit_weights(target_log_probs: npt.ArrayLike) -> FloatArray:
    """Return the weights (M,) that make the held-out targets (M, N) most likely.

    Raises ValueError where there is no target, or one that no model thinks possible.
    """
    probs = _relative(np.asarray(target_log_probs, dtype=np.float64))
    weights, likelihood = np.full(len(probs), 1 / len(probs)), -np.inf
    for _ in range(MAX_STEPS):
        now = float(np.log(weights @ probs).sum())
        if now - likelihood < TOLERANCE * probs.shape[1]:
            break
        weights, likelihood = em_step(probs, weights), now
    return weights


def _relative(log_probs: FloatArray) -> FloatArray:
    """Return probabilities (M, N) relative to the best model's, which weights do not depend on."""
    if log_probs.ndim != 2 or log_probs.size == 0:
        raise ValueError(
            f"target_log_probs has the shape {log_probs.shape}; it must be (models, held-out "
            "targets) with at least one of each"
        )
    best = log_probs.max(0)
    if not np.isfinite(best).all():
        place = int(np.flatnonzero(~np.isfinite(best))[0])
        raise ValueError(f"no model gives target {place} a finite log-probability ({best[place]})")
    return np.asarray(np.exp(log_probs - best), dtype=np.float64)

"""Several models as one: the weighted mean of their probabilities (Jelinek and Mercer, 1980).

    p(w | h) = sum_m weight[b(h), m] p_m(w | h)        the weights of a bucket b sum to one

The weights make held-out items most likely: items that the models were not trained on, as a model
that knows an item by heart would get all the weight for it. EM finds them (Dempster, Laird and
Rubin, 1977): share the credit for every character among the models, then average the credit.
Buckets divide the contexts h. Here a bucket is the place in the item: its first character, the
second, ....

Shapes: M models, K buckets, N places, V = vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from makemore.data import IGNORED, Items
from makemore.model import CharacterModel

FloatArray = npt.NDArray[np.float64]
MAX_STEPS = 1000
TOLERANCE = 1e-10  # nats per place that a step of EM must still gain
PRIOR = 10.0  # places' worth of trust in the overall weights, for buckets that hold few


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
    return _climb(probs, np.full(len(probs), 1 / len(probs)), prior=0.0)


def fit_bucket_weights(
    target_log_probs: npt.ArrayLike, buckets: npt.ArrayLike, number: int
) -> FloatArray:
    """Return weights (K = number, M), one row for the targets (M, N) of each bucket (N,).

    A bucket's weights are those most probable if `PRIOR` more places had the overall weights, so
    that few places move them little, and none not at all. Raises what `fit_weights` raises.
    """
    probs = _relative(np.asarray(target_log_probs, dtype=np.float64))
    overall, places = fit_weights(target_log_probs), np.asarray(buckets)
    return np.stack([_climb(probs[:, places == k], overall, PRIOR) for k in range(number)])


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


def _climb(probs: FloatArray, start: FloatArray, prior: float) -> FloatArray:
    """Repeat EM from `start`, which also has the trust of `prior` places, until it stands still."""
    weights, places = start, probs.shape[1]
    likelihood = -np.inf
    for _ in range(MAX_STEPS if places else 0):
        now = float(np.log(weights @ probs).sum())
        if prior:
            now += prior * float(start @ np.log(np.maximum(weights, 1e-300)))
        if now - likelihood < TOLERANCE * places:
            break
        likelihood = now
        weights = (places * em_step(probs, weights) + prior * start) / (places + prior)
    return weights


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What a mixture is made of; the models themselves come with their own configurations."""

    vocab_size: int = 27
    """Characters and the boundary."""
    n_models: int = 2
    """How many models are mixed."""
    n_buckets: int = 1
    """Places of an item with weights of their own; the last are also those of all later places."""

    def __post_init__(self) -> None:
        """Refuse a mixture of nothing."""
        for name, least in (("vocab_size", 2), ("n_models", 1), ("n_buckets", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


class Mixture(CharacterModel):
    """Trained models and their weights (K, M), which are equal until `fit`."""

    weights: Tensor
    """The share of each model in each bucket (K, M)."""

    def __init__(self, config: MixtureConfig, models: Sequence[CharacterModel]) -> None:
        super().__init__()
        _check_models(config, models)
        self.config = config
        self.models = nn.ModuleList(models)
        self.vocab_size = config.vocab_size
        sizes = [model.block_size for model in models]
        self.block_size = 0 if 0 in sizes else max(sizes)
        equal = torch.full((config.n_buckets, config.n_models), 1 / config.n_models)
        self.register_buffer("weights", equal)

    def _parts(self) -> list[CharacterModel]:
        return [model for model in self.models if isinstance(model, CharacterModel)]

    def component_scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the log-probabilities of every model (M, N, V)."""
        return torch.stack([model.scores(idx, keep).log_softmax(-1) for model in self._parts()])

    def buckets(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the bucket (N,) of each place in `keep`."""
        places = torch.arange(idx.size(1), device=idx.device).clamp(max=self.config.n_buckets - 1)
        return places.expand_as(idx)[keep]

    def scores(self, idx: Tensor, keep: Tensor) -> Tensor:
        """Return the log-probabilities (N, V) of the mixture."""
        shares = self.weights.log()[self.buckets(idx, keep)].T  # (M, N)
        return (self.component_scores(idx, keep) + shares[:, :, None]).logsumexp(0)

    def flops_per_character(self) -> float:
        """Return the models' sum, and a product and a sum for each score of each model."""
        of_models = sum(model.flops_per_character() for model in self._parts())
        return of_models + 2 * self.config.n_models * self.vocab_size

    @torch.no_grad()
    def fit(self, items: Items, batch_size: int = 512) -> None:
        """Fit the weights to `items`, which no model may have been trained on.

        Raises ValueError where there are none.
        """
        found, where = [np.zeros((self.config.n_models, 0))], [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(items), batch_size):
            idx, targets = items.batch(np.arange(start, min(start + batch_size, len(items))))
            keep = targets != IGNORED
            chosen = targets[keep].expand(self.config.n_models, -1)[..., None]
            scores = self.component_scores(idx, keep).gather(2, chosen)
            found.append(scores[..., 0].double().numpy())
            where.append(self.buckets(idx, keep).numpy())
        weights = fit_bucket_weights(
            np.concatenate(found, 1), np.concatenate(where), self.config.n_buckets
        )
        self.weights.copy_(torch.from_numpy(weights))


def _check_models(config: MixtureConfig, models: Sequence[CharacterModel]) -> None:
    """Raise ValueError unless the models are as many and as large as the configuration says."""
    if len(models) != config.n_models:
        raise ValueError(f"n_models={config.n_models}, but {len(models)} models were given")
    for model in models:
        if model.vocab_size != config.vocab_size:
            raise ValueError(
                f"vocab_size={config.vocab_size}, but a {type(model).__name__} of vocab_size="
                f"{model.vocab_size} was given; mix models of one vocabulary"
            )

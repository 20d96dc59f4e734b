"""EM finds the weights of a mixture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.mixture import FloatArray, em_step, fit_weights, mix

SEEDS = st.integers(0, 10_000)


def targets_of(models: int, number: int, seed: int) -> FloatArray:
    """Return made-up log-probabilities (M, N), some of them of impossible targets."""
    random = np.random.default_rng(seed)
    probs = random.beta(0.5, 1, (models, number))
    probs[0, :3] = 0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probs), dtype=np.float64)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(2, 5), st.integers(4, 60))
def test_a_step_of_em_never_lowers_the_likelihood(seed: int, models: int, number: int) -> None:
    """From any weights; and they go on summing to one."""
    probs = np.exp(targets_of(models, number, seed))
    weights = np.random.default_rng(seed).dirichlet(np.ones(models))
    for _ in range(5):
        after = em_step(probs, weights)
        assert after.sum() == pytest.approx(1)
        assert np.log(after @ probs).sum() >= np.log(weights @ probs).sum() - 1e-9
        weights = after


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_two_models_get_the_best_weights_of_a_fine_grid(seed: int) -> None:
    """No share among a thousand makes the targets more likely."""
    log_probs = targets_of(2, 80, seed)
    weights = fit_weights(log_probs)
    grid = np.linspace(0, 1, 1001)[1:]  # the first model finds three targets impossible
    likelihoods = [mix(list(log_probs), (1 - share, share)).mean() for share in grid]
    assert mix(list(log_probs), weights).mean() >= max(likelihoods) - 1e-7
    assert weights[1] == pytest.approx(grid[np.argmax(likelihoods)], abs=2e-3)


def test_a_useless_model_gets_no_weight() -> None:
    """A model that is worse on every target."""
    good = np.log(np.full(50, 0.5))
    assert fit_weights([good, good - 1.0]) == pytest.approx([1, 0], abs=1e-6)


def test_log_probabilities_far_below_zero_do_not_underflow() -> None:
    """A common factor of exp(-2000) makes no difference."""
    log_probs = targets_of(3, 40, 0)
    np.testing.assert_allclose(fit_weights(log_probs - 2000), fit_weights(log_probs))


def test_mixing_is_the_weighted_mean_of_probabilities() -> None:
    """A half of (0.2, 0.8) and a half of (0.6, 0.4); a weight of zero silences a model."""
    a, b = np.log([0.2, 0.8]), np.log([0.6, 0.4])
    np.testing.assert_allclose(np.exp(mix([a, b], [0.5, 0.5])), [0.4, 0.6])
    np.testing.assert_allclose(mix([a, b], [1.0, 0.0]), a)


def test_targets_that_no_weights_explain_are_refused() -> None:
    """No target at all, and one that every model finds impossible."""
    with pytest.raises(ValueError, match=r"shape \(2, 0\); it must be \(models, held-out"):
        fit_weights(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="no model gives target 1 a finite log-probability"):
        fit_weights([[-1.0, -np.inf], [-2.0, -np.inf]])

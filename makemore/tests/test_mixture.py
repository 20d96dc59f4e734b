"""EM finds the weights of a mixture, and a mixture is a model like the others."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.bigram import Bigram, BigramConfig
from makemore.data import Items, Vocabulary
from makemore.mixture import (
    FloatArray,
    Mixture,
    MixtureConfig,
    em_step,
    fit_bucket_weights,
    fit_weights,
    mix,
)
from makemore.model import CharacterModel
from makemore.ngram import NGram, NGramConfig

VOCABULARY = Vocabulary("abc")
TRAIN, HELD = (Items(words, VOCABULARY) for words in (["abc", "cab", "abb"], ["abc", "ccb", "ba"]))
SEEDS = st.integers(0, 10_000)


def targets_of(models: int, number: int, seed: int) -> FloatArray:
    """Return made-up log-probabilities (M, N), some of them of impossible targets."""
    random = np.random.default_rng(seed)
    probs = random.beta(0.5, 1, (models, number))
    probs[0, :3] = 0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probs), dtype=np.float64)


def ngram(n: int) -> NGram:
    """Return a model counted on the training items."""
    model = NGram(NGramConfig(vocab_size=4, n=n))
    model.fit(TRAIN)
    return model


def mean_nats(model: CharacterModel) -> float:
    """Return the loss on the held-out items."""
    return model.loss(*HELD.batch(range(len(HELD)))).item()


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


def test_buckets_get_weights_of_their_own() -> None:
    """The first model is right in bucket 0, the second in bucket 1; bucket 2 has seen nothing."""
    log_probs = np.log(np.full((2, 4000), 0.1))
    log_probs[0, :2000] = log_probs[1, 2000:] = math.log(0.9)
    weights = fit_bucket_weights(log_probs, np.repeat([0, 1], 2000), 3)
    np.testing.assert_allclose(weights.sum(1), 1)
    expected = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    np.testing.assert_allclose(weights, expected, atol=0.01)


def test_a_bucket_of_one_place_stays_near_the_overall_weights() -> None:
    """One target that only the second model knows does not silence the first."""
    log_probs = np.log(np.full((2, 100), 0.1))
    log_probs[0, :50] = log_probs[1, 50:] = math.log(0.9)
    (_, rare) = fit_bucket_weights(log_probs, np.r_[np.zeros(99, int), 1], 2)
    assert 0.5 < rare[1] < 0.7


def test_one_bucket_is_no_buckets() -> None:
    """The trust in the overall weights changes nothing where they are the best."""
    log_probs = targets_of(3, 200, 1)
    found = fit_bucket_weights(log_probs, np.zeros(200, int), 1)
    np.testing.assert_allclose(found[0], fit_weights(log_probs), atol=1e-3)


def test_targets_that_no_weights_explain_are_refused() -> None:
    """No target at all, and one that every model finds impossible."""
    with pytest.raises(ValueError, match=r"shape \(2, 0\); it must be \(models, held-out"):
        fit_weights(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="no model gives target 1 a finite log-probability"):
        fit_weights([[-1.0, -np.inf], [-2.0, -np.inf]])


@pytest.mark.parametrize("n_buckets", [1, 3])
def test_a_mixture_is_no_worse_than_its_best_model_where_it_was_fitted(n_buckets: int) -> None:
    """Before the fit it is the plain mean; the fit improves it."""
    models = [ngram(3), ngram(1), Bigram(BigramConfig(vocab_size=4))]
    mixture = Mixture(MixtureConfig(vocab_size=4, n_models=3, n_buckets=n_buckets), models)
    idx, _ = HELD.batch(range(3))
    plain = torch.stack([m.logits(idx).softmax(2) for m in models]).mean(0)
    torch.testing.assert_close(mixture.logits(idx).exp(), plain)
    before = mean_nats(mixture)
    mixture.fit(HELD, batch_size=2)
    assert mean_nats(mixture) < before
    assert mean_nats(mixture) <= min(mean_nats(model) for model in models) + 1e-6
    torch.testing.assert_close(mixture.logits(idx).exp().sum(2), torch.ones(idx.shape))


def test_the_first_places_have_weights_of_their_own() -> None:
    """With two buckets: one for the first character, one for all others."""
    models = [ngram(3), Bigram(BigramConfig(vocab_size=4))]
    mixture = Mixture(MixtureConfig(vocab_size=4, n_buckets=2), models)
    mixture.weights.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    idx = torch.tensor([[0, 1, 1], [0, 2, 1]])
    scores, (first, second) = mixture.logits(idx), (m.logits(idx).log_softmax(2) for m in models)
    torch.testing.assert_close(scores[:, 0], first[:, 0])
    torch.testing.assert_close(scores[:, 1:], second[:, 1:])


def test_a_mixture_is_saved_and_loaded_with_its_models() -> None:
    """Into fresh models, n-gram tables of another length included."""

    def fresh(fit: bool) -> Mixture:
        first = ngram(3) if fit else NGram(NGramConfig(vocab_size=4, n=3))
        config = MixtureConfig(vocab_size=4, n_buckets=3)
        return Mixture(config, [first, Bigram(BigramConfig(vocab_size=4))])

    mixture, loaded = fresh(True), fresh(False)
    mixture.fit(HELD)
    loaded.load_state_dict(mixture.state_dict())
    idx, _ = HELD.batch(range(3))
    assert torch.equal(loaded.logits(idx), mixture.logits(idx))


def test_its_reach_is_that_of_the_model_that_sees_farthest() -> None:
    """The most characters of all, and 0, for no limit, if one has none."""
    models = [ngram(3), Bigram(BigramConfig(vocab_size=4))]
    assert Mixture(MixtureConfig(vocab_size=4), models).block_size == 2
    models[1].block_size = 0
    assert Mixture(MixtureConfig(vocab_size=4), models).block_size == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_models": 0}, "n_models=0 must be at least 1"),
        ({"n_models": 3}, "n_models=3, but 2 models were given"),
        ({"vocab_size": 5}, "vocab_size=5, but a NGram of vocab_size=4 was given"),
        ({"n_buckets": 0}, "n_buckets=0 must be at least 1"),
    ],
)
def test_models_that_cannot_be_mixed_are_refused(values: dict[str, int], message: str) -> None:
    """Each names the value and the rule."""
    models = [ngram(3), Bigram(BigramConfig(vocab_size=4))]
    with pytest.raises(ValueError, match=message):
        Mixture(MixtureConfig(**{"vocab_size": 4, **values}), models)

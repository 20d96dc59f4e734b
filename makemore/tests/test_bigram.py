"""The neural bigram is the counted one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from makemore.bigram import Bigram, BigramConfig, counted, gradient, pair_counts
from makemore.data import Items, Vocabulary
from makemore.ngram import NGram, NGramConfig

WORDS = ["abca", "cab", "bb", "acca", "b", "cbba", "aab"]
VOCABULARY = Vocabulary("abc")
ITEMS = Items(WORDS, VOCABULARY)
COUNTS = pair_counts(ITEMS)


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def minimum(counts: torch.Tensor, decay: float) -> torch.Tensor:
    """Descend the closed-form gradient for a long time."""
    weights = torch.zeros(counts.shape, dtype=torch.float64)
    for _ in range(4000):
        weights -= 2.0 * gradient(weights, counts, decay)
    return weights


def test_scores_are_one_hot_rows_times_the_weights() -> None:
    """Lecture 1: one_hot @ W picks the row of the last character."""
    model, (idx, targets) = Bigram(BigramConfig(vocab_size=4)), ITEMS.batch(range(len(ITEMS)))
    expected = F.one_hot(idx, 4).float() @ model.head
    torch.testing.assert_close(model.logits(idx), expected)
    assert model.loss(idx, targets).item() == pytest.approx(np.log(4), abs=0.01)  # at the start


def test_pairs_are_counted_with_the_boundary_on_both_sides() -> None:
    """From ab and b: boundary to a and to b, a to b, b to the boundary twice."""
    found = pair_counts(Items(["ab", "b"], VOCABULARY)).tolist()
    assert found == [[0, 1, 1, 0], [0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_gradient_by_hand_equals_autograd(decay: float) -> None:
    """The mean loss over all items, plus half of decay times the sum of squares."""
    model, (idx, targets) = Bigram(BigramConfig(vocab_size=4)), ITEMS.batch(range(len(ITEMS)))
    model.head.data = torch.randn(4, 4)
    loss = model.loss(idx, targets) + decay / 2 * (model.head**2).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(model.head.grad, gradient(model.head.detach(), COUNTS, decay))


def test_the_gradient_is_zero_at_the_counts_and_only_there() -> None:
    """At log(C + k), whatever is added to a row; not where one weight differs."""
    counts = COUNTS + 1
    weights = torch.log(counts.double()) + torch.randn(4, 1, dtype=torch.float64)
    torch.testing.assert_close(gradient(weights, counts), torch.zeros_like(weights))
    for place in range(16):
        other = weights.clone()
        other.view(-1)[place] += 0.01
        assert gradient(other, counts).abs().max() > 1e-5


def test_gradient_descent_arrives_at_the_counts() -> None:
    """From zero logits, to the probabilities of add-1 counting."""
    found = minimum(COUNTS + 1, 0.0).softmax(1)
    expected = (COUNTS + 1) / (COUNTS + 1).sum(1, keepdim=True)
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [0.01, 1.0])
def test_the_network_with_log_counts_predicts_as_the_counted_model(k: float) -> None:
    """`counted` and `NGram` with n = 2 and add-k give the same log-probabilities."""
    ngram = NGram(NGramConfig(vocab_size=4, n=2, smoothing="add_k", k=k))
    ngram.fit(ITEMS)
    idx, _ = ITEMS.batch(range(len(ITEMS)))
    torch.testing.assert_close(counted(COUNTS, k).logits(idx).log_softmax(2), ngram.logits(idx))


def test_without_smoothing_unseen_pairs_are_impossible() -> None:
    """The loss of a new pair is infinite, that of the items their entropy."""
    model = counted(COUNTS)
    idx, targets = ITEMS.batch(range(len(ITEMS)))
    rows = COUNTS.sum(1)
    expected = (rows * entropies(torch.log(COUNTS + 1e-30))).sum() / rows.sum()
    assert model.loss(idx, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    unseen = (COUNTS[1] == 0).nonzero()
    assert len(unseen) == 0 or model.loss(torch.tensor([[1]]), unseen[:1]).isinf()


def test_weight_decay_smooths_as_add_k_does_but_is_not_the_same() -> None:
    """More of either makes every row more uniform; no k gives the rows of a decay."""
    by_decay = [minimum(COUNTS, decay) for decay in (0.003, 0.01, 0.03, 0.1)]
    by_k = [counted(COUNTS, k).head.detach().double() for k in (0.1, 1.0, 5.0, 20.0)]
    for family in (by_decay, by_k):
        for less, more in pairwise(family):
            assert (entropies(more) > entropies(less)).all()
    p = by_decay[1].softmax(1)
    away = [
        (counted(COUNTS, float(k)).head.double().softmax(1) - p).abs().max().item()
        for k in np.linspace(0.01, 3, 300)
    ]
    assert 0.01 < min(away) < 0.1


def test_a_vocabulary_of_one_is_refused() -> None:
    """There is nothing to predict."""
    with pytest.raises(ValueError, match="vocab_size=1 leaves nothing to predict; at least 2"):
        BigramConfig(vocab_size=1)

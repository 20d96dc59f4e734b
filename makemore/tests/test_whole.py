"""The correction for whole items against sums over all items."""

import itertools

import numpy as np
import pytest
import torch

from makemore.data import Items, Vocabulary
from makemore.ngram import NGram, NGramConfig
from makemore.whole import Whole, WholeConfig
from shared.errors import ArtefactError

VOCABULARY = Vocabulary("ab")
TRAIN = ["ab", "ab", "ba", "a", "abba", "bb", "bb", "bb"]
HELD = ["ab", "aa", "b", "bab", "a", "abb"]


def base() -> NGram:
    """Return an n-gram of the training items."""
    model = NGram(NGramConfig(vocab_size=3, n=3))
    model.fit(Items(TRAIN, VOCABULARY))
    return model


def corrected() -> Whole:
    """Return it with the correction."""
    model = Whole(WholeConfig(vocab_size=3), base())
    model.fit(Items(TRAIN, VOCABULARY), Items(HELD, VOCABULARY))
    return model


def probability(model: NGram | Whole, word: str) -> float:
    """Return the probability of a whole item."""
    idx, targets = Items([word], VOCABULARY).batch([0])
    return float(np.exp(-model.loss(idx, targets).item() * len(targets[0])))


def words(longest: int) -> list[str]:
    """Return all items up to a length."""
    lengths = range(longest + 1)
    return ["".join(w) for n in lengths for w in itertools.product("ab", repeat=n)]


def test_items_are_as_many_times_as_likely_as_the_ratio_of_their_count() -> None:
    """For every item up to 7 characters: p'(x) = p(x) r[c(x)]; three times counts as two."""
    plain, model = base(), corrected()
    for word in words(7):
        ratio = model.log_ratios[min(TRAIN.count(word), 2)].exp().item()
        assert probability(model, word) == pytest.approx(ratio * probability(plain, word), rel=1e-4)


def test_the_ratios_are_held_out_shares_over_the_models_probabilities() -> None:
    """Two held-out items were seen once or twice; one more is spread as the model expects."""
    plain, model = base(), corrected()
    mass = np.array(
        [0.0, *(sum(probability(plain, w) for w in g) for g in (["ba", "a", "abba"], ["ab", "bb"]))]
    )
    mass[0] = 1 - mass.sum()
    share = np.array([4, 1, 1])  # aa, b, bab, abb; a; ab
    expected = (share + mass) / 7 / mass
    np.testing.assert_allclose(model.log_ratios.exp().numpy(), expected, rtol=1e-4)


def test_probabilities_sum_to_one_after_every_beginning() -> None:
    """Seen, unseen, or past an item's end."""
    idx = torch.randint(0, 3, (50, 6))
    idx[:, 0] = 0
    sums = corrected().logits(idx).exp().sum(2)
    torch.testing.assert_close(sums, torch.ones(50, 6))


def test_held_out_items_become_more_likely() -> None:
    """Those that the ratios were fitted to."""
    items = Items(HELD, VOCABULARY).batch(range(len(HELD)))
    assert corrected().loss(*items) < base().loss(*items)


def test_without_a_fit_nothing_is_corrected() -> None:
    """All ratios are 1."""
    idx, plain = torch.tensor([[0, 1, 2]]), base()
    torch.testing.assert_close(
        Whole(WholeConfig(vocab_size=3), plain).logits(idx), plain.logits(idx)
    )


def test_remembering_other_items_keeps_the_ratios() -> None:
    """The items that it names are corrected, no others."""
    model, plain = corrected(), base()
    ratios = model.log_ratios.clone()
    model.remember(Items(["bbb"], VOCABULARY))
    assert torch.equal(model.log_ratios, ratios)
    total = probability(model, "bbb") / probability(plain, "bbb")
    other = probability(model, "bb") / probability(plain, "bb")
    assert total / other == pytest.approx((ratios[1] - ratios[0]).exp().item(), rel=1e-4)


def test_it_is_saved_and_loaded_with_its_model() -> None:
    """Tables of any length; not those that differ in length."""
    model, fresh = (
        corrected(),
        Whole(WholeConfig(vocab_size=3), NGram(NGramConfig(vocab_size=3, n=3))),
    )
    state = model.state_dict()
    fresh.load_state_dict(state)
    idx = torch.tensor([[0, 1, 2, 2]])
    assert torch.equal(fresh.logits(idx), model.logits(idx))
    with pytest.raises(ArtefactError, match=r"keys and log_z must both be \(R,\)"):
        fresh.load_state_dict(state | {"keys": state["keys"][:-1]})


def test_what_cannot_be_corrected_is_refused() -> None:
    """Bad sizes, another vocabulary, no items."""
    with pytest.raises(ValueError, match="n_counts=0 must be at least 1"):
        WholeConfig(n_counts=0)
    with pytest.raises(ValueError, match="vocab_size=4, but the model underneath has 3"):
        Whole(WholeConfig(vocab_size=4), base())
    with pytest.raises(ValueError, match="8 and 0 items; at least one of each is needed"):
        corrected().fit(Items(TRAIN, VOCABULARY), Items([], VOCABULARY))

"""The correction for whole items against sums over all items."""

import itertools

import numpy as np
import pytest
import torch

from makemore.bow import Bow, BowConfig
from makemore.data import Items, Splits, Vocabulary
from makemore.ngram import NGram, NGramConfig
from makemore.whole import Whole, WholeConfig, find_ratios, reweight
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


def test_a_class_without_mass_has_the_ratio_one() -> None:
    """Nothing to correct, be it zero or what rounding leaves; the others sum to one as ever."""
    for nothing in (0.0, -1e-16, 1e-15):
        mass = np.array([0.75, 0.25, nothing])
        ratios = find_ratios(np.array([3, 1, 0]), mass)
        assert ratios[2] == 1
        assert ratios @ mass == pytest.approx(1)
    assert find_ratios(np.array([3, 0]), np.array([0.75, 0.25])).tolist() == [1.25, 0.25]


def test_items_that_are_all_distinct_can_be_learnt_and_doubled_later() -> None:
    """No item twice when the ratios are found, one when they are used: all stays finite."""
    train, held = ["ab", "ba", "a", "bb"], ["aa", "ab", "b"]
    model = Whole(WholeConfig(vocab_size=3), base())
    model.fit(Items(train, VOCABULARY), Items(held, VOCABULARY))
    assert model.log_ratios.isfinite().all()
    assert model.log_ratios[2] == 0
    model.remember(Items([*train, "ab"], VOCABULARY))
    assert model.log_z.isfinite().all()
    idx = torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(model.logits(idx).exp().sum(2), torch.ones(1, 3))
    log_probs = {
        part: np.log([probability(base(), word) for word in items])
        for part, items in (("train", train), ("val", held), ("test", ["ab"]))
    }
    found = reweight(log_probs, Splits(train, held, ["ab"]))
    assert all(np.isfinite(values).all() for values in found.values())


def test_the_model_underneath_is_asked_in_evaluation_and_stays_in_its_mode() -> None:
    """Dropout has no say in the ratios, nor in what is remembered."""
    net = Bow(BowConfig(vocab_size=3, n_embd=8, n_hidden=8, dropout=0.5))
    torch.nn.init.normal_(net.head.weight)
    train, held = Items(TRAIN, VOCABULARY), Items(HELD, VOCABULARY)
    found = []
    for training in (False, True, True):
        model = Whole(WholeConfig(vocab_size=3), net.train(training))
        model.fit(train, held)
        fitted = model.log_z
        model.remember(Items(["bbb"], VOCABULARY))
        assert net.training == training
        found.append(torch.cat([model.log_ratios, fitted, model.log_z]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


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

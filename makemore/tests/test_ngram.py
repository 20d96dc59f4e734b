"""The counted models against their equations, worked by hand and by dictionaries."""

import math
import os
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from makemore import ngram
from makemore.data import Items, Vocabulary, read_items, split_items
from makemore.ngram import (
    SMOOTHINGS,
    USUAL_DISCOUNTS,
    NGram,
    NGramConfig,
    Smoothing,
    count_grams,
    discounts,
)
from shared.datasets import resolve
from shared.errors import ArtefactError, ResourceError

LETTERS = Vocabulary("abcd")  # the corpora below have no d
CORPORA = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12)
SENTENCES = st.lists(st.integers(0, 4), max_size=7).map(lambda ids: (0, *ids))


def fitted(words: list[str], n: int, smoothing: Smoothing = "kneser_ney", k: float = 0.5) -> NGram:
    """Count `words` over the letters a to d."""
    model = NGram(NGramConfig(vocab_size=5, n=n, smoothing=smoothing, k=k))
    model.fit(Items(words, LETTERS))
    return model


def probabilities(model: NGram, *ids: int) -> list[float]:
    """Return what the model expects after `ids`."""
    values: list[float] = model.logits(torch.tensor([ids]))[0, -1].exp().tolist()
    return values


def mean_nats(model: NGram, items: Items) -> float:
    """Return the mean loss over all characters."""
    return float(model.loss(*items.batch(np.arange(len(items)))))


class Slow:
    """The smoothings by dictionaries, one probability at a time, from Chen and Goodman (1998)."""

    def __init__(self, words: list[str], n: int, smoothing: Smoothing, k: float) -> None:
        self.n, self.smoothing, self.k = n, smoothing, k
        self.raw: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for word in words:
            ids = [0] * n + ["abcd".index(c) + 1 for c in word] + [0]
            for end in range(n, len(ids)):
                for length in range(1, n + 1):
                    gram = tuple(ids[end - length + 1 : end + 1])
                    self.raw[length][gram] += 1
                    before[gram].add(ids[end - length])
        self.different = {gram: len(preceding) for gram, preceding in before.items()}
        self.p = lru_cache(maxsize=None)(self._p)

    def count(self, gram: tuple[int, ...]) -> int:
        """Return what this smoothing counts of an n-gram."""
        if self.smoothing == "kneser_ney" and len(gram) < self.n:
            return self.different.get(gram, 0)
        return self.raw[len(gram)][gram]

    def discount(self, length: int, count: int) -> float:
        """Return the modified Kneser-Ney D(count) for the n-grams of a length."""
        n = Counter(self.count(gram) for gram in self.raw[length])
        if not (n[1] and n[2] and n[3] and n[4]):
            return (0, *USUAL_DISCOUNTS)[min(count, 3)]
        y = n[1] / (n[1] + 2 * n[2])
        c = min(count, 3)
        return min(max(c - (c + 1) * y * n[c + 1] / n[c], 0.05), c) if c else 0.0

    def _p(self, context: tuple[int, ...], w: int) -> float:
        counts = [self.count((*context, v)) for v in range(5)]
        lower = self.p(context[1:], w) if context else 1 / 5
        if not sum(counts):
            return lower
        if self.smoothing == "add_k":
            return (counts[w] + self.k) / (sum(counts) + 5 * self.k)
        if self.smoothing == "witten_bell":
            kinds = sum(count > 0 for count in counts)
            return (counts[w] + kinds * lower) / (sum(counts) + kinds)
        taken = [self.discount(len(context) + 1, count) for count in counts]
        return (counts[w] - taken[w] + sum(taken) * lower) / sum(counts)


@settings(max_examples=60, deadline=None)
@given(CORPORA, SENTENCES, st.integers(1, 8), st.sampled_from(SMOOTHINGS))
def test_every_smoothing_equals_its_equations_by_dictionary(
    words: list[str], ids: tuple[int, ...], n: int, smoothing: Smoothing
) -> None:
    """Any corpus, any context, n from 1 to 8: the table has what the recursion computes."""
    slow = Slow(words, n, smoothing, k=0.5)
    context = ((0,) * n + ids)[len(ids) + 1 :]
    expected = [slow.p(context, w) for w in range(5)]
    found = probabilities(fitted(words, n, smoothing), *ids)
    assert found == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(CORPORA, st.lists(SENTENCES, min_size=1, max_size=4), st.integers(1, 8))
def test_probabilities_are_above_zero_and_sum_to_one(
    words: list[str], sentences: list[tuple[int, ...]], n: int
) -> None:
    """After every context, seen or not, with every smoothing."""
    idx = torch.zeros(len(sentences), 8, dtype=torch.int64)
    for row, ids in zip(idx, sentences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    for smoothing in SMOOTHINGS:
        scores = fitted(words, n, smoothing).logits(idx)
        assert scores.isfinite().all()
        torch.testing.assert_close(scores.exp().sum(2), torch.ones(idx.shape))


def test_kneser_ney_equals_numbers_worked_by_hand() -> None:
    """Pairs of ab, ab, aa: .a 3, ab 2, b. 2, aa 1, a. 1, too few for discounts of their own.

    Seen before the boundary: a and b; before a: boundary and a; before b: a; five in all, less
    discounts of 1, 1 and 0.5: p(a) = (1 + 2.5 / 5) / 5 = 0.3 and p(b) = (0.5 + 2.5 / 5) / 5 = 0.2.
    After a stand b twice, a and the boundary once: p(b | a) = (1 + 2 * 0.2) / 4 = 0.35.
    """
    model = fitted(["ab", "ab", "aa"], 2)
    assert probabilities(model, 0, 1) == pytest.approx([0.275, 0.275, 0.35, 0.05, 0.05])
    assert probabilities(model, 0, 4) == pytest.approx([0.3, 0.3, 0.2, 0.1, 0.1])  # after d


def test_witten_bell_equals_numbers_worked_by_hand() -> None:
    """Of 9 characters a is 4, b 2: p(a) = (4 + 3 / 5) / 12; 3 kinds follow a in 4 places."""
    model = fitted(["ab", "ab", "aa"], 2, "witten_bell")
    p = [3.6 / 12, 4.6 / 12, 2.6 / 12, 0.05, 0.05]
    assert probabilities(model, 0, 4) == pytest.approx(p)
    seen = zip((1, 1, 2, 0, 0), p, strict=True)
    assert probabilities(model, 0, 1) == pytest.approx([(c + 3 * q) / 7 for c, q in seen])


def test_add_k_equals_numbers_worked_by_hand() -> None:
    """After a stand b twice, a and the boundary once: with k = 0.5, p(b | a) = 2.5 / 6.5."""
    model = fitted(["ab", "ab", "aa"], 2, "add_k", k=0.5)
    expected = [1.5 / 6.5, 1.5 / 6.5, 2.5 / 6.5, 0.5 / 6.5, 0.5 / 6.5]
    assert probabilities(model, 0, 1) == pytest.approx(expected)


def test_discounts_come_from_counts_of_exactly_one_to_four() -> None:
    """With n = 4, 2, 1, 1: Y = 1/2, so D = 0.5, 1.25, 1; what is seen more often has no say."""
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4])
    assert discounts(counts).tolist() == [0.5, 1.25, 1.0]
    assert discounts(np.append(counts, [5, 6, 100])).tolist() == [0.5, 1.25, 1.0]
    assert discounts(np.array([1, 2, 3, 5])).tolist() == list(USUAL_DISCOUNTS)
    none_to_all = discounts(np.array([1, 1, 2, 3, 3, 3, 3, 3, 4] + [4] * 20))
    assert none_to_all.tolist() == [0.5, 0.05, 0.05]


def test_pairs_with_add_k_equal_the_table_of_the_lecture() -> None:
    """(C + k) / (N + k V), C a matrix of pairs."""
    words = ["abca", "cab", "bb"]
    pairs = torch.zeros(5, 5)
    for word in words:
        ids = [0, *("abcd".index(c) + 1 for c in word), 0]
        for i, j in pairwise(ids):
            pairs[i, j] += 1
    rows = (pairs + 1) / (pairs + 1).sum(1, keepdim=True)
    scores = fitted(words, 2, "add_k", k=1).logits(torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(scores[0].exp(), rows[[0, 1, 2, 3]])


def test_a_count_knows_how_many_characters_came_before_it() -> None:
    """In ab, cb, ab: b comes three times, after two different characters."""
    single = count_grams(Items(["ab", "cb", "ab"], LETTERS), 2)[0]
    place = single.character.tolist().index(2)
    assert (single.count[place], single.continuations[place]) == (3, 2)


def test_items_begin_with_the_boundary_however_long_the_context() -> None:
    """Only ba begins with b: after the boundary, n = 4 knows b better than b amid an item."""
    words = ["ba", *["abc"] * 9]
    model = fitted(words, 4)
    begins, amid = probabilities(model, 0, 2), probabilities(model, 0, 1, 2)
    assert begins[1] > 0.4 > 0.1 > amid[1]


def test_the_longest_known_context_has_its_order() -> None:
    """Of abc and cb: after an unknown d order 1, after .cb all 4, after ccb only cb and so 3."""
    model = fitted(["abc", "cb"], 4)
    idx = torch.tensor([[0, 4, 0, 0], [0, 3, 2, 0], [0, 3, 3, 2]])
    keep = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert model.matched_order(idx, keep).tolist() == [4, 1, 4, 4, 4, 4, 4, 2, 3]


def test_a_place_sees_its_own_past_only() -> None:
    """Changing what follows, other rows, or leaving places out changes no score."""
    model, idx = fitted(["abca", "cab", "bb"], 3), torch.randint(0, 5, (4, 6))
    idx[:, 0] = 0
    whole = model.logits(idx)
    changed = idx.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 5
    assert torch.equal(model.logits(changed)[:, :3], whole[:, :3])
    assert not torch.equal(model.logits(changed)[:, 3:], whole[:, 3:])
    keep = torch.arange(6) < torch.tensor([[6], [4], [1], [0]])
    assert torch.equal(model.scores(idx, keep), whole[keep])
    assert torch.equal(model.logits(idx[1:2]), whole[1:2])


def test_thousands_of_characters_and_long_contexts_do_not_overflow() -> None:
    """V to the power n is 10 ** 43 here; the trie numbers only what it has seen."""
    words = ["".join(chr(0x4E00 + (7 * i * i + j) % 3900) for j in range(12)) for i in range(150)]
    vocabulary = Vocabulary.of(words)
    model = NGram(NGramConfig(vocab_size=len(vocabulary), n=12))
    items = Items(words, vocabulary)
    model.fit(items)
    assert mean_nats(model, items) < 1 < math.log(len(vocabulary)) - 6


def test_a_model_without_counts_finds_all_characters_equally_likely() -> None:
    """Before `fit`, the loss is log V."""
    model = NGram(NGramConfig(vocab_size=5, n=3))
    assert mean_nats(model, Items(["ab", "c"], LETTERS)) == pytest.approx(math.log(5))
    assert probabilities(model, 0) == pytest.approx([0.2] * 5)


def test_counting_again_forgets_what_was_counted_before() -> None:
    """Fitting is not training on: the second corpus alone counts."""
    model = fitted(["abca", "cab"], 3)
    model.fit(Items(["bb"], LETTERS))
    assert torch.equal(model.rows, fitted(["bb"], 3).rows)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_tables_are_saved_and_loaded(n: int) -> None:
    """A fresh model takes tables of any length and then scores as the saved one."""
    model, fresh = fitted(["abca", "cab"], n), NGram(NGramConfig(vocab_size=5, n=n))
    fresh.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
    idx = torch.randint(0, 5, (3, 5))
    assert torch.equal(fresh.logits(idx), model.logits(idx))


@pytest.mark.parametrize("change", ["n", "vocab_size", "keys", "sizes", "rows"])
def test_tables_that_do_not_fit_are_refused(change: str) -> None:
    """Of another n or V, of parts that differ in length, or out of order."""
    state: dict[str, Tensor] = dict(fitted(["abca", "cab"], 3).state_dict())
    config = NGramConfig(vocab_size=6 if change == "vocab_size" else 5, n=3 - (change == "n"))
    if change == "keys":
        state["keys"] = torch.cat([state["keys"][:1], state["keys"][1:].flip(0)])
    elif change == "rows":
        state["rows"] = state["rows"][:-1]
    elif change == "sizes":
        state["sizes"] = state["sizes"] + 1
    with pytest.raises(ArtefactError, match=f"n-gram model of n={config.n} and vocab_size="):
        NGram(config).load_state_dict(state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"vocab_size": 1}, "vocab_size=1 leaves nothing to predict"),
        ({"smoothing": "laplace"}, "smoothing='laplace' is none of add_k, witten_bell"),
        ({"k": 0.0}, "k=0.0 must be above 0"),
        ({"k": math.inf}, "k=inf must be above 0 and finite"),
    ],
)
def test_configurations_that_cannot_be_counted_are_refused(
    values: dict[str, int], message: str
) -> None:
    """Each names the value and the rule."""
    with pytest.raises(ValueError, match=message):
        NGramConfig(**values)  # type: ignore[arg-type]


def test_items_that_cannot_be_counted_are_refused() -> None:
    """No items at all, or of another vocabulary."""
    model = NGram(NGramConfig(vocab_size=5))
    with pytest.raises(ValueError, match="0 items: there is nothing to count"):
        model.fit(Items([], LETTERS))
    with pytest.raises(ValueError, match="vocab_size=5, but the items have 3 characters"):
        model.fit(Items(["ab"], Vocabulary("ab")))


def test_tables_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ab, n = 2 has contexts (), boundary, a and b; the three largest stand in fp64 as well."""
    needed = 5 * (4 * (1 + 3) + 4 * 8 * 3)
    monkeypatch.setattr(ngram, "MOST_BYTES", needed)
    model = fitted(["ab"], 2)
    before = model.rows.clone()
    monkeypatch.setattr(ngram, "MOST_BYTES", needed - 1)
    message = r"n=2: 4 contexts x 5 characters take .* GiB .*; try a smaller --n, or a larger --unk"
    with pytest.raises(ResourceError, match=message):
        model.fit(Items(["ab"], LETTERS))
    assert torch.equal(model.rows, before)


def test_the_reach_is_never_zero_which_would_be_unlimited() -> None:
    """A model of single characters, which reads none, says one."""
    reaches = [NGram(NGramConfig(n=n)).block_size for n in (1, 2, 3)]
    assert reaches == [1, 1, 2]


@pytest.mark.skipif(not os.environ.get("MLE_DATA"), reason="needs names.txt in $MLE_DATA")
def test_names_are_as_predictable_as_published() -> None:
    """Counted pairs with k = 1 give 2.4546 nats, as in part 1; Kneser-Ney 1.937 on the test."""
    words = read_items(resolve("names"))
    vocabulary, split = Vocabulary.of(words), split_items(words, "karpathy")
    every, held = Items(words, vocabulary), Items(split.test, vocabulary)
    pairs = NGram(NGramConfig(n=2, smoothing="add_k", k=1))
    pairs.fit(every)
    assert mean_nats(pairs, every) == pytest.approx(2.4546, abs=1e-4)
    model = NGram(NGramConfig())
    model.fit(Items(split.train + split.val, vocabulary))
    assert mean_nats(model, held) == pytest.approx(1.9367, abs=1e-4)

"""The n-gram model: Chen & Goodman's formulas, slowly, and by hand; what a checkpoint keeps."""

import math
from collections import Counter, defaultdict
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from mingpt import ngram
from mingpt.data import load_text
from mingpt.ngram import (
    NGram,
    NGramConfig,
    count,
    discounts,
    held_out_hints,
    probabilities,
    recent_counts,
)
from shared.datasets import resolve
from shared.errors import Failure
from shared.sampler import IntArray

A, B, C = 0, 1, 2


def random_text(length: int, V: int, seed: int = 0) -> IntArray:
    """Return a text in which contexts matter: each character is near the sum of the last two."""
    rng = np.random.default_rng(seed)
    ids = [0, 1]
    for jump in rng.geometric(0.6, length - 2):
        ids.append(int(ids[-1] + 2 * ids[-2] + jump) % V)
    return np.array(ids)


class Slow:
    """Modified Kneser-Ney from the book: dictionaries of tuples, one probability at a time.

    Chen & Goodman (1998), eq. 25 to 28: the longest n-grams have the counts of the text, shorter
    ones N1+(. w), the number of characters seen before them. The n - 1 characters at the text's
    beginning have no full context, and are only context.
    """

    def __init__(self, text: list[int], n: int, V: int) -> None:
        self.n, self.V = n, V
        ends = range(n - 1, len(text))
        self.counts: list[Counter[tuple[int, ...]]] = []  # by length - 1
        for k in range(1, n):
            kinds = {tuple(text[i - k : i + 1]) for i in ends}
            self.counts.append(Counter(kind[1:] for kind in kinds))
        self.counts.append(Counter(tuple(text[i - n + 1 : i + 1]) for i in ends))
        self.D = [self.estimate(counts) for counts in self.counts]
        self.after: list[dict[tuple[int, ...], list[int]]] = [defaultdict(list) for _ in range(n)]
        for k, counts in enumerate(self.counts):
            for gram, times in counts.items():
                self.after[k][gram[:-1]].append(times)

    @staticmethod
    def estimate(counts: Counter[tuple[int, ...]]) -> list[float]:
        """Eq. 26: D_1, D_2 and D_3+ from the counts of counts."""
        n = [sum(times == c for times in counts.values()) for c in range(5)]
        if 0 in n[1:]:
            return [0.5, 1.0, 1.5]
        Y = n[1] / (n[1] + 2 * n[2])
        return [max(0.0, c - (c + 1) * Y * n[c + 1] / n[c]) for c in (1, 2, 3)]

    def p(self, w: int, h: tuple[int, ...]) -> float:
        """Return the probability of w after h: eq. 25, 27 and 28."""
        k = len(h)
        shorter = 1 / self.V if k == 0 else self.p(w, h[1:])
        times = self.after[k].get(h)
        if not times:
            return shorter
        D = self.D[k]
        total, c = sum(times), self.counts[k][*h, w]
        freed = sum(D[min(each, 3) - 1] for each in times)
        return max(c - (D[min(c, 3) - 1] if c else 0), 0) / total + freed / total * shorter


@pytest.mark.parametrize(
    ("n", "V", "length"), [(1, 5, 60), (2, 4, 300), (3, 6, 900), (4, 9, 700), (7, 3, 500)]
)
def test_it_is_chen_and_goodmans(n: int, V: int, length: int) -> None:
    """After seen and unseen contexts, at a text's beginning and inside, for every character."""
    text, other = random_text(length, V), random_text(60, V, seed=1)
    other[20:40] = np.random.default_rng(2).integers(0, V, 20)
    slow = Slow(text.tolist(), n, V)
    got = probabilities(count(text, n, V), other, V)
    for place, row in enumerate(got):
        h = tuple(other[max(0, place - n + 2) : place + 1].tolist()) if n > 1 else ()
        expected = [slow.p(w, h) for w in range(V)]
        np.testing.assert_allclose(row, expected, rtol=2e-6, atol=1e-9)


def test_discounts_were_estimated() -> None:
    """The text of the test above has n-grams of all counts; else it would test a constant."""
    counts = Slow(random_text(900, 6).tolist(), 3, 6).counts
    assert all(set(range(1, 5)) <= set(each.values()) for each in counts[2:])


def test_a_bigram_by_hand() -> None:
    """`a b a b a c`: ab twice, ba twice, ac once; too few for estimates, so D = 0.5, 1, 1.5.

    Before a came b, before b came a, before c came a: each is continued from one character.
    p(w) = (1 - 0.5) / 3 + 0.5 / 3 = 1/3 with V = 3: 3 * 0.5 of 3 are spread over 3.
    p(b | a) = (2 - 1) / 3 + (1 + 0.5) / 3 * p(b) = 1/3 + 1/2 * 1/3.
    """
    levels = count(np.array([A, B, A, B, A, C]), 2, 3)
    after_a, after_b, after_c = probabilities(levels, np.array([A, B, C]), 3)
    np.testing.assert_allclose(after_a, [1 / 6, 1 / 2, 1 / 6 + 0.5 / 3], rtol=1e-6)
    np.testing.assert_allclose(after_b, [1 / 2 + 1 / 2 / 3, 1 / 6, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(after_c, [1 / 3] * 3, rtol=1e-6)  # never seen before another


def test_discounts_by_hand() -> None:
    """n_1..4 = 8, 4, 2, 1: Y = 1/2, D_1 = 1 - 2/2 * 4/8, D_2 = 2 - 3/2 * 2/4, D_3 = 3 - 4/2 * 1/2.

    Where no n-gram was counted four times, the usual ones serve.
    """
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])
    np.testing.assert_allclose(discounts(counts), [0, 0.5, 1.25, 2])
    np.testing.assert_allclose(discounts(counts[counts != 4]), [0, 0.5, 1, 1.5])


def test_francisco_is_rare_after_what_is_new() -> None:
    """A character that follows one other only is less likely than its count says: Kneser-Ney."""
    text = np.array([A, B] * 20 + [C, A, C, C, A] * 4)
    unseen = probabilities(count(text, 2, 4), np.array([3]), 4)[0]
    frequent = (text == B).mean() > (text == C).mean()
    assert frequent
    assert unseen[B] < unseen[C]


@pytest.mark.parametrize("text", [[], [A], [A, B], [A, B, A], [A] * 6], ids=str)
def test_of_a_short_text_little_is_known(text: list[int]) -> None:
    """Probabilities are positive and sum to 1, even of a text shorter than a context."""
    model = NGram(NGramConfig(vocab_size=3, n=5))
    model.fit(np.array(text, dtype=np.int64))
    p = np.exp(model.log_probs(np.array([C, A, A, A, B, C])))
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-6)
    if len(text) < 5:
        np.testing.assert_allclose(p, 1 / 3)


def test_nothing_is_impossible_where_an_estimate_is_zero() -> None:
    """D_2 is estimated as 0 here; a context that was seen twice with one character says little."""
    grams = [[2], [2], [3], [3], [3], [3], [4], [1], [1], [1]]
    text: list[int] = []
    for first, (times,) in enumerate(grams, start=1):  # the pair (first, 0) comes `times` times
        text += [first, 0] * times
    ids, V = np.array(text), len(grams) + 1
    pairs = Counter(pairwise(text))
    D = discounts(np.array(list(pairs.values())))
    p = probabilities(count(ids, 2, V), np.arange(V), V)
    assert 0 in D[1:], D
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-6)


def test_long_texts_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts are cut changes nothing, to the bit."""
    text = random_text(300, 5)
    for n in (1, 2, 3, 5):
        levels = count(text, n, 5)
        whole = ngram.hints(levels, text, 5, 1)
        for part in (1, 2, 7):
            monkeypatch.setattr(ngram, "PLACES_AT_ONCE", part)
            assert np.array_equal(ngram.hints(levels, text, 5, 1), whole)
        monkeypatch.undo()


def test_hints_say_how_often_contexts_were_seen() -> None:
    """Of `a b a b a c`: after `a b` the pair was seen twice, b twice; N of () is 3 kinds of pairs.

    N counts what followed: of the longest context all characters, of shorter ones the different
    n-grams. A context that begins before the text was not seen.
    """
    text = np.array([A, B, A, B, A, C])
    rows = ngram.hints(count(text, 3, 3), np.array([A, B, C]), 3)
    p, seen = np.exp(rows[:, :3]), np.expm1(rows[:, 3:])
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-6)
    # Trigrams aba (2), bab, bac; of pairs, ba has one before it, ab and ac one each.
    np.testing.assert_allclose(seen, [[3, 2, 0], [3, 1, 2], [3, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_held_out_hints_know_nothing_of_their_piece(n: int) -> None:
    """Those of a piece are what the other pieces, counted alone, say of it."""
    text, folds, V = random_text(101, 5), 4, 5
    got = held_out_hints(text, n, V, folds)
    assert got.shape == (101, V + n)
    for start, end in [(0, 25), (25, 50), (50, 75), (75, 101)]:
        others = np.concatenate((text[end:], text[:start]))
        expected = ngram.hints(count(others, n, V), text[:end], V)[start:]
        assert np.array_equal(got[start:end], expected.astype(np.float16))


@pytest.mark.parametrize("shortest", [1, 2, 4])
def test_hints_of_every_length_asked_for(shortest: int) -> None:
    """The longest first: each as if longer contexts had been forgotten."""
    text, n, V = random_text(200, 5), 4, 5
    levels = count(text, n, V)
    lengths = range(n, shortest - 1, -1)
    parts = [np.log(probabilities(levels[:length], text, V)) for length in lengths]
    got = ngram.hints(levels, text, V, shortest)
    assert np.array_equal(got[:, :-n], np.concatenate(parts, axis=1))
    assert np.array_equal(got[:, -n:], ngram.hints(levels, text, V)[:, V:])


def test_held_out_hints_of_a_tiny_text_are_finite() -> None:
    """Fewer characters than pieces, and others that are shorter than a context."""
    for length, n in product((1, 2, 5, 12), (1, 4)):
        assert np.isfinite(held_out_hints(random_text(12, 3)[:length], n, 3, 10)).all()


def fitted(length: int, n: int = 3, V: int = 6) -> NGram:
    """Count a random text."""
    model = NGram(NGramConfig(vocab_size=V, n=n, block_size=400))
    model.fit(random_text(length, V))
    return model


@pytest.mark.parametrize("last", [1, 5, 30])
def test_recent_counts_are_those_of_a_loop(last: int) -> None:
    """Of each place, context and character: what followed where the context ended before."""
    V, S, longest = 3, 30, 5
    idx = np.stack([random_text(S, V, seed) for seed in (0, 1)])
    expected = np.zeros((2, last, longest - 1, V), int)
    for row, text in enumerate(idx.tolist()):
        for place, k in product(range(S - last, S), range(2, longest + 1)):
            for end in range(k - 1, place):  # of the context where it stood before
                if text[end - k + 1 : end + 1] == text[place - k + 1 : place + 1]:
                    expected[row, place - S + last, k - 2, text[end + 1]] += 1
    found = recent_counts(torch.from_numpy(idx), longest, V, last)
    assert np.array_equal(found, expected)
    assert expected[:, -1].sum() > 0


def test_a_single_character_has_no_past() -> None:
    """The first of a text that is generated."""
    assert recent_counts(torch.zeros(2, 1, dtype=torch.int64), 3, 4, 1).sum() == 0


def test_a_checkpoint_is_the_text() -> None:
    """One model's state makes another the same, whatever the other had counted before."""
    idx = torch.from_numpy(random_text(50, 6, seed=3))[None]
    trained = fitted(300)
    for other in (fitted(40), NGram(NGramConfig(vocab_size=6, n=3))):
        other.load_state_dict(trained.state_dict())
        assert torch.equal(other(idx), trained(idx))
        assert other.counts == trained.counts
    wrapped = torch.nn.ModuleDict({"inner": fitted(40)})
    wrapped.load_state_dict(torch.nn.ModuleDict({"inner": trained}).state_dict())
    assert torch.equal(wrapped["inner"](idx), trained(idx))


@pytest.mark.parametrize("strange", [-1, 6, 200])
def test_a_text_of_another_vocabulary_is_refused(strange: int) -> None:
    """Named with the ids; from a checkpoint too."""
    state = fitted(300).state_dict()
    state["text"] = state["text"].clone()
    state["text"][17] = strange
    with pytest.raises(ValueError, match=f"{strange}.* do not fit vocab_size=6"):
        fitted(40).load_state_dict(state)


@pytest.mark.parametrize("text", [torch.zeros(300), torch.zeros((2, 3), dtype=torch.int32)])
def test_what_is_no_text_is_refused(text: torch.Tensor) -> None:
    """Of another kind or shape."""
    with pytest.raises(ValueError, match="must be a row of ids"):
        fitted(40).load_state_dict({"text": text})


def test_rows_are_texts_of_their_own() -> None:
    """Each row of idx begins anew: what it says is what `log_probs` says of it alone."""
    model, rows = fitted(300), torch.randint(6, (3, 20))
    logits = model(rows)
    for row, got in zip(rows, logits, strict=True):
        assert np.array_equal(got.numpy(), model.log_probs(row.numpy()))
    assert float(model(rows[:, :-1], rows[:, 1:])) == pytest.approx(
        -np.mean([got[t, row[t + 1]] for row, got in zip(rows, logits, strict=True)
                  for t in range(19)])
    )  # fmt: skip


def test_n_grams_are_counted() -> None:
    """Of `a b a b a c`: 3 trigrams, 3 pairs that end one, 3 characters that end one of these."""
    model = NGram(NGramConfig(vocab_size=3, n=3))
    assert model.counts == 0
    model.fit(np.array([A, B, A, B, A, C]))
    assert model.counts == 3 + 3 + 3


@pytest.mark.parametrize("name", ["vocab_size", "n", "block_size"])
def test_sizes_that_cannot_be_are_refused(name: str) -> None:
    """By name and value."""
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        NGramConfig(**{name: 0})


def test_shakespeare_is_predicted_as_well_as_published() -> None:
    """The 7-gram reaches 1.516 nats per character of the validation text, read as one stream."""
    try:
        text = load_text(resolve("shakespeare", offline=True))
    except Failure as error:
        pytest.skip(f"Shakespeare is not here: {error}")
    model = NGram(NGramConfig(vocab_size=len(text.vocabulary), n=7))
    model.fit(text.train)
    log_probs = model.log_probs(text.val[:-1])
    nats = -log_probs[np.arange(len(text.val) - 1), text.val[1:]].mean()
    assert nats == pytest.approx(1.516, abs=1e-3)
    assert math.isfinite(log_probs.min())

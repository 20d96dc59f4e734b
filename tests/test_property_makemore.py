"""Properties of makemore's data and models that hold for any list of items, not just for names."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makemore.data import BOUNDARY, IGNORED, Items, Vocabulary
from makemore.mixture import fit_weights, mix
from makemore.ngram import NGram, NGramConfig

# Letters of several scripts, a combining accent, an emoji and a full stop, which is no boundary.
ITEMS = st.lists(st.text("abcé\u0301ßжש漢😀. '-", min_size=1, max_size=8), min_size=1, max_size=12)


@given(ITEMS)
def test_batches_hold_the_items_and_nothing_else(items: list[str]) -> None:
    """Reading the targets of a batch back gives its items, each with its end."""
    vocabulary = Vocabulary.of(items)
    idx, targets = Items(items, vocabulary).batch(range(len(items)))
    read = []
    for row, target in zip(idx.tolist(), targets.tolist(), strict=True):
        kept = [each for each in target if each != IGNORED]
        assert kept[-1] == BOUNDARY
        assert row[: len(kept)] == [BOUNDARY, *kept[:-1]]
        read.append("".join(vocabulary.characters[each - 1] for each in kept[:-1]))
    assert sorted(read) == sorted(items)


@settings(deadline=None)
@given(ITEMS, st.integers(1, 6), st.sampled_from(["add_k", "witten_bell", "kneser_ney"]))
def test_counted_probabilities_sum_to_one(items: list[str], n: int, smoothing: str) -> None:
    """After every beginning, seen or not, in any alphabet."""
    vocabulary = Vocabulary.of(items)
    encoded = Items(items, vocabulary)
    config = NGramConfig(vocab_size=len(vocabulary), n=n, smoothing=smoothing)  # type: ignore[arg-type]
    model = NGram(config)
    model.fit(encoded)
    idx, _ = encoded.batch(range(len(items)))
    unseen = torch.cat([idx[:, :1], idx.flip(1)], 1)
    for each in (idx, unseen):
        total = model.logits(each).double().exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


@given(
    st.lists(
        st.tuples(st.floats(-20, -0.01), st.floats(-20, -0.01), st.floats(-20, -0.01)),
        min_size=1,
        max_size=30,
    )
)
def test_a_fitted_mixture_is_no_worse_than_its_best_member(rows: list[tuple[float, ...]]) -> None:
    """On what the weights were fitted to; a member alone is one of the choices."""
    log_probs = np.array(rows).T
    weights = fit_weights(log_probs)
    assert math.isclose(weights.sum(), 1.0, abs_tol=1e-9)
    assert mix(list(log_probs), weights).mean() >= log_probs.mean(1).max() - 1e-4

"""The hybrid: it starts as the n-gram model, and reads the same hints however it is asked."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from mingpt.data import Text, Vocabulary, mean_nats
from mingpt.hybrid import Hybrid, HybridConfig
from mingpt.ngram import NGram, NGramConfig, held_out_hints, probabilities
from mingpt.recipes import MODERN
from shared.sampler import IntArray

V, T, N, SHORTEST = 7, 8, 4, 2
SMALL: dict[str, Any] = {
    **MODERN, "vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 2, "n_embd": 16, "n": N,
    "shortest": SHORTEST,
}  # fmt: skip


def characters(length: int) -> IntArray:
    """Return a text in which contexts matter."""
    rng = np.random.default_rng(length)
    ids = [0, 1]
    for jump in rng.geometric(0.7, length - 2):
        ids.append(int(ids[-1] + 2 * ids[-2] + jump) % V)
    return np.array(ids)


TRAIN, VAL = characters(500), characters(83)
REPEATED = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]])
TEXT = Text("text", "0" * 64, Vocabulary("abcdefg"), TRAIN, VAL)


def made(moved: bool = False, **options: Any) -> Hybrid:
    """Build a small hybrid that has counted TRAIN; `moved` from its start, if asked."""
    torch.manual_seed(0)
    model = Hybrid(HybridConfig(**{**SMALL, **options})).eval()
    model.fit(TRAIN)
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def counted() -> NGram:
    """Return the n-gram model alone."""
    model = NGram(NGramConfig(vocab_size=V, n=N))
    model.fit(TRAIN)
    return model


def hints(text: IntArray) -> torch.Tensor:
    """Return what the n-gram model says of a text that begins here."""
    return torch.from_numpy(counted().hints(text, SHORTEST))


@torch.no_grad()
def test_it_starts_as_the_n_gram_model() -> None:
    """The same scores, to the bit; the same loss on the validation text, to half precision."""
    idx = torch.from_numpy(VAL[:T])[None]
    assert torch.equal(made()(idx), counted()(idx))
    log_probs = counted().log_probs(VAL)
    nats = -log_probs[np.arange(len(VAL) - 1), VAL[1:]].mean()
    # Read as one stream: the hints know what was before the window.
    assert mean_nats(made(), VAL) == pytest.approx(nats, abs=1e-3)
    assert nats < math.log(V) - 0.3


def test_windows_bring_the_hints_of_their_places() -> None:
    """In validation those of all counts, in training those of the other pieces of the text."""
    model = made()
    train, val = model.examples(TEXT)
    expected = {
        id(val): hints(VAL),
        id(train): torch.from_numpy(held_out_hints(TRAIN, N, V, 10, SHORTEST)).float(),
    }
    assert not torch.allclose(expected[id(train)], hints(TRAIN), rtol=1e-2)
    for windows in (train, val):
        rows = np.arange(len(windows))
        for epoch in (0, 3):
            epochs = np.full(len(rows), epoch) if windows is train else None
            idx, targets, given = windows.batch(rows, epochs)
            real = targets >= 0  # what lies beyond the text is padding
            places = torch.from_numpy(windows.places(rows, epochs))[real]
            assert torch.equal(idx[real], torch.from_numpy(windows.ids)[places])
            assert given.dtype == torch.float32
            right = expected[id(windows)][places]
            torch.testing.assert_close(given[real], right, atol=1e-6, rtol=1e-3)


def test_overlapping_windows_bring_hints_too() -> None:
    """What `evaluate --stride` measures with."""
    windows = made().windows(VAL, stride=3)
    assert windows.stride == 3
    _, _, given = windows.batch(np.array([0, 5]))
    torch.testing.assert_close(given[1], hints(VAL)[15 : 15 + T], atol=1e-6, rtol=1e-3)


@torch.no_grad()
def test_hints_that_are_not_given_are_looked_up() -> None:
    """From what the window shows, as if the text began with it."""
    model, idx = made(moved=True), torch.from_numpy(TRAIN[40 : 40 + T])[None]
    of_window, of_text = hints(TRAIN[40 : 40 + T])[None], hints(TRAIN)[None, 40 : 40 + T]
    assert torch.equal(model(idx), model(idx, None, of_window))
    assert not torch.allclose(model(idx), model(idx, None, of_text))
    assert float(model(idx, idx, of_window)) == pytest.approx(float(model(idx, idx)))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("recent", [0, 3])
@pytest.mark.parametrize("chunks", [[1] * T, [3, 1, 4], [T]], ids=str)
@torch.no_grad()
def test_a_text_read_in_chunks_is_the_text(n: int, recent: int, chunks: list[int]) -> None:
    """The cache keeps the characters that counting needs, too."""
    model = made(moved=True, n=n, shortest=min(n, 2), recent=recent)
    idx = torch.cat((torch.from_numpy(np.stack([VAL[:T], TRAIN[60 : 60 + T]])), REPEATED))
    whole, cache, end = model(idx), model.new_cache(), 0
    for chunk in chunks:
        start, end = end, end + chunk
        last = model.next_logits(idx[:, start:end], cache)
        torch.testing.assert_close(last, whole[:, end - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recent", [0, 3])
@torch.no_grad()
def test_trust_multiplies_what_was_counted(recent: int) -> None:
    """With a head that says nothing, logits are the sum over lengths k of g_k log p_k.

    The log-probabilities of each length are those that a model of this length hints at. With what
    the window shows, its g_0 log q comes first, and the transformer is told of it.
    """
    model, ids = made(recent=recent), REPEATED[0].numpy()
    model.trust_head.add_(torch.randn_like(model.trust_head))
    levels = model.ngram.levels
    log_p = [torch.log(torch.from_numpy(probabilities(levels[:k], ids, V))) for k in (4, 3, 2)]
    told, experts = [hints(ids)], log_p
    if recent:
        log_q, counted = (each[0] for each in model.recall(REPEATED, log_p[0][None]))
        told, experts = [hints(ids), log_q - log_p[0], counted], [log_q, *log_p]
    x = model.gpt.features(REPEATED, hint=model.hint(torch.cat(told, -1)[None]))[0]  # (T, C)
    trust = x @ model.trust_head.T + torch.eye(len(experts))[0]  # (T, experts)
    expected = sum(trust[:, [i]] * each for i, each in enumerate(experts))
    torch.testing.assert_close(model(REPEATED)[0], expected, atol=1e-4, rtol=1e-4)
    assert trust.std() > 0.1


@torch.no_grad()
def test_what_the_window_showed_is_likelier() -> None:
    """At the start: q_k = (c_k + a_k q_{k-1}) / (N_k + a_k), from the n-grams' probabilities up."""
    model, plain = made(recent=3), made()
    q = plain(REPEATED).softmax(-1)[0, -1]  # after ... 0 1; a 2 followed 0 1 twice, 2 0 1 once
    model.log_strength.copy_(torch.tensor([3.0, 0.5]).log())
    came = torch.nn.functional.one_hot(torch.tensor(2), V)
    q = (2 * came + 3.0 * q) / (2 + 3.0)
    q = (1 * came + 0.5 * q) / (1 + 0.5)
    torch.testing.assert_close(model(REPEATED).softmax(-1)[0, -1], q)
    # Where nothing stood before, nothing changes.
    torch.testing.assert_close(model(REPEATED)[:, :3], plain(REPEATED)[:, :3])


def test_training_moves_how_much_the_window_is_believed() -> None:
    """Its strengths have a gradient; q is a distribution, beside how often contexts were seen."""
    model = made(recent=3)
    model(REPEATED, REPEATED.roll(-1, 1)).backward()
    assert model.log_strength.grad is not None
    assert (model.log_strength.grad != 0).all()
    log_q, counted = model.recall(REPEATED, model.look_up(REPEATED)[..., :V])
    expected = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [2, 1]])
    torch.testing.assert_close(counted[0], expected.float().log1p())
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(1, T))


def test_training_moves_what_corrects_the_counts() -> None:
    """At the start head and trust have gradients; after a step the hints have, too."""
    model = made()
    train, _ = model.examples(TEXT)
    batch = train.batch(np.arange(8))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(15):
        loss = model(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for parameter in (model.trust_head, model.hint_embed, model.gpt.head):
        assert parameter is not None
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert losses[-1] < losses[0] - 0.1


@torch.no_grad()
def test_a_checkpoint_brings_the_counts() -> None:
    """Whatever the other model had counted."""
    model, idx = made(moved=True), torch.from_numpy(VAL[:T])[None]
    other = Hybrid(HybridConfig(**SMALL)).eval()
    other.fit(VAL)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(idx), model(idx))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "shortest=2 must be from 1 to n=1"),
        ({"shortest": 0}, "shortest=0 must be from 1 to n=4"),
        ({"recent": 1}, "recent=1 must be 0 or from 2 to block_size - 1=7"),
        ({"recent": 8}, "recent=8 must be 0 or from 2 to block_size - 1=7"),
        ({"folds": 1}, "folds=1 must be at least 2"),
        ({"n_head": 0}, "n_head=0 must be at least 1"),
    ],
)
def test_shapes_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    """Its own and the transformer's."""
    with pytest.raises(ValueError, match=message):
        HybridConfig(**{**SMALL, **options})

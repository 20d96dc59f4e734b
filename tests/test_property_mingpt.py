"""Properties of mingpt's counting, data and models that hold for any text and any shape."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mingpt.data import Vocabulary, Windows
from mingpt.gpt import GPT, GPTConfig
from mingpt.layers import cross_entropy, softmax
from mingpt.model import IGNORED
from mingpt.ngram import NGram, NGramConfig, held_out_hints

# Letters of several scripts, a combining accent, an emoji, line breaks and half of a pair.
TEXTS = st.text(st.sampled_from("abcé\u0301ßжש漢😀. '-\n\r\t\ud800"), max_size=60)


@st.composite
def counted_texts(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """Draw a vocabulary's size and two texts of it, with repetitions."""
    V = draw(st.integers(1, 30))
    pieces = st.lists(
        st.tuples(st.lists(st.integers(0, V - 1), max_size=8), st.integers(1, 6)), max_size=8
    )

    def text() -> list[int]:
        return [each for piece, times in draw(pieces) for each in piece * times]

    return V, text(), text()


@settings(deadline=None)
@given(counted_texts(), st.integers(1, 8))
def test_counted_probabilities_are_positive_and_sum_to_one(
    texts: tuple[int, list[int], list[int]], n: int
) -> None:
    """After every context, seen or not, of any text, counted whole or in pieces."""
    V, text, other = texts
    ids, read = (np.array(each, dtype=np.int64) for each in (text, other))
    model = NGram(NGramConfig(vocab_size=V, n=n))
    model.fit(ids)
    held_out = held_out_hints(ids, n, V, 3)[:, :V]  # in half precision
    for log_probs, precision in ((model.log_probs(read), 1e-5), (held_out, 2e-2)):
        assert np.isfinite(log_probs).all()
        p = np.exp(log_probs.astype(np.float64))
        np.testing.assert_allclose(p.sum(1), 1.0, atol=precision)


@settings(deadline=None)
@given(TEXTS)
def test_decoding_undoes_encoding(text: str) -> None:
    """For any text, with its own vocabulary, whose order is that of code points."""
    vocabulary = Vocabulary.of(text)
    assert vocabulary.decode(vocabulary.encode(text).tolist()) == text
    assert list(vocabulary.characters) == sorted(set(text))


@settings(deadline=None)
@given(st.integers(2, 120), st.integers(1, 40), st.data())
def test_windows_have_every_target_once(length: int, block_size: int, data: st.DataObject) -> None:
    """With the character before it as input, whatever the length, the size and the stride."""
    stride = data.draw(st.integers(1, block_size))
    ids = np.arange(length)
    windows = Windows(ids, block_size, jitter=False, stride=stride)
    idx, targets = windows.batch(np.arange(len(windows)))
    real = targets != IGNORED
    assert sorted(targets[real].tolist()) == list(range(1, length))
    assert torch.equal(idx[real] + 1, targets[real])
    place = real.nonzero()[:, 1][targets[real].argsort()]
    assert place.tolist() == windows.positions().tolist()


SCORES = st.lists(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=5
)


@settings(deadline=None)
@given(SCORES, st.floats(-1e3, 1e3))
def test_a_softmax_is_a_distribution(rows: list[list[float]], shift: float) -> None:
    """Its rows sum to 1, keep the order of the scores, and do not see a shift of all."""
    x = torch.tensor(rows, dtype=torch.float64)
    p = softmax(x)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    torch.testing.assert_close(softmax(x + shift), p, atol=1e-9, rtol=1e-6)
    order = x.argsort(-1)
    assert (p.gather(-1, order).diff(dim=-1) >= 0).all()
    torch.testing.assert_close(softmax(x.T, 0).T, p)


@settings(deadline=None)
@given(SCORES, st.data())
def test_a_cross_entropy_is_the_mean_of_those_that_count(
    rows: list[list[float]], data: st.DataObject
) -> None:
    """As PyTorch's, smoothed or not; never below 0, and finite with finite gradients."""
    x = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    choices = st.sampled_from([0, 1, 2, 3, IGNORED])
    targets = torch.tensor(data.draw(st.lists(choices, min_size=len(rows), max_size=len(rows))))
    smoothing = data.draw(st.sampled_from([0.0, 0.1, 0.9]))
    loss = cross_entropy(x, targets, smoothing)
    (slope,) = torch.autograd.grad(loss, x)
    assert slope.isfinite().all()
    assert loss >= 0
    if (targets != IGNORED).any():
        expected = F.cross_entropy(x.detach(), targets, label_smoothing=smoothing)
        torch.testing.assert_close(loss.detach(), expected)
    else:
        assert loss == 0


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    """Draw a small GPT."""
    n_head = draw(st.integers(1, 3))
    return GPTConfig(
        vocab_size=draw(st.integers(2, 20)),
        block_size=draw(st.integers(2, 12)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=4 * n_head * draw(st.integers(1, 3)),
        d_k=draw(st.sampled_from([0, 4, 8])),
        n_hidden=draw(st.integers(0, 9)),
        positions=draw(st.sampled_from(["learned", "sinusoidal", "rotary", "none"])),
        norm=draw(st.sampled_from(["layer", "plain"])),
        norm_place=draw(st.sampled_from(["pre", "post"])),
        embed_norm=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "gelu", "relu2"])),
        conv=draw(st.integers(0, 5)),
        zero_init=draw(st.booleans()),
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 5.0])),
        init_std=draw(st.sampled_from([0.0, 0.02])),
        attention=draw(st.sampled_from(["lesson", "fused"])),
    )


@settings(deadline=None, max_examples=60)
@given(configs(), st.data())
@torch.no_grad()
def test_no_gpt_looks_ahead_and_all_remember(config: GPTConfig, data: st.DataObject) -> None:
    """A later character changes no earlier logit's bit; a cache's logits are the whole window's."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    T = config.block_size
    idx = torch.randint(config.vocab_size, (2, T))
    t = data.draw(st.integers(1, T - 1))
    changed = idx.clone()
    changed[:, t:] = torch.randint(config.vocab_size, (2, T - t))
    logits = model(idx)
    assert torch.equal(model(changed)[:, :t], logits[:, :t])
    cache = model.new_cache()
    for part in (idx[:, :t], idx[:, t:]):
        last = model.next_logits(part, cache)
        torch.testing.assert_close(last, logits[:, cache.length - 1], atol=1e-4, rtol=1e-4)
    assert math.isfinite(model(idx, idx))

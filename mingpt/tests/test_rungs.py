"""The rungs: that each is a language model that never looks ahead, and adds what it says."""

import math
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mingpt.layers import causal_mask
from mingpt.model import IGNORED, LanguageModel, count_parameters
from mingpt.rungs import (
    BLOCK_SIZE,
    MLP,
    N_EMBD,
    N_LAYER,
    RUNGS,
    UPDATES,
    Bigram,
    Blocks,
    Counted,
    Uniform,
    find,
)
from shared.errors import UsageError
from shared.profiling import measure_flops

V = 11
IDS = np.random.default_rng(0).integers(0, V, 400)
NAMES = [rung.name for rung in RUNGS]
PLAIN = ("one-head", "many-heads", "feed-forward", "residual", "blocks", "layer-norm")


def made(name: str) -> Any:
    """Build a rung's model for V characters; counted ones have counted IDS."""
    rung = find(name)
    model = rung.make(V).eval()
    if rung.trainer is None:
        model.fit(IDS)  # type: ignore[operator]
    for parameter in model.parameters():  # some start at zero, and would hide what they do
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_every_rung_is_a_language_model(name: str) -> None:
    """Logits of every position; with targets their mean loss, those of -100 left out."""
    model, idx = made(name), torch.randint(V, (2, 9))
    assert isinstance(model, LanguageModel)
    targets = torch.randint(V, (2, 9))
    targets[0, 3:] = IGNORED
    with torch.no_grad():
        logits = model(idx)
        assert logits.shape == (2, 9, V)
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        torch.testing.assert_close(model(idx, targets), expected)
    if name != "ngram":  # it reads six characters of whatever length it is given
        with pytest.raises(ValueError, match=str(model.block_size)):
            model(torch.zeros(1, model.block_size + 1, dtype=torch.int64))


@pytest.mark.parametrize("name", NAMES)
def test_no_rung_looks_ahead(name: str) -> None:
    """Changing character t leaves all earlier outputs as they were, to the bit."""
    model, idx = made(name), torch.randint(V, (2, 20))
    changed = idx.clone()
    changed[:, 12] = (idx[:, 12] + 1) % V
    with torch.no_grad():
        before, after = model(idx), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    if name not in ("uniform", "unigram"):
        assert not torch.equal(before[:, 12], after[:, 12])


def test_counting_is_by_hand() -> None:
    """`abab ac` with half a count more for each: after a come b, b and c, after b a and a."""
    ids = np.array([0, 1, 0, 1, 0, 2])
    bigram, unigram = Counted(3, context=1, k=0.5), Counted(3, context=0, k=0.5)
    bigram.fit(ids)
    unigram.fit(ids)
    probabilities = [[0.5 / 4.5, 2.5 / 4.5, 1.5 / 4.5], [2.5 / 3.5, 0.5 / 3.5, 0.5 / 3.5]]
    got = bigram(torch.tensor([[0, 1]])).exp()[0]
    torch.testing.assert_close(got, torch.tensor(probabilities))
    # The first character has none before it, so that five count.
    torch.testing.assert_close(
        unigram(torch.tensor([[2]])).exp()[0, 0], torch.tensor([2.5, 2.5, 1.5]) / 6.5
    )
    assert Uniform(3)(torch.tensor([[0]]), torch.tensor([[2]])) == pytest.approx(math.log(3))


def test_the_learned_bigram_lands_where_counting_does() -> None:
    """Gradient descent on the same text finds the same loss: it is the same model."""
    idx, targets = (torch.from_numpy(part)[None] for part in (IDS[:-1], IDS[1:]))
    counted, learned = Counted(V, context=1, k=1e-6), Bigram(V)
    counted.fit(IDS)
    counted.block_size = learned.block_size = len(IDS)
    optimizer = torch.optim.Adam(learned.parameters(), 0.3)
    for _ in range(100):
        optimizer.zero_grad()
        learned(idx, targets).backward()
        optimizer.step()
    with torch.no_grad():
        assert learned(idx, targets) == pytest.approx(float(counted(idx, targets)), abs=1e-3)
        assert Bigram(V)(idx[:, :9], targets[:, :9]) == pytest.approx(math.log(V))


def test_the_mlp_reads_its_window_and_no_more() -> None:
    """With a window of 4, the output depends on the last four characters."""
    model, idx = MLP(V, window=4, n_embd=3, n_hidden=8), torch.randint(V, (1, 8))

    def last(place: int) -> torch.Tensor:
        changed = idx.clone()
        changed[0, place] = (idx[0, place] + 1) % V
        logits: torch.Tensor = model(changed)
        return logits[0, -1].detach()

    now = model(idx)[0, -1].detach()
    assert torch.equal(last(3), now)
    assert not torch.equal(last(4), now)
    assert model.block_size > 4  # longer texts are read, a window at a time


def test_before_the_text_the_mlp_reads_blanks() -> None:
    """The blank has a vector of its own; it counts while the window reaches over the start."""
    model, idx = MLP(V, window=4, n_embd=3, n_hidden=8), torch.randint(V, (1, 6))
    before = model(idx)[0].detach()
    model.wte.weight.data[V] += 1
    changed = (model(idx)[0].detach() != before).any(dim=1)
    assert changed.tolist() == [True, True, True, False, False, False]


def test_neighbours_on_the_ladder_differ_by_what_the_name_says() -> None:
    """Many heads and residual connections cost no parameter; layers cost their own."""
    C, n = N_EMBD, N_LAYER
    one, many, forward, residual, blocks, normed = (count_parameters(made(each)) for each in PLAIN)
    attention, hidden = 4 * (C * C + C), 2 * 4 * C * C + 5 * C
    assert many == one
    assert forward == many + hidden
    assert residual == forward
    assert blocks == residual + (n - 1) * (attention + hidden)
    assert normed == blocks + (2 * n + 1) * 2 * C


def test_without_its_connections_the_residual_rung_is_the_one_below() -> None:
    """With the same weights, attention and feed-forward chained give feed-forward's logits."""
    below, model = made("feed-forward"), made("residual")
    block, idx = model.blocks[0], torch.randint(V, (2, 9))
    weights = below.state_dict()
    model.load_state_dict(
        {name: weights[name.removeprefix("blocks.0.")] for name in model.state_dict()}
    )
    mask = causal_mask(9, 9)
    read = block.attention(model.stem(idx), mask=mask)
    torch.testing.assert_close(model.head(block.feed_forward(read)), below(idx))
    assert not torch.allclose(model(idx), below(idx))


def test_the_plain_rungs_on_attention_are_trained_alike() -> None:
    """The same settings, sizes and updates."""
    trainers = []
    for name in PLAIN:
        rung = find(name)
        assert rung.trainer is not None
        trainers.append(rung.trainer)
        assert rung.trainer.precision == "fp32"
        assert rung.trainer.max_steps == UPDATES
        sizes = (rung.settings["block_size"], rung.settings["n_embd"])
        assert sizes == (BLOCK_SIZE, N_EMBD)
    assert trainers == trainers[:1] * len(PLAIN)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_shapes_a_rung_is_in_its_settings(name: str) -> None:
    """No parameter of what builds it has a default: a change of a size is seen on --resume."""
    rung = find(name)
    if name not in ("bigram", "transformer"):  # neither has a size of its own
        wanted = [each for each in signature(rung.build).parameters if each != "vocab_size"]
        assert set(rung.settings) == set(wanted)


def test_a_block_adds_to_what_it_reads() -> None:
    """With the last layer of each part at zero, what is written is what was read."""
    model = Blocks(V, norm=True, n_layer=1, n_head=2, block_size=8, n_embd=8)
    block: Any = model.blocks[0]
    for last in (block.attention.w_o, block.feed_forward.w_2):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    x = torch.randn(1, 4, 8)
    assert torch.equal(block(x, torch.ones(4, 4, dtype=torch.bool)), x)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("ngram", "transformer")])
def test_flops_are_those_of_the_forward_pass(name: str) -> None:
    """Counted operation by operation, the context full, divided by its characters."""
    model = made(name)
    T = model.block_size
    counted = measure_flops(model, torch.zeros(1, T, dtype=torch.int64)) / T
    assert model.flops_per_character() == counted


def test_the_ladder_is_in_order() -> None:
    """Names are unique, every rung stands on earlier ones, and says what it adds."""
    assert len(set(NAMES)) == len(NAMES)
    for number, rung in enumerate(RUNGS):
        assert set(rung.after) <= set(NAMES[:number])
        assert bool(rung.after) == (number > 0)
        assert rung.adds.endswith(".")
        assert bool(rung.tie) == bool(rung.tie_with)
        assert not rung.tie_with or rung.tie_with in rung.after
        assert (rung.trainer is None) == (rung.chain == "counted")


def test_steps_and_cost_follow_the_cap() -> None:
    """Fewer steps cost less; counting costs a little."""
    rung = find("layer-norm")
    assert rung.trainer is not None
    assert (rung.steps(), rung.steps(7)) == (rung.trainer.max_steps, 7)
    assert rung.steps(10**9) == rung.trainer.max_steps
    assert 5 < rung.cost(7) < rung.cost()
    assert find("ngram").cost() == 5
    assert find("ngram").steps() == 0


def test_a_rung_that_is_not_there_is_told_with_the_nearest() -> None:
    """A typing error is answered with the name meant; else all are told, once."""
    with pytest.raises(UsageError, match=r"no rung 'one-haed'; did you mean one-head\?$"):
        find("one-haed")
    with pytest.raises(UsageError, match=r"no rung 'xyz'; there are uniform, ") as caught:
        find("xyz")
    assert str(caught.value).count("layer-norm") == 1

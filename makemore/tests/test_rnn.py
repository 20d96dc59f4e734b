"""Tests of the recurrent networks and of their hand-derived backward passes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import makemore.rnn
from makemore.data import IGNORED
from makemore.plain_rnn import PlainRNN
from makemore.recurrence import elman, gru, lstm, make_plan
from makemore.rnn import GATES, RNN, Cell, RNNConfig

CELLS: list[Cell] = ["rnn", "gru", "lstm"]
Lengths = st.lists(st.integers(1, 7), min_size=1, max_size=9)


def small(cell: Cell, **changes: Any) -> RNN:
    """Return a small model in double precision; every weight counts, starts and biases too."""
    config = {"vocab_size": 5, "n_embd": 3, "n_hidden": 4, **changes}
    model = RNN(RNNConfig(cell=cell, **config)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return model


def ragged(lengths: list[int], n_ids: int = 5, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Return a batch with rows of these lengths, `padding` columns wider than the longest."""
    T = max(lengths) + padding
    idx = torch.randint(n_ids, (len(lengths), T))
    idx[:, 0] = 0
    targets = torch.randint(n_ids, (len(lengths), T))
    targets[torch.arange(T) >= torch.tensor(lengths)[:, None]] = IGNORED
    return idx, targets


def gradients(model: RNN) -> dict[str, Tensor]:
    """Return every parameter's gradient."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[False, True], ids=["each row", "shared prefixes"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Make models share prefixes, or not, whatever the batch's size."""
    monkeypatch.setattr(makemore.rnn, "SHARE_FROM", 0 if request.param else 1 << 60)
    return bool(request.param)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=25, deadline=None, database=None)
@given(
    lengths=Lengths,
    n_layer=st.integers(1, 2),
    n_ids=st.integers(1, 5),
    padding=st.integers(0, 2),
    share=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fast_model_equals_the_plain_one(
    cell: Cell, lengths: list[int], n_layer: int, n_ids: int, padding: int, share: bool, seed: int
) -> None:
    """Loss and every gradient agree for rows of any lengths in any order, prefixes shared or not.

    With few different characters, many rows begin alike.
    """
    torch.manual_seed(seed)
    model = small(cell, n_layer=n_layer)
    plain = PlainRNN(model)
    idx, targets = ragged(lengths, n_ids, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(makemore.rnn, "SHARE_FROM", 0 if share else 1 << 60)
        loss = model.loss(idx, targets)
    expected = plain(idx, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model), plain.gradients(model))


TORCH_GATES = {"rnn": [0], "gru": [0, 1, 2], "lstm": [3, 0, 1, 2]}  # ours from theirs
TORCH_CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_equals_torchs_module(cell: Cell, shared: bool) -> None:
    """States and the weights' gradients are those of nn.RNN, nn.GRU and nn.LSTM."""
    torch.manual_seed(0)
    model = small(cell)
    layer = model.layers[0]
    H, order = 4, TORCH_GATES[cell]
    peer: Any = TORCH_CELLS[cell](3, H, batch_first=True).double()
    theirs = {"w_input": peer.weight_ih_l0, "w_hidden": peer.weight_hh_l0, "bias": peer.bias_ih_l0}

    def ours_first(x: Tensor) -> Tensor:
        return torch.cat([x.chunk(len(order))[i] for i in order])

    own = dict(layer.named_parameters())
    with torch.no_grad():
        peer.bias_hh_l0.zero_()
        for name, parameter in theirs.items():
            own[name].copy_(ours_first(parameter))
        if cell == "gru":
            peer.bias_hh_l0[2 * H :] = own["bias_hidden"]
    idx, targets = ragged([5, 2, 4, 1, 5, 3])
    keep = targets != IGNORED
    packed = pack_padded_sequence(
        model.embed[idx], keep.sum(1), batch_first=True, enforce_sorted=False
    )
    starts = [own[name].expand(1, 6, -1) for name in ("start", "start_cell") if name in own]
    states, _ = peer(packed, tuple(starts) if cell == "lstm" else starts[0])
    expected = model.head(pad_packed_sequence(states, batch_first=True)[0][keep])
    scores = model.scores(idx, keep)
    torch.testing.assert_close(scores, expected)
    weight = torch.randn_like(scores)
    expected.mul(weight).sum().backward()
    wanted = [own["start"].grad, model.embed.grad, *(ours_first(p.grad) for p in theirs.values())]
    model.zero_grad()
    scores.mul(weight).sum().backward()  # type: ignore[no-untyped-call]
    found = [own["start"].grad, model.embed.grad, *(own[name].grad for name in theirs)]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("lengths", [[1], [3], [1, 1], [2, 4, 3, 4]])
def test_backward_passes_agree_with_finite_differences(
    cell: Cell, share: bool, lengths: list[int]
) -> None:
    """Each recurrence passes gradcheck by all of its arguments, one character or one row too."""
    torch.manual_seed(0)
    H = 2
    idx, targets = ragged(lengths, n_ids=2)
    plan = make_plan(idx, targets != IGNORED, share)
    x = torch.randn(sum(plan.counts), GATES[cell] * H)
    arguments = [x, torch.randn(GATES[cell] * H, H), *torch.randn(1 if cell == "rnn" else 2, H)]
    arguments = [a.double().requires_grad_() for a in arguments]
    function: Any = {"rnn": elman, "gru": gru, "lstm": lstm}[cell]
    assert torch.autograd.gradcheck(lambda *a: function(*a, plan), arguments)


def test_prefixes_are_numbered_by_level_and_computed_once() -> None:
    """The plan of .emma, .eva, .ava and .av is the one in its docstring, in any order of rows."""
    e, m, a, v = 1, 2, 3, 4
    idx = torch.tensor([[0, a, v, 0, 0], [0, e, v, a, 0], [0, e, m, m, a], [0, a, v, a, 0]])
    keep = torch.arange(5) < torch.tensor([3, 4, 5, 4])[:, None]
    plan = make_plan(idx, keep, share=True)
    assert plan.counts == [1, 2, 3, 3, 1]
    assert plan.cuts == [1, 0, 2, 0, 3, 0, 1, 2, 0, 1]
    assert [None if p is None else p.tolist() for p in plan.parents] == [
        [0, 0],
        [0, 0, 1],
        None,
        None,
    ]
    assert plan.places.tolist() == [0, 2, 5, 0, 1, 4, 7, 0, 1, 3, 6, 9, 0, 2, 5, 8]
    assert plan.ids.tolist() == [0, e, a, m, v, v, m, a, a, a]
    assert plan.prefixes is not None
    assert torch.equal(plan.ids[plan.prefixes], idx.take(plan.at))
    alone = make_plan(idx, keep, share=False)
    assert torch.equal(alone.ids, idx.take(alone.at))
    assert torch.equal(alone.ids[alone.places], idx[keep])


@pytest.mark.parametrize("cell", CELLS)
def test_scores_depend_on_nothing_that_comes_later(cell: Cell, shared: bool) -> None:
    """Changing characters from the fourth on leaves the first three scores of a row as they are."""
    torch.manual_seed(0)
    model = small(cell, n_layer=2)
    idx, _ = ragged([6] * 4)
    changed = idx.clone()
    changed[:, 3:] = (idx[:, 3:] + 1) % 5
    before, after = model.logits(idx), model.logits(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] != before[:, 3:]).any(-1).all()


@pytest.mark.parametrize("cell", CELLS)
def test_no_grad_gives_the_same_scores(cell: Cell, shared: bool) -> None:
    """Evaluation without gradients computes what training computes."""
    model = small(cell)
    idx, targets = ragged([4, 1, 3])
    with torch.no_grad():
        scores = model.scores(idx, targets != IGNORED)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, model.scores(idx, targets != IGNORED), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dropout", "embed_dropout", "weight_dropout"])
def test_dropout_acts_in_training_only(name: str, shared: bool) -> None:
    """Every dropout changes a training loss from call to call, and leaves evaluation alone."""
    torch.manual_seed(0)
    model = small("lstm", n_layer=2, **{name: 0.5})
    batch = ragged([5, 4, 2])
    assert model.loss(*batch) != model.loss(*batch)
    model.eval()
    torch.testing.assert_close(model.loss(*batch), PlainRNN(model)(*batch))


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_seed_gives_the_same_training(cell: Cell) -> None:
    """Two models from one seed have the same weights after three steps with dropout."""
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        model = RNN(RNNConfig(cell=cell, n_hidden=8, dropout=0.2, weight_dropout=0.2))
        optimizer = torch.optim.AdamW(model.parameters())
        batch = ragged([5, 3, 6])
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(*batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        losses.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_a_batch_without_places_has_no_scores() -> None:
    """Where nothing is kept the scores are empty."""
    idx = torch.zeros(3, 4, dtype=torch.long)
    assert RNN(RNNConfig()).scores(idx, idx > 0).shape == (0, 27)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_matrices_begin_orthogonal_and_forget_gates_open(cell: Cell) -> None:
    """Each gate's recurrent matrix is orthogonal; only the LSTM's forget bias is 1."""
    layer: Any = RNN(RNNConfig(cell=cell, n_hidden=6)).layers[0]
    for matrix in layer.w_hidden.split(6):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), atol=1e-5, rtol=0)
    expected = torch.zeros(GATES[cell] * 6)
    expected[12:18] = 1.0 if cell == "lstm" else 0.0
    torch.testing.assert_close(layer.bias.detach(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "elman"}, "cell='elman' must be one of rnn, gru, lstm"),
        ({"n_hidden": 0}, "n_hidden=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """A bad value is named with the rule it breaks."""
    with pytest.raises(ValueError, match=message):
        RNNConfig(**changes)

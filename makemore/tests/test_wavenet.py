"""The shared nodes of the wavenet against one tree for each window, as in makemore part 5."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.data import IGNORED, Batch, Items, Vocabulary, context_windows
from makemore.wavenet import Merge, WaveNet, WaveNetConfig

EVERY: list[dict[str, Any]] = [
    {},
    {"block_size": 16, "norm": "layer"},
    {"block_size": 2, "norm": "none", "gated": True},
    {"block_size": 32, "gated": True, "residual": True},
]


def make(**changes: Any) -> WaveNet:
    """Make a small model in fp64, its batch norms in the state of a model under training."""
    model = WaveNet(WaveNetConfig(**({"n_embd": 6, "n_hidden": 10} | changes))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith(("mean", "var")):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def batch(names: list[str]) -> Batch:
    """Return nine names as a padded batch."""
    return Items(names, Vocabulary("abcdefghijklmnopqrstuvwxyz")).batch(range(9))


def by_windows(model: WaveNet, idx: Tensor, keep: Tensor) -> Tensor:
    """Merge every window by itself: (N, 8, C) to (N, 4, H) to (N, 2, H) to (N, 1, H)."""
    x = model.embed(context_windows(idx, model.block_size)[keep])  # (N, K, C)
    for merge in model.merges:
        assert isinstance(merge, Merge)
        N, K, C = x.shape
        pairs = x.view(N * K // 2, 2 * C)  # FlattenConsecutive(2)
        y = merge.norm(merge.linear(pairs))
        if merge.gated:
            half = y.size(1) // 2
            y = torch.tanh(y[:, :half]) * torch.sigmoid(y[:, half:])
        else:
            y = torch.tanh(y)
        if merge.residual:
            y = y + pairs[:, C:]
        x = y.view(N, K // 2, -1)
    scores: Tensor = model.head(x.squeeze(1))
    return scores


@pytest.mark.parametrize("options", EVERY)
def test_shared_nodes_equal_a_tree_for_each_window(
    names: list[str], options: dict[str, Any]
) -> None:
    """Scores and gradients are those of part 5's tree over each window of block_size ids."""
    model, (idx, targets) = make(**options), batch(names)
    keep = targets != IGNORED
    ours, theirs = model.scores(idx, keep), by_windows(model, idx, keep)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    weights = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(F.cross_entropy(ours, targets[keep]), weights),
        torch.autograd.grad(F.cross_entropy(theirs, targets[keep]), weights),
    )
    single = model.float().scores(idx, keep).double()
    torch.testing.assert_close(single, theirs, atol=5e-6, rtol=0)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_training_equals_a_tree_for_each_window_without_batch_norm(
    names: list[str], norm: str
) -> None:
    """Without statistics of the batch, training and evaluation are the same function."""
    model, (idx, targets) = make(norm=norm).train(), batch(names)
    keep = targets != IGNORED
    torch.testing.assert_close(model.scores(idx, keep), by_windows(model, idx, keep))


def test_batch_statistics_count_each_place_once(names: list[str]) -> None:
    """In training each level is normalised by its nodes at the N places, padding left out."""
    model, (idx, targets) = make(block_size=2).train(), batch(names)
    keep = targets != IGNORED
    first = model.merges[0]
    assert isinstance(first, Merge)
    theirs = nn.BatchNorm1d(10, dtype=torch.float64)
    theirs.load_state_dict(first.norm.state_dict(), strict=False)
    pairs = model.embed(context_windows(idx, 2)[keep]).flatten(1)
    expected = model.head(theirs(first.linear(pairs)).tanh())
    torch.testing.assert_close(model.scores(idx, keep), expected)
    torch.testing.assert_close(
        dict(first.norm.named_buffers())["running_mean"], theirs.running_mean
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", EVERY)
def test_padding_never_changes_a_result(
    names: list[str], options: dict[str, Any], training: bool
) -> None:
    """Wider rectangles, with anything in the padding, give the same scores, in training too."""
    model, (idx, targets) = make(**options).train(training), batch(names)
    keep = targets != IGNORED
    odd = torch.where(keep, idx, 7)
    wide = F.pad(odd, (0, 5), value=3)
    ours = model.scores(idx, keep)
    assert torch.equal(model.scores(odd, keep), ours)
    assert torch.equal(model.scores(wide, F.pad(keep, (0, 5))), ours)


@pytest.mark.parametrize("options", EVERY)
def test_later_characters_change_no_earlier_score(
    names: list[str], options: dict[str, Any]
) -> None:
    """In evaluation, scores before place t are the same to the last bit whatever follows."""
    model, (idx, _) = make(**options), batch(names)
    changed = idx.clone()
    changed[:, 4:] = torch.randint(1, 27, changed[:, 4:].shape)
    assert torch.equal(model.logits(idx)[:, :4], model.logits(changed)[:, :4])
    assert not torch.equal(model.logits(idx)[:, 4:], model.logits(changed)[:, 4:])


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)])
def test_no_place_gives_no_scores(
    options: dict[str, Any], training: bool, shape: tuple[int, int]
) -> None:
    """Where nothing is kept, of items, of empty ones or of none, the result is (0, V)."""
    idx = torch.zeros(shape, dtype=torch.long)
    scores = make(**options).train(training).scores(idx, torch.zeros(shape, dtype=torch.bool))
    assert scores.shape == (0, 27)


def test_characters_before_the_context_change_nothing() -> None:
    """With eight characters of context, the ninth last does not matter, and the eighth does."""
    model, idx = make(), torch.randint(1, 27, (1, 12))
    idx[0, 0] = 0
    ninth, eighth = idx.clone(), idx.clone()
    ninth[0, 3] = eighth[0, 4] = 0
    last = model.logits(idx)[0, -1]
    assert torch.equal(model.logits(ninth)[0, -1], last)
    assert not torch.equal(model.logits(eighth)[0, -1], last)


def test_scores_do_not_depend_on_the_rest_of_the_batch_in_evaluation(names: list[str]) -> None:
    """An item alone gets the scores that it gets among others, batch norm or not."""
    model, (idx, targets) = make(), batch(names)
    keep = targets != IGNORED
    lengths = keep.sum(1).tolist()
    together = torch.split(model.scores(idx, keep), lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(together[i], model.logits(idx[i : i + 1, :length])[0])


@pytest.mark.parametrize("option", ["dropout", "noise"])
def test_randomness_is_for_training_only(names: list[str], option: str) -> None:
    """Dropout and noise change the loss from call to call in training, never afterwards."""
    model, pair = make(norm="none", **{option: 0.3}), batch(names)
    assert model.loss(*pair) == model.loss(*pair)
    model.train()
    assert model.loss(*pair) != model.loss(*pair)


@pytest.mark.parametrize("options", EVERY)
def test_gradients_are_finite_and_reach_everything(
    names: list[str], options: dict[str, Any]
) -> None:
    """Every weight learns from a batch."""
    model = make(**options).train()
    model.loss(*batch(names)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 1}, "block_size=1 must be a power of 2, from 2 on; try 2"),
        ({"block_size": 12}, "block_size=12 must be a power of 2, from 2 on; try 16"),
        ({"n_hidden": 0}, "n_hidden=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1; try 0.1"),
        ({"norm": "group"}, "norm='group' must be 'batch', 'layer' or 'none'"),
    ],
)
def test_a_shape_that_cannot_be_says_so(changes: dict[str, Any], message: str) -> None:
    """Bad settings name the value, the rule and the remedy."""
    with pytest.raises(ValueError, match=message):
        WaveNetConfig(**changes)


def test_operations_are_one_node_a_level() -> None:
    """Three merges of two children each, and the head, at two operations a weight."""
    flops = WaveNet(WaveNetConfig()).flops_per_character()
    assert flops == 2 * (48 * 128 + 2 * 256 * 128 + 128 * 27)

"""The bag of words against the product with a (T, T) matrix, which is how makemore.py has it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from makemore.bow import Bow, BowConfig
from makemore.data import IGNORED, Batch, Items, Vocabulary


def batch(names: list[str]) -> Batch:
    """Return nine names as a padded batch."""
    return Items(names, Vocabulary("abcdefghijklmnopqrstuvwxyz")).batch(range(9))


def by_matrix(model: Bow, idx: Tensor) -> Tensor:
    """Score every place with a softmax over a matrix of zeros and -inf as the weights."""
    T = idx.size(1)
    x = model.embed(idx) + model.position_embed[:T]
    means = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1).softmax(1) @ x
    x = x + means
    scores: Tensor = model.head(x + model.hidden_out(model.hidden(x).tanh()))
    return scores


def test_running_sums_equal_the_matrix_of_means(names: list[str]) -> None:
    """Loss and gradients are those of the T x T formulation on the padded rectangle."""
    model, (idx, targets) = Bow(BowConfig()).double(), batch(names)
    ours = model.loss(idx, targets)
    theirs = F.cross_entropy(by_matrix(model, idx).transpose(1, 2), targets)
    torch.testing.assert_close(ours, theirs)
    weights = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights)
    )


def test_later_characters_change_no_earlier_score(names: list[str]) -> None:
    """Scores before place t are the same to the last bit whatever stands from t on."""
    model, (idx, _) = Bow(BowConfig()), batch(names)
    changed = idx.clone()
    changed[:, 4:] = torch.randint(1, 27, changed[:, 4:].shape)
    assert torch.equal(model.logits(idx)[:, :4], model.logits(changed)[:, :4])
    assert not torch.equal(model.logits(idx)[:, 4:], model.logits(changed)[:, 4:])


def test_scores_do_not_depend_on_the_rest_of_the_batch(names: list[str]) -> None:
    """An item alone gets the scores that it gets among longer ones."""
    model, (idx, targets) = Bow(BowConfig()), batch(names)
    keep = targets != IGNORED
    lengths = keep.sum(1).tolist()
    together = torch.split(model.scores(idx, keep), lengths)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(together[i], model.logits(idx[i : i + 1, :length])[0])


def test_a_bag_has_no_order_but_places_and_the_last_character_do() -> None:
    """Without positions, "ab" and "ba" before the same last character score alike."""
    model = Bow(BowConfig())
    with torch.no_grad():
        with_places = model.logits(torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 2, 1]]))
        model.position_embed.zero_()
        without = model.logits(torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 2, 1]]))
    torch.testing.assert_close(without[0, 3], without[1, 3])
    assert not torch.allclose(without[0, 3], without[2, 3])  # another last character
    torch.testing.assert_close(with_places[0, 3], with_places[1, 3])  # places are added, so a
    # sum of them is the same for every order: they tell how far, not who stood where


@pytest.mark.parametrize("option", ["dropout", "noise"])
def test_randomness_is_for_training_only(names: list[str], option: str) -> None:
    """Dropout and noise change the loss from call to call in training, never afterwards."""
    config: dict[str, Any] = {option: 0.3}
    model, pair = Bow(BowConfig(**config)).eval(), batch(names)
    assert model.loss(*pair) == model.loss(*pair)
    model.train()
    assert model.loss(*pair) != model.loss(*pair)


def test_an_item_over_block_size_is_refused() -> None:
    """There is one vector a place, so the message names the length to train with."""
    message = "an item of 9 places is longer than block_size=8; train with block_size=9"
    with pytest.raises(ValueError, match=message):
        Bow(BowConfig(block_size=8)).logits(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_hidden": 0}, "n_hidden=0 must be at least 1"),
        ({"dropout": -0.1}, "dropout=-0.1 must be at least 0 and below 1; try 0.1"),
    ],
)
def test_a_shape_that_cannot_be_says_so(changes: dict[str, Any], message: str) -> None:
    """Bad settings name the value, the rule and the remedy."""
    with pytest.raises(ValueError, match=message):
        BowConfig(**changes)


def test_operations_are_two_a_weight() -> None:
    """The hidden layer and its way back, and the head."""
    flops = Bow(BowConfig(n_embd=64, n_hidden=32)).flops_per_character()
    assert flops == 2 * (64 * 32 + 32 * 64 + 64 * 27)

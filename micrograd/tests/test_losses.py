"""Losses: PyTorch's in float64, exact far from zero, and clear about labels that do not fit."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from micrograd import losses
from micrograd.engine import Value
from micrograd.errors import DataError

Loss = Callable[[Any, Any], Value]
Peer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FLOAT = torch.float64


def close(numbers: Any) -> Any:
    return pytest.approx(numbers, rel=1e-12, abs=1e-15)


SINGLE: dict[str, tuple[Loss, Peer, tuple[float, ...]]] = {
    "mse": (losses.mse, functional.mse_loss, (-0.5, 2.25, 1.0)),
    "hinge": (losses.hinge, lambda s, y: (1 - y * s).relu().mean(), (-1, 1)),
    "binary_cross_entropy": (
        losses.binary_cross_entropy,
        functional.binary_cross_entropy_with_logits,
        (0, 1),
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_loss_of_single_outputs_equals_torch(name: str) -> None:
    """The value, and the gradient by each output, near zero and at +-1000."""
    ours, theirs, labels = SINGLE[name]
    rng = random.Random(4)
    numbers = [rng.gauss(0.0, 2.0) for _ in range(8)] + [1000.0, -1000.0, 1000.0, -1000.0, 0.0]
    targets = [labels[i // 2 % len(labels)] for i in range(len(numbers))]
    scores = [Value(x) for x in numbers]
    z = torch.tensor(numbers, dtype=FLOAT, requires_grad=True)
    peer: Any = theirs(z, torch.tensor(targets, dtype=FLOAT))
    peer.backward()
    loss = ours(scores, targets)
    loss.backward()
    assert z.grad is not None
    assert loss.data == close(peer.item())
    assert [s.grad for s in scores] == close(z.grad.tolist())


def test_softmax_cross_entropy_equals_torch() -> None:
    """The value, and the gradient by each logit, near zero and at +-1000, of all labels."""
    rng = random.Random(4)
    table = [[rng.gauss(0.0, 2.0) for _ in range(3)] for _ in range(5)]
    table += [[1000.0, -1000.0, 999.0], [-1000.0, -1001.0, -999.5], [1000.0, 1000.0, 1000.0]]
    labels = [0, 1, 2, 0, 1, 1, 0, 2]
    rows = [[Value(x) for x in row] for row in table]
    z = torch.tensor(table, dtype=FLOAT, requires_grad=True)
    peer: Any = functional.cross_entropy(z, torch.tensor(labels))
    peer.backward()
    loss = losses.cross_entropy(rows, labels)
    loss.backward()
    assert z.grad is not None
    assert loss.data == close(peer.item())
    assert [[v.grad for v in row] for row in rows] == [close(row) for row in z.grad.tolist()]


def test_the_penalty_is_the_sum_of_squares() -> None:
    """Times its strength; of no parameters it is 0."""
    ps = [Value(3.0), Value(-4.0)]
    penalty = losses.l2(ps, 0.1)
    penalty.backward()
    assert penalty.data == close(2.5)
    assert [p.grad for p in ps] == close([0.6, -0.8])
    assert losses.l2([], 0.1).data == 0.0


def test_labels_may_be_numpys() -> None:
    """An array of labels, as scikit-learn gives them, is as good as a list."""
    z = [Value(0.5), Value(-2.0)]
    y: Any = np.array([1, 0])
    assert losses.hinge(z, 2 * y - 1).data == losses.hinge(z, [1, -1]).data
    assert losses.cross_entropy([z, z], y).data == losses.cross_entropy([z, z], [1, 0]).data
    both = [losses.binary_cross_entropy(z, labels).data for labels in (y, [1, 0])]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("loss", "label", "message"),
    [
        (losses.hinge, 0, "label 0 must be -1 or 1 for this loss"),
        (losses.hinge, float("nan"), "label nan must be -1 or 1"),
        (losses.binary_cross_entropy, -1, "label -1 must be 0 or 1 for this loss"),
        (losses.binary_cross_entropy, 0.5, "label 0.5 must be 0 or 1"),
        (losses.mse, float("nan"), "nan is no finite number"),
        (losses.mse, "x", "'x' is of type str; a number is needed"),
    ],
)
def test_a_label_that_does_not_fit_is_named(loss: Loss, label: Any, message: str) -> None:
    """With those that do."""
    with pytest.raises(DataError, match=message):
        loss([Value(1.0), Value(2.0)], [1, label])


@pytest.mark.parametrize("label", [2, -1, 0.5, 1.0, float("nan"), "0"])
def test_a_class_that_does_not_exist_is_named(label: Any) -> None:
    """A negative one doesn't count from the end, and a fraction is none."""
    with pytest.raises(DataError, match="is not one of the 2 classes 0 to 1"):
        losses.cross_entropy([[Value(1.0), Value(2.0)]], [label])


@pytest.mark.parametrize(
    "loss", [losses.mse, losses.hinge, losses.binary_cross_entropy, losses.cross_entropy]
)
def test_there_is_one_label_for_each_output(loss: Loss) -> None:
    """Neither more nor fewer, and at least one."""
    rows = [Value(1.0)] if loss is not losses.cross_entropy else [[Value(1.0), Value(0.0)]]
    with pytest.raises(DataError, match="1 outputs and 2 targets: one for each"):
        loss(rows, [1, 1])
    with pytest.raises(DataError, match="1 outputs and 0 targets"):
        loss(rows, [])
    with pytest.raises(DataError, match="over no examples is not defined; give at least one"):
        loss([], [])


ONE = Value(1.0)
EACH: Any = [losses.mse, losses.hinge, losses.binary_cross_entropy]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda f=f: f(map(Value, [1.0]), [1]), "outputs must be a list, not a map")
            for f in EACH
        ),
        *((lambda f=f: f([ONE], iter([1])), "targets must be a list, not a list_it") for f in EACH),
        *((lambda f=f: f(ONE, [1]), "outputs must be a list, not a Value") for f in EACH),
        *((lambda f=f: f([[ONE]], [1]), "this loss must be Values, not a list") for f in EACH),
        *((lambda f=f: f([1.0], [1]), r"must be Values, not a float \('1.0'\)") for f in EACH),
        (lambda: losses.cross_entropy([ONE], [0]), "row of logits must be a list, not a Value"),  # type: ignore[list-item]
        (lambda: losses.cross_entropy([[1.0]], [0]), "logits must be Values, not a float"),  # type: ignore[list-item]
        (lambda: losses.cross_entropy([[]], [0]), "row of logits must be at least one Value"),
        (lambda: losses.cross_entropy(map(list, [[ONE]]), [0]), "must be a list, not a map"),  # type: ignore[arg-type]
        (lambda: losses.mean([]), "the values of a mean must be at least one Value"),
        (lambda: losses.mean([1.0]), "must be Values, not a float"),  # type: ignore[list-item]
        (lambda: losses.mean(map(Value, [1.0])), "must be a list, not a map"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_list_of_values_is_named(call: Callable[[], Value], message: str) -> None:
    """One line, whichever loss."""
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

"""Karpathy's demo, rewritten from its description, prints the numbers that his printed."""

import random
from typing import Any

import numpy as np
import pytest

from micrograd.engine import Value
from micrograd.nn import MLP

PRINTED = [0.8958441028683222, 1.7235905336972022, 0.7429006313851131]
PRINTED += [0.7705641260584198, 0.3692793385976538]


def loss_of(model: MLP, x: Any, y: Any) -> tuple[Value, float]:
    """Return the max-margin loss with an L2 penalty, and the accuracy, as the demo has them."""
    inputs = [list(map(Value, row)) for row in x]
    scores = list(map(model, inputs))
    losses = [(1 + -label * score).relu() for label, score in zip(y, scores, strict=True)]
    data_loss = sum(losses) * (1.0 / len(losses))
    penalty = 1e-4 * sum(p * p for p in model.parameters())
    right = [(label > 0) == (score.data > 0) for label, score in zip(y, scores, strict=True)]
    return data_loss + penalty, sum(right) / len(right)


@pytest.mark.parametrize("fused", [True, False])
def test_the_demo_on_the_moons_prints_the_same_losses(fused: bool) -> None:
    """The first five losses to 12 digits, and every point on its side after 100 steps."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the moons are scikit-learn's")
    np.random.seed(1337)  # noqa: NPY002  # the demo's
    random.seed(1337)
    x, y = datasets.make_moons(n_samples=100, noise=0.1)
    y = y * 2 - 1
    model = MLP(2, [16, 16, 1], fused=fused)
    assert len(model.parameters()) == 337

    losses, accuracies = [], []
    for k in range(100 if fused else 5):  # the plain network takes its time
        total, accuracy = loss_of(model, x, y)
        model.zero_grad()
        total.backward()
        learning_rate = 1.0 - 0.9 * k / 100
        for p in model.parameters():
            p.data -= learning_rate * p.grad
        losses.append(total.data)
        accuracies.append(accuracy)

    assert losses[:5] == pytest.approx(PRINTED, rel=1e-12)
    assert accuracies[0] == 0.5
    if fused:
        assert accuracies[-1] == 1.0
        assert losses[-1] < 0.02

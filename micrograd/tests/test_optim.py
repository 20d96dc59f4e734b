"""Optimisers: PyTorch's over 20 steps, decoupled weight decay, and steps that would overflow."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from micrograd.engine import Value
from micrograd.errors import NumericalError, UsageError
from micrograd.nn import MLP
from micrograd.optim import SGD, Adam, Optimizer

START = [1.5, -0.7, 0.2, -3.0]


def curved(ps: Any) -> Any:
    """Return a loss of four numbers that no step solves, for Values and tensors."""
    a, b, c, d = ps
    return (a * b - 1.0) ** 2 + (c - a) ** 4 * 0.1 + (b + c * d).tanh() + d**2 * 0.3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("adam", [True, False])
def test_twenty_steps_are_those_of_torch(adam: bool, momentum: float, decay: float) -> None:
    """Adam with decay is AdamW. Torch's SGD mixes decay into the gradient: done by hand for it."""
    ours = [Value(x) for x in START]
    theirs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in START]
    optimizer: Optimizer
    peer: torch.optim.Optimizer
    if adam:
        betas = (momentum, 0.95)
        optimizer = Adam(ours, 0.03, betas=betas, eps=1e-6, weight_decay=decay)
        peer = torch.optim.AdamW(theirs, 0.03, betas=betas, eps=1e-6, weight_decay=decay)
    else:
        optimizer = SGD(ours, 0.03, momentum=momentum, weight_decay=decay)
        peer = torch.optim.SGD(theirs, 0.03, momentum=momentum)
    for step in range(20):
        rate = 0.03 / (1 + step)  # changed between steps
        optimizer.learning_rate = peer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        curved(ours).backward()
        optimizer.step()
        peer.zero_grad()
        curved(theirs).backward()
        if not adam:
            for q in theirs:
                q.data *= 1.0 - rate * decay
        peer.step()
        expected = [q.item() for q in theirs]
        assert [p.data for p in ours] == pytest.approx(expected, rel=1e-11), f"step {step}"
    assert all(abs(p.data - x) > 0.01 for p, x in zip(ours, START, strict=True))


def test_the_defaults_of_adam_are_the_papers() -> None:
    """Betas 0.9 and 0.999, eps 1e-8: a first step is the learning rate, however small the slope."""
    small, large = Value(1.0), Value(1.0)
    optimizer = Adam([small, large])
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)
    small.grad, large.grad = 1e-3, -1e3
    optimizer.step()
    assert [small.data, large.data] == pytest.approx([0.99, 1.01], rel=1e-6)


def test_zero_grad_forgets_the_gradients_and_step_does_not() -> None:
    """Two passes between steps add up."""
    p = Value(2.0)
    optimizer = SGD([p], 0.1)
    (p * 3).backward()
    (p * 3).backward()
    optimizer.step()
    assert p.data == pytest.approx(2.0 - 0.1 * 6)
    assert p.grad == 6.0
    optimizer.zero_grad()
    assert p.grad == 0.0


@pytest.mark.parametrize("make", [SGD, Adam])
def test_gradients_that_are_values_are_used_as_numbers(make: Callable[..., Optimizer]) -> None:
    """After `backward(create_graph=True)` a parameter's data stays a float."""
    p, q = Value(2.0), Value(2.0)
    (p**3).backward(create_graph=True)
    (q**3).backward()
    for one in (p, q):
        make([one]).step()
    assert type(p.data) is float
    assert p.data == q.data != 2.0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_step_that_would_overflow_changes_no_parameter(
    make: Callable[..., Optimizer], fused: bool
) -> None:
    """The message has the number, the gradient and a remedy."""
    model = MLP(2, [1], fused=fused)
    before = model.state_dict()
    model.parameters()[0].grad = 1.0
    model.parameters()[2].grad = 1e300 if make is SGD else float("nan")
    with pytest.raises(NumericalError, match=r"would become .* try a learning_rate below 1e\+300"):
        make(model.parameters(), 1e300).step()
    assert model.state_dict() == before


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (lambda ps: SGD(ps, 1e100, 0.9), 1e250),
        (lambda ps: Adam(ps, 0.1), 1e250),
        (lambda ps: Adam(ps, 0.1), float("nan")),
    ],
)
def test_a_failed_step_leaves_no_trace_in_the_ones_after_it(
    make: Callable[[list[Value]], Optimizer], bad: float
) -> None:
    """Velocity, running means and the number of steps are those of a run without it."""
    found = []
    for fails in (True, False):
        p = Value(1.0)
        optimizer = make([p])
        p.grad = 1.0
        optimizer.step()
        if fails:
            p.grad = bad
            with pytest.raises(NumericalError):
                optimizer.step()
        p.grad = 2.0
        optimizer.step()
        found.append(p.data)
    assert found[0] == found[1] != 1.0


@pytest.mark.parametrize("make", [SGD, Adam])
def test_decay_that_would_turn_a_weights_sign_is_refused(make: Callable[..., Optimizer]) -> None:
    """At once, or when the rate was raised later; a factor of exactly 0 is allowed."""
    with pytest.raises(UsageError, match=r"learning_rate=0.5 times weight_decay=3.0 must be at"):
        make([Value(1.0)], 0.5, weight_decay=3.0)
    p = Value(1.0)
    optimizer = make([p], 0.5, weight_decay=2.0)
    optimizer.step()
    assert p.data == 0.0
    optimizer.learning_rate = 0.6
    with pytest.raises(UsageError, match=r"learning_rate=0\.6 times"):
        optimizer.step()


def test_a_gradient_too_large_to_square_is_an_error() -> None:
    """Adam would divide by infinity, and stand still without a word."""
    p = Value(1.0)
    optimizer = Adam([p])
    p.grad = 1e200
    with pytest.raises(NumericalError, match="square of a gradient overflows; scale the loss"):
        optimizer.step()
    assert p.data == 1.0


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (SGD, {"learning_rate": 0.0}, "learning_rate=0.0 must be a positive number"),
        (SGD, {"learning_rate": float("nan")}, "learning_rate=nan must be"),
        (SGD, {"learning_rate": float("inf")}, "learning_rate=inf must be"),
        (SGD, {"momentum": 1.0}, r"momentum=1.0 must be in \[0, 1\)"),
        (SGD, {"momentum": -0.1}, "momentum=-0.1"),
        (SGD, {"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        (Adam, {"learning_rate": -1.0}, "learning_rate=-1.0"),
        (Adam, {"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\) must be in \[0, 1\)"),
        (Adam, {"betas": (-0.1, 0.9)}, r"betas=\(-0.1, 0.9\)"),
        (Adam, {"eps": 0.0}, "eps=0.0 must be positive"),
        (Adam, {"weight_decay": float("inf")}, "weight_decay=inf"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    make: Callable[..., Optimizer], kwargs: dict[str, Any], message: str
) -> None:
    """The message names value and rule."""
    with pytest.raises(UsageError, match=message):
        make([Value(1.0)], **kwargs)
    with pytest.raises(UsageError, match=r"no parameters to optimise; pass model.parameters\(\)"):
        make([])

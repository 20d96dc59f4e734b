"""What holds for every expression and network that hypothesis can think of, with torch as judge.

Programs are built so that they can't leave the range where a comparison means something: each step
maps operands in about -1..1 to a result in about -1..1 and hardly stretches differences, so that
nothing overflows and rounding stays near 1e-16 however long the program is.
"""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from micrograd.engine import Value
from micrograd.higher import grad
from micrograd.nn import MLP


def softplus(x: Any) -> Any:
    """Return softplus of a Value or a tensor; all other names are the same for both."""
    return x.softplus() if isinstance(x, Value) else torch.nn.functional.softplus(x)


OF_ONE: dict[str, Callable[[Any], Any]] = {
    "-a": lambda a: -a,
    "a ** 2": lambda a: a**2 / 2,
    "a ** 3": lambda a: a**3 / 3,
    "a ** 0": lambda a: a**0 / 2,
    "exp": lambda a: a.exp() / 3,
    "log": lambda a: (a + 2).log(),
    "sqrt": lambda a: (a + 2).sqrt() / 2,
    "tanh": lambda a: a.tanh(),
    "sigmoid": lambda a: a.sigmoid(),
    "softplus": lambda a: softplus(a) / 2,
    "sin": lambda a: a.sin(),
    "cos": lambda a: a.cos(),
    "relu": lambda a: a.relu(),
    "abs": lambda a: abs(a),
}
OF_TWO: dict[str, Callable[[Any, Any], Any]] = {
    "a + b": lambda a, b: (a + b) / 2,
    "a - b": lambda a, b: (a - b) * 0.5,
    "a * b": lambda a, b: a * b * 0.5,
    "a / b": lambda a, b: a / (b + 3),
    # never to the power 0: torch takes it for a constant there, and misses d2/dadb = 1 / a
    "a ** b": lambda a, b: (a + 2) ** (b + 1.5) / 20,
    "a ** -b": lambda a, b: (a + 2) ** (b - 1.5) / 3,
    "max": lambda a, b: a.max(b),
    "min": lambda a, b: a.min(b),
}
WITH_CONSTANT: dict[str, Callable[[Any, float], Any]] = {
    "a + c": lambda a, c: (a + c) / 3,
    "c + a": lambda a, c: (c + a) / 3,
    "a - c": lambda a, c: (a - c) / 3,
    "c - a": lambda a, c: (c - a) / 3,
    "a * c": lambda a, c: a * c / 2,
    "c * a": lambda a, c: c * a / 2,
    "a / c": lambda a, c: a / c / 2,
    "c / a": lambda a, c: c / (a + 3),
    "a ** c": lambda a, c: (a + 2) ** c / 9,
    "a ** -c": lambda a, c: (a + 2) ** -c,
    "c ** a": lambda a, c: c**a / 2,
}


def step(name: str, a: Any, b: Any, c: float) -> Any:
    """Return one step's result."""
    if name in OF_ONE:
        return OF_ONE[name](a)
    return OF_TWO[name](a, b) if name in OF_TWO else WITH_CONSTANT[name](a, c)


class Program(NamedTuple):
    """Numbers to start with, and steps: a name, which earlier results are a and b, a constant."""

    leaves: list[float]
    steps: list[tuple[str, int, int, float]]


def programs(longest: int) -> st.SearchStrategy[Program]:
    """Return programs of up to four leaves and `longest` steps."""
    index = st.integers(0, 3 + longest)
    names = st.sampled_from(sorted([*OF_ONE, *OF_TWO, *WITH_CONSTANT]))
    one = st.tuples(names, index, index, st.floats(0.5, 2.0))
    leaves = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=4)
    return st.builds(Program, leaves, st.lists(one, min_size=1, max_size=longest))


def run(program: Program) -> tuple[list[Value], Value, list[torch.Tensor], torch.Tensor]:
    """Run a program on both engines; return the leaves and the result of each."""
    ours: list[Any] = [Value(x) for x in program.leaves]
    theirs: list[Any] = [
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in program.leaves
    ]
    n = len(ours)
    for name, i, j, c in program.steps:
        i, j = i % len(ours), j % len(ours)
        # at a kink a rounding decides which side counts: step away from it
        gap = {"relu": ours[i], "abs": ours[i], "max": ours[i] - ours[j], "min": ours[i] - ours[j]}
        move = 0.25 if name in gap and abs(float(gap[name])) < 1e-6 else 0.0
        for values in (ours, theirs):
            values.append(step(name, values[i] + move, values[j], c))
    # every leaf takes part, and the last results are shared
    out, expected = (sum(values[:n]) + sum(values[-3:]) * values[-1] for values in (ours, theirs))
    return ours[:n], out, theirs[:n], expected


def close(ours: list[float], theirs: list[torch.Tensor]) -> bool:
    """Return whether all agree to 1e-9 relative, or to 1e-12 where sums cancel."""
    pairs = zip(ours, theirs, strict=True)
    return all(math.isclose(a, b.item(), rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)


@settings(deadline=None, max_examples=200)  # a busy machine is no failure
@given(program=programs(30), passes=st.integers(1, 3))
def test_random_expressions_agree_with_torch(program: Program, passes: int) -> None:
    """Value and all gradients, after one backward pass or several."""
    leaves, out, tensors, expected = run(program)
    assert close([out.data], [expected])
    for _ in range(passes):
        out.backward()
        expected.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert close([leaf.grad for leaf in leaves], [t.grad for t in tensors if t.grad is not None])


@settings(deadline=None, max_examples=60)
@given(program=programs(12))
def test_second_derivatives_agree_with_torch(program: Program) -> None:
    """Those of a weighted sum of the gradients, by double backward; `grad` is left alone."""
    leaves, out, tensors, expected = run(program)
    first = grad(out, leaves)
    slopes = torch.autograd.grad(expected, tensors, create_graph=True)
    assert close([g.data for g in first], list(slopes))
    total = sum((g * (i + 1) for i, g in enumerate(first)), Value(0.0))
    aim = torch.stack([s * (i + 1) for i, s in enumerate(slopes)]).sum() + 0 * tensors[0]
    second = torch.autograd.grad(aim, tensors, allow_unused=True, materialize_grads=True)
    assert close([g.data for g in grad(total, leaves)], list(second))
    assert not any(leaf.grad for leaf in leaves)


@settings(deadline=None, max_examples=60)
@given(program=programs(12))
def test_both_ways_to_a_gradient_agree(program: Program) -> None:
    """Floats and, with create_graph, Values."""
    leaves, out, _, _ = run(program)
    out.backward()
    floats = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.zero_grad()
    out.backward(create_graph=True)
    assert [leaf.grad.data for leaf in leaves] == pytest.approx(floats, rel=1e-9, abs=1e-12)


IDENTITIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "a + b = b + a": (lambda a, b: a + b, lambda a, b: b + a),
    "a (a + b) = a a + a b": (lambda a, b: a * (a + b), lambda a, b: a * a + a * b),
    "a - b = a + -b": (lambda a, b: a - b, lambda a, b: a + -b),
    "a / b = a b ** -1": (lambda a, b: a / b, lambda a, b: a * b**-1),
    "(a + b) ** 2": (lambda a, b: (a + b) ** 2, lambda a, b: a**2 + 2 * a * b + b**2),
    "a ** b = exp(b log a)": (lambda a, b: a**b, lambda a, b: (b * a.log()).exp()),
    "2 ** a = exp(a log 2)": (lambda a: 2**a, lambda a: (a * math.log(2)).exp()),
    "a ** a a = a ** (a + 1)": (lambda a: a**a * a, lambda a: a ** (a + 1)),
    "exp(log a) = a": (lambda a: a.log().exp(), lambda a: a * 1),
    "log(a b)": (lambda a, b: (a * b).log(), lambda a, b: a.log() + b.log()),
    "sqrt a = a ** 0.5": (lambda a: a.sqrt(), lambda a: a**0.5),
    "sin(a + b)": (
        lambda a, b: (a + b).sin(),
        lambda a, b: a.sin() * b.cos() + a.cos() * b.sin(),
    ),
    "sin ** 2 + cos ** 2 = 1": (lambda a: a.sin() ** 2 + a.cos() ** 2, lambda a: a**0),
    "tanh a = 2 sigmoid(2 a) - 1": (lambda a: a.tanh(), lambda a: 2 * (2 * a).sigmoid() - 1),
    "softplus a - softplus -a = a": (
        lambda a: a.softplus() - (-a).softplus(),
        lambda a: a + 0,
    ),
    "relu a - relu -a = a": (lambda a: a.relu() - (-a).relu(), lambda a: 1 * a),
    "max + min = a + b": (lambda a, b: a.max(b) + a.min(b), lambda a, b: a + b),
    "max = a + relu(b - a)": (lambda a, b: a.max(b), lambda a, b: a + (b - a).relu()),
    "abs a = max(a, -a)": (lambda a: abs(a), lambda a: a.max(-a)),
}


@pytest.mark.parametrize("name", IDENTITIES)
@settings(deadline=None, max_examples=15)
@given(a=st.floats(0.1, 3.0), b=st.floats(3.5, 6.0))
def test_algebraic_identities_hold(name: str, a: float, b: float) -> None:
    """In value, in gradients, and in the gradients of those."""
    results = []
    for side in IDENTITIES[name]:
        leaves = [Value(a), Value(b)]
        out = side(*leaves[: side.__code__.co_argcount])
        first = grad(out, leaves)
        second = [g for one in first for g in grad(one, leaves)]
        results.append([out.data, *(g.data for g in (*first, *second))])
    assert results[0] == pytest.approx(results[1], rel=1e-9, abs=1e-9)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda z: z,
}


def torch_outputs(
    x: torch.Tensor, parameters: list[torch.Tensor], sizes: list[int], activation: str
) -> torch.Tensor:
    """Map x (n_inputs) to the outputs; `parameters`, each a scalar, come neuron by neuron."""
    left = iter(parameters)
    for k, (n_in, n_out) in enumerate(pairwise(sizes)):
        rows = torch.stack([next(left) for _ in range(n_out * (n_in + 1))]).view(n_out, n_in + 1)
        z = rows[:, :-1] @ x + rows[:, -1]
        x = ACTIVATIONS[activation](z) if k < len(sizes) - 2 else z
    return x


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    n_examples=st.integers(1, 3),
    seed=st.integers(0, 2**32),  # not drawn one by one: those like zeros, where relu has its kink
)
def test_random_networks_agree_with_torch(
    sizes: list[int], activation: str, n_examples: int, seed: int
) -> None:
    """Outputs and the gradient of every parameter and input, fused and plain."""
    draw = random.Random(seed)
    numbers = [[draw.gauss(0.0, 1.0) for _ in range(sizes[0])] for _ in range(n_examples)]
    weights = [draw.gauss(0.0, 1.0) for _ in range(sizes[-1])]
    found = []
    for fused in (True, False):
        rng = random.Random(seed)
        model = MLP(sizes[0], sizes[1:], activation=activation, rng=rng, fused=fused)
        xs = [[Value(x) for x in row] for row in numbers]
        raw = [model(x) for x in xs]
        outputs = [out if isinstance(out, list) else [out] for out in raw]
        loss = sum(o.tanh() * w for out in outputs for o, w in zip(out, weights, strict=True))
        loss.backward()
        leaves = [*model.parameters(), *(x for row in xs for x in row)]
        found.append(([o.data for out in outputs for o in out], [leaf.grad for leaf in leaves]))
        data = [p.data for p in model.parameters()]
    parameters = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in data]
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
    expected = torch.stack([torch_outputs(x, parameters, sizes, activation) for x in tensors])
    total = (expected.tanh() * torch.tensor(weights, dtype=torch.float64)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [t.grad for t in (*parameters, *tensors) if t.grad is not None]
    for ours, slopes in found:
        assert close(ours, list(expected.flatten()))
        assert close(slopes, list(torch.cat([g.flatten() for g in gradients])))
    for fused_, plain in zip(*found, strict=True):
        assert fused_ == pytest.approx(plain, rel=1e-12, abs=1e-13)

"""The scalar engine: each operation, the backward pass, and what happens where they end."""

import copy
import gc
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from micrograd.engine import Value, node, trace_lines
from micrograd.errors import DataError, NumericalError, UsageError
from micrograd.higher import grad

Function = Callable[..., Any]
softplus = torch.nn.functional.softplus


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Run a test without Python's garbage collector: what goes must go by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_values() -> int:
    return sum(issubclass(type(one), Value) for one in gc.get_objects())


# ---- each operation, against torch in float64

OPERATIONS: list[tuple[str, Function, Function, tuple[float, ...]]] = [
    ("x + y", lambda x, y: x + y, lambda x, y: x + y, (1.5, -2.25)),
    ("x + 2", lambda x: x + 2, lambda x: x + 2, (1.5,)),
    ("2 + x", lambda x: 2 + x, lambda x: 2 + x, (1.5,)),
    ("x - y", lambda x, y: x - y, lambda x, y: x - y, (1.5, -2.25)),
    ("x - 2", lambda x: x - 2, lambda x: x - 2, (1.5,)),
    ("2 - x", lambda x: 2 - x, lambda x: 2 - x, (1.5,)),
    ("-x", lambda x: -x, lambda x: -x, (1.5,)),
    ("x * y", lambda x, y: x * y, lambda x, y: x * y, (1.5, -2.25)),
    ("x * 3", lambda x: x * 3, lambda x: x * 3, (1.5,)),
    ("3 * x", lambda x: 3 * x, lambda x: 3 * x, (1.5,)),
    ("x * 0", lambda x: x * 0, lambda x: x * 0, (1.5,)),
    ("x * x", lambda x: x * x, lambda x: x * x, (-1.5,)),
    ("x - x", lambda x: x - x, lambda x: x - x, (-1.5,)),
    ("x / y", lambda x, y: x / y, lambda x, y: x / y, (1.5, -2.25)),
    ("x / 4", lambda x: x / 4, lambda x: x / 4, (1.5,)),
    ("4 / x", lambda x: 4 / x, lambda x: 4 / x, (-1.5,)),
    ("x / x", lambda x: x / x, lambda x: x / x, (-1.5,)),
    ("x ** 3", lambda x: x**3, lambda x: x**3, (-1.5,)),
    ("x ** 1", lambda x: x**1, lambda x: x**1, (0.0,)),
    ("x ** 2 at 0", lambda x: x**2, lambda x: x**2, (0.0,)),
    ("x ** -2", lambda x: x**-2, lambda x: x**-2, (-1.5,)),
    ("x ** 0.5", lambda x: x**0.5, lambda x: x**0.5, (2.25,)),
    ("x ** 0 at 0", lambda x: x**0, lambda x: x**0, (0.0,)),
    ("x ** 0 below 0", lambda x: x**0, lambda x: x**0, (-3.0,)),
    ("x ** y", lambda x, y: x**y, lambda x, y: x**y, (1.5, -2.25)),
    ("x ** y at 0", lambda x, y: x**y, lambda x, y: x**y, (0.0, 2.0)),
    ("x ** y at 0, 0", lambda x, y: x**y, lambda x, y: x**y, (0.0, 0.0)),
    ("x ** x", lambda x: x**x, lambda x: x**x, (1.5,)),
    ("2 ** x", lambda x: 2**x, lambda x: 2**x, (-1.5,)),
    ("0 ** x", lambda x: 0**x, lambda x: 0**x, (2.0,)),
    ("1 ** x", lambda x: 1**x, lambda x: 1**x, (2.0,)),
    ("exp", Value.exp, torch.exp, (1.5,)),
    ("log", Value.log, torch.log, (1.5,)),
    ("sqrt", Value.sqrt, torch.sqrt, (1.5,)),
    ("tanh", Value.tanh, torch.tanh, (-0.7,)),
    ("sigmoid above 0", Value.sigmoid, torch.sigmoid, (0.7,)),
    ("sigmoid below 0", Value.sigmoid, torch.sigmoid, (-0.7,)),
    ("softplus above 0", Value.softplus, softplus, (0.7,)),
    ("softplus below 0", Value.softplus, softplus, (-0.7,)),
    ("relu above 0", Value.relu, torch.relu, (1.5,)),
    ("relu below 0", Value.relu, torch.relu, (-1.5,)),
    ("relu at 0", Value.relu, torch.relu, (0.0,)),
    ("sin", Value.sin, torch.sin, (1.5,)),
    ("cos", Value.cos, torch.cos, (1.5,)),
    ("abs above 0", abs, torch.abs, (1.5,)),
    ("abs below 0", abs, torch.abs, (-1.5,)),
    ("abs at 0", abs, torch.abs, (0.0,)),
    ("max left", Value.max, torch.maximum, (1.5, -2.25)),
    ("max right", Value.max, torch.maximum, (-2.25, 1.5)),
    ("max of equals", Value.max, torch.maximum, (1.5, 1.5)),
    ("min left", Value.min, torch.minimum, (-2.25, 1.5)),
    ("min right", Value.min, torch.minimum, (1.5, -2.25)),
    ("min of equals", Value.min, torch.minimum, (1.5, 1.5)),
    ("max of x and 1", lambda x: x.max(1), lambda x: torch.clamp(x, min=1.0), (1.5,)),
    ("max of x and 2", lambda x: x.max(2), lambda x: torch.clamp(x, min=2.0), (1.5,)),
    ("min of x and 1", lambda x: x.min(1), lambda x: torch.clamp(x, max=1.0), (1.5,)),
    ("sigmoid at 1000", Value.sigmoid, torch.sigmoid, (1000.0,)),
    ("sigmoid at -1000", Value.sigmoid, torch.sigmoid, (-1000.0,)),
    ("tanh at 1000", Value.tanh, torch.tanh, (1000.0,)),
    ("tanh at -1000", Value.tanh, torch.tanh, (-1000.0,)),
    ("softplus at 1000", Value.softplus, softplus, (1000.0,)),
    ("softplus at -1000", Value.softplus, softplus, (-1000.0,)),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "point"), [o[1:] for o in OPERATIONS], ids=[o[0] for o in OPERATIONS]
)
def test_value_and_gradient_of_each_operation(
    ours: Function, theirs: Function, point: tuple[float, ...]
) -> None:
    """As torch's in float64, at ordinary points and at the odd ones."""
    values = [Value(x) for x in point]
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in point]
    out, expected = ours(*values), theirs(*tensors)
    assert out.data == pytest.approx(expected.item(), rel=1e-14, abs=1e-300)
    (out * 3).backward()
    (expected * 3).backward()
    for value, tensor in zip(values, tensors, strict=True):
        assert tensor.grad is not None
        assert value.grad == pytest.approx(tensor.grad.item(), rel=1e-14, abs=1e-300)


def test_far_from_zero_the_bounded_functions_are_exact() -> None:
    """No overflow on the way, and no NaN."""
    assert [Value(x).sigmoid().data for x in (-1000.0, 0.0, 1000.0)] == [0.0, 0.5, 1.0]
    assert [Value(x).tanh().data for x in (-1000.0, 0.0, 1000.0)] == [-1.0, 0.0, 1.0]
    assert [Value(x).softplus().data for x in (-1000.0, 1000.0)] == [0.0, 1000.0]
    assert Value(-30.0).softplus().data == pytest.approx(math.exp(-30.0), rel=1e-12)
    assert Value(-30.0).sigmoid().data == pytest.approx(math.exp(-30.0), rel=1e-12)


# ---- the backward pass


def test_case_01_a_chain_of_a_million_nodes_needs_no_recursion(no_collector: None) -> None:
    """Forward, backward, and freed at once without the collector."""
    before = sys.getallocatedblocks()
    start = Value(1.0)
    end = start
    for _ in range(500_000):
        end = end * 1.000001 + 1e-9
    end.backward()
    assert start.grad == pytest.approx(1.000001**500_000, rel=1e-9)
    assert sys.getallocatedblocks() - before > 1_000_000
    del end
    assert sys.getallocatedblocks() - before < 1_000


def test_case_02_backward_twice_gives_6_then_12() -> None:
    """Each call adds the same; what earlier calls left inside the graph is not handed on again."""
    x = Value(3.0)
    y = x * x
    y.backward()
    assert x.grad == 6.0
    y.backward()
    assert x.grad == 12.0
    y.backward()
    assert (x.grad, y.grad) == (18.0, 3.0)
    deep = (x * 1.0) * x * 1.0
    x.zero_grad()
    for expected in (6.0, 12.0, 18.0):
        deep.backward()
        assert x.grad == expected


def test_case_02_two_losses_that_share_a_subgraph_add_up() -> None:
    """As torch with a retained graph, in either order, inside the graph too."""
    for swap in (False, True):
        x, w = Value(0.5), Value(-1.5)
        tx, tw = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, -1.5))
        shared, tshared = (x * w).tanh(), (tx * tw).tanh()
        tshared.retain_grad()
        losses = [shared * shared * w, (shared + x).exp()]
        tlosses = [tshared * tshared * tw, (tshared + tx).exp()]
        for i in (1, 0, 1) if swap else (0, 1, 0):
            losses[i].backward()
            tlosses[i].backward(retain_graph=True)  # type: ignore[no-untyped-call]
            for ours, theirs in ((x, tx), (w, tw), (shared, tshared)):
                assert theirs.grad is not None
                assert ours.grad == pytest.approx(theirs.grad.item(), rel=1e-13)


def test_a_value_used_many_times_gets_every_part() -> None:
    """On both sides, deep and shallow, and through shared results."""
    x = Value(2.0)
    y = x * x + x  # 2x + 1
    z = y * y + y * x - x  # (2y + x) y' + y - 1
    z.backward()
    assert x.grad == (2 * 6 + 2) * 5 + 6 - 1
    assert (y.grad, z.grad) == (14.0, 1.0)


def test_a_leaf_is_its_own_derivative() -> None:
    """`backward` on a leaf gives it a gradient of 1, then 2."""
    x = Value(5.0)
    x.backward()
    x.backward()
    assert x.grad == 2.0


def test_gradients_add_to_what_is_there_until_zero_grad() -> None:
    """As PyTorch's; a part of the graph can be passed through on its own."""
    x = Value(4.0)
    y = x * 3
    z = y * y
    x.grad = 100.0
    y.backward()
    assert x.grad == 103.0
    z.backward()
    assert (x.grad, y.grad) == (103.0 + 72.0, 25.0)
    x.zero_grad()
    assert x.grad == 0.0
    z.backward()
    assert x.grad == 72.0


def test_the_sum_of_2000_values() -> None:
    """The builtin starts with 0 + v, and makes a chain 2,000 deep."""
    values = [Value(i / 8) for i in range(2000)]
    total = sum(values)
    assert isinstance(total, Value)
    total.backward()
    assert total.data == sum(i / 8 for i in range(2000))
    assert {v.grad for v in values} == {1.0}


def test_ctrl_c_anywhere_in_backward_leaves_all_as_it_was(
    interrupt: Callable[[Callable[[], None], int], bool],
) -> None:
    """Gradients and counters; the next call is right. Tried at each line it runs."""
    x, w = Value(2.0), Value(3.0)
    y = (x * w).tanh() * x
    nodes = [x, w, y, *y.parents(), *y.parents()[0].parents()]
    y.backward()
    before = [one.grad for one in nodes]
    tried = 0
    while interrupt(y.backward, tried + 1):
        tried += 1
        assert [one.grad for one in nodes] == before, f"interrupted at line {tried}"
        assert not any(one._uses for one in nodes), f"interrupted at line {tried}"
    assert tried > 50
    assert [one.grad for one in nodes] == [2 * g for g in before]


def test_no_node_outlives_its_names(no_collector: None) -> None:
    """Nor after a backward pass, a higher derivative, or an error."""
    x, y = Value(0.7), Value(1.3)
    before = live_values()
    for _ in range(3):
        out = (x * y + x.exp() / y) ** 2 + (x - y).relu().max(y.sigmoid())
        out.backward()
        first = grad(out, [x, y])
        second = grad(first[0] * first[1], [x, y])
        with pytest.raises(NumericalError):
            (out * 0.0).log()
        with pytest.raises(NumericalError):
            ((out - out).sqrt() + y).backward()
    del out, first, second
    assert live_values() == before
    out = x * y
    out.backward(create_graph=True)
    del out
    x.zero_grad()
    y.zero_grad()
    assert live_values() == before


# ---- karpathy's programs


def test_the_example_of_karpathys_readme() -> None:
    """24.7041, and the derivatives 138.8338 and 645.5773, from a = -4 and b = 2."""
    a, b = Value(-4.0), Value(2.0)
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c - a
    d += d * 2 + (a + b).relu()
    d += 3 * d + (b - a).relu()
    square = (c - d) ** 2
    g = square / 2 + 10 / square
    g.backward()
    assert [f"{number:.4f}" for number in (g.data, a.grad, b.grad)] == [
        "24.7041",
        "138.8338",
        "645.5773",
    ]


def test_the_names_that_graph_drawings_use() -> None:
    """`_prev` is the set of inputs and `_op` the operation, as in karpathy's engine."""
    a, b = Value(2.0), Value(3.0)
    assert [(a * b)._op, (a + 1)._op, (a**2)._op, a.relu()._op, a._op] == [
        "*",
        "+",
        "**",
        "relu",
        "",
    ]
    assert (a * b)._prev == {a, b}
    assert len((a * a)._prev) == 1
    assert a._prev == set()
    assert repr(Value(2.5)) == "Value(data=2.5, grad=0.0)"


# ---- errors name the operation and the user's line

FAILURES: list[tuple[str, Function]] = [
    ("log", lambda: Value(0.0).log()),
    ("log", lambda: Value(-1.0).log()),
    ("sqrt", lambda: Value(-1.0).sqrt()),
    ("**", lambda: Value(0.0) ** -1),
    ("**", lambda: Value(0.0) ** Value(-1.0)),
    ("**", lambda: 0.0 ** Value(-1.0)),
    ("/", lambda: Value(1.0) / 0),
    ("/", lambda: Value(1.0) / Value(0.0)),
    ("**", lambda: Value(-8.0) ** (1 / 3)),
    ("exp", lambda: Value(1000.0).exp()),
    ("**", lambda: Value(1e200) ** 2),
    ("**", lambda: 2 ** Value(2000.0)),
    ("*", lambda: Value(1e200) * Value(1e200)),
    ("*", lambda: 1e200 * Value(1e200)),
    ("+", lambda: Value(1.7e308) + Value(1.7e308)),
    ("-", lambda: Value(1.7e308) - Value(-1.7e308)),
    ("/", lambda: Value(1e300) / Value(1e-300)),
]


@pytest.mark.parametrize(("op", "function"), FAILURES)
def test_case_03_a_result_that_is_no_number_names_operation_and_line(
    op: str, function: Function
) -> None:
    """Log of 0, 0 to the power -1, overflow: never a silent infinity."""
    with pytest.raises(NumericalError) as caught:
        function()
    message = str(caught.value)
    assert op in message.partition(" at ")[0]
    assert f"{__file__}:{function.__code__.co_firstlineno}:" in message
    assert caught.value.__notes__ == [f"operation: {op}"]
    assert caught.value.exit_code == 6


def test_case_03_one_over_zero_is_an_error() -> None:
    """Whatever it is made of."""
    with pytest.raises(NumericalError, match=r"0 has no negative power|division by zero"):
        1 / Value(0.0)


INFINITE_SLOPES: list[tuple[str, Function]] = [
    ("sqrt", lambda x: x.sqrt()),
    ("**", lambda x: x**0.5),
    ("**", lambda x: x ** Value(0.5)),
    ("sqrt", lambda x: (x * x).sqrt()),
]


@pytest.mark.parametrize(("op", "function"), INFINITE_SLOPES)
def test_case_03_a_derivative_that_is_no_number_is_an_error_of_backward_alone(
    op: str, function: Function
) -> None:
    """The root of 0 is 0; its slope is infinite, and nothing is added to any gradient."""
    x = Value(0.0)
    x.grad = 7.0
    out = function(x) + x
    assert out.data == 0.0
    with pytest.raises(NumericalError, match="is not finite") as caught:
        out.backward()
    assert f"the derivative of '{op}' at 0.0" in str(caught.value)
    assert caught.value.__notes__ == [f"operation: {op}"]
    assert (x.grad, out.grad, x._uses) == (7.0, 0.0, 0)


def test_case_03_a_traced_derivative_names_the_line_that_made_the_node() -> None:
    """Not only the line of `backward`."""
    with trace_lines():
        root = Value(0.0).sqrt()
    with pytest.raises(NumericalError, match=f"{__file__}:{root._line.rpartition(':')[2]}"):
        (root * 2).backward()
    assert not hasattr(Value(1.0) * 2, "_line")


def test_case_03_gradients_that_overflow_are_an_error() -> None:
    """In a product, in the sum over the uses of a value, and in the sum over two passes."""
    x = Value(1e-200)
    with pytest.raises(NumericalError, match="times local derivative"):
        (x * 1e200 * 1e200).backward()
    y, z = x * 1e308, x * 1e308
    with pytest.raises(NumericalError, match="the sum of the gradients"):
        (y + z).backward()
    assert (x.grad, y.grad) == (0.0, 0.0)
    y.backward()
    with pytest.raises(NumericalError):
        y.backward()
    assert (x.grad, y.grad) == (1e308, 1.0)


# ---- numbers in and out


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_data_that_is_not_finite_is_refused(x: float) -> None:
    """As a Value and as an operand on either side."""
    v = Value(1.0)
    for function in (Value, lambda x: v + x, lambda x: x * v, lambda x: v**x, lambda x: v.max(x)):
        with pytest.raises(DataError, match="no finite number; clean the data first"):
            function(x)


@pytest.mark.parametrize("op", ["relu", "exp", "tanh", "__abs__", "__neg__", "sigmoid", "softplus"])
def test_data_that_became_nan_is_not_passed_on(op: str) -> None:
    """What an update made NaN must not come out of a relu as 0."""
    v = Value(1.0)
    v.data = math.nan
    with pytest.raises((NumericalError, DataError)):
        getattr(v, op)()


@pytest.mark.parametrize("op", ["max", "min"])
def test_the_larger_of_nan_and_1_is_not_1(op: str) -> None:
    v = Value(1.0)
    v.data = math.nan
    for other in (1.0, Value(1.0)):
        with pytest.raises((NumericalError, DataError)):
            getattr(v, op)(other)


@pytest.mark.parametrize("x", ["3", b"3", None, [1.0], 1j, object(), {}])
def test_what_is_no_number_is_refused(x: Any) -> None:
    """With its type; a string of digits is no number either."""
    v = Value(1.0)
    functions: list[Function] = [Value, lambda x: v + x, lambda x: x * v, lambda x: v / x]
    for function in functions:
        with pytest.raises(DataError, match=f"of type {type(x).__name__}; a number is needed"):
            function(x)


def test_an_integer_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(DataError, match=r"an integer above 1\.8e308"):
        Value(10**400)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_, bool, int])
def test_other_kinds_of_numbers_are_operands(kind: Any) -> None:
    """On both sides; the result is a Value with a float."""
    v, one = Value(3.0), kind(1)
    for out, expected in [
        (one * v, 3.0), (v * one, 3.0), (one + v, 4.0), (v + one, 4.0), (one - v, -2.0),
        (v - one, 2.0), (one / v, 1 / 3), (v / one, 3.0), (v**one, 3.0), (one**v, 1.0),
        (v.max(one), 3.0), (Value(one), 1.0),
    ]:  # fmt: skip
        assert type(out) is Value
        assert (type(out.data), out.data) == (float, expected)
    assert one < v
    assert v > one
    assert one != v
    assert one == Value(1.0)


def test_an_array_of_numbers_times_a_value_is_an_array_of_values() -> None:
    """As with any object that NumPy does not know."""
    v = Value(3.0)
    products = np.array([1.0, 2.0]) * v
    assert [p.data for p in products] == [3.0, 6.0]
    sum(products).backward()
    assert v.grad == 3.0


def test_an_operation_as_karpathys_engine_adds_them_is_told_the_way_here() -> None:
    """There is no `_backward` to set."""
    with pytest.raises(UsageError, match=r"engine\.node\(result, name, a, da\)"):
        Value(1.0, (Value(2.0),), "square")


def test_only_the_way_to_the_inputs_is_differentiated() -> None:
    """What has no derivative elsewhere does not matter."""
    x, z = Value(0.0), Value(1.0)
    assert grad(x.sqrt() + z, [z])[0].data == 1.0
    base = Value(-2.0)
    assert grad(base ** Value(3.0), [base])[0].data == 12.0
    with pytest.raises(NumericalError, match="not finite"):
        grad(x.sqrt() + z, [x])[0].backward()


def test_a_value_is_a_number_to_python() -> None:
    """float() and the math module take it."""
    v = Value(2.0)
    assert (float(v), float(v * 2), math.sqrt(v * 8), round(float(v))) == (2.0, 4.0, 4.0, 2)


def test_comparisons_are_about_data() -> None:
    """With Values and numbers on either side."""
    a, b = Value(1.0), Value(2.0)
    assert a < b
    assert a <= 1
    assert b > a
    assert b >= 2.0
    assert not a > b
    assert not a >= 2
    assert not b < 2
    assert not b <= a
    assert a == 1.0
    assert a == Value(1.0)
    assert a != b
    assert 3 > b  # noqa: SIM300
    assert a != "1.0"
    assert max(a, b) is b
    assert min([b, a, Value(1.5)]) is a
    assert sorted([b, a]) == [1.0, 2.0]
    with pytest.raises(TypeError):
        _ = a < "2"  # type: ignore[operator]


def test_equal_values_are_different_keys() -> None:
    """A graph is full of equal numbers, and each has a gradient of its own."""
    a, b = Value(1.0), Value(1.0)
    assert a == b
    assert len({a, b}) == 2
    assert {a: "a", b: "b"}[a] == "a"


# ---- copies


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_leaf_can_be_copied_and_pickled(make: Callable[[Value], Value]) -> None:
    """With its gradient, and nothing of the graphs it is used in."""
    v = Value(2.5)
    (v * v).backward()
    twin = make(v)
    assert (twin.data, twin.grad, twin._prev) == (2.5, 5.0, set())
    (twin * 2).backward()
    assert (twin.grad, v.grad) == (7.0, 5.0)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_result_cannot_be_copied_or_pickled(make: Function) -> None:
    """Its graph may be a million nodes deep; the message says what to do."""
    with pytest.raises(UsageError, match=r"a result of '\*' can't be .* Value\(float\(v\)\) is a"):
        make(Value(1.0) * 2)


# ---- higher derivatives


def rosenbrock(x: Any, y: Any) -> Any:
    """Return (1 - x)^2 + 100 (y - x^2)^2 (Rosenbrock, 1960)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def hessian(f: Function, at: list[float]) -> list[list[float]]:
    xs = [Value(x) for x in at]
    return [[entry.data for entry in grad(row, xs)] for row in grad(f(*xs), xs)]


def test_gradients_of_gradients_to_the_end() -> None:
    """Of x ** 4 at 3: 108, 108, 72, 24, 0; the `grad` attribute is left alone."""
    x = Value(3.0)
    derivatives, y = [], x**4
    for _ in range(5):
        (y,) = grad(y, [x])
        derivatives.append(y.data)
    assert derivatives == [108.0, 108.0, 72.0, 24.0, 0.0]
    assert x.grad == 0.0


def test_the_hessian_of_rosenbrock() -> None:
    """Equals torch's."""
    for point in ([-1.2, 1.0], [0.3, -0.8], [1.0, 1.0]):
        tensors = tuple(torch.tensor(x, dtype=torch.float64) for x in point)
        expected = torch.autograd.functional.hessian(rosenbrock, tensors)  # type: ignore[no-untyped-call]
        for ours, theirs in zip(hessian(rosenbrock, point), expected, strict=True):
            assert ours == pytest.approx([t.item() for t in theirs], rel=1e-12)


def test_newtons_method_finds_the_valley_of_rosenbrock() -> None:
    """From (-1.2, 1) in seven steps, as a quadratic model of a quartic should."""
    x, y = -1.2, 1.0
    for _ in range(7):
        values = [Value(x), Value(y)]
        gx, gy = (g.data for g in grad(rosenbrock(*values), values))
        (a, b), (c, d) = hessian(rosenbrock, [x, y])
        x, y = x - (d * gx - b * gy) / (a * d - b * c), y - (a * gy - c * gx) / (a * d - b * c)
    assert (x, y) == pytest.approx((1.0, 1.0), abs=1e-9)


# there torch has NaN: x ** y * log(x) ** 2, which goes to 0 with x
AT_ZERO = {"x ** y at 0", "x ** y at 0, 0", "0 ** x"}
SECOND = [o for o in OPERATIONS if o[0] not in AT_ZERO]


@pytest.mark.parametrize(
    ("ours", "theirs", "point"), [o[1:] for o in SECOND], ids=[o[0] for o in SECOND]
)
def test_second_derivatives_of_each_operation(
    ours: Function, theirs: Function, point: tuple[float, ...]
) -> None:
    """Through backward(create_graph=True), as torch's."""
    values = [Value(x) for x in point]
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in point]
    (ours(*values) ** 2).backward(create_graph=True)
    first = [v.grad for v in values]
    slopes = torch.autograd.grad(theirs(*tensors) ** 2, tensors, create_graph=True)
    assert [float(g) for g in first] == pytest.approx([s.item() for s in slopes], rel=1e-13)
    second = grad(sum(g * (i + 1) for i, g in enumerate(first)), values)
    total = torch.stack([s * (i + 1) for i, s in enumerate(slopes)]).sum() + 0 * tensors[0]
    expected = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    assert [s.data for s in second] == pytest.approx([e.item() for e in expected], rel=1e-12)


def test_mixed_derivatives_of_a_power_agree_at_exponent_0() -> None:
    """Both orders give 1 / a for a ** b at b = 0."""
    (_, ab), (ba, _) = hessian(lambda a, b: a**b, [2.0, 0.0])
    assert (ab, ba) == (0.5, 0.5)


def test_create_graph_adds_to_gradients_as_ever() -> None:
    """Floats and Values mix; zero_grad clears both."""
    x = Value(3.0)
    y = x**3
    y.backward()
    y.backward(create_graph=True)
    assert isinstance(x.grad, Value)
    assert x.grad.data == 54.0
    (x.grad * 2).backward()  # adds 2 * 6 x = 36 to it
    assert float(x.grad) == 90.0
    x.zero_grad()
    y.backward()
    assert x.grad == 27.0


def test_grad_knows_inner_nodes_and_strangers() -> None:
    """An input may be a result on the way; one that is not in the graph has derivative 0."""
    x = Value(2.0)
    y = x * x
    z = y.exp()
    by_y, by_z, by_other = grad(z, [y, z, Value(1.0)])
    assert [v.data for v in (by_y, by_z, by_other)] == [math.exp(4.0), 1.0, 0.0]


def test_higher_derivatives_need_no_recursion_either() -> None:
    """Through 4,000 nodes, more than Python lets a function call itself."""
    x = Value(0.5)
    y = x
    for _ in range(2_000):
        y = (y + x * 1e-4) * 0.9999
    (first,) = grad(y * x, [x])
    (second,) = grad(first, [x])
    (slope,) = grad(y, [x])
    assert first.data == pytest.approx(y.data + x.data * slope.data)
    assert second.data == pytest.approx(2 * slope.data)


def test_an_operation_without_second_derivative_says_so() -> None:
    """One made with `node` is not taken for a straight line."""
    x = Value(2.0)
    y = node(x.data**3, "cube", x, 3 * x.data**2)
    y.backward()
    assert x.grad == 12.0
    with pytest.raises(UsageError, match="cube"):
        grad(y, [x])


def test_a_slope_that_is_no_number_is_numerical_with_create_graph_too() -> None:
    """The same kind of error as without, and gradients stay as they were."""
    for function in (lambda x: (-2) ** x, Value.sqrt, lambda x: Value(-2.0) ** x):
        x = Value(0.0 if function is Value.sqrt else 2.0)
        with pytest.raises(NumericalError):
            function(x).backward()
        with pytest.raises(NumericalError):
            function(x).backward(create_graph=True)
        assert x.grad == 0.0


def test_the_engine_and_the_networks_need_nothing_but_python() -> None:
    """No NumPy, no plotting library and no torch comes with them."""
    program = (
        "import micrograd.higher, micrograd.losses, micrograd.nn, micrograd.optim, sys;"
        "print(sorted({'matplotlib', 'numpy', 'rich', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

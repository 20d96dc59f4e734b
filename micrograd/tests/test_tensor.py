"""The tensor engine agrees with torch in float64, and keeps the scalar engine's promises."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from micrograd.engine import Value
from micrograd.errors import DataError, NumericalError, UsageError
from micrograd.tensor import Tensor, unbroadcast

Shape = tuple[int, ...]
Function = Callable[..., Any]


def same_as_torch(ours: Function, theirs: Function, *arrays: Any, tolerance: float = 1e-12) -> None:
    """Hold values and all gradients of a weighted sum of the result equal to torch's."""
    tensors = [Tensor(a) for a in arrays]
    peers = [torch.tensor(np.asarray(a, float), requires_grad=True) for a in arrays]
    out, expected = ours(*tensors), theirs(*peers)
    assert isinstance(out, Tensor)
    assert out.shape == tuple(expected.shape)
    np.testing.assert_allclose(out.data, expected.detach().numpy(), rtol=tolerance, atol=1e-13)
    # Unequal weights, for a sum with equal ones hides a permuted gradient.
    weights = np.linspace(-1.0, 2.0, out.data.size).reshape(out.shape)
    (out * weights).sum().backward()
    (expected * torch.tensor(weights)).sum().backward()
    for tensor, peer in zip(tensors, peers, strict=True):
        assert peer.grad is not None
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad, peer.grad.numpy(), rtol=tolerance, atol=1e-13)


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


UNARY: dict[str, tuple[Function, Function]] = {
    "neg": (lambda x: -x, lambda x: -x),
    "exp": (lambda x: x.exp(), torch.exp),
    "log": (lambda x: (x * x + 0.1).log(), lambda x: (x * x + 0.1).log()),
    "sqrt": (lambda x: (x * x + 0.1).sqrt(), lambda x: (x * x + 0.1).sqrt()),
    "sin": (lambda x: x.sin(), torch.sin),
    "cos": (lambda x: x.cos(), torch.cos),
    "tanh": (lambda x: x.tanh(), torch.tanh),
    "sigmoid": (lambda x: x.sigmoid(), torch.sigmoid),
    "softplus": (lambda x: x.softplus(), torch.nn.functional.softplus),
    "relu": (lambda x: x.relu(), torch.relu),
    "abs": (abs, torch.abs),
    "square": (lambda x: x**2, lambda x: x**2),
    "reciprocal": (lambda x: 3 / x, lambda x: 3 / x),
    "from 2": (lambda x: 2 - x, lambda x: 2 - x),
    "power of 2": (lambda x: 2.0**x, lambda x: 2.0**x),
    "constant array": (
        lambda x: np.arange(12.0).reshape(3, 4) * x - [1, 2, 3, 4],
        lambda x: torch.arange(12.0).reshape(3, 4) * x - torch.tensor([1, 2, 3, 4]),
    ),
    "constant matrix": (
        lambda x: np.arange(6.0).reshape(2, 3) @ x,
        lambda x: torch.arange(6.0, dtype=torch.float64).reshape(2, 3) @ x,
    ),
    "sum": (lambda x: x.sum(), torch.sum),
    "sum 0": (lambda x: x.sum(0), lambda x: x.sum(0)),
    "sum -1 keepdims": (lambda x: x.sum(-1, True), lambda x: x.sum(-1, True)),
    "sum both": (lambda x: x.sum((0, 1)), lambda x: x.sum((0, 1))),
    "mean": (lambda x: x.mean(), torch.mean),
    "mean 1": (lambda x: x.mean(axis=1), lambda x: x.mean(1)),
    "max": (lambda x: x.max(), torch.amax),
    "max 0": (lambda x: x.max(0), lambda x: x.amax(0)),
    "min 1 keepdims": (lambda x: x.min(1, True), lambda x: x.amin(1, True)),
    "log_softmax": (lambda x: x.log_softmax(), lambda x: x.log_softmax(-1)),
    "log_softmax 0": (lambda x: x.log_softmax(0), lambda x: x.log_softmax(0)),
    "reshape": (lambda x: x.reshape(2, -1), lambda x: x.reshape(2, -1)),
    "reshape tuple": (lambda x: x.reshape((6, 2)), lambda x: x.reshape((6, 2))),
    "T": (lambda x: x.T, lambda x: x.T),
    "rows": (lambda x: sum(x), lambda x: sum(x)),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor_agree_with_torch(name: str) -> None:
    """Each function's values and gradients are torch's, on 3 x 4 normal numbers."""
    same_as_torch(*UNARY[name], draw(3, 4))


@pytest.mark.parametrize("axes", [(2, 0, 1), (0, -1, 1), (1, 2, 0)])
def test_transpose_sends_gradients_back_to_their_axes(axes: Shape) -> None:
    """An order of three axes, one of them counted from the end, is undone on the way back."""
    same_as_torch(lambda x: x.transpose(*axes), lambda x: x.permute(axes), draw(2, 3, 4))


BINARY: dict[str, tuple[Function, Function]] = {
    "+": (lambda x, y: x + y, lambda x, y: x + y),
    "-": (lambda x, y: x - y, lambda x, y: x - y),
    "*": (lambda x, y: x * y, lambda x, y: x * y),
    "/": (lambda x, y: x / (y * y + 0.5), lambda x, y: x / (y * y + 0.5)),
    "**": (lambda x, y: (x * x + 0.5) ** y, lambda x, y: (x * x + 0.5) ** y),
    "maximum": (lambda x, y: x.maximum(y), torch.maximum),
    "minimum": (lambda x, y: x.minimum(y), torch.minimum),
}


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=25, deadline=None, database=None)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3))
def test_broadcasting_is_undone_on_the_way_back(name: str, shapes: Any) -> None:
    """Operands of any two shapes that broadcast get gradients of their own shapes: torch's."""
    left, right = shapes.input_shapes
    same_as_torch(*BINARY[name], draw(*left), draw(*right, seed=1))


def test_equal_operands_share_the_gradient_of_maximum_and_minimum() -> None:
    """Where x equals y each gets half, as in torch."""
    for name in ("maximum", "minimum"):
        same_as_torch(*BINARY[name], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (4, 3, 2)),
        ((3,), (5, 3, 4)),
        ((5, 2, 3), (3,)),
    ],
)
def test_matmul_agrees_with_torch_for_vectors_matrices_and_batches(
    left: Shape, right: Shape
) -> None:
    """Vectors on either side and batches that broadcast get torch's gradients."""
    product: Function = lambda x, y: x @ y  # noqa: E731
    same_as_torch(product, product, draw(*left), draw(*right, seed=1))


INDICES: dict[str, Any] = {
    "an integer": 1,
    "a negative integer": -1,
    "a slice": slice(None, None, 2),
    "a pair": (2, 3),
    "a column": (slice(None), 1),
    "a new axis": (None, ..., 0),
    "repeated rows": [0, 2, 0, 0],
    "repeated elements": ([0, 1, 0], [3, 3, 3]),
    "an array of rows": np.array([[0, 1], [1, 1]]),
    "a mask": np.arange(12).reshape(3, 4) % 3 == 0,
    "a mask of rows": np.array([True, False, True]),
    "nothing": slice(0, 0),
}


@pytest.mark.parametrize("name", INDICES)
def test_indexing_agrees_with_torch(name: str) -> None:
    """Any index gives torch's values; an element taken several times gets all the gradients."""
    same_as_torch(lambda x: x[INDICES[name]], lambda x: x[INDICES[name]], draw(3, 4))


def test_equal_largest_elements_share_the_gradient() -> None:
    """Two maxima of a row get half each, as torch.amax gives them."""
    x = Tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]])
    x.max(axis=1).sum().backward()
    np.testing.assert_array_equal(x.grad, [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])


def test_cross_entropy_agrees_with_torch() -> None:
    """The mean over targets of any shape has torch's value and gradient."""
    targets = np.array([[0, 3, 1], [2, 2, 0]])
    same_as_torch(
        lambda x: x.cross_entropy(targets),
        lambda x: torch.nn.functional.cross_entropy(
            x.reshape(-1, 4), torch.tensor(targets).reshape(-1)
        ),
        draw(2, 3, 4),
    )


def test_extreme_scores_stay_finite() -> None:
    """Scores of +-1000 give exact losses and slopes, no overflow."""
    scores = Tensor([[1000.0, -1000.0]])
    loss = scores.cross_entropy([1])
    loss.backward()
    assert float(loss) == 2000.0
    np.testing.assert_array_equal(scores.grad, [[1.0, -1.0]])
    ends: Function = lambda x: x.tanh() + x.sigmoid() + x.softplus()  # noqa: E731
    peers: Function = lambda x: (  # noqa: E731
        x.tanh() + x.sigmoid() + torch.nn.functional.softplus(x)
    )
    same_as_torch(ends, peers, [-1000.0, -30.0, 0.0, 30.0, 1000.0])


def test_sigmoid_of_a_very_negative_number_keeps_its_digits() -> None:
    """sigmoid(-40) is e ** -40, not the 0 that (1 + tanh(-20)) / 2 gives."""
    assert float(Tensor(-40.0).sigmoid()) == pytest.approx(np.exp(-40.0), rel=1e-15)


def test_slopes_at_corners_are_those_of_torch() -> None:
    """Relu and abs at 0, x ** 0 and 0 ** y at x = 0 have torch's derivatives."""
    same_as_torch(lambda x: x.relu() + abs(x), lambda x: x.relu() + x.abs(), [0.0, -0.0, 1.0])
    power: Function = lambda x, y: x**y  # noqa: E731
    same_as_torch(power, power, [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.0])
    same_as_torch(lambda x: x**2, lambda x: x**2, [-3.0, 0.0, 2.0])


# ---- the backward pass


def test_case_02_each_backward_adds_its_gradient_once() -> None:
    """Two passes over one graph give 6, then 12, in the middle of the graph as well."""
    x = Tensor([3.0])
    square = x * x
    loss = square.sum()
    for expected in (1.0, 2.0):
        loss.backward()
        np.testing.assert_array_equal(x.grad, [6.0 * expected])
        np.testing.assert_array_equal(square.grad, [expected])
        assert loss.grad == expected
    x.zero_grad()
    np.testing.assert_array_equal(x.grad, [0.0])


def test_two_losses_that_share_a_subgraph_add_up() -> None:
    """Gradients of both losses meet in the shared part as torch adds them."""
    x, peer = Tensor(draw(3)), torch.tensor(draw(3), requires_grad=True)
    shared, peer_shared = (x * x).tanh(), (peer * peer).tanh()
    for losses in (
        (shared.sum(), (shared * x).sum()),
        (peer_shared.sum(), (peer_shared * peer).sum()),
    ):
        for loss in losses:
            loss.backward(**({"retain_graph": True} if isinstance(loss, torch.Tensor) else {}))
    assert peer.grad is not None
    np.testing.assert_allclose(x.grad, peer.grad.numpy(), rtol=1e-12)


def test_a_node_used_many_times_gets_every_gradient_before_it_passes_them_on() -> None:
    """Twenty doublings by x + x give a slope of 2 ** 20 at the first pass."""
    x = Tensor(1.0)
    y = x
    for _ in range(20):
        y = y + y
    y.backward()
    assert x.grad == 2.0**20


def test_a_gradient_read_earlier_stays_as_it_was() -> None:
    """`before = x.grad` keeps its numbers when another pass adds to x.grad."""
    x = Tensor([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward()
    before = x.grad
    loss.backward()
    np.testing.assert_array_equal(before, [2.0, 4.0])


def test_constants_get_no_part_in_the_graph() -> None:
    """Numbers and arrays are no parents, Tensors are."""
    x = Tensor([1.0, 2.0])
    assert (x * np.ones(2) + 3.0).parents()[0].parents() == (x,)
    assert (x @ x).parents() == (x, x)


def test_case_01_a_chain_of_100_000_nodes_needs_no_recursion() -> None:
    """Forward, backward and freeing a long chain work, with the collector switched off."""
    gc.disable()
    try:
        x = Tensor(1.0)
        y = x
        for _ in range(100_000):
            y = y + 1e-5
        y.backward()
        assert x.grad == 1.0
        middle = weakref.ref(y.parents()[0])
        del y
        assert middle() is None
    finally:
        gc.enable()


def test_a_graph_is_freed_by_reference_counting_alone() -> None:
    """No operation's node is part of a cycle: each dies with its last name."""
    x = Tensor(np.abs(draw(3, 4)) + 0.1)
    results: list[Function] = [lambda f=ours: f(x) for ours, _ in UNARY.values()]
    results += [lambda f=ours: f(x, x) for ours, _ in BINARY.values()]
    results += [lambda: x @ x.T, lambda: x[0], lambda: x.T, lambda: x.cross_entropy([0, 1, 2])]
    gc.disable()
    try:
        for make in results:
            out = make()
            out.sum().backward()
            alive = weakref.ref(out)
            del out
            assert alive() is None
    finally:
        gc.enable()


def test_leaves_can_be_copied_and_pickled_and_results_say_why_not() -> None:
    """A copied leaf has its numbers and gradient; a result is refused by name."""
    x = Tensor([1.0, 2.0])
    (x * x).sum().backward()
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        np.testing.assert_array_equal(twin.data, x.data)
        np.testing.assert_array_equal(twin.grad, x.grad)
        assert twin.data is not x.data
    with pytest.raises(UsageError, match="a result of 'exp'"):
        copy.deepcopy(x.exp())


def test_a_tensor_copies_the_array_it_is_made_from() -> None:
    """Training a parameter in place leaves the array of initial weights alone."""
    initial = np.ones(3)
    weight = Tensor(initial)
    weight.data -= 1.0
    np.testing.assert_array_equal(initial, 1.0)


def test_a_copied_leaf_has_a_gradient_of_its_own() -> None:
    """In a shallow copy too."""
    x = Tensor([1.0, 2.0])
    twin = copy.copy(x)
    twin.grad += 1.0
    twin.data += 1.0
    np.testing.assert_array_equal(x.grad, 0.0)
    np.testing.assert_array_equal(x.data, [1.0, 2.0])


CHANGED: dict[str, Function] = {
    **{name: ours for name, (ours, _) in UNARY.items()},
    **{name: lambda x, f=ours: f(x, x * 0.5) for name, (ours, _) in BINARY.items()},
    **{f"{name}, reversed": lambda x, f=ours: f(x * 0.5, x) for name, (ours, _) in BINARY.items()},
    "log of a leaf": lambda x: x.log(),
    "x * x": lambda x: x * x,
    "x @ x.T": lambda x: x @ x.T,
    "vector": lambda x: x[0] @ x.T + x @ x[1],
    "rows 0 and 2": lambda x: x[[0, 2]],
    "cross_entropy": lambda x: x.cross_entropy([0, 3, 1]),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_leaf_changed_in_place_before_backward_does_not_change_its_gradient(name: str) -> None:
    """The derivative is that at the numbers the operation saw, as in the scalar engine."""
    grads = []
    for change in (0.0, 3.0):
        x = Tensor(np.abs(draw(3, 4)) + 0.1)
        out = CHANGED[name](x)
        value = out.data.copy()
        x.data += change
        x.data *= 1.0 - change
        (out * np.arange(1, 1 + out.data.size).reshape(out.shape)).sum().backward()
        np.testing.assert_array_equal(out.data, value)
        grads.append(x.grad)
    np.testing.assert_array_equal(grads[0], grads[1])
    assert grads[0].any()


def test_constants_and_indices_changed_before_backward_do_not_change_a_gradient() -> None:
    """Arrays and lists belong to the caller, who may fill them anew for the next batch."""
    x = Tensor([1.0, 2.0, 3.0])
    c, rows, mask = np.array([1.0, 2.0, 4.0]), [0, 0], np.array([True, False, True])
    targets = np.array([1])
    results = [x * c, x / c, x.maximum(c), x.minimum(c), x @ c, abs(x) ** c, x[rows], x[mask]]
    results += [x[(rows,)], x.reshape(1, 3).cross_entropy(targets)]
    expected: list[Any] = []
    for attempt in range(2):
        if attempt:
            c[:] = 3.0
            rows[:] = [1, 2]
            mask[:] = True
            targets[:] = 0
        for i, out in enumerate(results):
            x.zero_grad()
            out.sum().backward()
            if attempt:
                np.testing.assert_array_equal(x.grad, expected[i])
            else:
                expected.append(x.grad)


def test_a_result_is_read_only_and_shares_no_memory_with_a_leaf() -> None:
    """A change in place is refused; another array in `data` changes no derivative."""
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    for out in (x.reshape(4), x[:], x[0], x.T, x.transpose(0, 1), x + 0.0):
        assert not np.shares_memory(out.data, x.data)
        with pytest.raises(ValueError, match="read-only"):
            out.data += 1.0
    assert np.shares_memory(out.data, out.T.data)  # a view of what nobody can change costs nothing
    y = Tensor(1.0)
    e = y.exp()
    e.data = e.data * 0.0
    e.backward()
    assert float(y.grad) == pytest.approx(np.e)


def test_case_03_gradients_that_add_up_to_infinity_are_an_error() -> None:
    """Over two passes, or in one; nothing is added, and numpy warns of nothing."""
    x = Tensor(1.0)
    loss = x * 1e308
    loss.backward()
    with pytest.raises(NumericalError, match="a gradient added to earlier ones"):
        loss.backward()
    assert float(x.grad) == 1e308
    y = Tensor(0.0)
    with pytest.raises(NumericalError, match="a gradient added to earlier ones"):
        (y * 1e308 + y * 1e308).backward()
    assert float(y.grad) == 0.0


def test_log_softmax_takes_the_largest_of_each_row() -> None:
    """A row near 1e4 leaves nothing of the exponentials of a row near 0, were it the only one."""
    same_as_torch(lambda x: x.log_softmax(), lambda x: x.log_softmax(-1), [[0.0, 0.0], [1e4, 0.0]])


def test_comparisons_are_of_data_and_a_tensor_is_its_own_key() -> None:
    """Comparisons give arrays of booleans; equal Tensors are two keys of a dict."""
    x = Tensor([1.0, 2.0, 3.0])
    for found, expected in [
        (x < 2, [True, False, False]),
        (x <= 2, [True, True, False]),
        (x > Tensor(2.0), [False, False, True]),
        (x >= 2, [False, True, True]),
        (x == 2, [False, True, False]),
    ]:
        np.testing.assert_array_equal(found, expected)
    assert len({x: 0, Tensor(x.data): 1}) == 2


def test_the_repr_shows_the_numbers() -> None:
    """Rows line up as numpy prints them."""
    assert repr(Tensor([[1.0, 2.0], [3.0, 4.0]])) == "Tensor([[1., 2.],\n        [3., 4.]])"


# ---- the same numbers as the scalar engine


def test_scalar_and_tensor_engines_agree() -> None:
    """One expression with every function of both engines gives the same value and slopes."""

    def expression(a: Any, b: Any) -> Any:
        c = (a * b + b**3).tanh() + (a - 2 / b).sigmoid() * a.exp()
        c = c + a.softplus().sqrt() + (a * a + 1.0).log() - b.sin() * a.cos()
        return c.relu() + abs(b) + 2.0**a + a.softplus() ** b

    a, b, tensor_a, tensor_b = Value(0.7), Value(-1.3), Tensor(0.7), Tensor(-1.3)
    scalar, tensor = expression(a, b), expression(tensor_a, tensor_b)
    scalar.backward()
    tensor.backward()
    assert scalar.data > 0.1
    assert float(tensor) == pytest.approx(scalar.data, rel=1e-14)
    assert float(tensor_a.grad) == pytest.approx(a.grad, rel=1e-13)
    assert float(tensor_b.grad) == pytest.approx(b.grad, rel=1e-13)


# ---- errors


X = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
NONE: Any = None
VALUE: Any = Value(1.0)

MISTAKES: dict[str, tuple[Function, type[Exception], str]] = {
    "log of 0": (
        lambda: Tensor([1.0, 0.0]).log(),
        NumericalError,
        r"^log at .*test_tensor\.py:\d+: the result is -inf at \(1,\) of \(2,\)$",
    ),
    "log below 0": (lambda: (-X).log(), NumericalError, "^log at .*: the result is nan"),
    "root below 0": (lambda: (-X).sqrt(), NumericalError, "^sqrt at .*: the result is nan"),
    "0 ** -1": (lambda: Tensor(0.0) ** -1, NumericalError, r"^\*\* at .*: the result is inf$"),
    "(-8) ** (1 / 3)": (lambda: Tensor(-8.0) ** (1 / 3), NumericalError, r"^\*\* at .* is nan$"),
    "division by 0": (lambda: X / (X - 1.0), NumericalError, r"^/ at .* is inf at \(0, 0\)"),
    "overflow of exp": (lambda: Tensor(1000.0).exp(), NumericalError, "^exp at .* is inf$"),
    "overflow of *": (lambda: Tensor(1e200) * 1e200, NumericalError, r"^\* at .* is inf$"),
    "overflow of @": (lambda: (X * 1e200) @ (X.T * 1e200), NumericalError, "^@ at .* is inf"),
    "a constant NaN": (lambda: X * float("nan"), NumericalError, r"^\* at .* is nan at \(0, 0\)"),
    "mean of nothing": (lambda: X[0:0].mean(), NumericalError, "^/ at .* is nan$"),
    "slope of the root at 0": (
        lambda: Tensor(0.0).sqrt().backward(),
        NumericalError,
        r"^the derivative of 'sqrt' at .*test_tensor\.py:\d+: the result is inf",
    ),
    "NaN": (lambda: Tensor([1.0, float("nan")]), DataError, r"^Tensor at .*: NaN or infinity"),
    "infinity": (lambda: Tensor(float("inf")), DataError, r"^Tensor at .*: NaN or infinity"),
    "ragged rows": (lambda: Tensor([[1.0], [1.0, 2.0]]), DataError, "rows differ in length"),
    "text": (lambda: Tensor("2"), DataError, "real numbers are needed, not a str"),
    "None": (lambda: X.maximum(NONE), DataError, "real numbers are needed, not a NoneType"),
    "a Value": (lambda: X * VALUE, DataError, "real numbers are needed, not a Value"),
    "a list of Tensors": (lambda: Tensor([X, X]), DataError, "needed, not object elements"),
    "complex": (lambda: Tensor(1j), DataError, "real numbers are needed, not a complex"),  # type: ignore[arg-type]
    "shapes of +": (
        lambda: X + np.ones(2),
        DataError,
        r"^\+ of \(2, 3\) and \(2,\) at .*test_tensor\.py:\d+: these shapes do not fit$",
    ),
    "shapes of @": (lambda: X @ X, DataError, r"^@ of \(2, 3\) and \(2, 3\) at .*do not fit$"),
    "@ of a number": (lambda: X @ 2.0, DataError, r"^@ of \(2, 3\) and \(\) at .*do not fit$"),
    "reshape": (lambda: X.reshape(4), DataError, r"^reshape of \(2, 3\) at .*into shape \(4,\)$"),
    "axis": (lambda: X.sum(2), DataError, r"^sum of \(2, 3\) at .*axis 2 is out of bounds"),
    "index": (lambda: X[2], IndexError, r"^index of \(2, 3\) at .*index 2 is out of bounds"),
    "max of nothing": (lambda: X[0:0].max(), DataError, r"^max of \(0, 3\) at "),
    "backward of many": (lambda: X.backward(), UsageError, r"one number, not from \(2, 3\); take"),
    "float of many": (lambda: float(X), ValueError, "size 1"),
    "targets too large": (
        lambda: X.cross_entropy([0, 3]),
        DataError,
        r"targets from 0 to 3 are not all classes of scores \(2, 3\), 0 to 2$",
    ),
    "cross_entropy of a number": (
        lambda: Tensor(3.0).cross_entropy(NONE or np.array(0)),
        DataError,
        r"^cross_entropy at .*test_tensor\.py:\d+: the scores are one number; it needs a score",
    ),
    "negative targets": (lambda: X.cross_entropy([0, -1]), DataError, "targets from -1 to 0"),
    "too few targets": (
        lambda: X.cross_entropy([0]),
        DataError,
        r"scores \(2, 3\) need integer targets \(2,\), not int64 \(1,\)$",
    ),
    "targets of floats": (lambda: X.cross_entropy([0.0, 1.0]), DataError, r"not float64 \(2,\)$"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", MISTAKES)
def test_case_03_a_mistake_is_one_line_naming_operation_shapes_and_the_users_line(
    name: str,
) -> None:
    """Nothing becomes inf, nan or a numpy warning in silence."""
    mistake, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=f"(?m){message}") as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_a_failed_backward_leaves_every_gradient_as_it_was() -> None:
    """After an infinite slope no node has half of a pass added to it."""
    x, zero = Tensor(2.0), Tensor(0.0)
    (x * x).backward()
    loss = x * 3.0 + zero.sqrt()
    with pytest.raises(NumericalError):
        loss.backward()
    assert (float(x.grad), float(zero.grad), float(loss.grad)) == (4.0, 0.0, 0.0)


def test_unbroadcast_sums_what_was_repeated() -> None:
    """The docstring's example: (5, 2, 3) to (2, 1) sums over axes 0 and 2."""
    g = draw(5, 2, 3)
    np.testing.assert_allclose(unbroadcast(g, (2, 1)), g.sum((0, 2)).reshape(2, 1), rtol=1e-12)

"""The scalar engine's ideas on numpy arrays: a node for a whole array, the same backward walk.

Read it beside `engine.py`. A `Value` keeps its local derivative by each parent, a number. For an
array that derivative is a matrix nobody wants to store, so a `Tensor` keeps a function instead:
`vjp(g, y)` returns g, the gradient of the result y, times that matrix (the vector-Jacobian
product). What numpy broadcast on the way forward, `unbroadcast` sums up on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from micrograd.errors import DataError, UsageError
from micrograd.numeric import failure, user_line

Array: TypeAlias = NDArray[np.float64]
Axis: TypeAlias = int | tuple[int, ...] | None
Operand: TypeAlias = "Tensor | float | Sequence[Any] | NDArray[Any]"
VJP: TypeAlias = Callable[[Array, Array], Array]


class Tensor:
    """An array of float64 that remembers how it was computed.

    `data` is the array, copied from numbers, nested lists or an array, and `grad`, of its shape,
    the derivative of what `backward` was called on. `_op` names the operation, "" for a leaf, and
    `_edges` pairs each parent with its vjp; no parent knows the node, so there is no cycle. What
    is not a Tensor in an expression is a constant: nothing is computed for its gradient.

    As in the scalar engine, derivatives are those at the numbers that the operation saw. So the
    vjps keep copies of constants, indices and leaves (a training loop changes these in place at
    any time), and a result, which they share, is read-only: numpy refuses `result.data += 1`. Of
    a result `_result` is its array, whatever `data` is set to later.

    Raises DataError for what is not made of numbers, NaN, infinity, ragged lists and shapes that
    do not fit, NumericalError for a result that is not finite; each names the user's line.
    """

    __slots__ = ("__weakref__", "_edges", "_op", "_result", "data", "grad")
    _result: Array
    __array_ufunc__ = None  # NumPy then leaves `array * tensor` to us

    def __init__(self, data: Operand) -> None:
        self.data: Array = np.array(_array(data))
        self.grad: Array = np.zeros(self.data.shape)
        self._op = ""
        self._edges: tuple[tuple[Tensor, VJP], ...] = ()
        if not np.isfinite(self.data).all():
            raise DataError(f"Tensor at {user_line()}: NaN or infinity; clean the data first")

    # ---- arithmetic: x and y are the operands' arrays, which broadcast as numpy's do

    def __add__(self, other: Operand) -> Tensor:
        return _node("+", np.add, (self, other), lambda g, _: g, lambda g, _: g)

    def __sub__(self, other: Operand) -> Tensor:
        return _node("-", np.subtract, (self, other), lambda g, _: g, lambda g, _: -g)

    def __mul__(self, other: Operand) -> Tensor:
        x, y = _kept(self), _kept(other)
        return _node("*", np.multiply, (self, other), lambda g, _: g * y, lambda g, _: g * x)

    def __truediv__(self, other: Operand) -> Tensor:
        y = _kept(other)
        return _node("/", np.divide, (self, other), lambda g, _: g / y, lambda g, q: -g * q / y)

    def __pow__(self, other: Operand) -> Tensor:
        x, y = _kept(self), _kept(other)
        return _node(
            "**",
            np.power,
            (self, other),
            # x ** 0 is 1 for every x, and 0 ** y is 0 for every y > 0: both slopes are 0.
            lambda g, _: g * np.where(y == 0, 0, y * x ** (y - 1)),
            lambda g, p: g * p * np.log(np.where(x == 0, 1, x)),
        )

    def __matmul__(self, other: Operand) -> Tensor:
        """Map (..., n, k) @ (..., k, m) to (..., n, m); either side may be a vector (k,)."""
        x, y = _kept(self), _kept(other)
        if y.ndim == 1:  # (..., k) @ (k,) -> (...,): a weight for each of the x vectors
            vjps: tuple[VJP, VJP] = (
                lambda g, _: g[..., None] * y,
                lambda g, _: g[..., None] * x,
            )
        else:  # a vector x is a matrix with one row, and so is its result
            row: Any = (..., None, slice(None)) if x.ndim == 1 else ...
            vjps = (
                lambda g, _: g[row] @ y.swapaxes(-1, -2),
                lambda g, _: x[row].swapaxes(-1, -2) @ g[row],
            )
        return _node("@", np.matmul, (self, other), *vjps)

    def __neg__(self) -> Tensor:
        return _node("neg", np.negative, (self,), lambda g, _: -g)

    def __radd__(self, other: Operand) -> Tensor:
        return self + other

    def __rsub__(self, other: Operand) -> Tensor:
        return -self + other

    def __rmul__(self, other: Operand) -> Tensor:
        return self * other

    def __rtruediv__(self, other: Operand) -> Tensor:
        return Tensor(other) / self

    def __rpow__(self, other: Operand) -> Tensor:
        return Tensor(other) ** self

    def __rmatmul__(self, other: Operand) -> Tensor:
        return Tensor(other) @ self

    # ---- comparisons give arrays of booleans; in a set or dict a Tensor is itself alone

    def __lt__(self, other: Operand) -> NDArray[np.bool_]:
        return self.data < _array(other)

    def __le__(self, other: Operand) -> NDArray[np.bool_]:
        return self.data <= _array(other)

    def __gt__(self, other: Operand) -> NDArray[np.bool_]:
        return self.data > _array(other)

    def __ge__(self, other: Operand) -> NDArray[np.bool_]:
        return self.data >= _array(other)

    def __eq__(self, other: Any) -> Any:
        return self.data == _array(other)

    __hash__ = object.__hash__

    # ---- functions of each element; y is the result

    def exp(self) -> Tensor:
        """Return e ** x."""
        return _node("exp", np.exp, (self,), lambda g, y: g * y)

    def log(self) -> Tensor:
        """Return the natural logarithm; zero and below raise NumericalError."""
        x = _kept(self)
        return _node("log", np.log, (self,), lambda g, _: g / x)

    def sqrt(self) -> Tensor:
        """Return the square root; below zero raises NumericalError, as does its slope at zero."""
        return _node("sqrt", np.sqrt, (self,), lambda g, y: g / (2 * y))

    def sin(self) -> Tensor:
        """Return the sine of x, in radians."""
        x = _kept(self)
        return _node("sin", np.sin, (self,), lambda g, _: g * np.cos(x))

    def cos(self) -> Tensor:
        """Return the cosine of x, in radians."""
        x = _kept(self)
        return _node("cos", np.cos, (self,), lambda g, _: -g * np.sin(x))

    def tanh(self) -> Tensor:
        """Return the hyperbolic tangent."""
        return _node("tanh", np.tanh, (self,), lambda g, y: g * (1 - y * y))

    def sigmoid(self) -> Tensor:
        """Return 1 / (1 + e ** -x), without overflow at either end."""
        return _node("sigmoid", _sigmoid, (self,), lambda g, y: g * y * (1 - y))

    def softplus(self) -> Tensor:
        """Return log(1 + e ** x), the smooth ReLU, without overflow at either end."""
        x = _kept(self)
        return _node(
            "softplus", lambda x: np.logaddexp(0, x), (self,), lambda g, _: g * _sigmoid(x)
        )

    def relu(self) -> Tensor:
        """Return max(x, 0); its slope at 0 is 0."""
        return _node("relu", lambda x: np.maximum(x, 0), (self,), lambda g, y: g * (y > 0))

    def __abs__(self) -> Tensor:
        x = _kept(self)
        return _node("abs", np.abs, (self,), lambda g, _: g * np.sign(x))

    def maximum(self, other: Operand) -> Tensor:
        """Return the larger of each pair; where they are equal, each gets half the gradient."""
        x, y = _kept(self), _kept(other)
        vjps = (lambda g, _: g * _share(x, y)), (lambda g, _: g * _share(y, x))
        return _node("maximum", np.maximum, (self, other), *vjps)

    def minimum(self, other: Operand) -> Tensor:
        """Return the smaller of each pair; where they are equal, each gets half the gradient."""
        x, y = _kept(self), _kept(other)
        vjps = (lambda g, _: g * _share(y, x)), (lambda g, _: g * _share(x, y))
        return _node("minimum", np.minimum, (self, other), *vjps)

    # ---- over axes: None is all of them, else an axis or several

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the sum over `axis`, which stays with length 1 when `keepdims`."""
        shape = self.data.shape
        return _node(
            "sum",
            lambda x: x.sum(axis, keepdims=keepdims),
            (self,),
            lambda g, _: np.broadcast_to(_restore(g, axis, keepdims), shape),
        )

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the mean over `axis`; of nothing at all it raises NumericalError."""
        total = self.sum(axis, keepdims)
        return total / (self.data.size / max(total.data.size, 1))

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the largest over `axis`; elements that tie share the gradient equally."""
        x = _kept(self)

        def vjp(g: Array, y: Array) -> Array:
            largest = x == _restore(y, axis, keepdims)
            share: Array = largest / largest.sum(axis, keepdims=True)
            return _restore(g, axis, keepdims) * share

        return _node("max", lambda x: x.max(axis, keepdims=keepdims), (self,), vjp)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Return the smallest over `axis`; elements that tie share the gradient equally."""
        return -((-self).max(axis, keepdims))

    def log_softmax(self, axis: int = -1) -> Tensor:
        """Return log(e ** x / sum(e ** x)) along `axis`, for scores of any size."""

        def forward(x: Array) -> Any:
            x = x - x.max(axis, keepdims=True)  # so that no exp overflows
            return x - np.log(np.exp(x).sum(axis, keepdims=True))

        def vjp(g: Array, y: Array) -> Any:
            return g - np.exp(y) * g.sum(axis, keepdims=True)

        return _node("log_softmax", forward, (self,), vjp)

    def cross_entropy(self, targets: Sequence[Any] | NDArray[Any]) -> Tensor:
        """Return the mean of -log softmax(scores)[target]: scores (..., C), targets (...).

        Raises DataError for targets of another shape and for classes outside 0..C-1.
        """
        classes, shape = np.asarray(targets), self.data.shape
        if not shape:
            raise DataError(
                f"cross_entropy at {user_line()}: the scores are one number; it needs a score for "
                "each class, shape (..., C)"
            )
        if classes.dtype.kind not in "iu" or classes.shape != shape[:-1]:
            raise DataError(
                f"cross_entropy at {user_line()}: scores {shape} need integer targets "
                f"{shape[:-1]}, not {classes.dtype} {classes.shape}"
            )
        if classes.size and not 0 <= classes.min() <= classes.max() < shape[-1]:
            raise DataError(
                f"cross_entropy at {user_line()}: targets from {classes.min()} to {classes.max()} "
                f"are not all classes of scores {shape}, 0 to {shape[-1] - 1}"
            )
        return -self.log_softmax()[(*np.indices(classes.shape), classes)].mean()

    # ---- the same numbers in another shape

    def reshape(self, *shape: Any) -> Tensor:
        """Return the same elements in `shape`, integers or a tuple; one length may be -1."""
        was = self.data.shape
        return _node("reshape", lambda x: x.reshape(*shape), (self,), lambda g, _: g.reshape(was))

    def transpose(self, *axes: int) -> Tensor:
        """Return axis axes[i] as axis i; without `axes`, all of them in reverse."""
        order = axes or tuple(reversed(range(self.data.ndim)))
        return _node(
            "transpose",
            lambda x: x.transpose(order),
            (self,),
            lambda g, _: g.transpose(np.argsort([axis % g.ndim for axis in order])),
        )

    def __getitem__(self, key: Any) -> Tensor:
        """Return what numpy's indexing returns; an element taken twice gets both gradients."""
        shape, key = self.data.shape, deepcopy(key)

        def vjp(g: Array, _: Array) -> Array:
            out = np.zeros(shape)
            np.add.at(out, key, g)  # `out[key] += g` would count a repeated index once
            return out

        return _node("index", lambda x: x[key], (self,), vjp)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self.data)))

    @property
    def T(self) -> Tensor:  # noqa: N802 - numpy's name
        """The tensor with its axes in reverse."""
        return self.transpose()

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self.data.shape

    def __float__(self) -> float:
        return self.data.item()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a leaf be pickled and copied; the graph above it is not part of it."""
        if self._edges:
            raise UsageError(
                f"a result of {self._op!r} can't be copied or pickled, only leaves can; "
                "Tensor(t.data) is a leaf with its numbers"
            )
        return _leaf, (self.data, self.grad)

    def __repr__(self) -> str:
        return f"Tensor({np.array2string(self.data, separator=', ', prefix='Tensor(')})"

    # ---- the backward pass

    def backward(self) -> None:
        """Add d self / d node to the `grad` of every node below, self included.

        Each call adds its own gradient once, as PyTorch's does with a retained graph. Nodes are
        visited when all their uses have been (Kahn, 1962), on a stack: no recursion. An error
        leaves every `grad` as it was. Raises UsageError unless self is one number, NumericalError
        for a gradient that is not finite.
        """
        if self.data.size != 1:
            raise UsageError(
                f"backward at {user_line()}: starts from one number, not from {self.shape}; take "
                "the sum or the mean first"
            )
        uses = _count_uses(self)
        grads = {self: np.ones(self.shape)}
        ready = [self]
        with np.errstate(all="ignore"):  # what numpy would warn of is an error here
            while ready:
                node = ready.pop()
                for parent, vjp in node._edges:
                    part = unbroadcast(vjp(grads[node], node._result), parent.data.shape)
                    _check_finite(node._op, f"the derivative of {node._op!r}", part)
                    grads[parent] = grads[parent] + part if parent in grads else part
                    uses[parent] -= 1
                    if not uses[parent]:
                        ready.append(parent)
            totals = [(node, np.asarray(node.grad + grad)) for node, grad in grads.items()]
            for node, total in totals:
                _check_finite(node._op, "a gradient added to earlier ones", total)
        for node, total in totals:
            node.grad = total

    def zero_grad(self) -> None:
        """Set this node's `grad` to zero."""
        self.grad = np.zeros(self.shape)

    def parents(self) -> tuple[Tensor, ...]:
        """Return the Tensors this one was computed from, () for a leaf."""
        return tuple(parent for parent, _ in self._edges)


def _leaf(data: Array, grad: Array) -> Tensor:
    leaf = Tensor(data)
    leaf.grad = np.array(grad)
    return leaf


def _node(
    op: str, forward: Callable[..., Any], operands: tuple[Operand, ...], *vjps: VJP
) -> Tensor:
    """Return the node for forward(*operands), with an edge to each operand that is a Tensor."""
    arrays = [_array(operand) for operand in operands]
    try:
        with np.errstate(all="ignore"):
            data = np.asarray(forward(*arrays))
    except (ValueError, IndexError) as error:
        shapes = " and ".join(str(array.shape) for array in arrays)
        reason = "these shapes do not fit" if len(arrays) > 1 else str(error)
        kind = DataError if isinstance(error, ValueError) else IndexError
        raise kind(f"{op} of {shapes} at {user_line()}: {reason}") from None
    _check_finite(op, op, data)
    if data.base is not None and any(array.flags.writeable for array in arrays):
        data = data.copy()  # a view, such as x.T, would change with x
    data.flags.writeable = False
    node = Tensor.__new__(Tensor)
    node.data, node._result, node.grad, node._op = data, data, np.zeros(data.shape), op
    node._edges = tuple(
        (operand, vjp)
        for operand, vjp in zip(operands, vjps, strict=True)
        if isinstance(operand, Tensor)
    )
    return node


def _count_uses(root: Tensor) -> dict[Tensor, int]:
    """Return for every node that `root` is made of how many edges lead to it."""
    uses, stack = {root: 0}, [root]
    while stack:
        for parent, _ in stack.pop()._edges:
            if parent not in uses:
                stack.append(parent)
            uses[parent] = uses.get(parent, 0) + 1
    return uses


def unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum `g` over the axes along which numpy repeated an array of `shape` to get g's shape.

    (5, 2, 3) to (2, 1): axis 0 was put in front and is summed away, axis 2 is summed to length 1.
    """
    if g.shape == shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n != g.shape[i])
    return np.asarray(g.sum(axis=stretched, keepdims=True))


def _restore(a: Array, axis: Axis, keepdims: bool) -> Array:
    """Give `a` back the axes that a sum over `axis` without `keepdims` has taken."""
    return a if keepdims or axis is None else np.asarray(np.expand_dims(a, axis))


def _sigmoid(x: Array) -> Array:
    small: Array = np.exp(-np.abs(x))  # at most 1, where e ** 1000 would overflow
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


def _share(x: Array, y: Array) -> Array:
    """Return 1 where x > y, 1/2 where they are equal, 0 where x < y."""
    return np.asarray(np.where(x == y, 0.5, x > y))


def _array(value: Operand) -> Array:
    """Return the array of a Tensor or of numbers, as float64. Raises DataError."""
    if isinstance(value, Tensor):
        return value.data
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"Tensor at {user_line()}: the rows differ in length") from None
    if array.dtype.kind not in "biuf":
        what = f"{array.dtype} elements" if array.ndim else f"a {type(value).__name__}"
        raise DataError(f"Tensor at {user_line()}: real numbers are needed, not {what}")
    with np.errstate(all="ignore"):  # a long double can be too large: then it is infinity
        return array.astype(np.float64, copy=False)


def _kept(value: Operand) -> Array:
    """Return the array of an operand for a vjp: nobody can change it before `backward`."""
    array = _array(value)
    is_result = isinstance(value, Tensor) and not array.flags.writeable
    return array if is_result else array.copy()


def _check_finite(op: str, what: str, data: Array) -> None:
    """Raise NumericalError, naming the first element that is NaN or infinite."""
    if not np.isfinite(data).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(data))[0])
        where = f" at {index} of {data.shape}" if index else ""
        raise failure(op, what, f"the result is {data[index]}{where}")

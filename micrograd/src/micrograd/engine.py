"""A scalar autograd engine: numbers that know how they were made, and pass gradients back.

For L = f(y) and y = g(x), the chain rule says dL/dx = dL/dy * dy/dx. So each operation writes down,
at the moment it is computed, its inputs and the *local* derivatives dy/dx as plain numbers, and
`backward` multiplies them together from L down to the inputs (reverse accumulation; Linnainmaa,
1970; Baydin et al., 2018, sec. 3.2). A value that is used twice receives two such products, and
they add up.

A node holds its inputs, and no input holds a node: there is no closure and no cycle. When the last
name for a result goes, reference counting frees its whole graph, and Python's garbage collector,
which spends most of a closure-based engine's time, finds nothing to do.

    a, b = Value(2.0), Value(-3.0)
    loss = (a * b + 10).relu()
    loss.backward()
    a.grad  # -3.0
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from micrograd.errors import NumericalError, UsageError
from micrograd.numeric import (
    MAX,
    compute,
    failure,
    number,
    power,
    power_by_exponent,
    sigmoid,
    slope,
    user_line,
)

Number: TypeAlias = "Value | float"

tracing = False
"""Whether new nodes note the line of the program that made them (see `trace_lines`)."""


class Value:
    """A number, its gradient, and how it was made.

    `data` is the number and `grad` the derivative of what `backward` was called on by it: a float,
    or a Value after `backward(create_graph=True)`.

    A node has at most two inputs `_a` and `_b` (None where there is none) with the local
    derivatives `_da` and `_db`; where the second operand is a plain number, `_b` is None and `_db`
    that number. `_op` names the operation, "" for a leaf. `_uses` is scratch space of `backward`,
    zero outside it.

    Raises DataError for data that is no finite number.
    """

    __slots__ = ("_a", "_b", "_da", "_db", "_line", "_op", "_uses", "data", "grad")

    data: float
    grad: Any
    _a: "Value | None"
    _b: "Value | None"
    _da: float
    _db: float
    _op: str
    _line: str
    _uses: int

    def __init__(self, data: float, _children: Sequence["Value"] = (), _op: str = "") -> None:
        if _children or _op:
            raise UsageError(
                "an operation of your own is engine.node(result, name, a, da): the result and each "
                "input with its local derivative; there is no _backward to set"
            )
        self.data = number(data)
        self.grad = 0.0
        self._a = self._b = None
        self._op = ""
        self._uses = 0

    # ---- the operations: what comes out, the name, and each input with its local derivative

    def __add__(self, other: Number) -> "Value":
        if isinstance(other, Value):
            return node(self.data + other.data, "+", self, 1.0, other, 1.0)
        c = number(other)
        return node(self.data + c, "+", self, 1.0, None, c)

    def __sub__(self, other: Number) -> "Value":
        if isinstance(other, Value):
            return node(self.data - other.data, "-", self, 1.0, other, -1.0)
        c = number(other)
        return node(self.data - c, "-", self, 1.0, None, c)

    def __mul__(self, other: Number) -> "Value":
        if isinstance(other, Value):
            return node(self.data * other.data, "*", self, other.data, other, self.data)
        c = number(other)
        return node(self.data * c, "*", self, c, None, c)

    def __truediv__(self, other: Number) -> "Value":
        b = other.data if isinstance(other, Value) else number(other)
        if b == 0.0:
            raise failure("/", f"{self.data!r} / 0", "division by zero")
        out = self.data / b
        if isinstance(other, Value):
            return node(out, "/", self, 1.0 / b, other, -out / b)
        return node(out, "/", self, 1.0 / b, None, b)

    def __pow__(self, other: Number) -> "Value":
        """Return self ** other; 0 ** 0 is 1, and its derivative by the base 0, as in PyTorch."""
        a, b = self.data, other.data if isinstance(other, Value) else number(other)
        out = power(a, b)
        da = 0.0 if b == 0.0 else b * slope(power, a, b - 1.0)
        if isinstance(other, Value):
            return node(out, "**", self, da, other, power_by_exponent(a, b, out))
        return node(out, "**", self, da, None, b)

    def __rpow__(self, other: float) -> "Value":
        """Return the number `other` ** self, such as 2 ** x."""
        base = number(other)
        out = power(base, self.data)
        return node(out, "c**", self, power_by_exponent(base, self.data, out), None, base)

    def exp(self) -> "Value":
        """Return e ** self."""
        out = compute(math.exp, "exp", self.data, "the result is above 1.8e308")
        return node(out, "exp", self, out)

    def log(self) -> "Value":
        """Return the natural logarithm. Raises NumericalError unless self > 0."""
        out = compute(math.log, "log", self.data, "the logarithm needs a positive number")
        return node(out, "log", self, slope(power, self.data, -1.0))

    def sqrt(self) -> "Value":
        """Return the square root; its derivative at 0 is infinite, so `backward` refuses it."""
        out = compute(math.sqrt, "sqrt", self.data, "the root needs a number that is not negative")
        return node(out, "sqrt", self, 0.5 / out if out else math.inf)

    def tanh(self) -> "Value":
        """Return the hyperbolic tangent, from -1 to 1."""
        out = math.tanh(self.data)
        return node(out, "tanh", self, 1.0 - out * out)

    def sigmoid(self) -> "Value":
        """Return 1 / (1 + exp(-self)), computed so that nothing overflows."""
        out = sigmoid(self.data)
        return node(out, "sigmoid", self, out * (1.0 - out))

    def softplus(self) -> "Value":
        """Return log(1 + exp(self)), the smooth ReLU, computed so that nothing overflows."""
        x = self.data
        return node(max(x, 0.0) + math.log1p(math.exp(-abs(x))), "softplus", self, sigmoid(x))

    def relu(self) -> "Value":
        """Return self where it is positive, else 0; the derivative at 0 is 0."""
        x = self.data
        return node(x, "relu", self, 1.0) if x > 0.0 else node(x - x, "relu", self, 0.0)

    def sin(self) -> "Value":
        """Return the sine of self in radians."""
        out = compute(math.sin, "sin", self.data, "it is not finite")
        return node(out, "sin", self, math.cos(self.data))

    def cos(self) -> "Value":
        """Return the cosine of self in radians."""
        out = compute(math.cos, "cos", self.data, "it is not finite")
        return node(out, "cos", self, -math.sin(self.data))

    def __abs__(self) -> "Value":
        """Return |self|; the derivative at 0 is 0, as in PyTorch."""
        x = self.data
        return node(abs(x), "abs", self, math.copysign(1.0, x) if x else 0.0)

    def max(self, other: Number) -> "Value":
        """Return the larger of the two; where they are equal, each gets half of the gradient."""
        return _choose("max", self, other, 1.0)

    def min(self, other: Number) -> "Value":
        """Return the smaller of the two; where they are equal, each gets half of the gradient."""
        return _choose("min", self, other, -1.0)

    # ---- the rest of the operators, made of those above

    def __neg__(self) -> "Value":
        return self * -1.0

    def __rsub__(self, other: float) -> "Value":
        return -self + other

    def __rtruediv__(self, other: float) -> "Value":
        return Value(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    # ---- comparisons are about data; as in PyTorch, a Value in a set or dict is itself alone

    def __lt__(self, other: Number) -> bool:
        return self.data < plain(other)

    def __le__(self, other: Number) -> bool:
        return self.data <= plain(other)

    def __gt__(self, other: Number) -> bool:
        return self.data > plain(other)

    def __ge__(self, other: Number) -> bool:
        return self.data >= plain(other)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Value):
            return self.data == other.data
        return self.data == other

    __hash__ = object.__hash__

    def __float__(self) -> float:
        return float(self.data)

    def __format__(self, spec: str) -> str:
        return format(self.data, spec) if spec else repr(self)

    def __repr__(self) -> str:
        return f"Value(data={self.data}, grad={self.grad})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a leaf be pickled and copied; the graph above it is not part of it."""
        if self.parents():
            raise UsageError(
                f"a result of {self._op!r} can't be copied or pickled, only leaves can; "
                "Value(float(v)) is a leaf with its number"
            )
        return _leaf, (type(self), self.data, float(self.grad))

    # ---- the graph

    def parents(self) -> "tuple[Value, ...]":
        """Return the inputs this node was computed from, () for a leaf."""
        if self._a is None:
            return ()
        return (self._a,) if self._b is None else (self._a, self._b)

    @property
    def _prev(self) -> "set[Value]":
        """The inputs, under karpathy's name for them."""
        return set(self.parents())

    def zero_grad(self) -> None:
        """Set the gradient to 0, before the next backward pass adds to it."""
        self.grad = 0.0

    def backward(self, create_graph: bool = False) -> None:
        """Add to `grad`, of this node and all below it, the derivative of this node by them.

        As in PyTorch, calling it twice adds the same again. With `create_graph` the gradients are
        Values made of Values, which can be differentiated further.

        Raises NumericalError, with all gradients as they were, where one is not finite.
        """
        if create_graph:
            from micrograd.higher import gradient_values  # which is built on this module

            sums = [(one, g + one.grad) for one, g in gradient_values(self).items()]
            for one, total in sums:
                one.grad = total
            return
        nodes: list[Value] = [self]
        earlier: list[tuple[Value, Any]] = []
        begun = False
        stores: set[Store] = set()
        undo: list[tuple[list[float], list[float]]] = []
        try:
            _prepare(nodes, earlier, stores)
            begun = True
            self.grad = 1.0
            if not _pass_back(self):
                raise _blame(nodes)
            if not all(store.close() for store in stores):
                what = "the gradient of a weight of a fused network"
                raise failure("backward", what, "it is not finite; a plain network tells where")
            for one, grad in earlier:
                one.grad += grad
                if not -MAX <= one.grad <= MAX:
                    raise failure("backward", "backward", "the sum over several passes overflows")
            for store in stores:
                store.keep(undo)
        except BaseException:  # Ctrl-C included: leave everything as it was
            for grads, old in undo:
                grads[:] = old
            for one in nodes:
                one._uses = 0
                if begun:
                    one.grad = 0.0
            for one, grad in earlier:
                one.grad = grad
            for store in stores:
                store.forget()
            raise


_new: Callable[[type[Value]], Value] = Value.__new__  # makes a Value without calling __init__


class Store(Protocol):
    """What collects gradients outside the graph during a pass, such as the weights of a layer."""

    def close(self) -> bool:
        """Return whether what this pass collected is finite."""

    def keep(self, undo: list[tuple[list[float], list[float]]]) -> None:
        """Add what this pass collected to the gradients; before each, append it and its copy."""

    def forget(self) -> None:
        """Drop what this pass collected."""


class Fan(Value):
    """A node with any number of inputs, which hands its gradient on by itself.

    What a whole network computes at once is such a node (see `nn`), and this is all the engine asks
    of it: its inputs `_fan`, the stores it adds to, and two methods.
    """

    __slots__ = ("_fan",)
    _fan: tuple[Value, ...]

    def parents(self) -> tuple[Value, ...]:
        """Return the inputs this node was computed from."""
        return self._fan

    def stores(self) -> "tuple[Store, ...]":
        """Return what this node adds gradients to outside the graph; most have none."""
        return ()

    def _push(self) -> None:
        """Add to the `grad` of each of `_fan` what this node's gradient makes of it."""
        raise NotImplementedError

    def plain(self) -> Value:
        """Return the same result as made of ordinary nodes, for drawings and for `grad`."""
        raise NotImplementedError


def node(
    data: float,
    op: str,
    a: Value,
    da: float,
    b: Value | None = None,
    db: float = 0.0,
) -> Value:
    """Return the Value `data`, computed by `op` from `a` (and `b`) with local derivatives da, db.

    Raises NumericalError for data that is not finite.
    """
    if not -MAX <= data <= MAX:
        operands = [a.data] if b is None and not db else [a.data, db if b is None else b.data]
        finite = all(-MAX <= x <= MAX for x in operands)
        why = "the result overflows" if finite else "an operand is not finite"
        raise failure(op, f"{op} of {' and '.join(map(repr, operands))}", why)
    out = _new(Value)
    out.data = data
    out.grad = 0.0
    out._op = op
    out._a = a
    out._da = da
    out._b = b
    out._db = db
    out._uses = 0
    if tracing:
        out._line = user_line()
    return out


# ---- the backward pass


def _prepare(nodes: list[Value], earlier: list[tuple[Value, Any]], stores: set[Store]) -> None:
    """Add to `nodes`, which holds the root, all that it depends on, each once.

    Counts in `_uses` by how many nodes each is used. Sets each `grad` to 0, as it collects this
    pass alone; what was there goes to `earlier`, to be added when the pass ends. `stores` get those
    that the nodes add to.
    """
    push = nodes.append
    for one in nodes:  # grows while it is read
        if one.grad:
            earlier.append((one, one.grad))
            one.grad = 0.0
        a = one._a
        if a is not None:
            if not a._uses:
                push(a)
            a._uses += 1
            b = one._b
            if b is not None:
                if not b._uses:
                    push(b)
                b._uses += 1
        elif isinstance(one, Fan):
            stores.update(one.stores())
            for a in one._fan:
                if not a._uses:
                    push(a)
                a._uses += 1


def _pass_back(root: Value) -> bool:
    """Hand gradients down, each node's when all that use it have added theirs (Kahn, 1962).

    Takes the `_uses` that `_prepare` counted back to zero. Returns whether all gradients are
    finite: what is not stays so on its way down, so that the leaves tell.
    """
    finite = True
    ready = [root]
    push = ready.append
    while ready:
        one = ready.pop()
        a = one._a
        if a is not None:
            grad = one.grad
            a.grad += grad * one._da
            a._uses -= 1
            if not a._uses:
                push(a)
            b = one._b
            if b is not None:
                b.grad += grad * one._db
                b._uses -= 1
                if not b._uses:
                    push(b)
        elif isinstance(one, Fan):
            one._push()
            for a in one._fan:
                a._uses -= 1
                if not a._uses:
                    push(a)
        elif not -MAX <= one.grad <= MAX:
            finite = False
    return finite


def _blame(nodes: Iterable[Value]) -> NumericalError:
    """Return the error that names the operation whose gradient was the first not to be finite."""
    for one in nodes:
        if one._a is not None and -MAX <= one.grad <= MAX:
            for parent, slope_ in zip(one.parents(), (one._da, one._db), strict=False):
                if not -MAX <= one.grad * slope_ <= MAX:
                    what = f"the derivative of {one._op!r} at {parent.data!r}"
                    why = f"gradient {one.grad!r} times local derivative {slope_!r} is not finite"
                    return failure(one._op, what, why, getattr(one, "_line", None))
    return failure("backward", "backward", "the sum of the gradients of a value overflows")


# ---- the rest


def plain(x: Number) -> float:
    """Return the number that `x`, a Value or a number, stands for."""
    return x.data if isinstance(x, Value) else x


def _choose(op: str, a: Value, other: Number, sign: float) -> Value:
    """Return the larger (`sign` 1) or smaller (-1) of two."""
    b = plain(other) if isinstance(other, Value) else number(other)
    ahead = sign * (a.data - b)
    share = 0.5 if ahead == 0.0 else float(ahead > 0.0)
    out = a.data if ahead >= 0.0 else b if ahead < 0.0 else ahead  # NaN stays NaN
    if isinstance(other, Value):
        return node(out, op, a, share, other, 1.0 - share)
    return node(out, op, a, share, None, b)


def _leaf(kind: type[Value], data: float, grad_: float) -> Value:
    """Rebuild a pickled or copied leaf."""
    out = kind(data)
    out.grad = grad_
    return out


@contextmanager
def trace_lines() -> Iterator[None]:
    """Make nodes created inside the block remember their line, for `check.gradcheck`."""
    global tracing
    before, tracing = tracing, True
    try:
        yield
    finally:
        tracing = before

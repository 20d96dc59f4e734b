"""Gradients of gradients: the backward pass again, built out of Values.

The engine stores local derivatives as plain numbers, which is all that a gradient needs. To
differentiate a gradient, they must be expressions of the inputs: `slopes_of` writes each as such.
Then the same walk over the graph multiplies and adds Values instead of numbers, and what comes out
is a graph like any other (Griewank and Walther, 2008, ch. 5).
"""

import math
from collections.abc import Sequence
from typing import Any

from micrograd.engine import Fan, Number, Value, plain
from micrograd.errors import UsageError
from micrograd.numeric import MAX, failure


def grad(output: Value, inputs: Sequence[Value]) -> list[Value]:
    """Return d output / d input for each of `inputs`, as Values that can be differentiated again.

    Leaves every `.grad` alone. An input that `output` does not depend on has derivative 0.

        x = Value(3.0)
        (first,) = grad(x**3, [x])  # 27
        (second,) = grad(first, [x])  # 18
    """
    found = gradient_values(output, inputs)
    return [found[one] if one in found else Value(0.0) for one in inputs]


def gradient_values(root: Value, inputs: Sequence[Value] | None = None) -> dict[Value, Value]:
    """Return d root / d node as a Value for every node, or for all on the way to `inputs`."""
    links: dict[Value, tuple[Value, ...]] = {}
    order = _order(root, links)
    wanted = set(order if inputs is None else inputs)
    for one in reversed(order):
        if not wanted.isdisjoint(links[one]):
            wanted.add(one)
    found = {root: Value(1.0)}
    for one in order:
        if one not in found or wanted.isdisjoint(links[one]):
            continue
        for parent, slope in zip(links[one], _slopes(one), strict=False):
            if parent not in wanted:
                continue
            if not isinstance(slope, Value) and not -MAX <= slope <= MAX:
                what = f"the derivative of {one._op!r} at {parent.data!r}"
                raise failure(one._op, what, "it is not finite", getattr(one, "_line", None))
            part = found[one] * slope
            found[parent] = found[parent] + part if parent in found else part
    return found


def _order(root: Value, links: dict[Value, tuple[Value, ...]]) -> list[Value]:
    """Return `root` and all below it, each before its inputs, and put their inputs in `links`.

    Of a fused node the input is the same result made of ordinary nodes.
    """
    uses: dict[Value, int] = {root: 0}
    todo = [root]
    for one in todo:  # grows while it is read
        links[one] = (one.plain(),) if isinstance(one, Fan) else one.parents()
        for parent in links[one]:
            if parent not in uses:
                uses[parent] = 0
                todo.append(parent)
            uses[parent] += 1
    order = [root]
    for one in order:
        for parent in links[one]:
            uses[parent] -= 1
            if not uses[parent]:
                order.append(parent)
    return order


def _slopes(one: Value) -> Sequence[Number]:
    """Return a node's local derivatives by its inputs, as Values or constants."""
    a, b = one._a, one._b
    if isinstance(one, Fan):
        return (1.0,)
    assert a is not None, "a leaf has no inputs"
    return slopes_of(one._op, one, a, one._db if b is None else b) or (one._da, one._db)


def slopes_of(op: str, y: Value, a: Value, b: Any) -> tuple[Number, ...] | None:
    """Return the local derivatives of y = op(a, b) again, as expressions of Values.

    None for an operation that is piecewise linear (relu, abs, max, min): its are the constants in
    the node. `b` is a Value, a number, or of no meaning where `op` has one operand.
    """
    match op:
        case "+":
            return 1.0, 1.0
        case "-":
            return 1.0, -1.0
        case "*":
            return b, a
        case "/":
            return 1.0 / b, -y / b
        case "**":
            by_base = b * a ** (b - 1.0) if plain(b) or (isinstance(b, Value) and a.data) else 0.0
            # Without a logarithm it is the number in the node: 0 at 0, and undefined below.
            by_exponent = y * a.log() if isinstance(b, Value) and a.data > 0.0 else y._db
            return by_base, by_exponent
        case "c**":
            return (y * math.log(b) if b > 0.0 else y._da,)
        case "exp":
            return (y,)
        case "log":
            return (1.0 / a,)
        case "sqrt":
            return (0.5 / y if y.data else y._da,)
        case "tanh":
            return (1.0 - y * y,)
        case "sigmoid":
            return (y * (1.0 - y),)
        case "softplus":
            return (a.sigmoid(),)
        case "sin":
            return (a.cos(),)
        case "cos":
            return (-a.sin(),)
        case "relu" | "abs" | "max" | "min":
            return None
        case _:
            raise UsageError(f"{op!r} has no second derivative: slopes_of does not know it")

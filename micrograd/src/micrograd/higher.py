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
    found = gradient_values(output)
    return [found[one] if one in found else Value(0.0) for one in inputs]


def gradient_values(root: Value) -> dict[Value, Value]:
    """Return d root / d node as a Value for every node, by the same pass over a graph of Values."""
    slopes: dict[Value, list[tuple[Value, Number]]] = {}
    uses: dict[Value, int] = {root: 0}
    todo = [root]
    for one in todo:
        slopes[one] = _slopes(one)
        for parent, _ in slopes[one]:
            if parent not in uses:
                uses[parent] = 0
                todo.append(parent)
            uses[parent] += 1
    found, ready = {root: Value(1.0)}, [root]
    while ready:
        one = ready.pop()
        for parent, slope_ in slopes[one]:
            if not isinstance(slope_, Value) and not -MAX <= slope_ <= MAX:
                raise failure(
                    one._op, f"the derivative of {one._op!r} at {parent.data!r}", "it is not finite"
                )
            part = found[one] * slope_
            found[parent] = found[parent] + part if parent in found else part
            uses[parent] -= 1
            if not uses[parent]:
                ready.append(parent)
    return found


def _slopes(one: Value) -> list[tuple[Value, Number]]:
    """Return the inputs of a node, each with its local derivative as a Value or constant."""
    if isinstance(one, Fan):
        return [(one.plain(), 1.0)]
    a, b = one._a, one._b
    if a is None:
        return []
    slopes = slopes_of(one._op, one, a, one._db if b is None else b)
    return list(zip(one.parents(), slopes or (one._da, one._db), strict=False))


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
            return by_base, y * a.log() if isinstance(b, Value) and a.data else 0.0
        case "c**":
            return (y * math.log(b) if b > 0.0 else y._da,)
        case "exp":
            return (y,)
        case "log":
            return (1.0 / a,)
        case "sqrt":
            return (0.5 / y,)
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

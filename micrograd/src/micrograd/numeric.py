"""Arithmetic on plain floats that says what went wrong, and where in the user's program."""

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from micrograd.errors import DataError, NumericalError

MAX = sys.float_info.max
"""The largest float; beyond it is infinity, which no operation returns."""


def number(x: Any) -> float:
    """Return `x` as a float. Raises DataError for what is no finite number."""
    if type(x) is float and -MAX <= x <= MAX:
        return x
    try:
        out = float("no number" if isinstance(x, str | bytes) else x)
    except (TypeError, ValueError):
        raise DataError(f"{x!r} is of type {type(x).__name__}; a number is needed") from None
    except OverflowError:
        raise DataError("an integer above 1.8e308 is too large for a float") from None
    if not -MAX <= out <= MAX:
        raise DataError(f"{out!r} is no finite number; clean the data first")
    return out


def compute(function: Callable[[float], float], op: str, x: float, rule: str) -> float:
    """Return function(x); raises NumericalError, quoting the `rule` that `x` breaks."""
    try:
        return function(x)
    except (ValueError, OverflowError):
        raise failure(op, f"{op}({x!r})", rule) from None


def power(a: float, b: float) -> float:
    """Return a ** b, a real number, or raise NumericalError."""
    try:
        return math.pow(a, b)
    except OverflowError:
        rule = "the result is above 1.8e308"
    except ValueError:
        rule = (
            "0 has no negative power"
            if a == 0.0
            else "the power of a negative base needs a whole exponent"
        )
    raise failure("**", f"({a!r}) ** {b!r}", rule)


def slope(function: Callable[..., float], *args: float) -> float:
    """Return function(*args), or infinity where it fails; `backward` refuses that if it gets there.

    So sqrt(0) can be computed, and only its derivative is an error.
    """
    try:
        return function(*args)
    except NumericalError:
        return math.inf


def power_by_exponent(a: float, b: float, out: float) -> float:
    """Return the derivative of a ** b by b: a ** b * log(a)."""
    if a > 0.0:
        return out * math.log(a)
    return 0.0 if a == 0.0 and b >= 0.0 else math.nan


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow, however large |x| is."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def failure(op: str, what: str, why: str, line: str | None = None) -> NumericalError:
    """Return the error of operation `op`, with the line of the user's program that led to it."""
    line = line or user_line()
    error = NumericalError(f"{what} at {line}: {why}" if line else f"{what}: {why}")
    error.add_note(f"operation: {op}")
    return error


def user_line() -> str:
    """Return `file:line` of the innermost running line that is not part of this package.

    "" where there is none, as in `python -m micrograd.train`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") == "runpy":
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"

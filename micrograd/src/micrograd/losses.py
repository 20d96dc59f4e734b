"""Losses: expressions of Values that are small where predictions are good.

Each takes one output per example, is a mean over the examples, and raises DataError where there are
none, not as many targets as outputs, or outputs that are no Values.
"""

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from micrograd.engine import Number, Value
from micrograd.errors import DataError


def mse(outputs: Sequence[Value], targets: Sequence[float]) -> Value:
    """Return the mean squared error, the mean of (output - target) ** 2."""
    _check(outputs, targets)
    return mean([(out - y) ** 2 for out, y in zip(outputs, targets, strict=True)])


def hinge(scores: Sequence[Value], labels: Sequence[float]) -> Value:
    """Return the max-margin loss, the mean of max(0, 1 - label * score), for labels -1 and 1.

    Cortes and Vapnik (1995), the loss of support-vector machines.
    """
    _check(scores, labels, allowed=(-1, 1))
    return mean([(1.0 - y * score).relu() for score, y in zip(scores, labels, strict=True)])


def binary_cross_entropy(logits: Sequence[Value], labels: Sequence[float]) -> Value:
    """Return the mean of -log P(label), where P(1) = sigmoid(logit), for labels 0 and 1.

    -log sigmoid(z) is softplus(-z), which neither overflows nor loses digits.
    """
    _check(logits, labels, allowed=(0, 1))
    return mean([(-z if y else z).softplus() for z, y in zip(logits, labels, strict=True)])


def cross_entropy(logits: Sequence[Sequence[Value]], labels: Sequence[int]) -> Value:
    """Return the mean of -log softmax(logits)[label], for labels 0 to C - 1.

    `logits` has a row of C Values for each example. A row's largest logit is subtracted first:
    that changes no probability, and no exponential overflows.
    """
    _count(logits, labels)
    for row in logits:
        _check_values(row, "a row of logits")
    return mean([_surprise(row, y) for row, y in zip(logits, labels, strict=True)])


def l2(parameters: Iterable[Value], strength: float) -> Value:
    """Return strength * the sum of squares, the penalty that keeps weights small."""
    total = Value(0.0)
    for p in parameters:
        total = total + p * p
    return strength * total


def mean(values: Sequence[Value]) -> Value:
    """Return the mean of at least one Value. Raises DataError for none, and for other things."""
    _check_values(values, "the values of a mean")
    total: Number = 0.0
    for value in values:
        total = value + total
    return total * (1.0 / len(values))  # type: ignore[return-value]


def _surprise(row: Sequence[Value], label: int) -> Value:
    """Return -log softmax(row)[label]."""
    if not isinstance(label, SupportsIndex) or not 0 <= int(label) < len(row):
        raise DataError(f"label {label!r} is not one of the {len(row)} classes 0 to {len(row) - 1}")
    largest = max(z.data for z in row)
    total = Value(0.0)
    for z in row:
        total = total + (z - largest).exp()
    return total.log() - (row[label] - largest)


def _check(
    outputs: Sequence[object], targets: Sequence[float], allowed: Sequence[float] = ()
) -> None:
    """Raise DataError unless each output is a Value with a target, one of `allowed` if given."""
    _count(outputs, targets)
    _check_values(outputs, "the outputs of this loss")
    for y in targets:
        if allowed and y not in allowed:
            raise DataError(f"label {y!r} must be {' or '.join(map(str, allowed))} for this loss")


def _count(outputs: Sequence[object], targets: Sequence[object]) -> None:
    """Raise DataError unless there is one target for each output, and at least one."""
    n_outputs, n_targets = _length(outputs, "the outputs"), _length(targets, "the targets")
    if n_outputs != n_targets:
        raise DataError(f"{n_outputs} outputs and {n_targets} targets: one for each, please")
    if not n_outputs:
        raise DataError("a mean over no examples is not defined; give at least one")


def _check_values(values: Sequence[object], what: str) -> None:
    """Raise DataError unless `values` is a list of at least one Value."""
    if not _length(values, what):
        raise DataError(f"{what} must be at least one Value, and there is none")
    for value in values:
        if not isinstance(value, Value):
            raise DataError(f"{what} must be Values, not {_shown(value)}")


def _length(items: Sequence[object], what: str) -> int:
    """Return how many there are. Raises DataError for what has no length, such as a generator."""
    try:
        return len(items)
    except TypeError:
        raise DataError(f"{what} must be a list, not {_shown(items)}") from None


def _shown(thing: object) -> str:
    return f"a {type(thing).__name__} ({str(thing)[:40]!r})"

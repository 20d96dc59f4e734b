"""Gradients against central differences, with the operation and the line that is wrong.

    def f(x, y):
        return (x * y).tanh() + x.exp()

    print(gradcheck(f, [0.5, -1.2]))

A gradient can be wrong in four places, and each has its own check, so that the blame is exact:

1. an operation computes another number than it should: compare with the same operation on floats;
2. its local derivative is wrong: compare with central differences of that operation alone;
3. `backward` combines right derivatives wrongly, such as `=` for `+=` where a value is used twice:
   each gradient must be the sum, over all uses, of the user's gradient times local derivative;
4. all of that is right, but not the whole: a step left the graph, as `x.data` and `float(x)` do.
   Compare the gradient of each input with central differences of the whole function.

Why differences can be trusted, and how far: (f(x + h) - f(x - h)) / 2h is off by h^2 f'''/6 + ...
(truncation, all even powers of h) and by about 1e-16 |f| / h (rounding). A smaller h trades the
first for the second, so that no h is good for all functions. Ridders (1982) starts with a wide h,
halves it, extrapolates to h = 0 (each column below removes one more power of h^2), and keeps the
estimate that agrees best with its neighbours. That leaves about 1e-12 of f's size, and says so.
"""

import linecache
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from micrograd import engine
from micrograd.engine import Fan, Value, node, plain
from micrograd.errors import NumericalError, UsageError
from micrograd.higher import grad

Function: TypeAlias = Callable[..., float]
Graph: TypeAlias = dict[Value, list[tuple[Value, float]]]
Subject: TypeAlias = tuple[str, str, str, str]  # the first four fields of a Check

FORWARD: dict[str, Function] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": math.pow,
    "c**": lambda x, base: math.pow(base, x),
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
    "sigmoid": lambda x: (1.0 + math.tanh(x / 2.0)) / 2.0,
    "softplus": lambda x: math.log1p(math.exp(x)) if x < 30.0 else x + math.exp(-x),
    "sin": math.sin,
    "cos": math.cos,
    "relu": lambda x: max(x, 0.0),
    "abs": abs,
    "max": max,
    "min": min,
}
"""What each operation should compute, from floats; its derivatives are not looked at here."""

BINARY = {"+", "-", "*", "/", "**", "c**", "max", "min"}

TO_KINK: dict[str, Function] = {
    "relu": abs,
    "abs": abs,
    "max": lambda a, b: abs(a - b),
    "min": lambda a, b: abs(a - b),
}
"""How far the operands are from where the operation has no derivative; in between it is linear."""

NEAR_KINK = 1e-6  # closer than this, differences of a whole function can't be told from a kink's


UNKNOWN = "unknown operation; give its function in `functions`"


CAUSES = {"value": 0, "derivative": 0, "backward": 0, "slope": 1, "second": 2, "whole": 3}
"""What a comparison can be about; one that fails explains failures with a higher number."""


class GradientError(NumericalError):
    """A gradient is wrong; `report` tells which (exit code 6)."""

    def __init__(self, report: "Report") -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Check:
    """One comparison: `what` of `operation`, made at `line` ("file:number", "" for an input).

    `about` is one of CAUSES; slope is a derivative as a Value, second the derivative of that.
    `note` says why it was not made, or what to do about it.
    """

    operation: str
    line: str
    about: str
    what: str
    analytic: float
    numeric: float
    wrong: bool = False
    note: str = ""

    @property
    def error(self) -> float:
        """The error relative to the larger of the two, or to 1e-9, so that 0 may stay 1e-17 off."""
        size = max(abs(self.analytic), abs(self.numeric), 1e-9)
        return abs(self.analytic - self.numeric) / size

    @property
    def made(self) -> bool:
        """Whether the comparison could be made."""
        return self.wrong or not self.note

    def __str__(self) -> str:
        source = _source(self.line)
        where = f" at {self.line}" + (f" ({source})" if source else "") if self.line else ""
        return (
            f"{self.operation}{where}: {self.what} is {self.analytic:.9g}, should be "
            f"{self.numeric:.9g} (relative error {self.error:.1g})"
            + (f"; {self.note}" if self.note else "")
        )


@dataclass(frozen=True)
class Report:
    """All comparisons of one `gradcheck`, in the order of the computation."""

    checks: list[Check] = field(default_factory=list)

    @property
    def wrong(self) -> list[Check]:
        """The comparisons that failed, causes only: where a step is wrong, the whole must be."""
        wrong = [c for c in self.checks if c.wrong]
        first = min((CAUSES[c.about] for c in wrong), default=0)
        return [c for c in wrong if CAUSES[c.about] == first]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    def __str__(self) -> str:
        skipped = sum(not c.made for c in self.checks)
        head = f"gradcheck: {len(self.checks) - skipped} comparisons, {len(self.wrong)} wrong"
        head += f", {skipped} could not be made" if skipped else ""
        return "\n".join([head, *(f"wrong: {c}" for c in self.wrong), "", *self._table()])

    def _table(self) -> Iterator[str]:
        """Yield the rows; of equal ones (a loop's) only the worst, with their number."""
        groups: dict[tuple[str, str, str], list[Check]] = {}
        for check in self.checks:
            groups.setdefault((check.operation, check.line, check.what), []).append(check)
        rows = [("operation", "line", "what", "analytic", "numeric", "rel. error", "")]
        for group in groups.values():
            c = max(group, key=lambda c: (c.wrong, c.made, c.error))
            times = f"worst of {len(group)}" if len(group) > 1 else ""
            remark = ", ".join(filter(None, ("WRONG" if c.wrong else c.note, times)))
            numbers = f"{c.analytic:.6g}", f"{c.numeric:.6g}" if c.made else "-"
            error = f"{c.error:.0e}" if c.made else "-"
            rows.append((c.operation, _short(c.line), c.what, *numbers, error, remark))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()


def gradcheck(
    f: Callable[..., Any],
    inputs: Sequence[Value | float],
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    second: bool = False,
    raise_exception: bool = True,
) -> Report:
    """Check the gradient of f(*inputs), a Value, by each of `inputs`: numbers or leaves.

    Leaves are changed and put back, so f may use them without looking at its arguments; that checks
    a model: `gradcheck(lambda *_: loss(model), model.parameters())`.

    A derivative a passes against a difference d when |a - d| <= atol + rtol |d|. Where there is
    none (relu and abs at 0, max and min of equals) or the difference itself is worse than that, the
    report says that it was not checked. An operation of your own, made with `engine.node`, is known
    by the method of Value with its name, or give `functions`: {"cube": lambda x: x**3}.
    With `second`, second derivatives (`higher.grad`, `higher.slopes_of`) are checked too.

    Raises GradientError, naming operation and line, unless all is right; with
    `raise_exception=False` the report is returned in any case. Raises UsageError for an f that
    returns no Value, or another number each time.
    """
    values = [x if isinstance(x, Value) else Value(x) for x in inputs]
    with engine.trace_lines():
        out = f(*values)
        if not isinstance(out, Value):
            raise UsageError(f"f returned {type(out).__name__}; gradcheck needs one Value")
    if (again := f(*values).data) != out.data:
        raise UsageError(f"f gave {out.data!r}, then {again!r}; fix the seed of what is random")
    graph = _graph(out)
    checker = _Checker(rtol, atol, functions or {}, _lines(graph))
    once, twice = _gradients(out, _with_gradient(out, graph))
    checks = [c for one in graph for c in checker.operation(one)]
    checks += checker.backward(graph, once, twice)
    suspects = {(c.operation, c.line) for c in checks if c.note == UNKNOWN}
    gradient = [once.get(x, 0.0) for x in values]
    checks += checker.whole(f, values, gradient, checker.below_kinks(graph), suspects)
    if second:
        checks += [c for one in graph for c in checker.second(one)]
        checks += checker.whole_second(f, values, checker.below_kinks(graph))
    report = Report(checks)
    if raise_exception and not report.ok:
        raise GradientError(report)
    return report


def central_difference(
    f: Callable[[float], float], x: float, widest: float = math.inf
) -> tuple[float, float]:
    """Return f'(x) and an estimate of its error, by Ridders' extrapolation (see above).

    Steps are at most `widest`. A step that leaves f's domain is passed over; where no step stays in
    it, as for sqrt at 0, returns NaN and infinity.
    """
    h = min(0.1 * max(1.0, abs(x)), widest)
    best, best_error = math.nan, math.inf
    row: list[float] = []
    for _ in range(60):
        above, below = x + h, x - h
        h /= 2.0
        if above == below:
            break
        try:
            up, down = f(above), f(below)
        except (ArithmeticError, ValueError):
            row = []
            continue
        # by the distance as rounded: x + h is not always h away from x
        last, row = row, [(up - down) / (above - below)]
        rounding = 1e-16 * (abs(up) + abs(down)) / (above - below)
        for k, before in enumerate(last):
            row.append(row[k] + (row[k] - before) / (4.0 ** (k + 1) - 1.0))
            error = max(abs(row[k + 1] - row[k]), abs(row[k + 1] - before)) + rounding
            if error < best_error:
                best, best_error = row[k + 1], error
        if best_error <= 1e-11 * abs(best):
            break
    return best, best_error


@dataclass(frozen=True)
class _Checker:
    """The comparisons: tolerances, the functions of the user's operations, the nodes' lines."""

    rtol: float
    atol: float
    functions: Mapping[str, Callable[..., Any]]
    lines: Mapping[Value, str]

    def compare(
        self, what: Subject, ours: float, truth: tuple[float, float], note: str = ""
    ) -> Check:
        """Compare `ours` with a difference; `truth` is that and its error."""
        right, error = truth
        allowed = self.atol + self.rtol * abs(right)
        if abs(ours - right) <= allowed:
            return Check(*what, ours, right)
        if math.isnan(right) or abs(ours - right) <= 10.0 * error:
            return Check(*what, ours, right, note="no difference is good enough here")
        return Check(*what, ours, right, wrong=True, note=note)

    def function(self, one: Value) -> Function | None:
        """Return what the operation of a node computes from floats, None where that's unknown."""
        op = one._op
        own = self.functions.get(op) or (None if op in FORWARD else getattr(Value, op, None))
        if own is not None:
            return lambda *xs: plain(own(*map(Value, xs)))
        return FORWARD.get(op)

    def operation(self, one: Value) -> Iterator[Check]:
        """Check the number and the local derivatives of a node."""
        if isinstance(one, Fan) or not one._op:
            return
        op, line, function = one._op, self.lines[one], self.function(one)
        if function is None:
            yield Check(op, line, "derivative", "derivative", one._da, math.nan, note=UNKNOWN)
            return
        xs = _operands(one)
        if not math.isclose(one.data, should := function(*xs), rel_tol=1e-9, abs_tol=self.atol):
            yield Check(op, line, "value", "value", one.data, should, wrong=True)
            return
        to_kink = TO_KINK[op](*xs) if op in TO_KINK else math.inf
        for k, (_, slope) in enumerate(_local(one)):
            what = (op, line, "derivative", f"derivative{_by(one, k)}")
            if not to_kink:
                yield Check(*what, slope, math.nan, note="at a kink, where there is none")
                continue
            truth = central_difference(_along(function, xs, k), xs[k], to_kink / 2.0)
            yield self.compare(what, slope, truth)

    def backward(
        self, graph: Graph, once: dict[Value, float], twice: dict[Value, float]
    ) -> Iterator[Check]:
        """Check that each gradient is the sum over all uses, and twice that after two passes."""
        nodes = list(reversed(graph))
        sums: dict[Value, list[float]] = {one: [] for one in nodes}
        sums[nodes[0]].append(1.0)
        ok = True
        for one in nodes:
            right, size = math.fsum(sums[one]), math.fsum(map(abs, sums[one]))
            ours = once.get(one, right)
            if abs(ours - right) > 1e-9 * size:
                ok = False
                name = f"gradient of {one._op or 'a leaf'}, used {len(sums[one])}x"
                note = "each use adds its part, once, when its own gradient is complete"
                subject = ("backward", self.lines[one], "backward", name)
                yield Check(*subject, ours, right, wrong=True, note=note)
            for parent, slope in graph[one]:
                sums[parent].append(ours * slope)
        for one in nodes if ok else ():
            if one in once and not math.isclose(twice[one], 2.0 * once[one], rel_tol=1e-9):
                name = f"gradient of {one._op or 'a leaf'} after a second backward()"
                subject = ("backward", self.lines[one], "backward", name)
                yield Check(*subject, twice[one], 2.0 * once[one], wrong=True)
                return  # one is enough: the fault is the pass's, not the node's

    def whole(
        self,
        f: Callable[..., Any],
        values: list[Value],
        gradient: list[float],
        below_kinks: dict[Value, str],
        suspects: set[tuple[str, str]],
    ) -> Iterator[Check]:
        """Check the gradient by the inputs against differences of f as a whole."""
        place, note = ("f", ""), "a step left the graph (.data, float()) or was computed before f"
        if len(suspects) == 1:
            (place,) = suspects
            note = "by elimination: it is the only operation that could not be checked"
        elif suspects:
            names = ", ".join(f"{op} at {_short(line)}" for op, line in sorted(suspects))
            note = f"suspects are the operations that could not be checked: {names}"
        for i, (x, slope) in enumerate(zip(values, gradient, strict=True)):
            what = (*place, "whole", f"derivative of f by input {i}")
            if x in below_kinks:
                yield Check(*what, slope, math.nan, note=f"it feeds a kink, {below_kinks[x]}")
                continue
            truth = central_difference(_through(f, values, x), x.data)
            yield self.compare(what, slope, truth, note)

    def below_kinks(self, graph: Graph) -> dict[Value, str]:
        """Return what feeds an operation at or beside its kink, with the place of that one."""
        found: dict[Value, str] = {}
        for one in graph:
            if one._op in TO_KINK and TO_KINK[one._op](*_operands(one)) < NEAR_KINK:
                found |= dict.fromkeys(_graph(one), f"{one._op} at {_short(self.lines[one])}")
        return found

    def second(self, one: Value) -> Iterator[Check]:
        """Check a node's derivatives as Values, and the derivatives of those."""
        op, line, xs = one._op, self.lines[one], _operands(one)
        function = self.function(one) if op else None
        to_kink = TO_KINK[op](*xs) if op in TO_KINK else math.inf
        if isinstance(one, Fan) or function is None or not to_kink:
            return
        # the node again, on leaves: its operands may depend on each other in the graph
        leaves = [Value(parent.data) for parent in one.parents()]
        b = leaves[1] if len(leaves) == 2 else None
        again = node(one.data, op, leaves[0], one._da, b, one._db)
        widest = to_kink / 4.0
        for k, first in enumerate(grad(again, leaves)):
            slope = _slope_along(function, k, widest)
            what = (op, line, "slope", f"derivative{_by(one, k)} as a Value")
            yield self.compare(what, first.data, (slope(*xs), 0.0))
            for j, gradient in enumerate(grad(first, leaves)):
                truth = central_difference(_along(slope, xs, j), xs[j], widest)
                what = (op, line, "second", f"second derivative{_by(one, k, j)}")
                # differences of differences: half of the digits are left
                yield replace(self, rtol=1e-4, atol=1e-6).compare(what, gradient.data, truth)

    def whole_second(
        self, f: Callable[..., Any], values: list[Value], below_kinks: dict[Value, str]
    ) -> Iterator[Check]:
        """Check the gradient of the sum of f's gradients against differences of that sum."""

        def slopes(*xs: Value) -> Value:
            total: Value = sum(grad(f(*xs), xs), Value(0.0))
            return total

        for i, second in enumerate(grad(slopes(*values), values)):
            if values[i] not in below_kinks:
                truth = central_difference(_through(slopes, values, values[i]), values[i].data)
                what = ("f", "", "whole", f"sum of second derivatives by input {i}")
                yield self.compare(what, second.data, truth)


# ---- the graph, with what a fused node computes spelled out


def _local(one: Value) -> list[tuple[Value, float]]:
    """Return the inputs of a node, each with its local derivative.

    That of a fused node is the same result made of ordinary nodes.
    """
    if isinstance(one, Fan):
        return [(one.plain(), 1.0)]
    return list(zip(one.parents(), (one._da, one._db), strict=False)) if one._op else []


def _graph(root: Value) -> Graph:
    """Return all that `root` depends on with their inputs, inputs before what uses them."""
    found = {root: _local(root)}
    order: Graph = {}
    stack = [(root, iter(found[root]))]
    while stack:
        one, inputs = stack[-1]
        new = next((each for each, _ in inputs if each not in found), None)
        if new is None:
            order[one] = found[one]
            stack.pop()
        else:
            found[new] = _local(new)
            stack.append((new, iter(found[new])))
    return order


def _with_gradient(out: Value, graph: Graph) -> list[Value]:
    """Return those nodes that have a gradient: all but the inside of fused nodes."""
    seen, todo = {out}, [out]
    for one in todo:
        todo += [each for each in one.parents() if each not in seen]
        seen.update(one.parents())
    return [one for one in graph if one in seen or not one._op]


def _gradients(out: Value, nodes: list[Value]) -> tuple[dict[Value, float], dict[Value, float]]:
    """Return the gradients after one backward pass and after two, and leave them as they were."""
    before = [(one, one.grad) for one in nodes]
    try:
        for one in nodes:
            one.grad = 0.0
        passes = []
        for _ in range(2):
            out.backward()
            passes.append({one: float(one.grad) for one in nodes})
    finally:
        for one, gradient in before:
            one.grad = gradient
    return passes[0], passes[1]


def _operands(one: Value) -> list[float]:
    """Return the operands of a node as floats, the constant one included."""
    xs = [parent.data for parent in one.parents()]
    return [*xs, one._db] if len(xs) == 1 and one._op in BINARY else xs


def _by(one: Value, *sides: int) -> str:
    """Return " by left, right" for sides 0 and 1 of a node that has two inputs."""
    return " by " + ", ".join(("left", "right")[k] for k in sides) if one._b is not None else ""


# ---- functions of one number


def _along(function: Function, xs: Sequence[float], k: int) -> Callable[[float], float]:
    """Return `function` of its operand k alone, the others held at `xs`."""
    return lambda x: function(*xs[:k], x, *xs[k + 1 :])


def _slope_along(function: Function, k: int, widest: float) -> Function:
    """Return the derivative of `function` by operand k, as a function of all operands."""
    return lambda *xs: central_difference(_along(function, xs, k), xs[k], widest)[0]


def _through(f: Callable[..., Any], values: list[Value], x: Value) -> Callable[[float], float]:
    """Return f(*values) as a function of the number in `x`, which is put back after each call."""

    def function(number: float) -> float:
        before = x.data
        try:
            x.data = number
            return plain(f(*values))
        finally:
            x.data = before

    return function


# ---- lines


def _lines(graph: Graph) -> dict[Value, str]:
    """Return the line that made each node; for an input, or the inside of a fused node, its use."""
    lines: dict[Value, str] = {}
    for one in reversed(graph):
        lines[one] = getattr(one, "_line", "") or lines.get(one, "")
        for parent, _ in graph[one]:
            lines[parent] = lines[one]
    return lines


def _short(line: str) -> str:
    """Return "file:number" without the folder."""
    return Path(line).name


def _source(line: str) -> str:
    """Return the text of a line given as "file:number", "" where it can't be read."""
    file, _, lineno = line.rpartition(":")
    return linecache.getline(file, int(lineno)).strip() if lineno.isdigit() else ""

"""Gradcheck finds what is wrong, names the operation and the line, and blames nothing else."""

import inspect
import linecache
import math
import random
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from micrograd import engine, higher, nn, numeric
from micrograd.check import FORWARD, GradientError, Report, central_difference, gradcheck
from micrograd.engine import Value, node
from micrograd.errors import NumericalError, UsageError

Blame = set[tuple[str, str]]


def everything(x: Value, y: Value) -> Value:
    """Use every operation, each on a line of its own, at x < y and x * y > 1."""
    z = x * y
    terms: list[Value] = [
        x + 3,
        x - y,
        y - 4,
        z * 3,
        x / y,
        z / 5,
        y**3,
        z**x,
        2**x,
        x.exp(),
        z.log(),
        y.sqrt(),
        z.tanh(),
        x.sigmoid(),
        y.softplus(),
        z.relu(),
        (x - y).relu(),
        x.sin(),
        y.cos(),
        abs(x),
        abs(x - y),
        x.max(y),
        x.min(y),
        z.max(9),
        z.min(9),
    ]
    return sum(terms[1:], terms[0])


def twice(x: Value, y: Value) -> Value:
    """Use a result in several places, and what is made of it too."""
    z = x * y
    s = z.exp()
    t = s.sin() + s
    u = s.tanh() * t
    return u.cos() - t * z


def blamed(report: Report) -> Blame:
    """Return the operations found wrong, each with the text of its line."""
    return {(c.operation, source(c.line)) for c in report.wrong}


def source(line: str) -> str:
    file, _, lineno = line.rpartition(":")
    return linecache.getline(file, int(lineno or 0)).strip()


def plant(monkeypatch: pytest.MonkeyPatch, function: Any, right: str, wrong: str) -> None:
    """Make one of the engine's functions run with `wrong` in place of its code `right`."""
    text = textwrap.dedent(inspect.getsource(function))
    assert text.count(right) == 1, f"{function.__name__} does not say {right!r} once"
    scope = dict(vars(engine))
    exec(compile(text.replace(right, wrong), function.__code__.co_filename, "exec"), scope)
    monkeypatch.setattr(function, "__code__", scope[function.__name__].__code__)


SUM = ("+", "return sum(terms[1:], terms[0])")
PLANTS: list[tuple[Any, str, str, Blame]] = [
    # an operand forgotten, a sign, a constant in place of 1
    (Value.__add__, "other, 1.0)", "other, 0.0)", {SUM}),
    (Value.__add__, "self, 1.0, None", "self, c, None", {("+", "x + 3,")}),
    (Value.__sub__, "other, -1.0", "other, 1.0",
     {("-", "x - y,"), ("-", "(x - y).relu(),"), ("-", "abs(x - y),")}),
    (Value.__sub__, "self, 1.0, None", "self, -1.0, None", {("-", "y - 4,")}),
    # operands swapped, a factor missing, the inverse
    (Value.__mul__, "self, other.data, other, self.data", "self, self.data, other, other.data",
     {("*", "z = x * y")}),
    (Value.__mul__, "self, c, None", "self, 1.0, None", {("*", "z * 3,")}),
    (Value.__truediv__, "-out / b", "out / b", {("/", "x / y,")}),
    (Value.__truediv__, "-out / b", "-out", {("/", "x / y,")}),
    (Value.__truediv__, "1.0 / b, other", "b, other", {("/", "x / y,")}),
    (Value.__truediv__, "1.0 / b, None", "1.0, None", {("/", "z / 5,")}),
    # an exponent not lowered, its factor forgotten; the power rule for an exponential
    (Value.__pow__, "slope(power, a, b - 1.0)", "slope(power, a, b)",
     {("**", "y**3,"), ("**", "z**x,")}),
    (Value.__pow__, "b * slope", "slope", {("**", "y**3,"), ("**", "z**x,")}),
    (Value.__pow__, "power_by_exponent(a, b, out)", "0.0", {("**", "z**x,")}),
    (Value.__rpow__, "power_by_exponent(base, self.data, out)", "self.data * out / base",
     {("c**", "2**x,")}),
    (numeric.power_by_exponent, "out * math.log(a)", "math.log(a)",
     {("**", "z**x,"), ("c**", "2**x,")}),
    # the input where the output belongs, and the other way round
    (Value.exp, "self, out", "self, self.data", {("exp", "x.exp(),")}),
    (Value.log, "slope(power, self.data, -1.0)", "1.0 / out", {("log", "z.log(),")}),
    (Value.log, "self.data, -1.0)", "self.data, -2.0)", {("log", "z.log(),")}),
    (Value.sqrt, "0.5 / out", "1.0 / out", {("sqrt", "y.sqrt(),")}),
    (Value.sqrt, "0.5 / out", "0.5 / self.data", {("sqrt", "y.sqrt(),")}),
    (Value.tanh, "1.0 - out * out", "1.0 - out", {("tanh", "z.tanh(),")}),
    (Value.tanh, "1.0 - out * out", "1.0 - self.data * self.data", {("tanh", "z.tanh(),")}),
    (Value.sigmoid, "out * (1.0 - out)", "out * (1.0 + out)", {("sigmoid", "x.sigmoid(),")}),
    (Value.sigmoid, "out * (1.0 - out)", "1.0 - out", {("sigmoid", "x.sigmoid(),")}),
    (Value.softplus, '"softplus", self, sigmoid(x)', '"softplus", self, math.tanh(x)',
     {("softplus", "y.softplus(),")}),
    (Value.sin, "math.cos(self.data)", "-math.cos(self.data)", {("sin", "x.sin(),")}),
    (Value.cos, "-math.sin(self.data)", "math.sin(self.data)", {("cos", "y.cos(),")}),
    # the wrong branch
    (Value.relu, '"relu", self, 1.0', '"relu", self, 0.0', {("relu", "z.relu(),")}),
    (Value.relu, '"relu", self, 0.0', '"relu", self, 1.0', {("relu", "(x - y).relu(),")}),
    (Value.__abs__, "math.copysign(1.0, x)", "1.0", {("abs", "abs(x - y),")}),
    (engine._choose, "float(ahead > 0.0)", "float(ahead < 0.0)",
     {("max", "x.max(y),"), ("min", "x.min(y),"), ("max", "z.max(9),"), ("min", "z.min(9),")}),
    (engine._choose, "other, 1.0 - share", "other, share",
     {("max", "x.max(y),"), ("min", "x.min(y),")}),
    # a wrong number
    (Value.tanh, "math.tanh(self.data)", "math.tanh(2.0 * self.data)", {("tanh", "z.tanh(),")}),
    (Value.softplus, "math.log1p(math.exp(-abs(x)))", "0.0", {("softplus", "y.softplus(),")}),
]  # fmt: skip

Z, S, T, OUT = "z = x * y", "s = z.exp()", "t = s.sin() + s", "return u.cos() - t * z"
BACKWARD_PLANTS: list[tuple[Any, str, str, set[str]]] = [
    # not accumulated, once for each side
    (engine._pass_back, "a.grad += grad", "a.grad = grad", {Z, S}),
    (engine._pass_back, "b.grad += grad", "b.grad = grad", {T}),
    # the derivative of the other side
    (engine._pass_back, "grad * one._db", "grad * one._da", {Z, T, OUT}),
    # handed on before all uses have added theirs
    (engine._prepare, "b._uses += 1", "b._uses = 1", {S, T}),
    # earlier passes handed on again (18), or lost (6)
    (engine._prepare, "if one.grad:", "if False:", {OUT}),
    (Value.backward, "one.grad += grad", "pass", {OUT}),
]


@pytest.mark.parametrize(
    ("function", "right", "wrong", "expected"),
    PLANTS,
    ids=[f"{p[0].__name__}: {p[2]}" for p in PLANTS],
)
def test_each_planted_wrong_derivative_is_blamed_on_its_operation_and_line(
    monkeypatch: pytest.MonkeyPatch, function: Any, right: str, wrong: str, expected: Blame
) -> None:
    """Of 84 derivatives, on these lines alone."""
    assert len(PLANTS) >= 30
    plant(monkeypatch, function, right, wrong)
    report = gradcheck(everything, [0.9, 1.7], raise_exception=False)
    assert blamed(report) == expected
    assert {c.about for c in report.wrong} <= {"derivative", "value"}


@pytest.mark.parametrize(
    ("function", "right", "wrong", "lines"),
    BACKWARD_PLANTS,
    ids=[f"{p[0].__name__}: {p[2]}" for p in BACKWARD_PLANTS],
)
def test_a_wrong_backward_pass_is_told_from_a_wrong_derivative(
    monkeypatch: pytest.MonkeyPatch, function: Any, right: str, wrong: str, lines: set[str]
) -> None:
    """The lines are those of the values whose gradient is wrong, not of what is below them."""
    plant(monkeypatch, function, right, wrong)
    report = gradcheck(twice, [0.6, -0.8], raise_exception=False)
    assert blamed(report) == {("backward", line) for line in lines}


SECOND_PLANTS: list[tuple[str, str, str, Blame]] = [
    ('case "*":', "return b, a", "return b, a.data", {("*", Z)}),
    ('case "exp":', "return (y,)", "return (y.data,)", {("exp", S)}),
    ('case "tanh":', "1.0 - y * y", "1.0 - y", {("tanh", "u = s.tanh() * t")}),
    ('case "sin":', "a.cos()", "-a.cos()", {("sin", T)}),
    ('case "cos":', "-a.sin()", "Value(-math.sin(a.data))", {("cos", OUT)}),
]


@pytest.mark.parametrize(("case", "right", "wrong", "expected"), SECOND_PLANTS)
def test_a_wrong_second_derivative_is_blamed_on_its_operation_and_line(
    monkeypatch: pytest.MonkeyPatch, case: str, right: str, wrong: str, expected: Blame
) -> None:
    """Also one whose value is right here, and which only can't be differentiated again."""
    lines = inspect.getsource(higher.slopes_of).splitlines()
    before = lines[next(i for i, line in enumerate(lines) if case in line) + 1]
    after = before.replace(right, wrong)
    assert before != after
    pair = ("\n".join((f"        {case}", text)) for text in (before, after))
    plant(monkeypatch, higher.slopes_of, *pair)
    assert gradcheck(twice, [0.6, -0.8]).ok
    report = gradcheck(twice, [0.6, -0.8], second=True, raise_exception=False)
    assert blamed(report) - {("*", OUT), ("*", "u = s.tanh() * t")} == expected


# ---- what is right is not blamed


def test_all_operations_pass_first_and_second_derivatives_included() -> None:
    """Each appears in the report, and no comparison had to be left out."""
    report = gradcheck(everything, [0.9, 1.7], second=True)
    assert {c.operation for c in report.checks} == set(FORWARD) | {"f"}
    assert all(c.made for c in report.checks)
    assert max(c.error for c in report.checks if c.about == "derivative") < 1e-9
    assert max(c.error for c in report.checks) < 1e-3  # 0 against 1e-17 is no error of 1
    assert gradcheck(twice, [0.6, -0.8], second=True).ok


def test_random_points_are_not_blamed() -> None:
    """Not even where values are tiny, large or close to a kink."""
    draw = random.Random(3)
    for _ in range(12):
        x = draw.choice([1e-7, 1e-3, 0.5, 3.0, 30.0]) * draw.uniform(0.5, 2.0)
        y = x + draw.choice([1e-8, 1e-3, 1.0])
        assert gradcheck(everything, [x, y]).ok, (x, y)


def test_kinks_are_left_out_and_said_so() -> None:
    """Neither the operation nor the inputs that feed it can be compared there."""
    f: Callable[..., Value] = lambda x, y: x.relu() + abs(x) + y.max(2) + y  # noqa: E731
    report = gradcheck(f, [0.0, 1.0])
    notes = {(c.operation, c.what): c.note for c in report.checks if not c.made}
    assert notes["relu", "derivative"] == notes["abs", "derivative"]
    assert "kink" in notes["relu", "derivative"]
    assert "it feeds a kink, abs at test_check.py:" in notes["f", "derivative of f by input 0"]
    assert len(notes) == 3
    assert "3 could not be made" in str(report)
    tie = gradcheck(f, [1.0, 2.0])
    assert [c.operation for c in tie.checks if not c.made] == ["max", "f"]


def test_the_edge_of_a_domain_is_left_out() -> None:
    """The function x ** 1.5 has a derivative at 0, but no difference reaches below it."""
    report = gradcheck(lambda x: x**1.5, [0.0])
    assert {c.note for c in report.checks} == {"no difference is good enough here"}


def test_a_network_passes_by_its_parameters_fused_and_plain() -> None:
    """The function may use leaves it closes over; a fused node is compared with its plain form."""
    for fused in (True, False):
        model = nn.MLP(2, [3, 1], activation="tanh", rng=random.Random(1), fused=fused)
        report = gradcheck(lambda *_, m=model: m([0.5, -1.2]) ** 2, model.parameters())
        assert sum(c.about == "whole" for c in report.checks) == 13
        assert {"tanh", "**"} <= {c.operation for c in report.checks}


def test_a_wrong_fused_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients differ from those of its plain form, whose operations are right."""
    wrong = nn.ACTIVATIONS["tanh"]._replace(slopes=lambda ys: [1.0 - y for y in ys])
    monkeypatch.setitem(nn.ACTIVATIONS, "tanh", wrong)
    model = nn.MLP(2, [3, 1], activation="tanh", rng=random.Random(1))
    f = lambda *_: model([0.5, -1.2]) * 2  # noqa: E731
    report = gradcheck(f, model.parameters(), raise_exception=False)
    assert blamed(report) == {("backward", "f = lambda *_: model([0.5, -1.2]) * 2  # noqa: E731")}
    assert len(report.wrong) == 9  # the weights and biases below the activation


def test_numbers_and_gradients_are_left_as_they_were() -> None:
    """Of the inputs and of other leaves that f uses."""
    x, w = Value(0.7), Value(1.5)
    x.grad, w.grad = 3.0, 4.0
    gradcheck(lambda x: (x * w).exp(), [x], second=True)
    assert (x.data, x.grad, w.data, w.grad) == (0.7, 3.0, 1.5, 4.0)
    with pytest.raises(NumericalError):
        gradcheck(lambda x: (w - w).sqrt() * x, [x])
    assert (x.grad, w.grad) == (3.0, 4.0)


# ---- what a learner sees


def cube(x: Value) -> Value:
    return node(x.data**3, "cube", x, 2.0 * x.data**2)


def halve(x: Value) -> Value:
    return node(x.data / 2.0, "halve", x, 0.5)


def test_an_operation_of_your_own_is_checked() -> None:
    """By the function given, or the method of Value with its name."""
    line = 'return node(x.data**3, "cube", x, 2.0 * x.data**2)'
    for function in (cube, lambda x: x**3, lambda x: float(x) ** 3):
        report = gradcheck(
            lambda x: cube(x) * 2, [0.5], functions={"cube": function}, raise_exception=False
        )
        assert blamed(report) == {("cube", line)}
        assert report.wrong[0].numeric == pytest.approx(0.75)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Value, "cube", cube, raising=False)
        report = gradcheck(lambda x: x.cube() * 2, [0.5], raise_exception=False)
        assert blamed(report) == {("cube", line)}
        assert report.wrong[0].numeric == pytest.approx(0.75)


def test_an_unknown_operation_is_blamed_by_elimination() -> None:
    """All others being right; of several, all are suspects; where all is right, none is."""
    report = gradcheck(lambda x: cube(x) * 2, [0.5], raise_exception=False)
    assert [c.operation for c in report.wrong] == ["cube"]
    assert "by elimination" in report.wrong[0].note
    report = gradcheck(lambda x: cube(halve(x)), [0.5], raise_exception=False)
    assert [c.operation for c in report.wrong] == ["f"]
    assert "suspects" in report.wrong[0].note
    assert "cube at test_check.py:" in report.wrong[0].note
    assert "halve at test_check.py:" in report.wrong[0].note
    report = gradcheck(halve, [0.5])
    assert next(c.note for c in report.checks).startswith("unknown operation")


def test_a_step_that_left_the_graph_is_found() -> None:
    """All local derivatives of x * x.data are right, and their product is not."""
    report = gradcheck(lambda x: x * x.data, [3.0], raise_exception=False)
    (check,) = report.wrong
    assert (check.operation, check.analytic) == ("f", 3.0)
    assert check.numeric == pytest.approx(6.0)
    assert "left the graph (.data, float())" in str(check)


def test_the_error_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells operation, line, code, both numbers, and a table with one row for a loop."""
    plant(monkeypatch, Value.exp, "self, out", "self, 1.0")

    def f(x: Value) -> Value:
        for _ in range(3):
            x = (x * 0.5).exp()
        return x

    with pytest.raises(GradientError) as caught:
        gradcheck(f, [0.5])
    lines = str(caught.value).splitlines()
    assert lines[0] == "gradcheck: 7 comparisons, 3 wrong"
    assert lines[1].startswith("wrong: exp at ")
    assert "test_check.py:" in lines[1]
    assert "(x = (x * 0.5).exp()): derivative is 1, should be 1.28402542 (rel" in lines[1]
    assert lines[5].split()[:3] == ["operation", "line", "what"]
    assert [line.split()[0] for line in lines[6:]] == ["*", "exp", "f"]
    assert lines[7].endswith("WRONG, worst of 3")
    assert caught.value.exit_code == 6
    assert not caught.value.report.ok


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: float(x), "f returned float; gradcheck needs one Value"),
        (lambda x: x * random.random(), "f gave .*, then .*; fix the seed"),
    ],
)
def test_what_cannot_be_checked_is_refused(f: Callable[..., Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gradcheck(f, [1.0])


@pytest.mark.parametrize(
    ("f", "x", "expected"),
    [
        (math.exp, 700.0, math.exp(700.0)),
        (math.sin, 1e6, math.cos(1e6)),
        (math.log, 1e-12, 1e12),
        (lambda x: 1.0 / x, 1e-5, -1e10),
        (lambda x: x**3, 1e90, 3e180),
        (abs, 0.001, 1.0),
        (math.sqrt, 1e-8, 0.5e4),
        (math.cos, 1e-8, -1e-8),
    ],
)
def test_central_differences_fit_their_step_to_the_function(
    f: Callable[[float], float], x: float, expected: float
) -> None:
    """Right to 1e-9, or 1e-12 of the function where its derivative is tiny, and they know it."""
    slope, error = central_difference(f, x)
    assert slope == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert abs(slope - expected) <= 10.0 * error <= 1e-8 * abs(expected) + 1e-11


def test_central_differences_say_where_there_are_none() -> None:
    """At the edge of a domain."""
    assert central_difference(math.sqrt, 0.0)[1] == math.inf

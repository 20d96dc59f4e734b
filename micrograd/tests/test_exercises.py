"""The exercises: right answers pass, each wrong one is caught, and no answer breaks the checker."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from micrograd import exercises
from micrograd.exercises import EXERCISES, NOT_STARTED, NOT_YET, PASSED, Outcome, judge

RIGHT = {
    "slope": """
def slope(x):
    return 3 * (3 * x**2 - 4 * x) ** 2 * (6 * x - 4)
""",
    "central_difference": """
def central_difference(f, x, h=1e-4):
    return (f(x + h) - f(x - h)) / (2 * h)
""",
    "topological_order": """
def topological_order(root):
    order, done, stack = [], set(), [(root, False)]
    while stack:
        one, inputs_are_done = stack.pop()
        if inputs_are_done:
            order.append(one)
        elif one not in done:
            done.add(one)
            stack.append((one, True))
            stack.extend((v, False) for v in one.parents())
    return order
""",
    "tanh_backward": """
def tanh_backward(y, above):
    return (1 - y * y) * above
""",
    "Number": """
class Number:
    def __init__(self, data, inputs=()):
        self.data, self.grad, self.inputs = data, 0.0, inputs

    def __add__(self, other):
        return Number(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Number(self.data * other.data, ((self, other.data), (other, self.data)))

    def backward(self):
        order = []
        def visit(one):
            if one not in order:
                for below, _ in one.inputs:
                    visit(below)
                order.append(one)
        visit(self)
        self.grad = 1.0
        for one in reversed(order):
            for below, slope in one.inputs:
                below.grad += slope * one.grad
""",
    "gradient_after": """
def gradient_after(x, n):
    return 2 * x * n
""",
    "neuron_gradient": """
import math

def neuron_gradient(w, x, b):
    out = math.tanh(sum(p * q for p, q in zip(w, x)) + b)
    g = 1 - out * out
    return [g * q for q in x], [g * p for p in w], g
""",
    "train_xor": """
import random
from micrograd import losses, optim
from micrograd.nn import MLP

def train_xor():
    random.seed(1)
    model = MLP(2, [8, 1], activation="tanh")
    optimizer = optim.Adam(model.parameters(), 0.05)
    points, labels = [[0, 0], [0, 1], [1, 0], [1, 1]], [-1, 1, 1, -1]
    for _ in range(200):
        optimizer.zero_grad()
        losses.hinge([model(p) for p in points], labels).backward()
        optimizer.step()
    return model
""",
    "newton_step": """
from micrograd.engine import Value
from micrograd.higher import grad

def newton_step(f, x):
    v = Value(x)
    (first,) = grad(f(v), [v])
    (second,) = grad(first, [v])
    return x - first.data / second.data
""",
}

WRONG: list[tuple[str, str, str, str]] = [  # name, a right piece, a wrong one, what is said
    ("slope", " * (6 * x - 4)", "", r"slope\(.*\) returned .*, expected .*Hint: The chain rule"),
    ("central_difference", "f(x - h)) / (2 * h)", "f(x)) / h", "Hint: .* One side alone is off"),
    ("topological_order", "return order", "return order[::-1]", "before one of its inputs"),
    ("topological_order", "return order", "return order[1:]", "before one of its inputs"),
    ("topological_order", "return order", "return order[:-1]", r"\d nodes, expected the \d+ b"),
    ("topological_order", "return order", "return order + [root]", "twice, expected each node"),
    ("topological_order", "return order", "return len(order)", "expected a list of Values"),
    (
        "topological_order",
        "not in done:",
        "not in done and f(len(stack)):",
        "RecursionError: .*Hint",
    ),
    ("tanh_backward", " * above", "", "Hint: The derivative of tanh is"),
    ("tanh_backward", "(1 - y * y)", "(1 - y)", "Hint: The derivative of tanh is"),
    ("Number", "below.grad += slope", "below.grad = slope", r"a \* a \+ a, .* a.grad after"),
    (
        "Number",
        "(self, other.data), (other, self.data)",
        "(self, self.data), (other, 1)",
        r"a \* b",
    ),
    ("Number", "self.data + other.data", "self.data - other.data", r"a \+ b, .*: data returned"),
    ("Number", "reversed(order)", "order", "reversed topological order"),
    ("Number", "if one not in order", "if True", r"\(a \+ b\) \* \(a \+ b\)"),
    ("Number", "def __mul__", "def mul", r"TypeError: unsupported operand .*Hint: Gradients of s"),
    ("gradient_after", "2 * x * n", "x * n * (n + 1)", r"\(3.0, 2\) returned 18.0, expected 12.0"),
    ("gradient_after", "2 * x * n", "2 * x", r"gradient_after\(3.0, 2\) returned 6.0, expected 12"),
    ("neuron_gradient", "[g * q for q in x], [g * p", "[g * q for q in w], [g * p", "Hint: With g"),
    ("neuron_gradient", "for p in w], g", "for p in w], 1.0", "Hint: With g = 1"),
    ("neuron_gradient", "for p in w], g", "for p in w]", "Hint: With g = 1"),
    (
        "train_xor",
        "[8, 1]",
        "[1]",
        "the network of train_xor.. at .* expected a Value (above|below) 0",
    ),
    ("train_xor", "return model", "return 1", "returned 1, expected a micrograd.nn.MLP"),
    ("newton_step", "/ second.data", "", "Hint: v = Value"),
    ("newton_step", "return x - ", "return ", r"newton_step\(f, .*\) for f\(x\) = "),
    ("newton_step", "second.data", "'x'", r"line \d+: TypeError: unsupported operand"),
    ("newton_step", "return x", "return 'x' or x", "returned 'x', expected"),
    ("slope", "return", "return None and", "returned None, expected"),
    ("slope", "return", "raise SystemExit;", r"line 3: SystemExit: . Hint"),
]


def module_of(text: str) -> ModuleType:
    module = ModuleType("answers")
    module.__file__ = "answers.py"
    exec(compile(text, "answers.py", "exec"), module.__dict__)
    return module


def outcome_of(name: str, text: str) -> Outcome:
    (exercise,) = (one for one in EXERCISES if one.name == name)
    return judge(exercise, module_of(text))


@pytest.mark.parametrize("name", [exercise.name for exercise in EXERCISES])
def test_a_right_answer_passes(name: str) -> None:
    """In this process; the command is tried below."""
    assert outcome_of(name, RIGHT[name]) == Outcome(name, PASSED)


@pytest.mark.parametrize(("name", "right", "wrong", "note"), WRONG)
def test_a_wrong_answer_is_caught_with_a_hint(name: str, right: str, wrong: str, note: str) -> None:
    """What was returned, what was expected, and how to go on."""
    assert RIGHT[name].count(right) == 1
    helper = "\ndef f(n):\n    return n == 0 or f(n - 1)\n"
    outcome = outcome_of(name, RIGHT[name].replace(right, wrong) + helper)
    assert outcome.status == NOT_YET
    assert "Hint: " in outcome.note
    assert re.search(note, outcome.note), outcome.note


def test_the_template_has_every_question_and_passes_none(tmp_path: Path) -> None:
    """Its stubs are `not started`, as is what isn't in the file at all."""
    assert exercises.main(["--template", str(tmp_path / "my.py")]) == 0
    module = module_of((tmp_path / "my.py").read_text())
    for exercise in EXERCISES:
        stub = getattr(module, exercise.name)
        assert " ".join(stub.__doc__.split()) == exercise.question
        assert judge(exercise, module).status == NOT_STARTED
        empty = judge(exercise, module_of(""))
        assert empty.status == NOT_STARTED
        assert "is not in the file" in empty.note


def test_a_template_does_not_replace_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that exists is left as it is."""
    path = tmp_path / "my.py"
    path.write_text("mine")
    assert exercises.main(["--template", str(path)]) == 2
    assert "exists already; it is left as it is" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_the_checks_are_random_but_repeat() -> None:
    """An answer learned from one run's messages is wrong on the next number."""
    calls: list[list[float]] = []
    (exercise,) = (one for one in EXERCISES if one.name == "slope")
    right = module_of(RIGHT["slope"])
    slope: Any = right.slope

    def noted(x: float) -> Any:
        calls[-1].append(x)
        return slope(x)

    right.slope = noted  # type: ignore[attr-defined]
    for _ in range(2):
        calls.append([])
        assert judge(exercise, right).status == PASSED
    assert calls[0] == calls[1]
    assert len(set(calls[0])) == 5
    right.slope = slope  # type: ignore[attr-defined]
    exercise.check(slope, random.Random(99))


def test_all_right_answers_pass_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 and a table that says so; what an answer prints doesn't disturb."""
    path = tmp_path / "my.py"
    path.write_text("print('hello')\n" + "".join(RIGHT.values()))
    assert exercises.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{len(EXERCISES)} of {len(EXERCISES)} passed" in out
    assert "hello" not in out
    assert not (tmp_path / "__pycache__").exists()


def test_an_answer_that_ends_badly_is_reported_and_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endless loop, an exit, an exception, too much memory: each its line, exit code 1."""
    few = {"slope", "tanh_backward", "gradient_after", "newton_step", "central_difference"}
    monkeypatch.setattr(exercises, "EXERCISES", tuple(e for e in EXERCISES if e.name in few))
    path = tmp_path / "my.py"
    path.write_text(
        RIGHT["slope"]
        + "def central_difference(f, x, h):\n    return ' ' * (1 << 40)\n"
        + "def tanh_backward(y, above):\n    while True: pass\n"
        + "def gradient_after(x, n):\n    import os; os._exit(7)\n"
        + "def newton_step(f, x):\n    return {}['no [bold] key']\n"
    )
    assert exercises.main([str(path), "--json", "--time-limit", "2"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    first, memory, endless, ended, failed = json.loads(said.out)
    assert first == {"name": "slope", "status": PASSED, "note": ""}
    assert "MemoryError" in memory["note"]
    assert endless["note"].startswith("no end after 2 seconds; is there an endless loop?")
    assert ended["note"] == "the program ended by itself, with exit code 7"
    assert failed["note"].startswith("line 11: KeyError: 'no [bold] key'. Hint: ")
    assert [one["status"] for one in (memory, endless, ended, failed)] == [NOT_YET] * 4


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("x = (\n", "line 1: '(' was never closed"),
        ("import no_such_module_at_all\n", "line 1: ModuleNotFoundError: No module named"),
        ("\n1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt\n", "line 1: KeyboardInterrupt"),
        ("# coding: nonsense\n", "unknown encoding: nonsense"),
    ],
)
def test_a_file_that_cannot_run_is_reported_by_its_line(
    text: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and no traceback."""
    (tmp_path / "my.py").write_text(text)
    assert exercises.main([str(tmp_path / "my.py"), "--json"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert all(one["note"].startswith(note) for one in json.loads(said.out))


def test_the_time_limit_is_that_of_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 seconds without it, for loading the file and for each answer."""
    limits: list[float] = []

    def never_ends(arguments: list[str], *, timeout: float, **_: Any) -> None:
        limits.append(timeout)
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr(subprocess, "run", never_ends)
    (tmp_path / "my.py").touch()
    assert exercises.main([str(tmp_path / "my.py")]) == 1
    assert exercises.main([str(tmp_path / "my.py"), "--time-limit", "0.5"]) == 1
    assert limits == [20.0, 0.5]
    assert "no end after 0.5 seconds" in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_the_table_shows_each_state(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of notes with square brackets, which rich would take for markup."""
    outcomes = [
        Outcome("a", PASSED),
        Outcome("b", NOT_YET, "a [red] key"),
        Outcome("c", NOT_STARTED),
    ]
    exercises.show(outcomes)
    out = capsys.readouterr().out
    for text in ("passed", "not yet", "not started", "a [red] key", "1 of 3 passed"):
        assert text in out


def test_list_prints_the_questions(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbered, in order."""
    assert exercises.main(["--list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for i, exercise in enumerate(EXERCISES, 1):
        assert f"{i}. {exercise.name} {exercise.question}" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name a FILE with answers, or use --template FILE, or --list"),
        (["a.py", "--list"], "name a FILE"),
        (["none.py"], "none.py is no file; --template FILE writes one"),
        (["a.py", "--time-limit", "0"], "--time-limit 0.0 must be a positive number"),
        (["a.py", "--time-limit", "nan"], "--time-limit nan must be"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the name of the command first."""
    assert exercises.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("micrograd.exercises: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_help_says_that_the_file_is_run() -> None:
    """As a program of the user's own."""
    command = [sys.executable, "-m", "micrograd.exercises", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "your own program: it is run" in " ".join(done.stdout.split())

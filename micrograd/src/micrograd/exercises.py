"""Exercises from the chain rule to a trained network, with answers that can be checked.

    python -m micrograd.exercises --template my_answers.py  # write the questions to a file
    python -m micrograd.exercises my_answers.py             # see which answers are right

An answer is tried on random numbers, the same each time, and compared with this package's engine.
Each runs in a process of its own with a limit on time and memory, so that an endless loop is a
wrong answer like any other. The file is a program that its user wrote and named: it is run, and can
do whatever that user can. Exit codes: 0 all passed, 1 not yet, 2 usage, 130 interrupted.
"""

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from micrograd import command
from micrograd.engine import Value
from micrograd.errors import UsageError
from micrograd.files import write_whole
from micrograd.higher import grad
from micrograd.nn import MLP, Neuron

TIME_LIMIT = 20.0
"""Seconds for one answer; the slowest, training XOR, needs about one."""
MAX_BYTES = 4 << 30
"""Memory of one answer, where the system can limit it (not on Windows)."""
PASSED, NOT_YET, NOT_STARTED = "passed", "not yet", "not started"
LOADING = "(the file)"


class Wrong(Exception):
    """An answer is not right: what was `returned`, for what, and what was `expected`."""

    def __init__(self, call: str, returned: str, expected: str) -> None:
        super().__init__(f"{call} returned {_short(returned)}, expected {_short(expected)}")


@dataclass(frozen=True)
class Exercise:
    """A question, the stub that its answer replaces, how to check it, and a hint."""

    name: str
    """What the answer's function or class is called."""
    stub: str
    """Its signature, as in the template."""
    question: str
    hint: str
    check: Callable[[Any, random.Random], None]
    """Tries an answer with random numbers; raises Wrong."""


@dataclass(frozen=True)
class Outcome:
    """What became of an answer; `note` is empty if it passed."""

    name: str
    status: str
    note: str = ""


# ---- what is right


def check_slope(answer: Any, rng: random.Random) -> None:
    """Compare with the engine at random points."""
    for _ in range(5):
        x = rng.uniform(-2.0, 2.0)
        v = Value(x)
        (slope,) = grad((3 * v**2 - 4 * v) ** 3, [v])
        _compare(f"slope({x!r})", answer(x), slope.data)


def check_central_difference(answer: Any, rng: random.Random) -> None:
    """Compare with the engine on cubics, on which a one-sided difference is off by h * f''/2."""
    for _ in range(5):
        a, b, c, x = (rng.uniform(5.0, 9.0) for _ in range(4))

        def f(x: Any, a: float = a, b: float = b, c: float = c) -> Any:
            return a * x**3 + b * x**2 + c * x

        v = Value(x)
        (slope,) = grad(f(v), [v])
        call = f"central_difference(f, {x!r}, 1e-4) for f(x) = {a!r}x^3 + {b!r}x^2 + {c!r}x"
        _compare(call, answer(f, x, 1e-4), slope.data, 1e-8)


def check_topological_order(answer: Any, rng: random.Random) -> None:
    """Look at random graphs with shared nodes, and at a chain deeper than Python's recursion."""
    for _ in range(5):
        nodes = [Value(rng.uniform(-1.0, 1.0)) for _ in range(3)]
        for _ in range(12):
            nodes.append(rng.choice(nodes) * rng.choice(nodes) + rng.choice(nodes))
        _check_order(answer, nodes[-1], "a random graph")
    deep = Value(0.5)
    for _ in range(3 * sys.getrecursionlimit()):
        deep = deep + 1.0
    _check_order(answer, deep, "a chain of thousands of nodes")


def _check_order(answer: Any, root: Value, what: str) -> None:
    call = f"topological_order of {what}"
    returned = answer(root)
    if not isinstance(returned, list | tuple) or not all(isinstance(v, Value) for v in returned):
        raise Wrong(call, repr(returned), "a list of Values")
    seen: set[Value] = set()
    for one in returned:
        if one in seen:
            raise Wrong(call, f"{one!r} twice", "each node once")
        if not seen.issuperset(one.parents()):
            raise Wrong(call, f"{one!r} before one of its inputs", "inputs first")
        seen.add(one)
    wanted, todo = {root}, [root]
    while todo:
        fresh = set(todo.pop().parents()) - wanted
        wanted |= fresh
        todo += fresh
    if seen != wanted:
        raise Wrong(call, f"{len(seen)} nodes", f"the {len(wanted)} below the root, and it")


def check_tanh_backward(answer: Any, rng: random.Random) -> None:
    """Compare with the engine, for random gradients from above."""
    for _ in range(5):
        x, above = Value(rng.uniform(-2.0, 2.0)), rng.uniform(-3.0, 3.0)
        y = x.tanh()
        (y * above).backward()
        _compare(f"tanh_backward({y.data!r}, {above!r})", answer(y.data, above), x.grad)


def check_number(answer: Any, rng: random.Random) -> None:
    """Compare with the engine on random expressions of + and * with shared parts."""
    for shape in ("a + b", "a * b", "a * a + a", "(a + b) * (a + b)", "a random expression"):
        numbers = [rng.uniform(-2.0, 2.0) for _ in range(2)]
        seed = rng.random()
        (ours, result), (theirs, returned) = (
            _evaluate(kind, numbers, shape, random.Random(seed)) for kind in (Value, answer)
        )
        result.backward()
        returned.backward()
        call = f"Number: {shape}, a = {numbers[0]!r}, b = {numbers[1]!r}:"
        _compare(f"{call} data", returned.data, result.data)
        for name, mine, its in zip("ab", ours, theirs, strict=True):
            _compare(f"{call} {name}.grad after backward()", its.grad, mine.grad)


def _evaluate(
    kind: Any, numbers: list[float], shape: str, rng: random.Random
) -> tuple[list[Any], Any]:
    """Return leaves a and b of a class, and an expression of them."""
    a, b = leaves = [kind(x) for x in numbers]
    match shape:
        case "a + b":
            return leaves, a + b
        case "a * b":
            return leaves, a * b
        case "a * a + a":
            return leaves, a * a + a
        case "(a + b) * (a + b)":
            both = a + b
            return leaves, both * both
    nodes = [*leaves, a * b]
    for _ in range(8):
        p, q = rng.choice(nodes), rng.choice(nodes[-3:])
        nodes.append(p + q if rng.random() < 0.7 else p * q)
    return leaves, nodes[-1] + nodes[-2]


def check_gradient_after(answer: Any, rng: random.Random) -> None:
    """Count along with the engine."""
    for n in (1, 2, 3, rng.randrange(4, 9)):
        x = Value(3.0 if n < 3 else rng.uniform(-2.0, 2.0))
        y = 1.0 * (x * x)
        for _ in range(n):
            y.backward()
        _compare(f"gradient_after({x.data!r}, {n})", answer(x.data, n), x.grad)


def check_neuron_gradient(answer: Any, rng: random.Random) -> None:
    """Compare with a Neuron of this package."""
    for n in (1, 2, 5):
        neuron = Neuron(n, activation="tanh", rng=rng)
        neuron.b.data = rng.uniform(-1.0, 1.0)
        x = [Value(rng.uniform(-1.0, 1.0)) for _ in range(n)]
        neuron(x).backward()
        arguments = [w.data for w in neuron.w], [v.data for v in x], neuron.b.data
        returned = answer(*arguments)
        expected = [w.grad for w in neuron.w], [v.grad for v in x], neuron.b.grad
        call = f"neuron_gradient{arguments!r}"
        try:
            dw, dx, db = returned
            flat = [*dw, *dx, db]
        except (TypeError, ValueError):
            raise Wrong(call, repr(returned), repr(expected)) from None
        wanted = [*expected[0], *expected[1], expected[2]]
        if len(flat) != len(wanted) or not all(map(_close, flat, wanted)):
            raise Wrong(call, repr(returned), repr(expected))


def check_train_xor(answer: Any, rng: random.Random) -> None:
    """Ask the network about the four corners, in any order."""
    random.seed(rng.random())
    model = answer()
    if not isinstance(model, MLP):
        raise Wrong("train_xor()", repr(model), "a micrograd.nn.MLP")
    corners = [(0, 0, -1), (0, 1, 1), (1, 0, 1), (1, 1, -1)]
    rng.shuffle(corners)
    for x, y, label in corners:
        score = model([x, y])
        side = "above 0" if label > 0 else "below 0"
        if not isinstance(score, Value) or not score.data * label > 0.0:
            raise Wrong(f"the network of train_xor() at {[x, y]}", repr(score), f"a Value {side}")


def check_newton_step(answer: Any, rng: random.Random) -> None:
    """Compare with the engine's two derivatives, on quartics that curve upwards."""
    for _ in range(5):
        a, b, c = (rng.uniform(0.5, 2.0) for _ in range(3))

        def f(v: Value, a: float = a, b: float = b, c: float = c) -> Value:
            return a * v**4 + b * v**2 - c * v

        x = Value(rng.uniform(-2.0, 2.0))
        (first,) = grad(f(x), [x])
        (second,) = grad(first, [x])
        call = f"newton_step(f, {x.data!r}) for f(x) = {a!r}x^4 + {b!r}x^2 - {c!r}x"
        _compare(call, answer(f, x.data), x.data - first.data / second.data)


EXERCISES = (
    Exercise(
        "slope",
        "def slope(x):",
        "Return the derivative of (3 x**2 - 4 x) ** 3 at the number x, worked out by hand.",
        "The chain rule: 3 u**2 times du/dx, where u = 3 x**2 - 4 x.",
        check_slope,
    ),
    Exercise(
        "central_difference",
        "def central_difference(f, x, h=1e-4):",
        "Return the slope of the function f at the number x, measured from h before to h after.",
        "(f(x + h) - f(x - h)) / (2 * h). One side alone is off by about h.",
        check_central_difference,
    ),
    Exercise(
        "topological_order",
        "def topological_order(root):",
        "Return a list of the micrograd.engine.Value `root` and all Values below it, each once, "
        "inputs before what is made of them. v.parents() are the inputs of v. It has to work for "
        "a chain of thousands.",
        "Recursion ends at about 1,000. Keep a list of your own: look at a node a first time to "
        "put its inputs on top of it, and a second time, when they are done, to append it.",
        check_topological_order,
    ),
    Exercise(
        "tanh_backward",
        "def tanh_backward(y, above):",
        "For y = tanh(x) and above = dL/dy, both numbers, return dL/dx.",
        "The derivative of tanh is 1 - tanh(x)**2, and y is tanh(x). Multiply it by `above`.",
        check_tanh_backward,
    ),
    Exercise(
        "Number",
        "class Number:",
        "A Value of your own: Number(3.0) has data 3.0 and grad 0.0; a + b and a * b of two "
        "Numbers are Numbers; result.backward() sets grad to d result / d number in all of them, "
        "also where a Number is used several times.",
        "Gradients of several uses add up: += and not =. Hand a node's gradient on only when all "
        "that use it have added theirs, that is, in reversed topological order.",
        check_number,
    ),
    Exercise(
        "gradient_after",
        "def gradient_after(x, n):",
        "For Values x and y = 1.0 * (x * x), y.backward() is called n times, with no zero_grad. "
        "Return the number x.grad then is in this engine (and in PyTorch).",
        "At x = 3 it is 6 after one call and 12 after two: each call adds 2 x. 18 comes out where "
        "x * x still holds its gradient of the first call, and hands it on a second time.",
        check_gradient_after,
    ),
    Exercise(
        "neuron_gradient",
        "def neuron_gradient(w, x, b):",
        "For out = tanh(w[0] * x[0] + w[1] * x[1] + ... + b) return three things: the list "
        "d out / d w[i], the list d out / d x[i], and d out / d b.",
        "With g = 1 - out**2 they are g * x[i], g * w[i], and g.",
        check_neuron_gradient,
    ),
    Exercise(
        "train_xor",
        "def train_xor():",
        "Return a micrograd.nn.MLP, trained here, whose output is above 0 at [0, 1] and [1, 0], "
        "and below 0 at [0, 0] and [1, 1].",
        "MLP(2, [8, 1], activation='tanh'), losses.hinge with labels -1 and 1, and 200 steps of "
        "optim.Adam at learning rate 0.05. Start from random.seed(1) so that each run is the same.",
        check_train_xor,
    ),
    Exercise(
        "newton_step",
        "def newton_step(f, x):",
        "f maps a Value to a Value, x is a number. Return x - f'(x) / f''(x) as a number, with "
        "both derivatives from micrograd.higher.grad.",
        "v = Value(x); (first,) = grad(f(v), [v]); (second,) = grad(first, [v]); the numbers are "
        "in .data.",
        check_newton_step,
    ),
)


def _compare(call: str, returned: Any, expected: float, tolerance: float = 1e-9) -> None:
    """Raise Wrong unless `returned` is a number close to `expected`."""
    if not _close(returned, expected, tolerance):
        raise Wrong(call, repr(returned), repr(expected))


def _close(returned: Any, expected: float, tolerance: float = 1e-9) -> bool:
    try:
        return math.isclose(float(returned), expected, rel_tol=tolerance, abs_tol=tolerance)
    except (TypeError, ValueError, OverflowError):
        return False


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


# ---- running a learner's file


def load(path: Path) -> ModuleType:
    """Run the file and return its names."""
    module = ModuleType("answers")
    module.__file__ = str(path)
    sys.modules["answers"] = module  # where a dataclass looks for its module
    sys.path.insert(0, str(path.parent))  # where a script finds its neighbours
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


def judge(exercise: Exercise, module: ModuleType) -> Outcome:
    """Return what becomes of the answer to an exercise in a module that was loaded."""
    answer = getattr(module, exercise.name, None)
    if answer is None:
        return Outcome(exercise.name, NOT_STARTED, f"{exercise.name} is not in the file")
    try:
        exercise.check(answer, random.Random(exercise.name))
    except NotImplementedError:
        return Outcome(exercise.name, NOT_STARTED, exercise.question)
    except Wrong as wrong:
        return Outcome(exercise.name, NOT_YET, f"{wrong}. Hint: {exercise.hint}")
    except BaseException as error:  # whatever a learner's program may raise, or exit by
        note = f"{_what_failed(error, module.__file__)}. Hint: {exercise.hint}"
        return Outcome(exercise.name, NOT_YET, note)
    return Outcome(exercise.name, PASSED)


def _what_failed(error: BaseException, path: str | None) -> str:
    """Return an exception in a line, with the last line of the learner's file that led to it."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {_short(' '.join(str(error).split()))}"


def work(path: str, name: str) -> None:
    """Judge one answer, in a process of its own; write the outcome to standard output as JSON.

    What the answer prints goes to standard error. With the name LOADING only the file is run.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        module = load(Path(path))
    except BaseException as error:  # whatever a learner's program may raise, or exit by
        outcome = Outcome(name, NOT_YET, _what_failed(error, path))
    else:
        chosen = [exercise for exercise in EXERCISES if exercise.name == name]
        outcome = judge(chosen[0], module) if chosen else Outcome(name, PASSED)
    with out:
        json.dump(vars(outcome), out)


def examine(path: Path, name: str, time_limit: float) -> Outcome:
    """Return the outcome of one answer, judged in a process of its own within `time_limit` s."""
    program = "import sys; from micrograd import exercises; exercises.work(*sys.argv[1:])"
    arguments = [sys.executable, "-B", "-c", program, str(path), name]
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        note = f"no end after {time_limit:g} seconds; is there an endless loop? (--time-limit)"
        return Outcome(name, NOT_YET, note)
    try:
        return Outcome(**json.loads(done.stdout))
    except (ValueError, TypeError):
        note = f"the program ended by itself, with exit code {done.returncode}"
        return Outcome(name, NOT_YET, note)


# ---- the command


def template() -> str:
    """Return the file to fill in: each question as the docstring of a stub."""
    parts = ['"""My answers to micrograd\'s exercises: python -m micrograd.exercises THIS_FILE."""']
    for exercise in EXERCISES:
        lines = textwrap.wrap(f'"""{exercise.question}', 92)
        body = [*lines, '"""'] if len(lines) > 1 else [f'{lines[0]}"""']
        if exercise.stub.startswith("class"):
            init = ["", "def __init__(self, data):", "    raise NotImplementedError"]
            body += init
        else:
            body.append("raise NotImplementedError")
        indented = textwrap.indent("\n".join(body), "    ")
        parts.append(f"{exercise.stub}\n{indented}")
    return "\n\n\n".join(parts) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    parser = command.Parser(
        "python -m micrograd.exercises",
        "Check your answers to the exercises. FILE is your own program: it is run, with all that "
        "you are allowed to do, so name no file that you have not read.",
    )
    add = parser.add_argument
    add("file", type=Path, nargs="?", metavar="FILE", help="your answers")
    add("--template", type=Path, metavar="FILE", help="write a file with the questions")
    add("--list", action="store_true", help="print the questions")
    add("--json", action="store_true", help="print the outcomes as JSON")
    add(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        help=f"seconds for each answer (default: {TIME_LIMIT:g})",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if [args.file is None, args.template is None, not args.list].count(False) != 1:
        raise UsageError("name a FILE with answers, or use --template FILE, or --list")
    if not 0.0 < args.time_limit < math.inf:
        raise UsageError(f"--time-limit {args.time_limit} must be a positive number of seconds")
    return args


def check_file(path: Path, time_limit: float, *, quiet: bool = True) -> list[Outcome]:
    """Return the outcome of each exercise. Raises UsageError where the file can't be run."""
    path = path.absolute()
    if not path.is_file():
        raise UsageError(f"{path} is no file; --template FILE writes one to begin with")
    loaded = examine(path, LOADING, time_limit)
    if loaded.status != PASSED:
        return [Outcome(exercise.name, NOT_YET, loaded.note) for exercise in EXERCISES]
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        return [
            examine(path, exercise.name, time_limit)
            for exercise in bar.track(EXERCISES, description="checking")
        ]


def run(args: argparse.Namespace) -> list[Outcome]:
    """Do what the command line asks; return the outcomes, if it asks for any."""
    if args.template:
        if args.template.exists():
            raise UsageError(f"{args.template} exists already; it is left as it is")
        write_whole(args.template, template())
        print(f"wrote {args.template} with {len(EXERCISES)} questions")
    if args.list:
        for i, exercise in enumerate(EXERCISES, 1):
            text = textwrap.fill(exercise.question, 92)
            print(f"{i}. {exercise.name}\n{textwrap.indent(text, '   ')}")
    if not args.file:
        return []
    outcomes = check_file(args.file, args.time_limit, quiet=not sys.stderr.isatty())
    if args.json:
        print(json.dumps([vars(outcome) for outcome in outcomes], indent=2))
    else:
        show(outcomes)
    return outcomes


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the outcomes as a table."""
    colours = {PASSED: "green", NOT_YET: "red", NOT_STARTED: "dim"}
    table = Table("", "exercise", "", "", show_lines=True)
    for i, outcome in enumerate(outcomes, 1):
        colour = colours[outcome.status]
        status = f"[{colour}]{outcome.status}[/{colour}]"
        table.add_row(str(i), outcome.name, status, escape(outcome.note))
    console = Console()
    console.print(table)
    passed = sum(outcome.status == PASSED for outcome in outcomes)
    console.print(f"{passed} of {len(outcomes)} passed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    outcomes: list[Outcome] = []
    code = command.main(parse, lambda args: outcomes.extend(run(args)), "micrograd.exercises", argv)
    return code or int(any(outcome.status != PASSED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())

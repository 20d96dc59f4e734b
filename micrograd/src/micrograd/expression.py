"""Formulas typed by a user, turned into Values: `n = (x*w + b).tanh(); (n - 1)**2`.

Only names, numbers, operators and the methods of Value are understood. The formula is parsed and
walked, never executed, so that a text from anybody is safe to read.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from micrograd.engine import Number, Value
from micrograd.errors import NumericalError, UsageError

LONGEST = 2000
"""The most characters of a formula."""

METHODS = {
    **dict.fromkeys(("exp", "log", "sqrt", "tanh", "sigmoid", "softplus", "relu", "sin", "cos"), 0),
    **dict.fromkeys(("max", "min"), 1),
}
"""The methods that a formula may call, each with how many arguments it takes."""

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: lambda x: x,
}


def read_expression(text: str, numbers: Mapping[str, float]) -> tuple[Value, dict[Value, str]]:
    """Return the value of the formula `text`, and the names of the Values in it.

    `numbers` are its inputs by name. Assignments before the last formula, separated by `;`, name
    what is between: `c = a*b; c + c`.

        root, labels = read_expression("(a*b + c).relu()", {"a": 2, "b": -3, "c": 10})  # 4

    Raises UsageError, showing the place, for anything else than names, numbers, operators and the
    METHODS; NumericalError, showing the place too, for log(-1) and the like.
    """
    reader = _Reader(text, numbers)
    try:
        root = reader.read()
    except (RecursionError, MemoryError):
        raise UsageError(
            "the expression is nested too deeply; name parts of it: c = ...;"
        ) from None
    unused = sorted(set(numbers) - reader.used)
    if unused:
        raise UsageError(f"the expression does not use {', '.join(unused)}; remove it")
    if not isinstance(root, Value):
        raise UsageError(f"{text!r} has no named input to differentiate by; use a name, and a=2")
    labels: dict[Value, str] = {}
    for name, value in reader.names.items():
        labels.setdefault(value, name)
    return root, labels


class _Reader:
    """One formula, the names known so far, and which of them it used."""

    def __init__(self, text: str, numbers: Mapping[str, float]) -> None:
        self.text = text
        self.names = {name: Value(x) for name, x in numbers.items()}
        self.used: set[str] = set()

    def read(self) -> Number:
        """Return the value of the last statement."""
        value: Number = 0.0
        statements = self.statements()
        for i, statement in enumerate(statements):
            if isinstance(statement, ast.Assign):
                value = self.assign(statement)
            elif isinstance(statement, ast.Expr) and i == len(statements) - 1:
                value = self.value(statement.value)
            elif isinstance(statement, ast.Expr):
                self.refuse(statement, "only the last part may be without a name, `c = ...`,")
            else:
                self.refuse(statement, "only formulas and names for them, `c = ...`, are allowed,")
        return value

    def statements(self) -> list[ast.stmt]:
        """Return the parsed statements, at least one."""
        if not self.text.strip() or len(self.text) > LONGEST:
            raise UsageError(f"an expression has 1 to {LONGEST} characters, not {len(self.text)}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on how Python would take the formula
                return ast.parse(self.text.strip()).body
        except SyntaxError as error:
            column = error.offset or 1
            self.complain(column - 1, f"{error.msg}")
        except ValueError as error:
            raise UsageError(f"the expression can't be read: {error}") from None

    def assign(self, statement: ast.Assign) -> Number:
        """Compute `name = formula`."""
        target = statement.targets[0]
        if len(statement.targets) > 1 or not isinstance(target, ast.Name):
            self.refuse(statement, "a part is named by one name, `c = ...`,")
        if target.id in self.names:
            self.refuse(target, f"{target.id!r} has a value already;")
        value = self.value(statement.value)
        if not isinstance(value, Value):
            self.refuse(statement.value, f"{target.id!r} would be a mere number; write it out,")
        self.names[target.id] = value
        return value

    def value(self, part: ast.expr) -> Number:
        """Return the value of a part of the formula."""
        if isinstance(part, ast.Constant) and type(part.value) in (int, float):
            return Value(part.value).data  # type: ignore[arg-type]
        if isinstance(part, ast.Name):
            if part.id not in self.names:
                known = ", ".join(self.names) or "none"
                self.refuse(part, f"unknown name {part.id!r} (known: {known}; give it as a=2)")
            self.used.add(part.id)
            return self.names[part.id]
        if isinstance(part, ast.BinOp) and type(part.op) in OPERATORS:
            return self.apply(part, OPERATORS[type(part.op)], part.left, part.right)
        if isinstance(part, ast.UnaryOp) and type(part.op) in OPERATORS:
            return self.apply(part, OPERATORS[type(part.op)], part.operand)
        if isinstance(part, ast.Call):
            return self.call(part)
        return self.refuse(part, "only names, numbers, + - * / ** and methods are allowed,")

    def call(self, part: ast.Call) -> Number:
        """Return the value of x.method(...) or abs(x)."""
        function, arguments = part.func, part.args
        if isinstance(function, ast.Name) and function.id == "abs" and len(arguments) == 1:
            return self.apply(part, abs, arguments[0])
        if not isinstance(function, ast.Attribute) or function.attr not in METHODS:
            self.refuse(part, f"what can be called is abs(x) and x.{'(), x.'.join(METHODS)}();")
        name = function.attr
        if len(arguments) != METHODS[name] or part.keywords:
            self.refuse(part, f"{name} takes {METHODS[name] or 'no'} argument,")
        return self.apply(part, getattr(Value, name), function.value, *arguments)

    def apply(self, part: ast.expr, function: Callable[..., Any], *operands: ast.expr) -> Number:
        """Return function(*operands); of plain numbers, a plain number by the same rules."""
        values = [self.value(one) for one in operands]
        is_plain = not any(isinstance(v, Value) for v in values)
        if is_plain or function in map(Value.__dict__.get, METHODS):
            first = values[0]
            values[0] = first if isinstance(first, Value) else Value(first)
        try:
            out: Value = function(*values)
        except NumericalError as error:
            what, _, rest = str(error).partition(" at ")
            why = rest.partition(": ")[2]
            raise NumericalError(f"{what}: {why} ({self.place(part)})") from None
        return out.data if is_plain else out

    # ---- errors

    def refuse(self, part: ast.AST, what: str) -> NoReturn:
        """Raise UsageError about `part`."""
        raise UsageError(f"{what} {self.place(part)}")

    def complain(self, column: int, what: str) -> NoReturn:
        """Raise UsageError about what begins at `column`, from 0."""
        raise UsageError(f"{what} {self.show(column, self.text.strip()[column:])}")

    def place(self, part: ast.AST) -> str:
        """Return where `part` is: `at column 7, "d"`."""
        text = self.text.strip()
        line = text.split("\n")[getattr(part, "lineno", 1) - 1]
        column = len(line.encode()[: getattr(part, "col_offset", 0)].decode())
        return self.show(column, ast.get_source_segment(text, part) or line[column:])

    @staticmethod
    def show(column: int, text: str) -> str:
        """Return the column, counted from 1, and the text that is there."""
        text = " ".join(text.split())
        shown = f'"{text[:39]}…"' if len(text) > 40 else f'"{text}"' if text else "the end"
        return f"at column {column + 1}, {shown}"

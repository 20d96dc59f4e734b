"""Formulas typed by a user: read as Python would, and nothing else is run."""

import ast
import math
from pathlib import Path

import pytest

from micrograd.errors import DataError, NumericalError, UsageError
from micrograd.expression import METHODS, read_expression

NUMBERS = {"a": 1.5, "b": -3.0, "c": 10.0}

EXPECTED = {
    "(a*b + c)": 1.5 * -3.0 + 10.0,
    "a - b/c + 2": 1.5 + 0.3 + 2.0,
    "-a**2 + 2**a + +b": -(1.5**2) + 2**1.5 - 3.0,
    "3 - 2*4 + a": 3 - 8 + 1.5,
    "2 - a + 1/a": 2 - 1.5 + 1 / 1.5,
    "abs(b)*a.max(b).min(c)": 3.0 * 1.5,
    "a.exp().log().sqrt()": math.sqrt(1.5),
    "b.relu() + a.relu() + c.tanh()": 0.0 + 1.5 + math.tanh(10.0),
    "d = a*b; e = d*d\nd + e": -4.5 + 4.5**2,
    "(2).max(a)": 2.0,
}


@pytest.mark.parametrize("text", EXPECTED)
def test_a_formula_has_the_value_python_gives_it(text: str) -> None:
    """Operators bind as in Python, on numbers and names alike."""
    used = {name: x for name, x in NUMBERS.items() if name in names_in(text)}
    root, labels = read_expression(text, used)
    assert root.data == pytest.approx(EXPECTED[text], rel=1e-12)
    assert set(used) <= set(labels.values())


def names_in(text: str) -> set[str]:
    """Return the names in a formula."""
    return {one.id for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Name)}


def test_the_readme_example_has_its_gradients() -> None:
    """(a*b + c).relu() at 2, -3, 10: the gradients are -3, 2 and 1."""
    root, labels = read_expression("(a*b + c).relu()", {"a": 2, "b": -3, "c": 10})
    root.backward()
    assert root.data == 4.0
    assert {name: value.grad for value, name in labels.items()} == {"a": -3.0, "b": 2.0, "c": 1.0}


def test_parts_can_be_named() -> None:
    """`c = a*b` gives the product the label c; the first name of a value stays."""
    root, labels = read_expression("c = a*b; d = c; d + c", {"a": 2, "b": 3})
    assert root.data == 12.0
    assert list(labels.values()) == ["a", "b", "c"]


REFUSED = {
    "a * d": r"unknown name 'd' .*known: a; .*at column 5, \"d\"",
    "a *": r"invalid syntax at column",
    "a.__class__": "only names, numbers",
    "a.data": r"only names, numbers.*\"a.data\"",
    "a[0]": "only names, numbers",
    "a if a else a": "only names, numbers",
    "a < 1": "only names, numbers",
    "lambda: a": "only names, numbers",
    "f'{a}'": "only names, numbers",
    "a * True": r"only names, numbers.*at column 5, \"True\"",
    "a * 'x'": "only names, numbers",
    "a * 2j": "only names, numbers",
    "a @ a": "only names, numbers",
    "a // 2": "only names, numbers",
    "not a": "only names, numbers",
    "open('x')": r"what can be called is abs\(x\) and x.exp\(\)",
    "__import__('os').system('touch hit')": "what can be called",
    "a.backward()": "what can be called",
    "exp(a)": "what can be called",
    "abs(a, a)": "what can be called",
    "a.relu(1)": "relu takes no argument",
    "a.max()": "max takes 1 argument",
    "a.max(1, other=2)": "max takes 1 argument",
    "import os": "only formulas and names for them",
    "for a in a: a": "only formulas and names for them",
    "a; a": "only the last part",
    "a = 2*a": "'a' has a value already",
    "b = c = a": "a part is named by one name",
    "b, c = a": "a part is named by one name",
    "b = 3; a*b": "'b' would be a mere number",
    "": "1 to 2000 characters",
    "a +" + " " * 2000 + "a": "1 to 2000 characters, not 2004",
    "(" * 300 + "a" + ")" * 300: "nested|parentheses",
    "-" * 1500 + "a": "nested too deeply",
    "a\0": "can't be read|null|source code",
}


@pytest.mark.parametrize("text", REFUSED)
def test_anything_else_is_refused_and_shown(text: str) -> None:
    """What is no arithmetic raises UsageError on one line, naming the place and the rule."""
    with pytest.raises(UsageError, match=REFUSED[text]) as caught:
        read_expression(text, {"a": 2.0})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not Path("hit").exists()


def test_a_column_counts_characters_not_bytes() -> None:
    """Behind a letter of two bytes, the column is still the one a reader counts."""
    with pytest.raises(UsageError, match='at column 5, "d"'):
        read_expression("ä + d", {"ä": 2.0})


def test_an_unused_or_missing_name_is_told() -> None:
    """A number for a name that the formula lacks is a mistake, as is a formula of no names."""
    with pytest.raises(UsageError, match="does not use b, c"):
        read_expression("a + 1", {"a": 1, "b": 2, "c": 3})
    with pytest.raises(UsageError, match="no named input"):
        read_expression("2 + 3", {})
    with pytest.raises(DataError, match="nan"):
        read_expression("a", {"a": math.nan})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 + a.log()", r'^log\(-2.0\): the logarithm .*\(at column 5, "a.log\(\)"\)$'),
        ("a / (1 - 1)", r"division by zero .at column 1"),
        ("9**999 * a", r"above 1.8e308 .at column 1, \"9\*\*999\""),
        ("a * (0-8)**0.5", "negative base"),
    ],
)
def test_a_number_that_does_not_exist_is_shown_at_its_place(text: str, message: str) -> None:
    """Mistakes of arithmetic, of plain numbers too, name the part of the formula."""
    with pytest.raises(NumericalError, match=message):
        read_expression(text, {"a": -2.0})


def test_every_method_named_is_one_of_values() -> None:
    """The table of methods agrees with the engine: each can be called."""
    for name, arguments in METHODS.items():
        root, _ = read_expression(f"a.{name}({'0.25' if arguments else ''})", {"a": 0.5})
        assert math.isfinite(root.data)

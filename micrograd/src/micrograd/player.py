"""The backward pass as one HTML page, step by step: `python -m micrograd.player`.

    python -m micrograd.player --expression "(a*b + c).relu()" a=2 b=-3 c=10

The page first computes the values, node by node, then hands the gradients back: at each step it
shows a node's gradient, the local derivative on a wire, their product, and how that is added to
what the input has received already. `player.html`, beside this module, is its layout and program.
Everything it says is worked out here, from the graph and in the order of `engine`:

    {"nodes": [{"name": "c", "what": "c = a × b", "data": -6.0, ..., "lines": [...]}, ...],
     "wires": [{"from": 0, "to": 2, "slope": -3.0, "x": 182, "y": 49, ...}, ...],
     "steps": [{"phase": "forward", "node": 2, "wire": null, "say": "c = a × b = ..."}, ...]}
"""

import argparse
import base64
import hashlib
import html
import json
import keyword
import math
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from micrograd import command
from micrograd.draw import (
    MARGIN,
    STYLE,
    Drawing,
    Node,
    arrange,
    figure,
    printable,
    read_graph,
    svg_body,
)
from micrograd.engine import Value
from micrograd.errors import NumericalError, UsageError
from micrograd.expression import read_expression
from micrograd.files import write_whole

LIMIT = 120
"""The most nodes on a page; with more there are too many steps to follow."""

EXAMPLE = "n = (x*w + b).tanh(); loss = (n - y)**2 + 0.1*w**2"
"""A neuron, its squared error and a penalty on its weight, which is so used twice."""

EXAMPLE_NUMBERS = {"x": 2.0, "w": -0.5, "b": 0.7, "y": 1.0}

CHIP = 38.0
"""The height that a label on a wire needs."""

RULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "+": ("{a} + {b}", ("1", "1")),
    "-": ("{a} − {b}", ("1", "−1")),
    "*": ("{a} × {b}", ("{b}", "{a}")),
    "/": ("{a} / {b}", ("1 / {b}", "−{a} / {b} ** 2")),
    "**": ("{a} ** {b}", ("{b} × {a} ** ({b} − 1)", "{a} ** {b} × log({A})")),
    "c**": ("{b} ** {a}", ("{b} ** {a} × log({B})",)),
    "exp": ("exp({A})", ("exp({A})",)),
    "log": ("log({A})", ("1 / {a}",)),
    "sqrt": ("sqrt({A})", ("1 / (2 × sqrt({A}))",)),
    "tanh": ("tanh({A})", ("1 − tanh({A}) ** 2",)),
    "sigmoid": ("sigmoid({A})", ("sigmoid({A}) × (1 − sigmoid({A}))",)),
    "softplus": ("softplus({A})", ("sigmoid({A})",)),
    "relu": ("relu({A})", ("(1 if {A} > 0, else 0)",)),
    "sin": ("sin({A})", ("cos({A})",)),
    "cos": ("cos({A})", ("−sin({A})",)),
    "abs": ("|{A}|", ("(the sign of {A})",)),
    "max": (
        "max({A}, {B})",
        ("(1 if {A} > {B}, ½ if equal, else 0)", "(1 if {B} > {A}, ½ if equal, else 0)"),
    ),
    "min": (
        "min({A}, {B})",
        ("(1 if {A} < {B}, ½ if equal, else 0)", "(1 if {B} < {A}, ½ if equal, else 0)"),
    ),
}
"""Each operation as a formula, and its local derivatives; {A} is {a} where it needs no brackets."""


# ---- the steps


class Flow(NamedTuple):
    """A product on its way: `wire` carries `part`, and `before` becomes `after` at its input."""

    wire: int
    part: float
    before: float
    after: float


def backward_flows(drawing: Drawing) -> list[Flow]:
    """Return what each wire carries in a backward pass from the last node, in `engine`'s order.

    A node passes its gradient on when all that use it have added theirs; of the nodes that could,
    the one that became ready last does. Raises NumericalError where a gradient is not finite.
    """
    nodes = drawing.nodes
    grads = [0.0] * (len(nodes) - 1) + [1.0]
    waiting = [0] * len(nodes)
    leaving: list[list[int]] = [[] for _ in nodes]
    for w, (source, target) in enumerate(drawing.wires):
        waiting[source] += 1
        leaving[target].append(w)
    flows: list[Flow] = []
    ready = [len(nodes) - 1]
    while ready:
        i = ready.pop()
        for w in leaving[i]:
            source, part = drawing.wires[w][0], grads[i] * drawing.slopes[w]
            before = grads[source]
            grads[source] += part
            if not math.isfinite(grads[source]):
                raise NumericalError(
                    f"the derivative of {nodes[i].op!r} at {nodes[source].data!r} is not finite: "
                    f"gradient {grads[i]!r} times local derivative {drawing.slopes[w]!r}"
                )
            flows.append(Flow(w, part, before, grads[source]))
            waiting[source] -= 1
            if not waiting[source]:
                ready.append(source)
    return flows


class _Story:
    """The steps of a graph, and for each node the lines that tell of it, as they become known."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.nodes = drawing.nodes
        self.flows = backward_flows(drawing)
        self.steps: list[dict[str, Any]] = []
        self.lines: list[list[dict[str, Any]]] = [[] for _ in self.nodes]
        self.uses = [0] * len(self.nodes)
        for source, _ in drawing.wires:
            self.uses[source] += 1
        self.forward()
        self.backward()

    def step(self, phase: str, say: str, node: int | None = None, flow: Flow | None = None) -> None:
        self.steps.append(
            {
                "phase": phase,
                "say": say,
                "node": node,
                "wire": None if flow is None else flow.wire,
                "after": None if flow is None else flow.after,
                "afterText": None if flow is None else figure(flow.after),
            }
        )

    def line(self, node: int, group: str, text: str) -> None:
        """Note what the step about to be made says of a node."""
        self.lines[node].append({"step": len(self.steps), "group": group, "text": text})

    def forward(self) -> None:
        leaves = [i for i, node in enumerate(self.nodes) if not node.inputs]
        for i in leaves:
            node = self.nodes[i]
            self.line(i, "Value", f"{node.name} = {figure(node.data)}, given")
        given = listed([f"{self.nodes[i].name} = {figure(self.nodes[i].data)}" for i in leaves])
        self.step("start", f"The inputs are given: {given}. The forward pass computes the rest.")
        for i, node in enumerate(self.nodes):
            if node.inputs:
                value = self.value(i)
                slopes = [self.slope(i, k) for k in range(len(node.inputs))]
                self.line(i, "Value", value)
                for slope in slopes:
                    self.line(i, "Local derivatives", slope)
                self.step("forward", f"{value}. Noted for the way back: {listed(slopes)}.", i)

    def backward(self) -> None:
        last = len(self.nodes) - 1
        root = self.nodes[last]
        self.line(last, "Gradient", f"∂{root.name}/∂{root.name} = 1: here the backward pass begins")
        self.step(
            "seed",
            f"The forward pass is done: {root.name} = {figure(root.data)}. How much does each value"
            f" change it? Backward begins at {root.name} itself, with the gradient 1.",
            last,
        )
        heard = [0] * len(self.nodes)
        grads = [0.0] * last + [1.0]
        for flow in self.flows:
            source, i = self.drawing.wires[flow.wire]
            heard[source] += 1
            self.flow(flow, source, i, grads[i], heard[source])
            grads[source] = flow.after
        self.grads = grads
        leaves = [i for i, node in enumerate(self.nodes) if not node.inputs]
        found = listed([f"∂{root.name}/∂{self.nodes[i].name} = {figure(grads[i])}" for i in leaves])
        self.step("end", f"Done: {found}. This is what {root.name}.backward() leaves in .grad.")

    def flow(self, flow: Flow, source: int, i: int, grad: float, heard: int) -> None:
        """Make the step in which a node hands its gradient to one of its inputs."""
        node, name, uses = self.nodes[i], self.nodes[source].name, self.uses[source]
        slope = self.slope(i, self.drawing.operands[flow.wire])
        product = f"{figure(grad)} × {bracketed(self.drawing.slopes[flow.wire])}"
        product = f"{product} = {figure(flow.part)}"
        added = f"{figure(flow.before)} + {bracketed(flow.part)} = {figure(flow.after)}"
        self.line(i, "Passed back", f"to {name}: {slope}; gradient {product}")
        part = f"part {heard} of {uses}, " if uses > 1 else ""
        to = f"added to {figure(flow.before)} gives {figure(flow.after)}"
        self.line(source, "Gradient", f"{part}from {node.name}: {product}, {to}")
        say = (
            f"{node.name} has the gradient {figure(grad)}. {slope}, so {product} flows to {name}, "
            f"which had {figure(flow.before)}: {added}."
        )
        if uses > 1:
            say += f" {name} is used {uses} times, and the parts add up; this is part {heard}."
        self.step("backward", say, i, flow)

    # ---- formulas

    def value(self, i: int) -> str:
        """Return `c = a × b = 2 × (−3) = −6`."""
        node = self.nodes[i]
        formula = RULES[node.op][0] if node.op in RULES else f"{node.op}(...)"
        return chain(node.name, self.fill(i, formula), figure(node.data))

    def slope(self, i: int, k: int) -> str:
        """Return `∂c/∂a = b = −3`, the local derivative of node `i` by its input `k`."""
        node = self.nodes[i]
        name = f"∂{node.name}/∂{self.nodes[node.inputs[k]].name}"
        formula = RULES[node.op][1][k] if node.op in RULES else ""
        return chain(name, self.fill(i, formula), figure(node.slopes[k]))

    def fill(self, i: int, formula: str) -> tuple[str, str]:
        """Return a formula with the names of the inputs of node `i`, and with their numbers."""
        node = self.nodes[i]
        inputs = [self.nodes[j] for j in node.inputs]
        names, data = [one.name for one in inputs], [one.data for one in inputs]
        if node.constant is not None:
            names.append(bracketed(node.constant))
            data.append(node.constant)
        numbers = [*zip("ab", map(bracketed, data), strict=False)]
        numbers += zip("AB", map(figure, data), strict=False)
        by_name = dict(zip("abAB", [*names, ""][:2] * 2, strict=False))
        return substitute(formula, by_name), substitute(formula, dict(numbers))


def substitute(formula: str, parts: Mapping[str, str]) -> str:
    """Return `formula` with {a} and the like filled in; what is filled in may hold braces too."""
    return re.sub(r"\{([abAB])\}", lambda match: parts[match[1]], formula)


def bracketed(x: float) -> str:
    """Return `x` as it stands behind an operator: 3, but (−3)."""
    return f"({figure(x)})" if x < 0 else figure(x)


def chain(name: str, formulas: tuple[str, str], result: str) -> str:
    """Return `name = formula = formula with numbers = result`, without saying a thing twice."""
    links = [name]
    for link in (*formulas, result):
        bare = link[1:-1] if link == f"({result})" else link
        if bare and bare != links[-1]:
            links.append(bare)
    return " = ".join(links)


def listed(items: Sequence[str], most: int = 8) -> str:
    """Return `a, b and c`, at most `most` of them."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


# ---- the page


def render_player(
    root: Value,
    *,
    labels: Mapping[Value, str] | None = None,
    title: str = "A backward pass, step by step",
    limit: int = LIMIT,
) -> str:
    """Return the page for the graph below `root`; `.grad` of its nodes is neither used nor changed.

    `labels` names nodes; the others are called v1, v2, ... Fused nodes are shown as the operations
    they stand for. Raises UsageError for more than `limit` nodes, NumericalError where a gradient
    is not finite.
    """
    nodes = named(read_graph(root, labels=labels, expand=True, limit=limit))
    drawing = arrange(nodes, gap=(88.0, 22.0))
    story = _Story(drawing)
    template = resources.files("micrograd").joinpath("player.html").read_text("utf-8")
    width, height = drawing.layout.width + 2 * MARGIN, drawing.layout.height + 2 * MARGIN
    style = template[template.index("<style>") + 7 : template.index("</style>")]
    style = style.replace("@graph@", STYLE)
    script = template[template.rindex("<script>") + 8 : template.rindex("</script>")]
    values = {
        "title": html.escape(printable(title)),
        "policy": f"default-src 'none'; img-src data:; style-src {digest(style)}; "
        f"script-src {digest(script)}",
        "graph": STYLE,
        "box": f"0 0 {width:.0f} {height:.0f}",
        "width": f"{width:.0f}",
        "drawing": svg_body(drawing),
        "data": embedded(page_data(story)),
    }
    # In one pass, so that a label that holds "@data@" stays as it is.
    return re.sub("@(" + "|".join(values) + ")@", lambda match: values[match[1]], template)


def save_player(
    root: Value,
    path: str | Path,
    *,
    labels: Mapping[Value, str] | None = None,
    title: str = "A backward pass, step by step",
    limit: int = LIMIT,
) -> None:
    """Write the page of `render_player` to `path`; ResourceError where it can't be written."""
    write_whole(path, render_player(root, labels=labels, title=title, limit=limit))


def named(nodes: list[Node]) -> list[Node]:
    """Return the nodes, with a name v1, v2, ... for each that has none."""
    taken = {node.name for node in nodes}
    free = (name for i in count(1) if (name := f"v{i}") not in taken)
    return [node if node.name else node._replace(name=next(free)) for node in nodes]


def page_data(story: _Story) -> dict[str, Any]:
    """Return what the page's program needs (see the module)."""
    drawing = story.drawing
    places = chip_places(drawing)
    parts = {flow.wire: flow.part for flow in story.flows}
    return {
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "data": node.data,
                "dataText": figure(node.data),
                "uses": story.uses[i],
                "lines": story.lines[i],
            }
            for i, node in enumerate(story.nodes)
        ],
        "wires": [
            {
                "from": source,
                "to": target,
                "x": places[w][0],
                "y": places[w][1],
                "slope": f"× {bracketed(drawing.slopes[w])}",
                "gradient": figure(story.grads[target]),
                "part": figure(parts[w]),
            }
            for w, (source, target) in enumerate(drawing.wires)
        ],
        "steps": story.steps,
    }


def chip_places(drawing: Drawing) -> list[tuple[float, float]]:
    """Return where the label of each wire goes: where it turns to its end, clear of the others."""
    places = [(0.0, 0.0)] * len(drawing.wires)
    for i in range(len(drawing.nodes)):
        into = [w for w, (_, target) in enumerate(drawing.wires) if target == i]
        ends = {w: drawing.layout.wires[w][-1] for w in into}
        into.sort(key=lambda w: ends[w][1] + ends[w][3])
        middles = [(ends[w][1] + ends[w][3]) / 2 for w in into]
        if any(low - high < CHIP for high, low in pairwise(middles)):
            mean = sum(middles) / len(middles)
            middles = [mean + CHIP * (k - (len(into) - 1) / 2) for k in range(len(into))]
        for w, y in zip(into, middles, strict=True):
            places[w] = (round((ends[w][0] + ends[w][2]) / 2 + MARGIN, 1), round(y + MARGIN, 1))
    return places


def embedded(data: object) -> str:
    r"""Return JSON that may stand inside <script>: "</b>" becomes "\u003c/b\u003e"."""
    escapes = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(escapes)


def digest(text: str) -> str:
    """Return what a content policy calls a script or style that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# ---- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values; raises UsageError."""
    told = "Write a page that steps through a backward pass."
    parser = command.Parser("python -m micrograd.player", told)
    add = parser.add_argument
    add(
        "--out",
        type=command.path,
        default="player.html",
        help="the page to write (default: player.html)",
    )
    add(
        "--expression",
        help='a formula of names, numbers, operators and methods such as .relu(): "(a*b).tanh()"; '
        'parts of it can be named: "c = a*b; c + c" (default: a neuron and its loss)',
    )
    add("numbers", nargs="*", type=_assignment, metavar="a=2", help="a name and its number")
    add("--title", help="the page's heading (default: the expression)")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args(argv)
    if args.numbers and not args.expression:
        raise UsageError("numbers need an --expression that names them")
    names = [name for name, _ in args.numbers]
    if len(set(names)) < len(names):
        raise UsageError(f"{' '.join(names)}: a name has one number")
    return args


def run(args: argparse.Namespace) -> None:
    """Write the page."""
    expression = args.expression or EXAMPLE
    numbers = dict(args.numbers) if args.expression else EXAMPLE_NUMBERS
    root, labels = read_expression(expression, numbers)
    save_player(root, args.out, labels=labels, title=args.title or expression)
    print(f"wrote {args.out}; open it in a browser")


def _assignment(text: str) -> tuple[str, float]:
    """Read `a=2`."""
    name, _, number = text.partition("=")
    try:
        if not name.isidentifier() or keyword.iskeyword(name) or not math.isfinite(float(number)):
            raise ValueError
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name and its number, a=2") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    return command.main(parse, run, "micrograd.player", argv)


if __name__ == "__main__":
    sys.exit(main())

"""Expression graphs as SVG or DOT text, and plots of what a model has learned.

    a, b = Value(2.0), Value(-3.0)
    loss = (a * b + 10).relu()
    loss.backward()
    save(loss, "loss.svg", labels={a: "a", b: "b", loss: "loss"})

Each node shows its operation, its number and its gradient. No program is needed beside Python: the
layout is our own (`layout`). Graphviz users get DOT text; the plots alone need matplotlib.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from micrograd.engine import Fan, Value
from micrograd.errors import DataError, UsageError
from micrograd.files import write_whole
from micrograd.layout import Layout, Segment, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

LIMIT = 400
"""The most nodes in a drawing, unless `limit` says otherwise; more can't be told apart."""

WITH_NUMBER = frozenset({"+", "-", "*", "/", "**", "c**", "max", "min"})
"""The operations whose second operand can be a plain number, which is then no node."""

COMMUTATIVE = frozenset({"+", "*", "max", "min"})

SYMBOLS = {"-": "−", "*": "×", "/": "÷"}


# ---- the graph


class Node(NamedTuple):
    """A node as it is drawn: `inputs` are positions in the list of nodes, earlier than its own.

    `slopes` are the local derivatives by the inputs, and `constant` the operand that is a plain
    number, if one is.
    """

    value: Value
    op: str
    name: str
    inputs: tuple[int, ...]
    slopes: tuple[float, ...]
    constant: float | None
    grad: float

    @property
    def data(self) -> float:
        """The number."""
        return self.value.data


def read_graph(
    root: Value,
    *,
    labels: Mapping[Value, str] | None = None,
    expand: bool = False,
    limit: int = LIMIT,
) -> list[Node]:
    """Return the nodes below `root`, inputs first and `root` last.

    With `expand`, a fused node (`engine.Fan`) is replaced by every product and sum it stands for;
    their gradients follow from its own. Raises UsageError for more than `limit` nodes.
    """
    own_grad = set(_in_order(root, lambda one: one.parents(), limit))
    reader = _Reader(expand)
    order = _in_order(reader.stand_in(root), reader.inputs, limit)
    grads = {one: float(reader.original(one).grad) for one in order}
    for one in reversed(order):
        for below, slope in reader.links(one):
            # What stands inside a fused node took no part in `backward`: its gradient is 0 as yet.
            if reader.original(below) not in own_grad and below.parents():
                grads[below] += grads[one] * slope
    place = {one: i for i, one in enumerate(order)}
    labels = labels or {}
    return [
        Node(
            value=one,
            op=_op(one),
            name=printable(labels.get(one) or labels.get(reader.original(one)) or ""),
            inputs=tuple(place[below] for below in reader.inputs(one)),
            slopes=tuple(slope for _, slope in reader.links(one)),
            constant=one._db if one._op in WITH_NUMBER and len(one.parents()) == 1 else None,
            grad=grads[one],
        )
        for one in order
    ]


class _Reader:
    """Looks up the inputs of nodes; with `expand`, fused nodes are replaced as they are met."""

    def __init__(self, expand: bool) -> None:
        self.expand = expand
        self.plain: dict[Value, Value] = {}  # a fused node: what stands in for it
        self.fused: dict[Value, Value] = {}  # and back
        self.known: dict[Value, list[tuple[Value, float]]] = {}

    def stand_in(self, one: Value) -> Value:
        """Return the node to draw for `one`."""
        if not self.expand or not isinstance(one, Fan):
            return one
        if one not in self.plain:
            self.plain[one] = self.stand_in(one.plain())
            self.fused[self.plain[one]] = one
        return self.plain[one]

    def original(self, one: Value) -> Value:
        """Return the fused node that `one` stands in for, or `one`."""
        return self.fused.get(one, one)

    def links(self, one: Value) -> list[tuple[Value, float]]:
        """Return what is drawn as the inputs of `one`, each with its local derivative."""
        if one not in self.known:
            self.known[one] = [(self.stand_in(below), slope) for below, slope in _links(one)]
        return self.known[one]

    def inputs(self, one: Value) -> list[Value]:
        """Return what is drawn as the inputs of `one`."""
        return [below for below, _ in self.links(one)]


def _in_order(
    root: Value, inputs_of: Callable[[Value], Iterable[Value]], limit: float
) -> list[Value]:
    """Return `root` and all below it, each once and inputs first; no recursion."""
    order: list[Value] = []
    seen: set[Value] = set()
    stack = [(root, False)]
    while stack:
        one, is_ready = stack.pop()
        if is_ready:
            order.append(one)
        elif one not in seen:
            seen.add(one)
            if len(seen) > limit:
                raise UsageError(
                    f"the graph has more than limit={limit} nodes, too many to read; "
                    "draw a smaller one"
                )
            stack.append((one, True))
            stack += [(parent, False) for parent in reversed(tuple(inputs_of(one)))]
    return order


def _links(one: Value) -> list[tuple[Value, float]]:
    """Return the inputs of a node, each with its local derivative."""
    if not isinstance(one, Fan):
        return list(zip(one.parents(), (one._da, one._db), strict=False)) if one.parents() else []

    def is_inside(v: Value) -> TypeGuard[Fan]:
        """Tell the node and its parts, which have no `plain`, from its inputs."""
        return v is one or (isinstance(v, Fan) and type(v).plain is Fan.plain)

    below = _in_order(one, lambda v: v.parents() if is_inside(v) else (), math.inf)
    parts = [v for v in below if is_inside(v)]
    # What each part pushes for a gradient of 1 are the slopes; the weights may have changed since.
    before = [(v, v.grad) for v in below]
    try:
        for v in below:
            v.grad = 1.0 if v is one else 0.0
        for part in reversed(parts):
            part._push()
        return [(v, float(v.grad)) for v in below if not is_inside(v)]
    finally:
        for part in parts:
            for store in part.stores():
                store.forget()
        for v, grad in before:
            v.grad = grad


def _op(one: Value) -> str:
    """Return the name of the operation, "" for a leaf."""
    return one._op or (type(one).__name__.lower() if isinstance(one, Fan) else "")


def figure(x: float) -> str:
    """Return `x` to four digits, with a true minus: -0.12345 -> "−0.1235", 1e-7 -> "1e−7"."""
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    text = f"{x or 0.0:.4g}"  # `or`: -0.0 is shown as 0
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), text).replace("-", "−")


def printable(text: str) -> str:
    """Return `text` without what no drawing can hold: control characters, lone surrogates."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def op_text(node: Node) -> str:
    """Return the operation as it is shown, with a plain number that it takes: "× −1"."""
    symbol = SYMBOLS.get(node.op, node.op)
    if node.constant is None:
        return symbol
    number = figure(node.constant)
    return f"{number} **" if node.op == "c**" else f"{symbol} {number}"


# ---- SVG

WIDTH, HEIGHT, HEAD = 116.0, 60.0, 23.0
"""The least width of a card, its height, and the part that holds the name, in pixels."""

MARGIN = 16.0

LONGEST = 20
"""The most characters of a name on a card; the whole one is its tooltip."""

STYLE = """
.graph { --paper: #fbfbfd; --card: #ffffff; --line: #c5cad6; --ink: #1c2230; --soft: #667085;
  --wire: #98a1b3; --leaf: #e3ecfa; --op: #eef0f4; --root: #fbe9dc; --data: #174ea6;
  --grad: #a8420b; font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
@media (prefers-color-scheme: dark) { .graph { --paper: #14171d; --card: #1d222b; --line: #404859;
  --ink: #e9ecf2; --soft: #98a2b5; --wire: #5f6a7e; --leaf: #1f3352; --op: #2a303c;
  --root: #4a2d1a; --data: #9cc0ff; --grad: #ffb07a } }
.graph .paper { fill: var(--paper) }
.graph .card { fill: var(--card) }
.graph .edge { fill: none; stroke: var(--line) }
.graph .head { fill: var(--op) } .graph .leaf .head { fill: var(--leaf) }
.graph .root .head { fill: var(--root) }
.graph .wire { fill: none; stroke: var(--wire); stroke-width: 1.4 }
.graph .tip { fill: var(--wire) }
.graph text { fill: var(--ink); font-size: 12px }
.graph .name { font-weight: 650; font-size: 13px }
.graph .kind { fill: var(--soft) } .graph .kind.alone { fill: var(--ink); font-size: 13px }
.graph .what { fill: var(--soft); font-size: 10.5px }
.graph .number { font-family: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace;
  text-anchor: end }
.graph .data { fill: var(--data) } .graph .grad { fill: var(--grad) }
"""


class Drawing(NamedTuple):
    """A laid-out graph: `wires` are (from, to) by position in `nodes`.

    Each has its local derivative, and says which operand of the node it ends at it brings.
    """

    nodes: list[Node]
    wires: list[tuple[int, int]]
    operands: list[int]
    slopes: list[float]
    layout: Layout
    widths: list[float]


def arrange(nodes: list[Node], *, gap: tuple[float, float] = (52.0, 16.0)) -> Drawing:
    """Return where the cards of `nodes` and their wires go; `gap` is the room between cards."""
    ends = [(i, k) for i, node in enumerate(nodes) for k in range(len(node.inputs))]
    wires = [(nodes[i].inputs[k], i) for i, k in ends]
    slopes = [nodes[i].slopes[k] for i, k in ends]
    widths = [_width(node) for node in nodes]
    ordered = [i for i, node in enumerate(nodes) if node.op not in COMMUTATIVE]
    layout = lay_out([(w, HEIGHT) for w in widths], wires, ordered=ordered, gap=gap)
    return Drawing(nodes, wires, [k for _, k in ends], slopes, layout, widths)


def draw_svg(
    root: Value,
    *,
    labels: Mapping[Value, str] | None = None,
    expand: bool = False,
    limit: int = LIMIT,
) -> str:
    """Return the graph below `root` as an SVG file's text; it follows a dark colour scheme.

    `labels` names nodes, `expand` draws every product and sum of a fused node. Wires enter a node
    whose operands can't be swapped in their order, from the top. Raises UsageError for more than
    `limit` nodes.
    """
    drawing = arrange(read_graph(root, labels=labels, expand=expand, limit=limit))
    width = drawing.layout.width + 2 * MARGIN
    height = drawing.layout.height + 2 * MARGIN
    last = drawing.nodes[-1]
    title = f"Expression graph of {len(drawing.nodes)} nodes; result {figure(last.data)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" role="img" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="paper" width="100%" height="100%" rx="8"/>\n{svg_body(drawing)}\n</svg>\n'
    )


def svg_body(drawing: Drawing) -> str:
    """Return the wires and cards of a drawing as SVG elements, numbered in `data-...`."""
    wires = [
        f'<g class="link" data-wire="{w}"><path class="wire" d="{_path(segments)}"/>'
        f"{_tip(segments)}</g>"
        for w, segments in enumerate(routes(drawing))
    ]
    cards = [_card(drawing, i) for i in range(len(drawing.nodes))]
    return "\n".join(
        [f'<g transform="translate({MARGIN:.0f} {MARGIN:.0f})">', *wires, *cards, "</g>"]
    )


def routes(drawing: Drawing) -> list[list[Segment]]:
    """Return the segments of each wire, ending where its arrowhead begins."""
    return [
        [*segments[:-1], (*segments[-1][:2], segments[-1][2] - 6.0, segments[-1][3])]
        for segments in drawing.layout.wires
    ]


def _path(segments: Sequence[Segment]) -> str:
    """Return a wire as path data; curves leave and arrive level."""
    steps = [f"M{segments[0][0]:.1f} {segments[0][1]:.1f}"]
    for x0, y0, x1, y1 in segments:
        middle = (x0 + x1) / 2
        curve = f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        steps.append(f"H{x1:.1f}" if abs(y1 - y0) < 0.05 else curve)
    return "".join(steps)


def _tip(segments: Sequence[Segment]) -> str:
    _, _, x, y = segments[-1]
    return f'<path class="tip" d="M{x:.1f} {y - 3.5:.1f}l6 3.5l-6 3.5z"/>'


def _width(node: Node) -> float:
    """Return the width that a card's first line needs."""
    characters = len(shorten(node.name)) + len(op_text(node)) + bool(node.name and node.op)
    return max(WIDTH, 22.0 + 8.2 * characters)


def shorten(name: str) -> str:
    """Return `name`, or its beginning where it is longer than a card is wide."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _card(drawing: Drawing, i: int) -> str:
    """Return node `i` as a card: name and operation, then data, then grad."""
    node, width = drawing.nodes[i], drawing.widths[i]
    x, middle = drawing.layout.boxes[i]
    y = middle - HEIGHT / 2
    kind = "root" if i == len(drawing.nodes) - 1 else "op" if node.op else "leaf"
    box = f'x=".5" y=".5" width="{width - 1:.1f}" height="{HEIGHT - 1:.0f}" rx="5.5"'
    head = f"M.5 {HEAD}V6a5.5 5.5 0 0 1 5.5-5.5H{width - 6:.1f}a5.5 5.5 0 0 1 5.5 5.5V{HEAD}z"
    text = html.escape(op_text(node) or ("" if node.name else "leaf"))
    if node.name:
        title = f'<text class="name" x="9" y="16">{html.escape(shorten(node.name))}</text>'
        title += f'<text class="kind" x="{width - 9:.1f}" y="16" text-anchor="end">{text}</text>'
    else:
        title = f'<text class="kind alone" x="9" y="16">{text}</text>'
    rows = "".join(
        f'<text class="what" x="9" y="{HEAD + down}">{what}</text>'
        f'<text class="number {what}" x="{width - 9:.1f}" y="{HEAD + down}">{figure(number)}</text>'
        for what, number, down in (("data", node.data, 15), ("grad", node.grad, 30))
    )
    exact = f"data {node.data!r}, grad {node.grad!r}"
    tooltip = html.escape(" ".join(filter(None, (node.name, op_text(node) or "leaf", exact))))
    return (
        f'<g class="node {kind}" data-node="{i}" transform="translate({x:.1f} {y:.1f})">'
        f'<title>{tooltip}</title><rect class="card" {box}/><path class="head" d="{head}"/>'
        f'<rect class="edge" {box}/>{title}{rows}</g>'
    )


# ---- DOT


def draw_dot(
    root: Value,
    *,
    labels: Mapping[Value, str] | None = None,
    expand: bool = False,
    limit: int = LIMIT,
) -> str:
    """Return the graph as DOT text for graphviz; arguments and errors are those of `draw_svg`."""
    lines = ["digraph {", "  rankdir=LR", '  node [shape=box style=rounded fontname="Helvetica"]']
    nodes = read_graph(root, labels=labels, expand=expand, limit=limit)
    for i, node in enumerate(nodes):
        head = " ".join(filter(None, (node.name, op_text(node)))) or "leaf"
        text = head.replace("\\", "\\\\").replace('"', '\\"')
        text += f"\\ndata {figure(node.data)}\\ngrad {figure(node.grad)}"
        lines.append(f'  n{i} [label="{text}"]')
        lines += [f"  n{source} -> n{i}" for source in node.inputs]
    return "\n".join([*lines, "}", ""])


def save(
    root: Value,
    path: str | Path,
    *,
    labels: Mapping[Value, str] | None = None,
    expand: bool = False,
    limit: int = LIMIT,
) -> None:
    """Write the drawing of `root` to `path`, as its ending says: .svg, or .dot or .gv.

    Raises UsageError for another ending, ResourceError where the file can't be written.
    """
    kinds = {".svg": draw_svg, ".dot": draw_dot, ".gv": draw_dot}
    draw = kinds.get(Path(path).suffix.lower())
    if draw is None:
        raise UsageError(f"{path}: a drawing's name ends in one of {', '.join(kinds)}")
    write_whole(path, draw(root, labels=labels, expand=expand, limit=limit))


# ---- plots

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that the colour-blind can tell apart (Okabe and Ito, 2008)."""

MARKERS = ("o", "^", "s", "D", "v", "P")

GRID = 80
"""The model is asked at GRID x GRID points of the plane."""


def plot_boundary(
    model: Callable[[list[float]], Any],
    X: Iterable[Sequence[float]],
    y: Iterable[float],
    path: str | Path,
    *,
    title: str = "",
    grid: int = GRID,
) -> None:
    """Write a picture of how `model` cuts the plane, with the points X (N, 2) of classes y (N,).

    `model([x0, x1])` returns a score, positive for the higher of two classes, or a list with a
    score for each class. The picture's format is the ending of `path`: png, svg, pdf.

    Raises DataError for points that are not pairs of numbers or not as many as y, UsageError for a
    format that can't be written, ResourceError where the file can't be.
    """
    points, classes = _points(X, y)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * (high - low) + 0.05
    sides = [
        [float(a + (b - a) * k / (grid - 1)) for k in range(grid)]
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    figure_, (axes,) = _figure(1, (6.0, 5.2))
    scores = [[_scores(model([a, b])) for a in sides[0]] for b in sides[1]]
    _regions(axes, sides, scores)
    kinds = sorted(set(classes))
    if len(kinds) > len(COLOURS):
        raise DataError(f"y has {len(kinds)} classes; a plot can show {len(COLOURS)}")
    for k, kind in enumerate(kinds):
        chosen = points[[c == kind for c in classes]]
        axes.plot(
            *chosen.T, MARKERS[k], color=COLOURS[k], markersize=6.5, markeredgecolor="white",
            markeredgewidth=0.8, label=f"class {kind:g}",
        )  # fmt: skip
    axes.set(xlabel="$x_0$", ylabel="$x_1$", title=title)
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    _write_figure(figure_, path)


def plot_loss(history: Sequence[Mapping[str, float]], path: str | Path, *, title: str = "") -> None:
    """Write a picture of the loss, and the accuracy where there is one, over the steps.

    `history` has a mapping for each step: "loss", and perhaps "accuracy" (0 to 1) and "step".
    Raises DataError where it is empty or has no loss, and as `plot_boundary` does.
    """
    if not history or any("loss" not in row for row in history):
        raise DataError("a loss plot needs at least one step, and the 'loss' of each")
    steps = [row.get("step", i) for i, row in enumerate(history)]
    shown = [("loss", COLOURS[0])]
    if any("accuracy" in row for row in history):
        shown.append(("accuracy", COLOURS[1]))
    figure_, panels = _figure(len(shown), (6.4, 2.1 + 1.7 * len(shown)))
    for axes, (what, colour) in zip(panels, shown, strict=True):
        curve = [row.get(what, math.nan) for row in history]
        axes.plot(steps, curve, color=colour, linewidth=1.8, marker="o" if len(steps) < 3 else "")
        axes.set(ylabel=what)
        axes.grid(axis="y", color="#e3e6ec", linewidth=0.8)
        axes.set_axisbelow(True)
    panels[0].set(title=title)
    panels[0].set_ylim(bottom=min(0.0, *panels[0].get_ylim()))
    if len(shown) > 1:
        panels[1].yaxis.set_major_formatter("{x:.0%}")
    panels[-1].set(xlabel="step")
    _write_figure(figure_, path)


def _points(X: Iterable[Sequence[float]], y: Iterable[float]) -> "tuple[NDArray[Any], list[float]]":
    """Return X as an array (N, 2) and y as a list. Raises DataError where they don't fit."""
    import numpy as np

    try:
        points = np.array([[float(v) for v in row] for row in X])
        classes = [float(c) for c in y]
    except (TypeError, ValueError) as error:
        raise DataError(f"X and y must be numbers: {error}") from None
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise DataError(f"X must be finite pairs, (N, 2), for a plot; it is {points.shape}")
    if len(classes) != len(points):
        raise DataError(f"X has {len(points)} points and y has {len(classes)}")
    return points, classes


def _scores(output: Any) -> list[float]:
    """Return a model's output as a list of scores."""
    try:
        return [float(output)]
    except TypeError:
        return [float(score) for score in output]


def _regions(axes: "Axes", sides: list[list[float]], scores: list[list[list[float]]]) -> None:
    """Fill the plane: shades of two colours by one score, or the colour of the best of several."""
    from matplotlib.colors import LinearSegmentedColormap

    n = len(scores[0][0])
    if n == 1:
        first = [[row[0] for row in line] for line in scores]
        far = max(max(map(abs, line)) for line in first) or 1.0
        shades = LinearSegmentedColormap.from_list("", [COLOURS[0], "#ffffff", COLOURS[1]])
        levels = [far * (k / 8 - 1) for k in range(17)]
        axes.contourf(*sides, first, levels=levels, cmap=shades, alpha=0.5, extend="both")
        _edge(axes, sides, first)
        return
    for k in range(n):
        lead = [[row[k] - max(row[:k] + row[k + 1 :]) for row in line] for line in scores]
        colour = COLOURS[k % len(COLOURS)]
        axes.contourf(*sides, lead, levels=[0.0, math.inf], colors=[colour], alpha=0.28)
        _edge(axes, sides, lead)


def _edge(axes: "Axes", sides: list[list[float]], score: list[list[float]]) -> None:
    """Draw the line on which `score` is 0, if it is anywhere."""
    # Where it is not, older versions of matplotlib warn and draw the line of the least score.
    if min(map(min, score)) < 0.0 < max(map(max, score)):
        axes.contour(*sides, score, levels=[0.0], colors=["#222733"], linewidths=1.6)


def _figure(n: int, size: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Return a figure of `n` panels, one above the other."""
    from matplotlib.figure import Figure

    figure_ = Figure(figsize=size, layout="constrained")
    panels = figure_.subplots(n, 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure_, list(panels)


def _write_figure(figure_: "Figure", path: str | Path) -> None:
    """Write the figure, whole or not at all."""
    known = figure_.canvas.get_supported_filetypes()
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in known:
        raise UsageError(f"{path}: a plot's name ends in one of {', '.join(sorted(known))}")
    image = BytesIO()
    figure_.savefig(image, format=kind, dpi=144)
    write_whole(path, image.getvalue())

"""Drawings of graphs as SVG and DOT, and plots."""

import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from micrograd import draw
from micrograd.draw import Node, draw_dot, draw_svg, figure, read_graph, save
from micrograd.engine import Fan, Value
from micrograd.errors import DataError, ResourceError, UsageError
from micrograd.nn import MLP

SVG = "{http://www.w3.org/2000/svg}"


def neuron() -> tuple[Value, dict[Value, str]]:
    """Return relu(a * b + 10) with its gradients, and names."""
    a, b = Value(2.0), Value(-3.0)
    loss = (a * b + 10).relu()
    loss.backward()
    return loss, {a: "a", b: "b", loss: "loss"}


def cards(svg: str) -> list[list[str]]:
    """Return the texts of each card, in the order of the nodes."""
    tree = ElementTree.fromstring(svg)
    groups = [g for g in tree.iter(SVG + "g") if "data-node" in g.attrib]
    return [[t.text or "" for t in g.iter(SVG + "text")] for g in groups]


# ---- the graph


def test_nodes_come_inputs_first_with_their_local_derivatives() -> None:
    """The nodes of a * b + 10: a, b, a * b with slopes b and a, then + with its constant 10."""
    loss, labels = neuron()
    nodes = read_graph(loss, labels=labels)
    assert [node.op for node in nodes] == ["", "", "*", "+", "relu"]
    assert [node.name for node in nodes] == ["a", "b", "", "", "loss"]
    assert (nodes[2].inputs, nodes[2].slopes) == ((0, 1), (-3.0, 2.0))
    assert [node.constant for node in nodes] == [None, None, None, 10.0, None]
    assert [node.grad for node in nodes] == [-3.0, 2.0, 1.0, 1.0, 1.0]


def test_a_value_used_twice_is_one_node_with_two_wires() -> None:
    """In a * a, both operands are node 0."""
    a = Value(3.0)
    nodes = read_graph(a * a)
    assert len(nodes) == 2
    assert nodes[1].inputs == (0, 0)


def test_a_fused_network_is_one_node_and_expands_to_every_product_and_sum() -> None:
    """MLP(2, [3, 1]) has 9 products, 9 sums, 3 relus; the gradients are the plain network's."""
    model = MLP(2, [3, 1], rng=random.Random(2))
    plain = MLP(2, [3, 1], rng=random.Random(2), fused=False)
    found: list[list[Node]] = []
    for net in (model, plain):
        x = [Value(0.5), Value(-1.5)]
        loss = (net(x) - 1.0) ** 2
        loss.backward()
        found.append(read_graph(loss, expand=True))
        if net is model:
            folded = read_graph(loss)
    assert [node.op for node in folded] == ["", "", "mlp", "-", "**"]
    assert folded[2].inputs == (0, 1)
    ops = [node.op for node in found[0]]
    assert (ops.count("*"), ops.count("+"), ops.count("relu")) == (9, 9, 3)
    assert ops == [node.op for node in found[1]]
    grads = [node.grad for node in found[1]]
    assert [node.grad for node in found[0]] == pytest.approx(grads, rel=1e-12)
    assert sum(g != 0.0 for g in grads) > 20


def test_slopes_of_a_fused_node_are_partial() -> None:
    """An input that depends on another does not add its share to the other's slope."""
    model = MLP(2, [4, 1], rng=random.Random(3))
    x = Value(0.3)
    node = next(n for n in read_graph(model([x, x * 2.0])) if n.op == "mlp")
    for k in range(2):
        step = [0.3, 0.6]
        step[k] += 1e-6
        rise = (model(step).data - model([0.3, 0.6]).data) / 1e-6
        assert node.slopes[k] == pytest.approx(rise, rel=1e-4)
        assert node.slopes[k] != 0.0


def test_a_fused_node_is_drawn_as_it_was_after_its_weights_have_changed() -> None:
    """As one node, with the slopes of then; only its inside can't be told any more."""
    model = MLP(2, [4, 2], rng=random.Random(3))
    x = [Value(0.3), Value(-0.7)]
    root = model(x)[1] * 2.0
    root.backward()
    before = read_graph(root)
    grads = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.data += 1.0
    assert read_graph(root) == before
    assert [v.grad for v in x] == pytest.approx([2.0 * slope for slope in before[2].slopes])
    assert [p.grad for p in model.parameters()] == grads
    with pytest.raises(UsageError, match="the weights have changed"):
        read_graph(root, expand=True)
    model.zero_grad()
    fresh = model(x)[1] * 2.0
    fresh.backward()
    after = [p.grad for p in model.parameters()]
    read_graph(fresh)
    model.zero_grad()
    fresh.backward()
    assert [p.grad for p in model.parameters()] == after


class Sum(Fan):
    """A fused node of a user's own, without a name."""

    def __init__(self, *inputs: Value) -> None:
        super().__init__(sum(v.data for v in inputs))
        self._fan = inputs
        self._stores = ()

    def _push(self) -> None:
        for v in self._fan:
            v.grad += self.grad

    def plain(self) -> Value:
        """Return the sum, one addition at a time."""
        total = self._fan[0]
        for v in self._fan[1:]:
            total = total + v
        return total


def test_a_fused_node_of_a_users_own_is_drawn() -> None:
    """It bears the name of its class; expanded, it has its label and gradient on the last sum."""
    parts = [Value(float(i)) for i in range(3)]
    total = Sum(*parts)
    out = total * 2.0
    out.backward()
    assert [n.op for n in read_graph(out)] == ["", "", "", "sum", "*"]
    nodes = read_graph(out, expand=True, labels={total: "total"})
    shown = [(n.op, n.name, n.grad) for n in nodes if n.op]
    assert shown == [("+", "", 2.0), ("+", "total", 2.0), ("*", "", 1.0)]


def test_too_large_a_graph_is_refused_at_once() -> None:
    """A chain of 100,000 nodes is refused with the limit; one at the limit is drawn."""
    x = Value(1.0)
    for _ in range(100_000):
        x = x + 1.0
    with pytest.raises(UsageError, match="more than limit=400 nodes"):
        draw_svg(x)
    with pytest.raises(UsageError, match="more than limit=2 nodes"):
        draw_dot(Value(1.0) + 1.0 + 1.0, limit=2)
    chain = Value(1.0)
    for _ in range(399):
        chain = chain + 1.0
    assert len(cards(draw_svg(chain))) == 400


def test_gradients_that_are_values_are_shown_as_numbers() -> None:
    """After backward(create_graph=True) a gradient is a Value."""
    x = Value(3.0)
    (x**2).backward(create_graph=True)
    assert read_graph(x)[0].grad == 6.0


# ---- SVG


def test_a_card_shows_name_operation_number_and_gradient() -> None:
    """The SVG is well-formed, with a card for each node."""
    loss, labels = neuron()
    assert cards(draw_svg(loss, labels=labels)) == [
        ["a", "", "data", "2", "grad", "−3"],
        ["b", "", "data", "−3", "grad", "2"],
        ["×", "data", "−6", "grad", "1"],
        ["+ 10", "data", "4", "grad", "1"],
        ["loss", "relu", "data", "4", "grad", "1"],
    ]


def test_each_operation_says_what_it_does() -> None:
    """A plain operand stands beside the operation, on its own side."""
    x = Value(0.5)
    shown = {
        "**": (x**3.0, "** 3"),
        "c**": (2.0**x, "2 **"),
        "-": (x - 1.0, "− 1"),
        "*": (-x, "× −1"),
        "/": (x / 4.0, "÷ 4"),
        "max": (x.max(0.0), "max 0"),
        "exp": (x.exp(), "exp"),
    }
    for value, text in shown.values():
        assert cards(draw_svg(value))[-1][0] == text


def test_a_drawing_has_a_wire_for_each_input_and_fits_its_frame() -> None:
    """Numbers of wires and cards agree with the graph; no card is outside the frame."""
    loss, _ = neuron()
    tree = ElementTree.fromstring(draw_svg(loss))
    assert len([g for g in tree.iter(SVG + "g") if "data-wire" in g.attrib]) == 4
    width, height = float(tree.attrib["width"]), float(tree.attrib["height"])
    for g in tree.iter(SVG + "g"):
        if "data-node" in g.attrib:
            x, y = map(float, re.findall(r"[\d.]+", g.attrib["transform"]))
            assert x + draw.MARGIN + draw.WIDTH <= width - draw.MARGIN + 1
            assert y + draw.MARGIN + draw.HEIGHT <= height - draw.MARGIN + 1


NASTY = '</text><script>alert(1)</script>&"\x00\ud800'


def test_a_label_is_text_whatever_it_holds() -> None:
    """Markup, quotes, control characters and surrogates leave a well-formed, harmless SVG."""
    x = Value(1.0)
    svg = draw_svg(x, labels={x: NASTY})
    tree = ElementTree.fromstring(svg)
    assert not list(tree.iter(SVG + "script"))
    assert cards(svg)[0][0] == "</text><script>aler…"
    tooltips = [t.text or "" for t in tree.iter(SVG + "title")]
    assert tooltips[1].startswith('</text><script>alert(1)</script>&"\ufffd\ufffd')
    svg.encode()


def test_a_drawing_refers_to_nothing_outside() -> None:
    """The only address in it is SVG's own name."""
    loss, labels = neuron()
    svg = draw_svg(loss, labels=labels)
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]
    assert "url(" not in svg
    assert "@import" not in svg


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (-3.0, "−3"),
        (0.12345, "0.1235"),
        (123456.0, "1.235e5"),
        (-1e-7, "−1e−7"),
        (1e100, "1e100"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
    ],
)
def test_figures_are_short(x: float, text: str) -> None:
    """Four digits, a true minus, no padded exponent."""
    assert figure(x) == text


# ---- DOT and files


def test_dot_lists_nodes_and_wires() -> None:
    """DOT text has a node with operation, data and grad, and an arrow for each input."""
    loss, labels = neuron()
    dot = draw_dot(loss, labels=labels)
    assert dot.startswith("digraph {")
    assert 'n2 [label="×\\ndata −6\\ngrad 1"]' in dot
    assert re.findall(r"n\d -> n\d", dot) == ["n0 -> n2", "n1 -> n2", "n2 -> n3", "n3 -> n4"]


def test_dot_keeps_quotes_in_a_label() -> None:
    """Quotes and backslashes of a label are escaped."""
    x = Value(1.0)
    assert r'n0 [label="a\\\"b' in draw_dot(x, labels={x: 'a\\"b'})


@pytest.mark.parametrize(
    ("name", "start"), [("g.svg", "<svg"), ("g.dot", "digraph"), ("G.GV", "digraph")]
)
def test_the_ending_of_a_file_says_its_kind(tmp_path: Path, name: str, start: str) -> None:
    """.svg is SVG, .dot and .gv are DOT; nothing else is left in the folder."""
    loss, _ = neuron()
    save(loss, tmp_path / name)
    assert (tmp_path / name).read_text("utf-8").startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_can_not_be_written_is_told(tmp_path: Path) -> None:
    """An unknown ending, and a folder that is none; the old file stays."""
    loss, _ = neuron()
    with pytest.raises(UsageError, match=r"g\.png: .*\.svg, \.dot, \.gv"):
        save(loss, tmp_path / "g.png")
    (tmp_path / "file").write_text("old")
    with pytest.raises(ResourceError, match="cannot be written"):
        save(loss, tmp_path / "file" / "g.svg")
    (tmp_path / "g.svg").mkdir()
    with pytest.raises(ResourceError, match=r"g\.svg cannot be written"):
        save(loss, tmp_path / "g.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "g.svg"]


# ---- plots


def test_drawing_does_not_load_matplotlib() -> None:
    """The plots' library is loaded by a plot, and not before."""
    program = "import micrograd.draw, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the figures that are written."""
    seen: list[Any] = []
    write: Callable[..., None] = draw._write_figure

    def collect(figure_: Any, path: str | Path) -> None:
        seen.append(figure_)
        write(figure_, path)

    monkeypatch.setattr(draw, "_write_figure", collect)
    return seen


POINTS = [[0.0, 0.0], [1.0, 1.0], [2.0, 1.0], [3.0, 0.0]]


def test_a_boundary_runs_where_the_score_is_zero(tmp_path: Path, figures: list[Any]) -> None:
    """For score x0 - 1.4 the line is at 1.4; points bear their class; the axes have names."""
    asked: list[list[float]] = []

    def score(x: list[float]) -> Value:
        asked.append(x)
        return Value(x[0] - 1.4)

    draw.plot_boundary(score, POINTS, [-1, -1, 1, 1], tmp_path / "b.png", title="T", grid=9)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert len(asked) == 81
    (axes,) = figures[0].axes
    line = axes.collections[-1].get_paths()[0].vertices
    assert set(line[:, 0].round(9)) == {1.4}
    assert [list(one.get_xdata()) for one in axes.lines] == [[0.0, 1.0], [2.0, 3.0]]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["class -1", "class 1"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("$x_0$", "$x_1$", "T")
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()


def test_several_scores_give_a_region_each(tmp_path: Path, figures: list[Any]) -> None:
    """With three scores, the plane is cut where the best of them changes."""

    def scores(x: list[float]) -> list[Value]:
        return [Value(1.5 - x[0]), Value(1.0), Value(x[0] - 1.5)]

    draw.plot_boundary(scores, POINTS, [0, 1, 1, 2], tmp_path / "b.svg", grid=9)
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()
    vertices = [p.vertices for c in figures[0].axes[0].collections for p in c.get_paths()]
    cuts = {round(float(x), 6) for v in vertices if len({*v[:, 0].round(6)}) == 1 for x in v[:, 0]}
    assert cuts == {0.5, 2.5}


def test_a_model_with_one_answer_is_plotted(tmp_path: Path, figures: list[Any]) -> None:
    """A score that is 0 or positive everywhere has no boundary, and is no error."""
    models: list[Callable[[list[float]], float]] = [lambda _: 0.0, lambda _: 1.0]
    warnings.simplefilter("error")  # pytest restores the filters
    for model in models:
        draw.plot_boundary(model, POINTS, [0, 0, 1, 1], tmp_path / "b.png", grid=3)
        (fill,) = figures[-1].axes[0].collections
        assert fill.filled


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[0.0, 1.0]], [0, 1], "1 points and y has 2"),
        ([[0.0, 1.0, 2.0]], [0], r"finite pairs.*\(1, 3\)"),
        ([], [], "finite pairs"),
        ([[0.0, 1.0], [1.0]], [0, 1], "must be numbers|finite pairs"),
        ([[0.0, float("nan")]], [0], "finite pairs"),
        ([["a", "b"]], [0], "must be numbers"),
        ([[float(i), 0.0] for i in range(9)], range(9), "9 classes; a plot can show 6"),
    ],
)
def test_points_that_can_not_be_plotted_are_told(
    tmp_path: Path, X: Any, y: Any, message: str
) -> None:
    """Ragged, missing or odd points raise DataError with the sizes."""
    with pytest.raises(DataError, match=message):
        draw.plot_boundary(lambda _: 0.0, X, y, tmp_path / "b.png", grid=3)
    assert not list(tmp_path.iterdir())


def test_losses_and_accuracies_are_shown_over_the_steps(tmp_path: Path, figures: list[Any]) -> None:
    """Two panels share the steps; without accuracies there is one."""
    history = [{"step": 10 * k, "loss": 1.0 / (k + 1), "accuracy": 0.5 + 0.1 * k} for k in range(4)]
    draw.plot_loss(history, tmp_path / "l.png", title="moons")
    upper, lower = figures[0].axes
    assert list(upper.lines[0].get_xdata()) == [0, 10, 20, 30]
    assert list(upper.lines[0].get_ydata()) == [1.0, 0.5, 1 / 3, 0.25]
    assert list(lower.lines[0].get_ydata()) == [row["accuracy"] for row in history]
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == (
        "loss", "accuracy", "step",
    )  # fmt: skip
    assert upper.get_ylim()[0] <= 0.0
    draw.plot_loss([{"loss": 1.0}], tmp_path / "l.png")
    assert len(figures[1].axes) == 1


def test_a_history_without_losses_is_told(tmp_path: Path) -> None:
    """An empty history, or a step without a loss, is a DataError."""
    for history in ([], [{"loss": 1.0}, {"accuracy": 1.0}]):
        with pytest.raises(DataError, match="at least one step, and the 'loss' of each"):
            draw.plot_loss(history, tmp_path / "l.png")


def test_a_plot_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    """The ending must be one matplotlib writes; the message lists them."""
    with pytest.raises(UsageError, match=r"l\.doc: .*pdf.*png.*svg"):
        draw.plot_loss([{"loss": 1.0}], tmp_path / "l.doc")

"""The page that steps through a backward pass: its steps, its text, and in a browser."""

import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from micrograd.draw import arrange, read_graph
from micrograd.engine import Fan, Value
from micrograd.errors import NumericalError, ResourceError, UsageError
from micrograd.nn import MLP
from micrograd.player import RULES, backward_flows, digest, main, render_player, save_player

NASTY = "</script><img src=x onerror=window.hit=1>{a}@data@"


def example() -> tuple[Value, dict[Value, str]]:
    """Return relu(a * b + a * a), in which a is used three times, and names."""
    a, b = Value(2.0), Value(-0.5)
    return (a * b + a * a).relu(), {a: "a", b: "b"}


def page_data(page: str) -> dict[str, Any]:
    """Return what the page's program is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def random_graph(seed: int) -> Value:
    """Return the last of 20 values, each made of earlier ones; many are used often."""
    rng = random.Random(seed)
    values = [Value(rng.uniform(-2.0, 2.0)) for _ in range(4)]
    for _ in range(20):
        a, b = rng.choice(values), rng.choice(values)
        step = rng.randrange(7)
        if step < 3:
            values.append([a + b, a - b, a * b][step].tanh())
        else:
            values.append([a.sin() * 3.0, b / 2.5 + a, a.max(b), 2.0**a - b][step - 3])
    total = values[-1]
    for v in values[-6:-1]:
        total = total + v
    return total


# ---- the steps


@pytest.mark.parametrize("seed", range(20))
def test_the_gradients_shown_are_those_of_backward_to_the_last_bit(seed: int) -> None:
    """Sums are made in the engine's order, so that even rounding agrees."""
    root = random_graph(seed)
    drawing = arrange(read_graph(root))
    shown = [0.0] * len(drawing.nodes)
    shown[-1] = 1.0
    for flow in backward_flows(drawing):
        source = drawing.wires[flow.wire][0]
        assert flow.before == shown[source]
        assert flow.after == flow.before + flow.part
        shown[source] = flow.after
    root.backward()
    assert shown == [node.value.grad for node in drawing.nodes]


class Recorder(Fan):
    """The sum of its inputs, which notes when the engine comes to it."""

    order: "list[Recorder]" = []  # noqa: RUF012  # emptied by the test

    def __init__(self, *inputs: Value) -> None:
        super().__init__(sum(v.data for v in inputs))
        self._fan = inputs
        self._stores = ()

    def _push(self) -> None:
        self.order.append(self)
        for v in self._fan:
            v.grad += self.grad

    def plain(self) -> Value:
        """Return the sum, one addition at a time."""
        total = self._fan[0] + 0.0
        for v in self._fan[1:]:
            total = total + v
        return total


@pytest.mark.parametrize("seed", range(10))
def test_nodes_pass_back_in_the_order_of_the_engine(seed: int) -> None:
    """Nodes that note when `backward` comes to them are met by the player in the same order."""
    rng = random.Random(seed)
    values: list[Value] = [Value(1.0), Value(2.0)]
    for _ in range(15):
        values.append(Recorder(*rng.sample(values, rng.choice((1, 2)))))
    root = Recorder(*values)
    Recorder.order.clear()
    root.backward()
    order = list(Recorder.order)
    drawing = arrange(read_graph(root))
    met = [drawing.nodes[drawing.wires[flow.wire][1]].value for flow in backward_flows(drawing)]
    once = list(dict.fromkeys(met))
    assert [id(v) for v in once] == [id(v) for v in order]


def test_a_value_used_three_times_receives_three_parts() -> None:
    """For a*b + a*a at 2, -0.5 the parts of a are -0.5, 2 and 2 in some order, 3.5 together."""
    root, labels = example()
    data = page_data(render_player(root, labels=labels))
    parts = [line for line in data["nodes"][0]["lines"] if line["group"] == "Gradient"]
    assert len(parts) == 3
    assert [line["text"].split(",")[0] for line in parts] == [f"part {k} of 3" for k in (1, 2, 3)]
    assert parts[-1]["text"].endswith("gives 3.5")
    said = [step["say"] for step in data["steps"]]
    assert any("a is used 3 times, and the parts add up; this is part 3." in say for say in said)


def test_steps_tell_the_whole_story_in_order() -> None:
    """(a*b + c).relu(): inputs, three operations, the seed, five wires, the end."""
    a, b, c = Value(2.0), Value(-3.0), Value(10.0)
    data = page_data(render_player((a * b + c).relu(), labels={a: "a", b: "b", c: "c"}))
    phases = [step["phase"] for step in data["steps"]]
    assert phases == ["start", *["forward"] * 3, "seed", *["backward"] * 5, "end"]
    said = [step["say"] for step in data["steps"]]
    assert said[0].startswith("The inputs are given: a = 2, b = −3 and c = 10.")
    assert said[1] == (
        "v1 = a × b = 2 × (−3) = −6. Noted for the way back: ∂v1/∂a = b = −3 and ∂v1/∂b = a = 2."
    )
    into_a = next(s for s in data["steps"] if s["wire"] == 0)
    assert into_a["say"] == (
        "v1 has the gradient 1. ∂v1/∂a = b = −3, so 1 × (−3) = −3 flows to a, which had 0: "
        "0 + (−3) = −3."
    )
    assert said[-1].startswith("Done: ∂v3/∂a = −3, ∂v3/∂b = 2 and ∂v3/∂c = 1.")
    groups = {line["text"] for line in data["nodes"][2]["lines"]}
    assert "to a: ∂v1/∂a = b = −3; gradient 1 × (−3) = −3" in groups


@pytest.mark.parametrize("op", RULES)
def test_each_formula_gives_the_slope_it_states(op: str) -> None:
    """The formula of a local derivative, computed by Python, is the number behind it."""
    x, y = Value(0.7), Value(0.4)
    results = {
        "+": x + y, "-": x - y, "*": x * y, "/": x / y, "**": x**y, "c**": 3.0**x, "max": x.max(y),
        "min": x.min(y), "abs": abs(-x),
    }  # fmt: skip
    root = results[op] if op in results else getattr(x, op)()
    data = page_data(render_player(root, labels={x: "x", y: "y"}))
    checked = 0
    for line in data["nodes"][-1]["lines"]:
        links = line["text"].split(" = ")
        if line["group"] in ("Value", "Local derivatives") and len(links) > 2:
            if links[-2] in ("x", "y"):
                continue
            assert evaluate(links[-2]) == pytest.approx(evaluate(links[-1]), rel=1e-3)
            checked += 1
    assert checked


def evaluate(text: str) -> float:
    """Return the value of a formula as the page writes it."""
    text = text.replace("−", "-").replace("×", "*").replace("½ if equal, ", "")
    text = re.sub(r"\(1 if (.*), else 0\)", r"float(\1)", text)
    text = re.sub(r"\(the sign of (.*)\)", r"math.copysign(1, \1)", text)
    text = re.sub(r"\|(.*)\|", r"abs(\1)", text)
    names: dict[str, Any] = {
        "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
        "softplus": lambda z: math.log1p(math.exp(z)),
        "relu": lambda z: max(z, 0.0),
        "math": math,
    }
    names |= {name: getattr(math, name) for name in ("exp", "log", "sqrt", "tanh", "sin", "cos")}
    return float(eval(text, names))


def test_the_users_gradients_are_left_alone() -> None:
    """Rendering changes no `.grad`, and shows a fresh pass whatever was in there."""
    root, labels = example()
    a = next(iter(labels))
    a.grad = 100.0
    data = page_data(render_player(root, labels=labels))
    assert a.grad == 100.0
    assert root.grad == 0.0
    assert data["steps"][-1]["say"].startswith("Done: ∂v4/∂a = 3.5")


def test_a_fused_network_is_shown_as_its_products_and_sums() -> None:
    """The gradients of an MLP's weights are those that backward gives the fused network."""
    model = MLP(2, [2, 1], rng=random.Random(5))
    loss = (model([1.0, -2.0]) - 1.0) ** 2
    drawing = arrange(read_graph(loss, expand=True))
    shown = {id(drawing.nodes[-1].value): 1.0}
    for flow in backward_flows(drawing):
        shown[id(drawing.nodes[drawing.wires[flow.wire][0]].value)] = flow.after
    loss.backward()
    for p in model.parameters():
        assert shown[id(p)] == pytest.approx(p.grad, rel=1e-12)
    assert any(p.grad for p in model.parameters())
    ops = [node["op"] for node in page_data(render_player(loss))["nodes"]]
    assert (ops.count("*"), ops.count("relu"), ops.count("mlp")) == (6, 2, 0)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    """The slope of sqrt at 0 is infinite: the error names the operation, as backward's does."""
    with pytest.raises(NumericalError, match=r"derivative of 'sqrt' at 0\.0 is not finite"):
        render_player(Value(0.0).sqrt())


def test_a_leaf_alone_is_a_page() -> None:
    """The derivative of a value by itself is 1; there is nothing to step through."""
    steps = page_data(render_player(Value(3.0)))["steps"]
    assert [step["phase"] for step in steps] == ["start", "seed", "end"]


def test_names_do_not_collide() -> None:
    """A user's v1 stays the only v1."""
    x = Value(1.0)
    nodes = page_data(render_player(x.exp().sin(), labels={x: "v1"}))["nodes"]
    assert [node["name"] for node in nodes] == ["v1", "v2", "v3"]


# ---- the file


def test_the_page_is_one_file_that_may_load_nothing() -> None:
    """No address but SVG's name, a policy that forbids all else, with the digests of its parts."""
    root, labels = example()
    page = render_player(root, labels=labels)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    assert f"script-src {digest(script)}" in page
    assert f"style-src {digest(style)}" in page
    assert not re.search(r"@(title|policy|graph|box|width|drawing|data)@", page)


def test_a_label_can_not_leave_its_place() -> None:
    """Markup in a label or title is escaped in the JSON, the drawing and the heading."""
    x = Value(1.0)
    page = render_player(x.exp(), labels={x: NASTY}, title=NASTY)
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert page_data(page)["nodes"][0]["name"] == NASTY
    assert "exp(" + NASTY + ")" in page_data(page)["steps"][1]["say"]


def test_too_large_a_graph_is_refused(tmp_path: Path) -> None:
    """More nodes than the limit: an error with the limit, and no file."""
    x = Value(1.0)
    for _ in range(120):
        x = x + 1.0
    with pytest.raises(UsageError, match="more than limit=120 nodes"):
        save_player(x, tmp_path / "p.html")
    with pytest.raises(UsageError, match="more than limit=3 nodes"):
        render_player(x, limit=3)
    with pytest.raises(ResourceError, match="cannot be written"):
        save_player(Value(1.0), tmp_path / "none" / "p.html")
    assert not list(tmp_path.iterdir())


# ---- the command


def test_the_command_writes_its_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an expression the page is a neuron and its loss, in which w is used twice."""
    assert main(["--out", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'p.html'}; open it in a browser\n"
    data = page_data((tmp_path / "p.html").read_text("utf-8"))
    uses = {node["name"]: node["uses"] for node in data["nodes"]}
    assert uses["w"] == 2
    assert uses["loss"] == 0


def test_the_command_reads_an_expression(tmp_path: Path) -> None:
    """The expression is the heading, its names are on the cards; numbers may come first."""
    out = str(tmp_path / "p.html")
    assert main(["a=2", "--expression", "(a*b + c).relu()", "b=-3", "c=1e1", "--out", out]) == 0
    page = Path(out).read_text("utf-8")
    assert "<title>(a*b + c).relu()</title>" in page
    assert "∂v3/∂a = −3, ∂v3/∂b = 2 and ∂v3/∂c = 1" in page_data(page)["steps"][-1]["say"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--expression", "a*d", "a=2"], 2, r"unknown name 'd' .* at column 3, \"d\""),
        (["--expression", "a*", "a=2"], 2, "at column 3"),
        (["--expression", "a.log()", "a=-2"], 6, r"log\(-2.0\).*column 1"),
        (["--expression", "a/b", "a=1", "b=0"], 6, "division by zero"),
        (["--expression", "a", "a=x"], 2, "'a=x' is not a name and its number, a=2"),
        (["--expression", "a", "a=nan"], 2, "'a=nan' is not a name"),
        (["--expression", "a", "a=1", "a=2"], 2, "a name has one number"),
        (["a=1"], 2, "numbers need an --expression"),
        (["--expression", "+".join("a" * 150), "a=1"], 2, "more than limit=120 nodes"),
        (["--out", "none/p.html"], 5, "none/p.html cannot be written: No such file"),
        (["--bogus"], 2, "unrecognized arguments: --bogus"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The line names the place or value and the rule; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start headless Chromium once for the module."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    flags += "disable-background-networking disable-component-update window-size=1300,900"
    for flag in flags.split():
        options.add_argument("--" + flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open the example; at the end of the test the console has no error."""
    root, labels = example()
    save_player(root, tmp_path / "p.html", labels=labels)
    browser.get((tmp_path / "p.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


SHOWN = """return [...document.querySelectorAll('[data-node]')].map((card) => ['data', 'grad'].map(
    (what) => card.querySelector('.number.' + what).dataset.exact))"""

SNAPSHOT = """return [...document.querySelectorAll('body, #graph *, #say, #facts *, #count')].map(
    (one) => [...one.classList].sort().join(' ') + '|' + one.textContent)"""


def press(browser: Any, *keys: str) -> None:
    """Press keys wherever the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def text(browser: Any, name: str) -> str:
    """Return the text of the element with the id `name`."""
    return str(browser.execute_script(f"return document.getElementById('{name}').textContent"))


def test_stepping_to_the_end_shows_what_backward_gives(page: Any) -> None:
    """The arrow key leads through all steps to the gradients of the engine."""
    from selenium.webdriver.common.keys import Keys

    root, _ = example()
    root.backward()
    before = page.execute_script(SHOWN)
    assert [data for data, _ in before] == ["2", "-0.5", "", "", "", ""]
    assert {grad for _, grad in before} == {"0"}
    press(page, Keys.ARROW_RIGHT)
    texts = "return [...document.querySelectorAll('.number.data')].map((t) => t.textContent)"
    assert page.execute_script(texts) == ["2", "−0.5", "−1", "·", "·", "·"]
    press(page, *[Keys.ARROW_RIGHT] * 5)
    assert [grad for _, grad in page.execute_script(SHOWN)] == ["0", "0", "0", "0", "1", "1"]
    press(page, *[Keys.ARROW_RIGHT] * 30)
    assert text(page, "count") == "14 of 14"
    shown = [[float(data), float(grad)] for data, grad in page.execute_script(SHOWN)]
    assert shown == [[node.data, node.value.grad] for node in read_graph(root)]
    assert text(page, "say").startswith("Done: ∂v4/∂a = 3.5 and ∂v4/∂b = 2.")


def test_going_back_restores_every_step(page: Any) -> None:
    """Each step looks the same on the way back as on the way there."""
    from selenium.webdriver.common.keys import Keys

    there = [page.execute_script(SNAPSHOT)]
    for _ in range(13):
        press(page, Keys.ARROW_RIGHT)
        there.append(page.execute_script(SNAPSHOT))
    assert len({str(snapshot) for snapshot in there}) == 14
    for k in range(12, -1, -1):
        press(page, Keys.ARROW_LEFT)
        assert page.execute_script(SNAPSHOT) == there[k]


def test_keys_buttons_and_slider_agree(page: Any) -> None:
    """Home, End, the four buttons and the slider go where they say."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def at() -> str:
        return text(page, "count").split()[0]

    press(page, Keys.END)
    assert at() == "14"
    press(page, Keys.HOME)
    assert at() == "1"
    places = []
    for name in ("next", "next", "back", "last", "first"):
        page.find_element(By.ID, name).click()
        places.append(at())
    assert places == ["2", "3", "2", "14", "1"]
    assert not page.find_element(By.ID, "back").is_enabled()
    slider = page.find_element(By.ID, "slider")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert (at(), slider.get_attribute("value")) == ("2", "1")
    assert slider.get_attribute("aria-valuetext") == "step 2 of 14, forward"
    page.execute_script(
        "arguments[0].value = 6; arguments[0].dispatchEvent(new Event('input'))", slider
    )
    assert at() == "7"


def test_space_plays_to_the_end_and_pauses(page: Any) -> None:
    """Playing steps on by a timer, of a length that the speed sets, and stops at the end."""
    page.execute_script(
        "window.timers = []; window.setTimeout = (f, ms) => { timers.push([f, ms]); return 7 };"
        "window.clearTimeout = () => { window.timers = [] };"
        "window.fire = () => { const [f, ms] = timers.shift(); f(); return ms }"
    )
    press(page, " ")
    assert text(page, "what") == "Pause"
    page.execute_script("fire()")
    slow = page.execute_script("return fire()")
    page.execute_script("document.getElementById('speed').value = '4'; fire()")
    assert page.execute_script("return fire()") == slow / 4
    assert text(page, "count") == "5 of 14"
    press(page, " ")
    assert text(page, "what") == "Play"
    assert page.execute_script("return timers.length") == 0
    press(page, " ")
    for _ in range(9):
        page.execute_script("fire()")
    assert (text(page, "count"), text(page, "what")) == ("14 of 14", "Play")
    assert page.execute_script("return timers.length") == 0


def test_a_node_shows_its_formula_when_chosen(page: Any) -> None:
    """Click or Enter choose a node, its lines come as they become known, Escape lets go."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    card = page.find_element(By.CSS_SELECTOR, '[data-node="2"]')
    card.click()
    assert text(page, "who") == "v1"
    assert "v1 = a × b" not in text(page, "facts")
    press(page, Keys.ARROW_RIGHT)
    assert "v1 = a × b = 2 × (−0.5) = −1" in text(page, "facts")
    assert "known at step" in text(page, "facts")
    press(page, Keys.END)
    assert "to a: ∂v1/∂a = b = −0.5; gradient 1 × (−0.5) = −0.5" in text(page, "facts")
    assert card.get_attribute("aria-pressed") == "true"
    press(page, Keys.ESCAPE)
    assert text(page, "who") == "v4"
    page.execute_script("document.querySelector('[data-node=\"0\"]').focus()")
    press(page, Keys.ENTER)
    assert text(page, "who") == "a"
    assert text(page, "facts").count("of 3, from") == 3


def test_a_flow_shows_gradient_slope_and_product_on_its_wire(page: Any) -> None:
    """At a backward step its wire bears a label with both factors and their product."""
    from selenium.webdriver.common.keys import Keys

    press(page, *[Keys.ARROW_RIGHT] * 6)
    label = "return [...document.querySelectorAll('.chip.flow text')].map((t) => t.textContent)"
    assert page.execute_script(label) == ["1", "× 1", "= 1"]
    assert page.execute_script("return document.querySelectorAll('.link.flow').length") == 1
    running = "return getComputedStyle(document.querySelector('.flow .wire')).animationName"
    assert page.execute_script(running) == "run"
    reduce = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": reduce})
    try:
        assert page.execute_script(running) == "none"
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_sentence_is_announced_and_nodes_can_be_reached(page: Any) -> None:
    """The sentence is a live region; each card is a button with its state in words."""
    assert page.execute_script("return document.getElementById('say').ariaLive") == "polite"
    cards = "[...document.querySelectorAll('[data-node]')]"
    roles = page.execute_script(f"return {cards}.map((c) => [c.role, c.tabIndex])")
    assert roles == [["button", 0]] * 6
    name = page.execute_script(f"return {cards}[2].getAttribute('aria-label')")
    assert name == "v1 *, data not computed yet, gradient 0"


def test_the_page_fetches_nothing_and_fits_a_phone(page: Any) -> None:
    """No request is made; at 390 pixels the graph scrolls and the page does not."""
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == 390
        inside = "const s = document.getElementById('scroller'); return s.scrollWidth > 390"
        assert page.execute_script(inside)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_label_of_markup_is_inert(browser: Any, tmp_path: Path) -> None:
    """A label that would end the script and load an image is shown as it is, at every step."""
    from selenium.webdriver.common.keys import Keys

    x = Value(1.0)
    save_player(x.exp(), tmp_path / "p.html", labels={x: NASTY}, title=NASTY)
    browser.get((tmp_path / "p.html").as_uri())
    for _ in range(5):
        press(browser, Keys.ARROW_RIGHT)
        assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return window.hit") is None
    assert NASTY in text(browser, "say")
    assert browser.title == NASTY
    assert browser.get_log("browser") == []

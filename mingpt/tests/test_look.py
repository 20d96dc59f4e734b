"""The page of attention maps: what is measured, what is written, and what a browser shows."""

import base64
import html
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mingpt import look
from mingpt.data import cut, target_nats
from mingpt.gpt import GPT, GPTConfig
from mingpt.hybrid import Hybrid, HybridConfig
from mingpt.load import load_run
from mingpt.model import LanguageModel
from mingpt.ngram import NGram, NGramConfig
from shared import cli
from shared.errors import DataError, UsageError

Altered = Callable[..., Path]
PROMPT = "Shall I"
ATTACK = "</script><img src=x onerror=\"document.title='run'\"><!-- @data@ &"
SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "block_size": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "init_std": 0.5,
}


def random_model(kind: str) -> LanguageModel:
    """Return a model of random weights; a hybrid has counted something."""
    if kind == "gpt":
        return GPT(GPTConfig(**SHAPE)).eval()
    hybrid = Hybrid(HybridConfig(**SHAPE, n=3))
    hybrid.fit(np.random.default_rng(0).integers(0, 11, 200))
    return hybrid.eval()


def data_of(page: str) -> dict[str, Any]:
    """Return what is embedded in a page."""
    found = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def unpacked(text: str, T: int) -> Tensor:
    """Return the map (T, T) that a page holds."""
    numbers = np.frombuffer(base64.b64decode(text), "<u2")
    weights = torch.zeros(T, T, dtype=torch.float64)
    weights[*torch.tril_indices(T, T)] = torch.from_numpy(numbers / look.LEVELS)
    return weights


def run(*flags: object) -> int:
    """Run the command and return its exit code."""
    return cli.execute(look.main, [str(flag) for flag in flags], "python -m mingpt.look")


# ---- what is measured


def test_maps_and_predictions_are_those_of_the_model() -> None:
    """As `features` gives them; and a model that was looked into is as it was."""
    model = random_model("gpt")
    assert isinstance(model, GPT)
    idx = torch.randint(11, (1, 8))
    found = look.read(model, idx)
    maps: list[Tensor] = []
    logits = model.logits(model.features(idx, maps=maps))
    assert torch.equal(found.maps, torch.cat(maps))
    torch.testing.assert_close(found.log_probs, F.log_softmax(logits[0].double(), -1))
    assert "features" not in vars(model)


@pytest.mark.parametrize("kind", ["gpt", "hybrid"])
def test_the_loss_without_a_head_is_that_of_a_model_whose_head_is_gone(kind: str) -> None:
    """Cut out of the output matrix, which reads each head's numbers in columns of its own."""
    model = random_model(kind)
    windows = cut(model, np.random.default_rng(1).integers(0, 11, 33))
    whole, lacking = look.without_each_head(model, {"text": windows})["text"]
    assert whole.tolist() == target_nats(model, windows).tolist()
    matrices = [block.attention.out.weight for block in look.transformer_of(model).blocks]  # type: ignore[union-attr]
    for layer, matrix in enumerate(matrices):
        assert isinstance(matrix, nn.Parameter)
        for head in range(2):
            saved = matrix.detach().clone()
            with torch.no_grad():
                matrix[:, 8 * head : 8 * head + 8] = 0
                gone = target_nats(model, windows)
                matrix.copy_(saved)
            np.testing.assert_allclose(lacking[layer, head], gone, rtol=1e-5)
            assert abs(gone.mean() - whole.mean()) > 1e-3


def test_a_model_without_heads_is_refused() -> None:
    """As the n-gram model alone."""
    with pytest.raises(UsageError, match="a NGram has no attention heads"):
        look.transformer_of(NGram(NGramConfig(vocab_size=11)))


def test_the_error_is_that_of_means_of_windows() -> None:
    """Of [1, 3], [5, 7] the means are 2 and 6; the rest counts in the mean."""
    assert look.mean_and_error(np.array([1.0, 3, 5, 7]), 2) == pytest.approx((4.0, 2.0))
    assert look.mean_and_error(np.array([1.0, 3, 5, 7, 9]), 2) == pytest.approx((5.0, 2.0))
    assert look.mean_and_error(np.array([1.0, 3, 5]), 2) == (3.0, None)


def test_habits_of_weights_worked_by_hand() -> None:
    """A head that looks back by one, evenly, at itself, and at the first character."""
    back, evenly, own, first = torch.zeros(4, 8, 8).unbind()
    back[torch.arange(1, 8), torch.arange(7)] = 1
    evenly += torch.tril(torch.ones(8, 8)) / torch.arange(1, 9)[:, None]
    own += torch.eye(8)
    first[:, 0] = 1
    found = look.habits_of(torch.stack([back, evenly, own, first])[None])[:, 0]  # (7, 4, 7)
    names = ("distance", "previous", "own", "first", "recent", "entropy", "evenness")
    kinds = [dict(zip(names, found[:, k, -1].tolist(), strict=True)) for k in range(4)]
    assert kinds[0] == dict(zip(names, (1, 1, 0, 0, 1, 0, 0), strict=True))
    assert kinds[1] == pytest.approx(
        dict(zip(names, (3.5, 1 / 8, 1 / 8, 1 / 8, 5 / 8, math.log(8), 1), strict=True))
    )
    assert kinds[2] == dict(zip(names, (0, 0, 1, 0, 1, 0, 0), strict=True))
    assert kinds[3] == dict(zip(names, (7, 0, 0, 1, 0, 0, 0), strict=True))
    words = [look.Habits(**kind).words(3.5) for kind in kinds]
    assert words == ["the character before", "the last 4 or so", "itself", "the first character"]


def test_padding_takes_no_part_in_habits() -> None:
    """A text of 11 targets in windows of 8: those of its last window are 3, of which 2 count."""
    model = random_model("gpt")
    ids = np.random.default_rng(2).integers(0, 11, 12)
    kinds, even_distance = look.habits(model, cut(model, ids))
    places = [*range(1, 8), 1, 2]
    assert even_distance == pytest.approx(sum(places) / 2 / 9)
    maps = [look.read(model, torch.from_numpy(part)[None]).maps for part in (ids[:8], ids[8:11])]
    own = sum(weights.diagonal(dim1=-2, dim2=-1)[..., 1:].sum(-1) for weights in maps) / 9
    assert isinstance(own, Tensor)
    assert kinds[1][0].own == pytest.approx(own[1, 0].item(), rel=1e-5)


# ---- what is written


@pytest.fixture(scope="module")
def report(trained: tuple[Path, Any]) -> tuple[dict[str, Any], Tensor]:
    """Return what is told of the trained run on a prompt, and the maps."""
    return look.look(load_run(trained[0]), look.LookConfig(prompt=PROMPT))


def test_the_page_holds_the_maps_and_the_surprise(report: tuple[dict[str, Any], Tensor]) -> None:
    """To the last of two bytes; -log p of each character but the first; five guesses each."""
    told, maps = report
    data = data_of(look.render_page(told, maps))
    for text, weights in zip(data["maps"], maps.flatten(0, 1), strict=True):
        error = unpacked(text, len(PROMPT)) - weights
        assert error.abs().max() <= 0.5001 / look.LEVELS
    rows = data["characters"]
    assert "".join(row["character"] for row in rows) == PROMPT
    assert rows[0]["surprise"] is None
    mean = sum(row["surprise"] for row in rows[1:]) / (len(rows) - 1)
    assert mean == pytest.approx(data["loss"]["prompt"], rel=1e-5)
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        guesses = dict(row["next"])
        assert len(guesses) == 5
        if after and after["character"] in guesses:
            p = guesses[after["character"]]
            assert -math.log(p) == pytest.approx(after["surprise"], rel=1e-5)
    assert any(after["character"] in dict(row["next"]) for row, after in pairwise(rows))


def test_a_prompt_cannot_leave_its_place(report: tuple[dict[str, Any], Tensor]) -> None:
    """Whatever it holds, the page has the template's tags, and its data come back unchanged."""
    told, maps = report
    tags = re.compile("<(?:script|img|!--)")
    calm = look.render_page(told, maps)
    hostile = {**told, "run": ATTACK, "characters": [
        {"character": c, "surprise": 1.0, "next": [[ATTACK, 1.0]]} for c in ATTACK
    ]}  # fmt: skip
    page = look.render_page(hostile, maps)
    assert len(tags.findall(page)) == len(tags.findall(calm))
    assert data_of(page)["characters"] == hostile["characters"]
    assert html.escape(ATTACK[:40]) in page.partition("</title>")[0]


def test_the_page_refers_to_nothing_outside_it(report: tuple[dict[str, Any], Tensor]) -> None:
    """No address, no import, no file beside it; and its policy forbids what is not in it."""
    page = look.render_page(*report)
    assert re.findall(r"https?:|url\(|@import|\bsrc=|\bimport\b|fetch\(|@\w+@", page) == []
    assert re.findall(r'href="(.*?)"', page) == ["data:,"]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


# ---- the command line


def test_the_command_writes_the_page_and_json(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    r"""Into a folder it makes; \n is a line break, as the model knows no backslash."""
    out = tmp_path / "new" / "page.html"
    assert run("--run", trained[0], "--prompt", r"day?\nThou", "--out", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    data = data_of(out.read_text("utf-8"))
    assert printed.pop("page") == str(out)
    assert printed == {key: data[key] for key in printed}
    assert "".join(row["character"] for row in data["characters"]) == "day?\nThou"
    assert [(row["layer"], row["head"]) for row in data["heads"]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    # A tenth of 3,460 characters is validation: 21 whole windows of 16.
    assert (data["text"]["split"], data["text"]["characters"]) == ("val", 336)
    assert data["text"]["windows"] == 21


def test_the_table_names_the_head_that_is_missed_most_first(
    trained: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a prompt the text's first characters are read; of --characters whole windows."""
    out = tmp_path / "page.html"
    assert run("--run", trained[0], "--out", out, "--characters", 40) == 0
    captured = capsys.readouterr()
    assert (captured.err, captured.out.splitlines()[-1]) == ("", f"wrote {out}")
    assert "its first 32 characters in 2 windows of 16" in " ".join(captured.out.split())
    changes = [float(number) for number in re.findall(r"([+-]\d\.\d{4}) ±", captured.out)]
    assert len(changes) == 4
    assert changes == sorted(changes, reverse=True)
    assert len(data_of(out.read_text("utf-8"))["characters"]) == 16


@pytest.mark.parametrize(
    ("prompt", "read", "said"),
    [
        ("", "\n", ""),
        (
            "Shall I compare thee to a",
            "ompare thee to a",
            "25 characters; its last 16 are read",
        ),
        ("a", "a", ""),
    ],
)
def test_case_16_a_prompt_of_any_length_is_read(
    prompt: str,
    read: str,
    said: str,
    trained: tuple[Path, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The end of a long one, which is said; a line break for an empty one."""
    out = tmp_path / "page.html"
    assert run("--run", trained[0], "--prompt", prompt, "--out", out, "--characters", 16) == 0
    assert said in capsys.readouterr().err
    data = data_of(out.read_text("utf-8"))
    assert "".join(row["character"] for row in data["characters"]) == read
    alone = len(data["characters"]) == 1  # which has nothing to predict
    assert all((row["change_on_prompt"] is None) is alone for row in data["heads"])


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--prompt", "Zürich"), 3, "never seen: 'Zü'"),
        (("--characters", 1), 2, "characters=1 must be at least 2"),
        (("--out", "."), 2, "out=. is a folder"),
        (("--data", "nowhere.txt"), 2, "nowhere.txt"),
        (("--run", "nowhere"), 2, "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    flags: tuple[object, ...],
    code: int,
    said: str,
    trained: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On stderr, with the exit code of their kind; no page is written."""
    monkeypatch.chdir(tmp_path)
    assert run("--run", trained[0], *flags) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_text_too_short_to_look_back_is_refused() -> None:
    """A window of one target has nothing but its own first character."""
    model = random_model("gpt")
    with pytest.raises(DataError, match="nothing to look back at"):
        look.habits(model, cut(model, np.array([1, 2])))


# ---- in a browser


@pytest.fixture(scope="module")
def browser(
    report: tuple[dict[str, Any], Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Open the page in headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium or chromedriver is not installed")
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "look.html"
    page.write_text(look.render_page(*report), encoding="utf-8")
    options = webdriver.ChromeOptions()
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *("disable-dev-shm-usage", f"user-data-dir={folder / 'profile'}", "window-size=1200,900"),
    ):
        options.add_argument(f"--{flag}")
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        window.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        window.get(page.as_uri())
        yield window
    finally:
        window.quit()


def press(browser: Any, *keys: str) -> None:
    """Press keys where the focus is."""
    for name in keys:
        for kind in ("rawKeyDown", "keyUp"):
            code = {"Escape": 27, "Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38}
            more = {"windowsVirtualKeyCode": code[name]} | (
                {"text": "\r"} if name == "Enter" else {}
            )
            kind = "keyDown" if name == "Enter" and kind == "rawKeyDown" else kind
            browser.execute_cdp_cmd(
                "Input.dispatchKeyEvent", {"type": kind, "key": name, "code": name, **more}
            )


def shades(browser: Any, where: str) -> list[list[float]]:
    """Return the weights by which the texts at a selector are tinted."""
    found: list[list[float]] = browser.execute_script(
        """return Array.from(document.querySelectorAll(arguments[0]), (strip) =>
          Array.from(strip.children, (span) =>
            (parseFloat(span.style.getPropertyValue("--shade")) / 100) ** 2));""",
        where,
    )
    return found


def test_a_browser_shows_the_maps_the_weights_and_the_losses(
    browser: Any, report: tuple[dict[str, Any], Tensor]
) -> None:
    """One map a head; the chosen character's weights; the changes; nothing on the console."""
    told, maps = report
    cards = "document.querySelectorAll('.card')"
    assert browser.execute_script(f"return {cards}.length") == 4
    sizes = browser.execute_script(
        "return Array.from(document.querySelectorAll('.map canvas'), (c) => [c.width, c.height])"
    )
    assert sizes == [[len(PROMPT)] * 2] * 4
    for t in (6, 3):
        browser.execute_script("document.querySelectorAll('.text span')[arguments[0]].focus()", t)
        shown = torch.tensor(shades(browser, ".card .strip"))
        torch.testing.assert_close(shown, maps.flatten(0, 1)[:, t], atol=3e-5, rtol=0)
    texts = browser.execute_script(
        "return Array.from(document.querySelectorAll('.change, .worth button'), (n) => n.innerText)"
    )
    found = [float(text.split()[0].replace("−", "-")) for text in texts]
    asked = [row["change"] for row in told["heads"]]
    assert sorted(found) == pytest.approx(sorted(asked * 2), abs=5.1e-4)
    errors = [float(text.split()[2]) for text in texts]
    assert sorted(errors) == pytest.approx(
        sorted([r["error"] for r in told["heads"]] * 2), abs=1e-4
    )
    said = browser.execute_script("return document.querySelector('.told p').innerText")
    assert f"{told['characters'][3]['surprise']:.2f} nats" in said
    assert browser.get_log("browser") == []


def test_keys_lead_from_the_text_to_a_large_map_and_back(
    browser: Any, report: tuple[dict[str, Any], Tensor]
) -> None:
    """Arrows choose a character and a cell; Escape returns to the map that was opened."""
    browser.execute_script("document.querySelectorAll('.text span')[6].focus()")
    press(browser, "ArrowLeft")
    assert browser.execute_script("return document.activeElement.dataset.t") == "5"
    browser.execute_script("document.querySelectorAll('.card')[2].focus()")
    press(browser, "Enter")
    title = "return document.querySelector('dialog[open] #big-title').innerText"
    assert browser.execute_script(title) == "Layer 2, head 1"
    press(browser, "ArrowUp", *["ArrowLeft"] * 5)
    cell = "return Number(document.querySelector('.cell').dataset.weight)"
    weight = report[1].flatten(0, 1)[2, 4, 0].item()
    assert browser.execute_script(cell) == pytest.approx(weight, abs=1e-5)
    assert shades(browser, ".side .strip")[0] == pytest.approx(
        report[1].flatten(0, 1)[2, 4].tolist(), abs=3e-5
    )
    press(browser, "Escape")
    assert browser.execute_script("return document.querySelector('dialog').open") is False
    assert browser.execute_script("return document.activeElement.dataset.head") == "2"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_is_wider_than_the_window(width: int, browser: Any) -> None:
    """At two widths; the table of heads may be moved in its own frame."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    found = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth <= innerWidth]"
    )
    assert found == [width, True]


def test_a_hostile_prompt_is_shown_and_not_run(
    browser: Any, report: tuple[dict[str, Any], Tensor], tmp_path: Path
) -> None:
    """Its tags are characters among others."""
    told, _ = report
    maps = torch.eye(len(ATTACK)).expand(2, 2, -1, -1)
    rows = [{"character": c, "surprise": 1.0, "next": [[ATTACK, 1.0]]} for c in ATTACK]
    page = tmp_path / "hostile.html"
    page.write_text(look.render_page({**told, "characters": rows}, maps), encoding="utf-8")
    back = browser.current_url
    try:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.querySelector('.text').innerText") == ATTACK
        assert browser.execute_script("return document.querySelectorAll('img').length") == 0
        assert "run" not in browser.title.split()
        assert browser.get_log("browser") == []
    finally:
        browser.get(back)

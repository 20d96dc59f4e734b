"""The page of tokens: what the command writes, and what a browser makes of it."""

import errno
import html
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from minbpe import BasicTokenizer, DataError, RegexTokenizer, Tokenizer, view
from minbpe.gpt import RankTokenizer
from minbpe.published import Ranks

ATTACK = "</script><img src=x onerror=\"document.title='run'\"><!-- @data@ ${1} -->"
TEXT = (
    f"the hug, the hugs: théorème 😀\tx  y\r\n{'m' * 90}\n\n{ATTACK}\n"
    "中文 שלום \x00\u200b\ufeff\u202etheh\u202c\u3000xyz"
)


def trained(text: str, vocab_size: int) -> RegexTokenizer:
    tokenizer = RegexTokenizer()
    tokenizer.train(text, vocab_size)
    return tokenizer


def ranked(tokens: dict[bytes, int], pattern: str = r"\S+|\s+") -> RankTokenizer:
    """Return a tokenizer of the bytes, whose ranks go backwards as a trap, and of `tokens`."""
    ranks = {bytes([byte]): 255 - byte for byte in range(256)} | tokens
    return RankTokenizer(Ranks("test", pattern, ranks, {}))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """Return three: one that knows the text, one that knows little, one by ranks."""
    return {
        "much": trained(TEXT * 2 + "mm" * 64, 350),
        "little": trained("the theme hug hugs " * 5, 262),
        "<b>ranks": ranked({b"th": 256, b"the": 257, b"xyz": 300, b"\x98\x80": 301}),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a small tokenizer."""
    trained("the hug the hug", 259).save(tmp_path / "tiny")
    return tmp_path / "tiny.model"


def data_of(page: str) -> dict[str, Any]:
    """Return what is embedded in a page."""
    found = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def bytes_in(pane: dict[str, Any]) -> bytes:
    """Return the text that a pane's ids and table stand for."""
    made: dict[int, bytes] = {}
    for idx, *rest in pane["table"]:
        leaf = isinstance(rest[0], str)
        made[idx] = bytes.fromhex(rest[0]) if leaf else b"".join(made[part] for part in rest)
    return b"".join(made[idx] for idx in pane["ids"])


# ---- merge trees


def test_a_token_comes_apart_at_its_last_merge() -> None:
    """By ranks: the lowest merges first; a token that none reaches gives what merging leaves."""
    ranks = {bytes([b]): b for b in b"hugs"} | {b"ug": 256, b"hu": 257, b"hug": 258, b"hugs": 259}
    assert view.last_parts(b"hugs", ranks) == [b"hug", b"s"]
    assert view.last_parts(b"hug", ranks) == [b"h", b"ug"]
    assert view.last_parts(b"ug", ranks) == [b"u", b"g"]
    assert view.last_parts(b"u", ranks) == []
    assert view.last_parts(b"gush", ranks) == [b"g", b"u", b"s", b"h"]


def test_ranks_give_the_trees_that_merges_give() -> None:
    """A trained tokenizer's tokens, taken as ranks, have the parts that training merged."""
    text = "she sells sea shells by the sea shore, aaaa aaaaaa aaaaaaa, naïve théorèmes " * 3
    tokenizer = trained(text, 330)
    parts = view.merge_parts(tokenizer)
    ranks = {token: idx for idx, token in tokenizer.vocab.items()}
    by_rank = view.merge_parts(RankTokenizer(Ranks("test", tokenizer.pattern, ranks, {})))
    assert parts(65) == by_rank(65) == []
    assert parts(256) == list(next(iter(tokenizer.merges)))
    assert [by_rank(idx) for idx in ranks.values()] == [parts(idx) for idx in ranks.values()]


def test_the_table_has_parts_first_and_nothing_else() -> None:
    """Each token once, only what the ids need, however deep."""
    pairs = {k: [k - 1, 0] for k in range(1, 20_000)}

    def row_bytes(idx: int) -> bytes:
        return bytes([idx])

    rows = view.token_table([2, 9, 2, 0], lambda idx: pairs.get(idx, []), row_bytes)
    assert rows[:3] == [[0, "00"], [1, 0, 0], [2, 1, 0]]
    assert [row[0] for row in rows] == list(range(10))
    assert len(view.token_table([19_999], lambda idx: pairs.get(idx, []), row_bytes)) == 20_000


# ---- the page, read as text


def test_the_page_holds_each_tokenizer_s_ids_and_their_trees(
    tokenizers: dict[str, Tokenizer],
) -> None:
    """The ids are those of `encode_ordinary`, and the table leads from them back to the text."""
    data = data_of(view.render_page(TEXT, tokenizers, source="a & b", note="cut"))
    assert (data["source"], data["note"], data["characters"]) == ("a & b", "cut", len(TEXT))
    for pane, (name, tokenizer) in zip(data["panes"], tokenizers.items(), strict=True):
        assert pane["name"] == name
        assert pane["ids"] == tokenizer.encode_ordinary(TEXT)
        assert pane["vocabSize"] == tokenizer.vocab_size
        assert bytes_in(pane) == TEXT.encode()
    kinds = [(pane["kind"], pane["merges"]) for pane in data["panes"]]
    assert kinds == [("merges", 94), ("merges", 6), ("ranks", 0)]


def test_lone_surrogates_are_shown_as_they_are_encoded() -> None:
    """A text from Python may hold them; UTF-8 can't, and the encoder has made them U+FFFD."""
    pane = data_of(view.render_page("a\ud800b", {"bytes": BasicTokenizer()}))["panes"][0]
    assert bytes_in(pane) == "a\ufffdb".encode()


def test_an_empty_text_has_no_page() -> None:
    """Rather than a page without tokens."""
    with pytest.raises(DataError, match=r"notes\.txt is empty"):
        view.render_page("", {"bytes": BasicTokenizer()}, source="notes.txt")


def test_names_and_text_cannot_leave_their_place(tokenizers: dict[str, Tokenizer]) -> None:
    """Whatever they hold, the page has the template's tags and its data come back unchanged."""
    tags = re.compile("<(?:script|img|b>|!--)")
    calm = view.render_page("calm", {"calm": tokenizers["little"]})
    page = view.render_page(TEXT, {ATTACK: tokenizers["little"]}, source=ATTACK, note=ATTACK)
    assert len(tags.findall(page)) == len(tags.findall(calm))
    data = data_of(page)
    assert data["source"] == data["note"] == data["panes"][0]["name"] == ATTACK
    assert f"<title>{html.escape(ATTACK)} in tokens</title>" in page


def test_the_page_refers_to_nothing_outside_it(tokenizers: dict[str, Tokenizer]) -> None:
    """No address, no import, no file beside it; and its policy forbids what is not in it."""
    page = view.render_page("calm", tokenizers)
    assert re.findall(r"https?:|url\(|@import|\bsrc=|\bimport\b|fetch\(|@\w+@", page) == []
    assert re.findall(r'href="(.*?)"', page) == ["data:,"]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


# ---- the command line


def test_the_command_writes_the_page(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line ends stay; a tokenizer given twice is shown once, by its file's name."""
    text, out = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_bytes("the hug\r\nthé".encode())
    argv = [str(text), "--tokenizer", str(model), "--tokenizer", str(model), "--out", str(out)]
    assert view.main(argv) == 0
    assert capsys.readouterr() == (f"wrote {out}\n", "")
    data = data_of(out.read_text("utf-8"))
    assert (data["source"], data["note"]) == ("text.txt", "")
    assert [pane["name"] for pane in data["panes"]] == ["tiny"]
    assert bytes_in(data["panes"][0]) == text.read_bytes()


def test_only_the_start_of_a_long_text_is_shown_and_said_so(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the page and on stderr; a text of just that length is whole, however it is read."""
    monkeypatch.setattr("minbpe.documents.READ_BYTES", 3)
    text, out = tmp_path / "text.txt", tmp_path / "page.html"
    argv = [str(text), "--tokenizer", str(model), "--out", str(out), "--limit", "3"]
    for start, cut in (("😀é😀", False), ("😀é😀a", True), ("abcd", True), ("aé" * 10**6, True)):
        text.write_text(start, encoding="utf-8")
        assert view.main(argv) == 0
        data = data_of(out.read_text("utf-8"))
        assert bytes_in(data["panes"][0]) == start[:3].encode()
        assert ("first 3 characters" in data["note"]) is cut
        assert ("first 3 characters" in capsys.readouterr().err) is cut


def test_the_text_may_come_from_a_pipe(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `-`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("thé".encode())))
    out = tmp_path / "page.html"
    assert view.main(["-", "--tokenizer", str(model), "--out", str(out)]) == 0
    data = data_of(out.read_text("utf-8"))
    assert data["source"] == "stdin"
    assert bytes_in(data["panes"][0]) == "thé".encode()


def test_names_are_short_where_they_stay_apart() -> None:
    """Folder and ending go, unless two files would then be alike."""
    sources = ["a/x.model", "b/x.model", "b/y.model", "cl100k_base.tiktoken", "gpt2"]
    assert list(view.short_names(sources).values()) == [*sources[:2], "y", "cl100k_base", "gpt2"]


@pytest.mark.parametrize(
    ("content", "flags", "code", "message"),
    [
        (None, [], 2, "text.txt cannot be read: No such file"),
        (b"", [], 3, "text.txt is empty"),
        (b"one\ntwo \xff", [], 3, "line 2: byte 8 (0xff) is not UTF-8"),
        (b"one\xe2", [], 3, "line 1: byte 3 (0xe2) is not UTF-8"),
        (b"one", ["--tokenizer", "absent.model"], 2, "absent.model"),
        (b"one", ["--out", "absent/page.html"], 2, "the folder absent does not exist"),
        (b"one", ["--out", "."], 2, ". is a folder; give"),
        (b"one", ["--limit", "0"], 2, "--limit 0 must be from 1 to 500000"),
        (b"one", ["--limit", "500001"], 2, "--limit 500001 must be from 1 to 500000"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    content: bytes | None,
    flags: list[str],
    code: int,
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("text.txt").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert view.main(["text.txt", "--tokenizer", str(model), *flags]) == code
    stderr = capsys.readouterr().err
    assert stderr.startswith("minbpe.view: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_tokenizer_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is none that would suit every text."""
    assert view.main([str(tmp_path / "text.txt")]) == 2
    assert "--tokenizer is needed" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_page(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 5, and no torn page."""
    text, out = tmp_path / "text.txt", tmp_path / "page.html"
    text.write_text("the hug")
    out.write_text("old")

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    assert view.main([str(text), "--tokenizer", str(model), "--out", str(out)]) == 5
    assert "No space left" in capsys.readouterr().err
    assert out.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


# ---- the page in a browser

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1300,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


class Page:
    """A page in the browser, and what the tests ask of it."""

    def __init__(self, browser: Any, data: dict[str, Any]) -> None:
        self.browser = browser
        self.panes: list[dict[str, Any]] = data["panes"]

    def js(self, body: str, *values: object) -> Any:
        """Run a function's body, with its arguments as `a`."""
        return self.browser.execute_script(f"const a = arguments; {body}", *values)

    def css(self, selector: str, name: str, part: str | None = None) -> str:
        """Return a computed property of the first element, or of its `::before`."""
        body = "return getComputedStyle(document.querySelector(a[0]), a[2]).getPropertyValue(a[1])"
        return str(self.js(body, selector, name, part))

    def text(self, selector: str) -> str:
        """Return what is written in the first element."""
        return str(self.js("return document.querySelector(a[0]).textContent", selector))

    def span(self, pane: int, k: int) -> Any:
        """Return the element of a token."""
        body = "return document.querySelectorAll('.text')[a[0]].children[a[1]]"
        return self.js(body, pane, k)

    def at(self, pane: int, piece: str, position: int = 0) -> int:
        """Return the index of the token that holds a byte of `piece`, by its byte positions."""
        byte = TEXT.encode().index(piece.encode()) + position
        return (
            len(self.starts(pane))
            - 1
            - next(k for k, start in enumerate(reversed(self.starts(pane))) if start <= byte)
        )

    def starts(self, pane: int) -> list[int]:
        """Return the first byte of each token."""
        made = {row[0]: bytes_in(self.panes[pane] | {"ids": [row[0]]}) for row in self.table(pane)}
        starts = [0]
        for idx in self.panes[pane]["ids"][:-1]:
            starts.append(starts[-1] + len(made[idx]))
        return starts

    def table(self, pane: int) -> list[list[Any]]:
        """Return the pane's table."""
        table: list[list[Any]] = self.panes[pane]["table"]
        return table

    def hover(self, pane: int, k: int) -> None:
        """Move the mouse onto a token."""
        from selenium.webdriver import ActionChains

        span = self.span(pane, k)
        self.js("a[0].scrollIntoView({block: 'center'})", span)  # or the dock may cover it
        ActionChains(self.browser, 0).move_to_element(span).perform()

    def press(self, *keys: str) -> tuple[int, int]:
        """Press keys; return the pane and the index of the token that then has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser, 0).send_keys(*keys).perform()
        place = self.js(
            "const t = document.activeElement, all = [...document.querySelectorAll('.text')];"
            "return [all.indexOf(t.parentElement), [...t.parentElement.children].indexOf(t)]"
        )
        return place[0], place[1]

    def lit(self, pane: int, name: str) -> list[int]:
        """Return the indices of a pane's tokens that are `same` or `partly`."""
        body = (
            "return [...document.querySelectorAll('.text')[a[0]].children].flatMap("
            "(t, k) => t.classList.contains(a[1]) ? [k] : [])"
        )
        found: list[int] = self.js(body, pane, name)
        return found


@pytest.fixture
def page(
    browser: Any, tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> Page:
    """Open the page of TEXT anew."""
    path = tmp_path_factory.getbasetemp() / "tokens.html"
    if not path.exists():
        content = view.render_page(TEXT, tokenizers, source=ATTACK, note="Cut <b>here</b>.")
        path.write_bytes(content.encode())
    mouse = {"type": "mouseMoved", "x": 0, "y": 0}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", mouse)  # away from the tokens
    browser.get_log("browser")
    browser.get(path.as_uri())
    return Page(browser, data_of(path.read_text("utf-8")))


def test_the_page_shows_the_text_and_the_text_stays_inert(page: Page) -> None:
    """Every pane holds TEXT to the letter, marks and cut characters notwithstanding."""
    from selenium.webdriver.common.by import By

    assert page.browser.get_log("browser") == []
    texts = page.js("return [...document.querySelectorAll('.text')].map((t) => t.textContent)")
    assert texts == [TEXT] * 3
    assert page.browser.title == f"{ATTACK} in tokens"
    assert page.browser.find_elements(By.CSS_SELECTOR, "img, h2 b, .note b") == []
    assert page.text("h1") == ATTACK
    assert page.text(".top .note") == "Cut <b>here</b>."
    n_bytes, n_tokens = len(TEXT.encode()), len(page.panes[0]["ids"])
    assert page.text(".size") == f"{len(TEXT)} characters, {n_bytes} bytes"
    counts = f"{n_tokens} tokens{n_bytes / n_tokens:.2f} bytes per token350 in the vocabulary"
    assert page.text(".counts") == counts


def test_the_policy_stops_a_script_that_is_not_the_page_s(page: Page) -> None:
    """Should a text ever become markup, it still could not run or load."""
    ran = page.js(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); return window.ran ?? 0"
    )
    assert ran == 0
    assert "Content Security Policy" in page.browser.get_log("browser")[0]["message"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_tell_neighbours_apart_and_can_be_read(page: Page, scheme: str) -> None:
    """In both colour schemes text has a contrast of 7, small text of 4.5 (WCAG 2.2, 1.4.6)."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colours = page.js(
        "return [...document.querySelectorAll('.text')[0].children].map("
        "(t) => getComputedStyle(t).backgroundColor)"
    )
    assert len(set(colours)) == 6
    assert all(a != b for a, b in pairwise(colours))
    card = page.css(".pane", "background-color")
    assert (luminance(card) > 0.5) is (scheme == "light")
    ink, small = page.css(".text", "color"), page.css(".counts", "color")
    page.js("document.querySelector('#show-ids').click()")
    soft = page.css(".token", "color", "::before")
    assert min(contrast(ink, colour) for colour in set(colours)) >= 7
    assert min(contrast(soft, colour) for colour in set(colours)) >= 4.5
    assert contrast(small, card) >= 4.5


def luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2) of `rgb(1, 2, 3)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Return the contrast ratio (WCAG 2.2) of two colours, 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_hovering_shows_the_id_and_the_merge_tree(page: Page) -> None:
    """From the token on top to its bytes: each node has its token and its id or byte."""
    k = page.at(2, "the hug")
    page.hover(2, k)
    assert page.text(".badge") == page.text(".heading .id")[3:] == "257"
    assert page.text(".heading b") == "the"
    nodes = page.js("return [...document.querySelectorAll('.node')].map((n) => n.textContent)")
    assert nodes == ["the257", "th256", "e65", "t74", "h68"]
    assert page.js("return document.querySelectorAll('.link').length") == 4
    tops = page.js(
        "return [...document.querySelectorAll('.node rect')].map((r) => +r.getAttribute('y'))"
    )
    assert tops == [0, 50, 100, 100, 100]
    facts = page.text(".facts dl")
    assert "bytes3: 74 68 65" in facts
    assert "made byrank 257: th (256) + e (154)" in facts


def test_a_trained_token_names_its_merge(page: Page) -> None:
    """Merges count from one; a byte has none; a token that only a whole word gives has none."""
    page.hover(1, page.at(1, "the hug"))
    idx = page.panes[1]["ids"][page.at(1, "the hug")]
    assert f"merge {idx - 255} of 6: " in page.text(".facts dl")
    page.hover(1, page.at(1, "中"))
    assert "no merge: it is a byte" in page.text(".facts dl")
    page.hover(2, page.at(2, "xyz"))
    assert "found only as a whole word" in page.text(".facts dl")
    assert page.js("return document.querySelectorAll('.node').length") == 4


def test_a_large_tree_is_folded(page: Page) -> None:
    """A token of ninety bytes is drawn down to 64 leaves at most, and named by its length."""
    page.hover(0, page.at(0, "mmm"))
    letters = int(page.text(".heading b").removeprefix("m×"))
    assert letters > 64
    assert page.js("return document.querySelectorAll('.node.folded').length") > 0
    leaves = page.js(
        "return document.querySelectorAll('.node').length"
        " - new Set([...document.querySelectorAll('.link')].map("
        "(l) => l.getAttribute('d').split('C')[0])).size"
    )
    assert 32 < leaves <= 64


def test_hovering_marks_the_same_text_in_every_pane(page: Page) -> None:
    """Solid where a token lies within it, dashed where it reaches beyond."""
    small = page.at(1, "the hug", 1)
    page.hover(1, small)
    starts = page.starts(1)
    span = range(starts[small], starts[small + 1])
    for pane in range(3):
        begin = page.starts(pane)
        end = [*begin[1:], len(TEXT.encode())]
        both = zip(begin, end, strict=True)
        touching = [k for k, (b, e) in enumerate(both) if b < span.stop and e > span.start]
        within = [k for k in touching if begin[k] >= span.start and end[k] <= span.stop]
        assert page.lit(pane, "same") == within
        assert page.lit(pane, "partly") == [k for k in touching if k not in within]
    page.hover(2, page.at(2, "</script>"))
    assert page.lit(1, "same") == [page.at(1, "</script>")]
    page.hover(0, page.at(0, "mmm"))
    assert len(page.lit(1, "same")) > 64
    page.hover(1, page.at(1, "mmm", 3))
    assert page.lit(0, "partly") == [page.at(0, "mmm")]
    assert page.css(".partly", "outline-style") == "dashed"


def test_the_bytes_of_a_cut_character_are_shown(page: Page) -> None:
    """An emoji over several tokens appears as hex, and the facts say whose bytes they are."""
    first, last = page.at(2, "😀"), page.at(2, "😀", 3)
    assert last == first + 2
    marks = page.js(
        "return [...document.querySelectorAll('.text')[2].children].slice(a[0], a[1]).map("
        "(t) => getComputedStyle(t.firstElementChild, '::before').content)",
        first,
        last + 1,
    )
    assert marks == ['"F0"', '"9F"', '"98 80"']
    page.hover(2, last)
    assert "holds2 of the 4 bytes of 😀 (U+1F600)" in page.text(".facts dl")
    page.hover(2, first - 1)
    assert "holds" not in page.text(".facts dl")


def test_invisible_characters_have_marks(page: Page) -> None:
    """Drawn beside the text, not in it."""
    shown = page.js(
        "return [...document.querySelectorAll('.text')[1].querySelectorAll('[data-mark]')].map("
        "(m) => [m.className, m.dataset.mark, m.textContent])"
    )
    for kind, mark, character in [
        ("space", "·", " "),
        ("tab", "→", "\t"),
        ("line-end", "↵", "\n"),
        ("code", "CR", "\r"),
        ("code", "0000", "\x00"),
    ]:
        assert [kind, mark, character] in shown
    assert page.css(".line-end", "content", "::before") == '"↵"'
    assert page.css(".space", "background-image").startswith("radial-gradient")


def test_keys_move_among_the_tokens(page: Page) -> None:
    """Left, right, home and end in a line of tokens, up and down by lines, Tab to the same text."""
    from selenium.webdriver.common.keys import Keys

    last = len(page.panes[0]["ids"]) - 1
    assert page.press(Keys.TAB, Keys.TAB) == (0, 0)  # the first Tab is at the switch for ids
    assert page.press(Keys.ARROW_LEFT) == (0, 0)
    assert page.press(Keys.ARROW_RIGHT) == (0, 1)
    assert page.text(".heading .id") == f"id {page.panes[0]['ids'][1]}"
    assert page.css(".token:focus", "outline-width") == "3px"
    pane, below = page.press(Keys.ARROW_DOWN)
    tops = [page.span(0, k).rect["y"] for k in (1, below)]
    assert tops[1] > tops[0] + 10
    assert page.press(Keys.ARROW_UP)[1] < below
    assert page.press(Keys.END) == (0, last)
    assert page.press(Keys.ARROW_RIGHT) == (0, last)
    assert page.press(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT) == (0, 2)
    start = page.starts(0)[2]
    pane, k = page.press(Keys.TAB)
    assert pane == 1
    assert page.starts(1)[k] <= start < page.starts(1)[k + 1]
    assert page.browser.get_log("browser") == []


def test_a_click_holds_the_token_and_escape_lets_it_go(page: Page) -> None:
    """So that the mouse may go to the tree."""
    from selenium.webdriver.common.keys import Keys

    page.hover(0, 0)
    page.span(0, 0).click()
    first = page.text(".badge")
    page.hover(2, 1)
    assert page.text(".badge") == first == str(page.panes[0]["ids"][0])
    assert page.css(".hold", "display") != "none"
    page.press(Keys.ESCAPE)
    page.hover(2, 2)
    assert page.text(".badge") == str(page.panes[2]["ids"][2])
    assert page.css(".hold", "display") == "none"


def test_ids_can_be_shown_in_the_text(page: Page) -> None:
    """By a switch, and again without changing the text."""
    assert page.css(".token", "content", "::before") == "none"
    page.js("document.querySelector('#show-ids').click()")
    assert page.css(".token", "content", "::before") == f'"{page.panes[0]["ids"][0]}"'
    assert page.text(".text") == TEXT


def test_a_narrow_window_stacks_the_panes(page: Page) -> None:
    """Nothing but the tree is wider than the window."""
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    lefts = "return [...document.querySelectorAll('.pane')].map((p) => p.getBoundingClientRect().x)"
    assert len(set(page.js(lefts))) == 3
    try:
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert len(set(page.js(lefts))) == 1
        page.hover(0, page.at(0, "mmm"))
        root = "document.documentElement"
        wide, shown = page.js(f"return [{root}.scrollWidth, {root}.clientWidth]")
        assert wide == shown <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

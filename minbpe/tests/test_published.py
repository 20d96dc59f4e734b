"""Published ranks are found, verified and read; anything else is refused in one line."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minbpe import ResourceError, TokenizerFileError, UsageError, published, rank_files
from minbpe.pretokens import GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN, O200K_SPLIT_PATTERN
from minbpe.published import PUBLISHED, companion, load_ranks, places

BYTES = {bytes([byte]): byte for byte in range(256)}
SMALL = BYTES | {b"hu": 256, b"hug": 257, "ä".encode(): 258}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point all places of search into an empty folder; return it."""
    monkeypatch.setenv("MLE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    for name in ("data/tokenizers", "cache/tokenizers", "tiktoken"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def refusal(source: str | Path, kind: type[Exception] = TokenizerFileError) -> str:
    """Check that loading is refused, and return the message."""
    with pytest.raises(kind) as error:
        load_ranks(source, download=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def at_hand(name: str) -> published.Ranks:
    """Return a published tokenizer, or skip the test where its files are not at hand."""
    try:
        return load_ranks(name, download=False)
    except UsageError as error:
        pytest.skip(str(error))


# ---- names


@pytest.mark.usefixtures("more_ranks")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_gives_what_tiktoken_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks, special tokens and ids; tiktoken takes over the files that we found, verified."""
    tiktoken = pytest.importorskip("tiktoken", reason="the peer we compare with is not installed")
    ours = at_hand(name)
    published.fill_tiktoken_cache(name, tmp_path, download=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs = tiktoken.get_encoding(name)
    assert {theirs.decode_single_token_bytes(i): i for i in ours.ranks.values()} == ours.ranks
    assert theirs._special_tokens == ours.special_tokens
    assert theirs.n_vocab == 1 + max([*ours.ranks.values(), *ours.special_tokens.values()])
    assert ours.name == name


def test_p50k_follows_from_gpt2s_files(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's tokens and runs of spaces make the published file, byte for byte."""
    monkeypatch.undo()
    gpt2 = [next((p for p in places(f) if p.is_file()), None) for f in PUBLISHED["gpt2"].files]
    if None in gpt2:
        pytest.skip("GPT-2's files are not at hand")
    monkeypatch.setenv("MLE_DATA", str(empty / "data"))
    monkeypatch.setenv("MLE_CACHE", str(empty / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(empty / "tiktoken"))
    for path in filter(None, gpt2):
        (empty / "data" / "tokenizers" / path.name).write_bytes(path.read_bytes())
    ranks = load_ranks("p50k_base", download=False).ranks
    assert len(ranks) == 50280
    assert ranks[b" " * 25] == 50280
    sha256 = hashlib.sha256(rank_files.render_tiktoken(ranks)).hexdigest()
    assert sha256 == PUBLISHED["p50k_base"].files[0].sha256
    for file in PUBLISHED["gpt2"].files:
        by_path = load_ranks(empty / "data" / "tokenizers" / file.name)
        assert by_path == replace(load_ranks("gpt2"), name="tokenizers")


@pytest.fixture
def small(empty: Path, monkeypatch: pytest.MonkeyPatch) -> published.RankFile:
    """Publish a small tokenizer in place of cl100k_base; nobody has its file yet."""
    content = rank_files.render_tiktoken(SMALL)
    file = replace(
        PUBLISHED["cl100k_base"].files[0],
        url="http://localhost:9/small.tiktoken",
        sha256=hashlib.sha256(content).hexdigest(),
    )
    entry = replace(PUBLISHED["cl100k_base"], files=(file,))
    monkeypatch.setitem(PUBLISHED, "cl100k_base", entry)
    return file


def test_files_are_looked_for_in_a_stated_order(small: published.RankFile, empty: Path) -> None:
    """$MLE_DATA, the user's cache (ours, then shared's), tiktoken's cache."""
    sha1 = hashlib.sha1(small.url.encode()).hexdigest()
    stated = [
        empty / "data" / "tokenizers" / small.name,
        empty / "cache" / "tokenizers" / small.name,
        empty / "cache" / "data" / "tokenizers" / small.name,
        empty / "tiktoken" / sha1,
    ]
    assert places(small) == stated
    for path in reversed(stated):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rank_files.render_tiktoken(SMALL))
        assert load_ranks("cl100k_base", download=False).ranks == SMALL
        path.write_bytes(b"another\n")  # which the file of the next place comes before
        assert f"{path} is not the cl100k_base.tiktoken" in refusal("cl100k_base")


def test_tiktokens_cache_is_where_tiktoken_looks(
    small: published.RankFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two variables, then the temporary folder."""
    sha1 = hashlib.sha1(small.url.encode()).hexdigest()
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path / "gym"))
    assert places(small)[-1] == tmp_path / "tiktoken" / sha1
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    assert places(small)[-1] == tmp_path / "gym" / sha1
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert places(small)[-1] == tmp_path / "data-gym-cache" / sha1


def test_the_users_cache_is_the_projects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$MLE_CACHE, else `mle` where the system keeps caches."""
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "chosen"))
    assert published.cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("MLE_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert published.cache_folder() == tmp_path / "xdg" / "mle"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert published.cache_folder() == tmp_path / ".cache" / "mle"
    monkeypatch.setattr("sys.platform", "darwin")
    assert published.cache_folder() == tmp_path / "Library" / "Caches" / "mle"


def test_something_that_is_no_name_and_no_file_is_a_usage_error(empty: Path) -> None:
    """The message lists the names."""
    said = refusal("gpt5", UsageError)
    assert said == "gpt5 is neither a file nor one of gpt2, p50k_base, cl100k_base, o200k_base"
    assert "is neither a file" in refusal(empty, UsageError)


def test_a_name_is_never_taken_for_a_path(
    small: published.RankFile, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file called cl100k_base in the current folder changes nothing, unless it is a Path."""
    monkeypatch.chdir(empty)
    Path("cl100k_base").write_text("nonsense\n")
    (empty / "data" / "tokenizers" / small.name).write_bytes(rank_files.render_tiktoken(SMALL))
    assert load_ranks("cl100k_base").ranks == SMALL
    assert "cl100k_base, line 1" in refusal(Path("cl100k_base"))


# ---- download


@pytest.fixture
def server(
    small: published.RankFile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, bytes]]:
    """Serve the bytes in the returned dictionary, path to content, and publish that address."""
    served: dict[str, bytes] = {"/small": rank_files.render_tiktoken(SMALL)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = served.get(self.path)
            self.send_response(200 if content is not None else 404)
            if content is not None:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                self.wfile.write((content or b"")[: 10 if "/cut" in served else None])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/small"
        entry = replace(PUBLISHED["cl100k_base"], files=(replace(small, url=url),))
        monkeypatch.setitem(PUBLISHED, "cl100k_base", entry)
        monkeypatch.setenv("no_proxy", "*")
        yield served
        httpd.shutdown()


def test_a_file_that_is_nowhere_is_downloaded_once(server: dict[str, bytes], empty: Path) -> None:
    """Into the user's cache folder, whole; the second time nothing is asked for."""
    assert load_ranks("cl100k_base").ranks == SMALL
    cached = empty / "cache" / "tokenizers" / "cl100k_base.tiktoken"
    assert cached.read_bytes() == server["/small"]
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    server.clear()
    assert load_ranks("cl100k_base").ranks == SMALL


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"/small": b"another\n"}, TokenizerFileError, "serves another file than was published"),
        ({"/cut": b""}, TokenizerFileError, "serves another file than was published"),
        ({"/small": None}, UsageError, r"can't be reached \(Not Found\); get http"),
    ],
)
def test_a_wrong_cut_or_missing_download_leaves_nothing(
    server: dict[str, Any],
    empty: Path,
    change: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    """Only verified bytes ever reach the cache."""
    server.update(change)
    with pytest.raises(kind, match=message):
        load_ranks("cl100k_base")
    assert list((empty / "cache" / "tokenizers").iterdir()) == []


def test_a_download_without_end_is_stopped(
    server: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by the cap on files, whatever is served."""
    monkeypatch.setattr(rank_files, "MAX_RANK_FILE_BYTES", 1 << 17)
    server["/small"] = bytes(1 << 24)
    received = published._receive(PUBLISHED["cl100k_base"].files[0])
    assert len(received) <= (1 << 17) + (1 << 16)


def test_without_a_network_the_message_says_where_the_file_goes(
    small: published.RankFile, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address and path on one line, exit code 2."""

    def refuse(url: str, timeout: float) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    place = empty / "cache" / "tokenizers" / "cl100k_base.tiktoken"
    with pytest.raises(UsageError) as error:
        load_ranks("cl100k_base")
    assert str(error.value) == (
        f"{small.url} can't be reached (Network is unreachable); get {small.url} and put it there "
        f"as {place}"
    )
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match=r"tiktoken is not on this machine; get http"):
        load_ranks("cl100k_base", download=False)


def test_a_cache_that_cannot_be_made_is_a_resource_error(
    server: dict[str, bytes], empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5, with the folder."""
    (empty / "file").write_text("")
    monkeypatch.setenv("MLE_CACHE", str(empty / "file"))
    with pytest.raises(ResourceError, match=r"file/tokenizers cannot be made: Not a directory"):
        load_ranks("cl100k_base")


# ---- .tiktoken


def write_tiktoken(path: Path, content: bytes | None = None, **changed: Any) -> Path:
    """Write a `.tiktoken` file and its companion."""
    content = rank_files.render_tiktoken(SMALL) if content is None else content
    path.write_bytes(content)
    more = {"pattern": "x|y", "special_tokens": {"<|e|>": 300}}
    more["sha256"] = hashlib.sha256(content).hexdigest()
    companion(path).write_text(json.dumps(more | changed))
    return path


def test_a_tiktoken_file_of_ones_own_is_read_with_its_companion(tmp_path: Path) -> None:
    """Pattern and special tokens come from the file beside it."""
    ranks = load_ranks(write_tiktoken(tmp_path / "own.tiktoken"))
    assert ranks == published.Ranks("own", "x|y", SMALL, {"<|e|>": 300})
    for whole in (None, r"[\s\S]+"):
        path = write_tiktoken(tmp_path / "own.tiktoken", pattern=whole)
        assert load_ranks(path).pattern == ""


def test_a_published_file_is_known_by_its_digest(tmp_path: Path) -> None:
    """Whatever it is called; but a file of its name must be it."""
    at_hand("cl100k_base")
    path = next(p for p in places(PUBLISHED["cl100k_base"].files[0]) if p.is_file())
    assert load_ranks(path).pattern == GPT4_SPLIT_PATTERN
    other = tmp_path / "x"
    other.write_bytes(path.read_bytes())
    assert load_ranks(other).name == "cl100k_base"
    damaged = tmp_path / "cl100k_base.tiktoken"
    damaged.write_bytes(path.read_bytes().replace(b"IQ== 0\n", b"IQ== 100256\n"))
    assert "is not the cl100k_base.tiktoken that was published: sha256 " in refusal(damaged)


def test_a_tiktoken_file_alone_is_not_enough(tmp_path: Path) -> None:
    """The message says what to write beside it."""
    path = tmp_path / "own.tiktoken"
    path.write_bytes(rank_files.render_tiktoken(SMALL))
    said = refusal(path, UsageError)
    assert '{"pattern": ..., "special_tokens": {...}, "sha256": "' in said
    assert said.endswith("in own.tiktoken.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the last line has no end"),
        (b"IQ== 0\nIg== 1", "line 2: the last line has no end"),
        (b"IQ== 0\nIg==\n", "line 2: a line is 'base64 rank'; '' is no rank"),
        (b"IQ== 0\nIg== 1 \n", "line 2: a line is 'base64 rank'; '1 ' is no rank"),
        (b"IQ== 0\nIg== -1\n", "'-1' is no rank"),
        (b"IQ== 0\nIg== 9223372036854775808\n", "'9223372036854775808' is no rank"),
        (b"IQ== 0\nIg== %b\n" % (b"1" * 5000), "line 2: a line is 'base64 rank'; '1111"),
        (b"IQ== 0\nIg== 1114112\n", "line 2: a line is 'base64 rank'; '1114112' is no rank"),
        (b"IQ== 0\n%%%% 1\n", "line 2: the token is not base64"),
        (b"IQ== 0\nIg= 1\n", "line 2: the token is not base64"),
        (b"IQ== 0\nIQ== 1\n", 'line 2: token "!" or rank 1 is empty or repeated'),
        (b"IQ== 0\nIg== 0\n", r'line 2: token "\"" or rank 0 is empty or repeated'),
        (b"IQ== 0\n 1\n", 'line 2: token "" or rank 1 is empty or repeated'),
        (b"IQ== 0\nIg== 1\n", "254 of the 256 single bytes are no tokens, the first is 0x00"),
        (b"\x89PNG\r\n\x1a\n", "line 1: a line is 'base64 rank'"),
    ],
)
def test_a_broken_tiktoken_file_is_refused_at_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """With and without a companion."""
    path = tmp_path / "own.tiktoken"
    path.write_bytes(content)
    assert message in refusal(path)
    assert message in refusal(write_tiktoken(path, content))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sha256": "0"}, "its sha256 is not that of own.tiktoken"),
        ({"pattern": 1}, "'pattern' is a text or null"),
        ({"special_tokens": [1]}, "'pattern' is a text or null, 'special_tokens' ids"),
        ({"special_tokens": {"x": 256}}, "special token 'x' has the id 256, which is taken"),
        ({"special_tokens": {"x": 2**63}}, "special token 'x' has the id 9223372036854775808"),
        ({"special_tokens": {"x": True}}, "special token 'x' has the id True"),
        ({"special_tokens": {"x": 300, "y": 300}}, "special token 'y' has the id 300"),
        ({"special_tokens": {"": 300}}, "special token '' is empty or no text"),
        ({"special_tokens": {"\ud800": 300}}, "is empty or no text"),
    ],
)
def test_a_companion_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """Of another file, or with tokens that can't be."""
    assert message in refusal(write_tiktoken(tmp_path / "own.tiktoken", **changed))
    for content in ("[]", "{}", "{", '{"pattern": "x", "pattern": "y"}', "[" * 10**5, "\udcff"):
        companion(tmp_path / "own.tiktoken").write_text(content, errors="surrogateescape")
        assert "own.tiktoken.json" in refusal(tmp_path / "own.tiktoken")


def test_a_file_that_is_too_big_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than the cap is taken into memory."""
    monkeypatch.setattr(rank_files, "MAX_RANK_FILE_BYTES", 1000)
    path = write_tiktoken(tmp_path / "own.tiktoken")
    assert "a file of ranks has no more than 1000 bytes" in refusal(path)


# ---- encoder.json and vocab.bpe


LETTERS = {rank_files.letters_of(bytes([byte])): k for k, byte in enumerate(rank_files.BYTE_ORDER)}
ENCODER = LETTERS | {"hu": 256, "Ġhu": 257, "Ġhug": 258, "<|end|>": 259}
MERGES = "#version: 0.2\nh u\nĠ hu\nĠhu g\n"


def write_pair(folder: Path, encoder: Any = ENCODER, merges: str = MERGES) -> Path:
    """Write GPT-2's two files and return the first."""
    (folder / "encoder.json").write_text(json.dumps(encoder))
    (folder / "vocab.bpe").write_text(merges, encoding="utf-8")
    return folder / "encoder.json"


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2s_two_files_are_read_by_the_name_of_either(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    """Under OpenAI's names and Hugging Face's."""
    write_pair(tmp_path)
    (tmp_path / "encoder.json").rename(tmp_path / names[0])
    (tmp_path / "vocab.bpe").rename(tmp_path / names[1])
    for name in names:
        ranks = load_ranks(tmp_path / name)
        assert ranks.ranks[b" hug"] == 258
        assert ranks.ranks[b"!"] == 0
        assert len(ranks.ranks) == 259
        assert ranks.special_tokens == {"<|end|>": 259}
        assert ranks.pattern == GPT2_SPLIT_PATTERN


def test_a_vocabulary_with_the_token_model_is_no_tokenizer_json(tmp_path: Path) -> None:
    """GPT-2's has it."""
    merges = "#version: 0.2\nm o\nd e\nde l\nmo del\n"
    encoder = LETTERS | {"mo": 256, "de": 257, "del": 258, "model": 259}
    assert load_ranks(write_pair(tmp_path, encoder, merges)).ranks[b"model"] == 259


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("", "line 1: it must start with '#version'"),
        (MERGES[:-1], "line 4: the last line has no end, the file is truncated"),
        (MERGES[: -len("Ġhu g\n")], "no line makes token 258, 'Ġhug'; was it cut?"),
        (MERGES + "h u\n", "line 5: 'hu' is there twice, or not in encoder.json"),
        (MERGES + "h ug\n", "line 5: 'hug' is there twice, or not in encoder.json"),
        ("#version: 0.2\nĠ hu\nh u\nĠhu g\n", "line 2: 'Ġ' or 'hu' is no byte and made by no"),
        ("#version: 0.2\nhu\n", "line 2: a merge is two tokens, not 'hu'"),
        ("#version: 0.2\nh u g\n", "line 2: a merge is two tokens, not 'h u g'"),
        ("#version: 0.2\n\n", "line 2: a merge is two tokens, not ''"),
    ],
)
def test_a_vocab_bpe_that_is_torn_or_of_another_is_refused(
    tmp_path: Path, merges: str, message: str
) -> None:
    """At its line."""
    path = write_pair(tmp_path, merges=merges)
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hu": 257, "Ġhu": 256}, "vocab.bpe, line 3: id 256 of 'Ġhu' is below that of the line"),
        ({"hu": -1}, "token 'hu' has the id -1; an id is a number in 0..1114111, each once"),
        ({"hu": 2**63}, "token 'hu' has the id 9223372036854775808"),
        ({"hu": 1.5}, "token 'hu' has the id 1.5"),
        ({"hu": True}, "token 'hu' has the id True"),
        ({"hu": 1}, "token 'hu' has the id 1; an id is a number in 0..1114111, each once"),
        ({"lost": 260}, "no line makes token 260, 'lost'; was it cut?"),
        ({"": 260}, "token '' has the id 260"),
    ],
)
def test_an_encoder_json_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """Ids out of order, out of range, doubled; tokens from nowhere."""
    assert message in refusal(write_pair(tmp_path, ENCODER | changed))


def test_an_encoder_json_that_is_none_is_refused(tmp_path: Path) -> None:
    """Torn, without a byte, a list, a name twice; and a partner that is missing."""
    path = write_pair(tmp_path)
    content = path.read_text()
    for torn, message in (
        (content[:-1], "line 1: not JSON, or torn"),
        (content.replace('"!": 0, ', ""), "the single byte '!' has no token"),
        (content.replace('"!": 0', '"!": 0, "!": 0'), "the name '!' is there twice"),
        (content.replace("259", "1" * 5000), "not JSON for a tokenizer"),
    ):
        path.write_text(torn)
        assert message in refusal(path)
    path.write_text(content)
    (tmp_path / "vocab.bpe").unlink()
    assert "vocab.bpe cannot be read: No such file" in refusal(path, UsageError)
    other = path.rename(tmp_path / "other.json")
    other.write_text(content)
    assert "must be called encoder.json or vocab.json" in refusal(other, UsageError)


def test_letters_stand_for_bytes_both_ways() -> None:
    """All 256, as in GPT-2: a space is Ġ, and no letter is a space or invisible."""
    letters = rank_files.letters_of(bytes(range(256)))
    assert rank_files.bytes_of(letters) == bytes(range(256))
    assert len(set(letters)) == 256
    assert rank_files.letters_of(b" hug\n") == "ĠhugĊ"
    assert not any(letter.isspace() for letter in letters)
    with pytest.raises(KeyError):
        rank_files.bytes_of("a b")


# ---- Hugging Face's tokenizer.json


def huggingface(**changed: Any) -> dict[str, Any]:
    """Return a small tokenizer.json; `model__vocab=...` changes a field of the model."""
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "vocab": ENCODER,
        "merges": ["h u", "Ġ hu", "Ġhu g"],
        "ignore_merges": False,
    }
    added = {"id": 259, "content": "<|end|>", "single_word": False, "lstrip": False}
    file: dict[str, Any] = {
        "added_tokens": [added, {"id": 270, "content": "é ü"}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": model,
    }
    for name, value in changed.items():
        outer, _, inner = name.partition("__")
        if inner:
            file[outer][inner] = value
        else:
            file[outer] = value
    return file


def write_json(folder: Path, content: Any) -> Path:
    """Write a tokenizer.json."""
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def split(regex: str, **changed: Any) -> dict[str, Any]:
    """Return a pre_tokenizer that splits by a pattern."""
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [step | changed, level]}


OLD_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({}, GPT2_SPLIT_PATTERN),
        ({"model__merges": [["h", "u"], ["Ġ", "hu"], ["Ġhu", "g"]]}, GPT2_SPLIT_PATTERN),
        ({"model__merges": ["h u", "Ġ hu", "Ġhu g", "Ġ hug"][:3]}, GPT2_SPLIT_PATTERN),
        ({"pre_tokenizer": split("x|y")}, "x|y"),
        ({"pre_tokenizer": split(OLD_CL100K)}, GPT4_SPLIT_PATTERN),
        ({"pre_tokenizer": split(OLD_CL100K, behavior="Removed", invert=True)}, GPT4_SPLIT_PATTERN),
        ({"pre_tokenizer": split(O200K_SPLIT_PATTERN)}, O200K_SPLIT_PATTERN),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
         ""),
        ({"post_processor": {"type": "ByteLevel", "trim_offsets": True}}, GPT2_SPLIT_PATTERN),
    ],
)  # fmt: skip
def test_a_tokenizer_json_is_read(tmp_path: Path, changed: dict[str, Any], pattern: str) -> None:
    """Merges as texts or lists, several ways to split; added tokens are special."""
    ranks = load_ranks(write_json(tmp_path, huggingface(**changed)))
    assert ranks.ranks[b" hug"] == 258
    assert len(ranks.ranks) == 259
    assert ranks.special_tokens == {"<|end|>": 259, "é ü": 270}
    assert ranks.pattern == pattern


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, "it has no model"),
        ({"model__type": "Unigram"}, "its model is Unigram"),
        ({"model__type": "WordPiece"}, "its model is WordPiece"),
        ({"model__byte_fallback": True}, "its model has byte_fallback=True"),
        ({"model__dropout": 0.1}, "its model has dropout=0.1"),
        ({"model__unk_token": "<unk>"}, "its model has unk_token=<unk>"),
        ({"model__end_of_word_suffix": "</w>"}, "its model has end_of_word_suffix=</w>"),
        ({"normalizer": {"type": "NFKC"}}, "it has normalizer NFKC"),
        ({"truncation": {"max_length": 5}}, "it has truncation an object"),
        ({"decoder": None}, "its decoder is None, not ByteLevel"),
        ({"post_processor": {"type": "TemplateProcessing"}}, "it adds tokens around a text"),
        ({"pre_tokenizer": None}, "its pre_tokenizer is None"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "its pre_tokenizer is Metaspace"),
        ({"pre_tokenizer": {"type": "Sequence"}}, "its pre_tokenizer is no sequence"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "puts a space before each text"),
        ({"pre_tokenizer": split("x", behavior="Removed")}, "behavior=Removed, invert=False"),
        ({"pre_tokenizer": split("x", behavior="Removed", invert=True)}, "invert=True"),
        ({"pre_tokenizer": split("x", behavior="MergedWithNext")}, "behavior=MergedWithNext"),
        ({"pre_tokenizer": split("x", pattern={"String": "x"})}, "not by a regular expression"),
        ({"added_tokens": [{"id": 300, "content": "x", "lstrip": True}]}, "'x' has lstrip"),
        ({"added_tokens": [{"id": "1", "content": "x"}]}, "added token x is no text"),
        ({"added_tokens": "x"}, "its added_tokens are no list"),
        ({"added_tokens": [{"id": 300, "content": "hu"}]}, "token 'hu' and an added token get"),
        ({"added_tokens": [{"id": 0, "content": "x"}]}, "token '!' and an added token get"),
        ({"added_tokens": []}, "no merges make token 259, and ignore_merges is off"),
        ({"model__vocab": ENCODER | {"a b": 300}}, "token 'a b': ' ' stands for no byte"),
        ({"model__vocab": None}, "the vocabulary must be an object"),
        ({"model__vocab": {"hu": 1}}, "255 of the 256 single bytes|256 of the 256"),
        ({"model__merges": None}, "its merges are no list"),
        ({"model__merges": ["h u", "Ġ hu"]}, "its merges lack the one that makes token 258"),
        ({"model__merges": ["Ġ hu", "h u", "Ġhu g"]}, "not in the order of the ids"),
        ({"model__merges": ["h u", "Ġ hu", "Ġhu"]}, "its merge number 2 is Ġhu, not two tokens"),
        ({"model__merges": ["h u", "Ġ hu", "h g"]}, "its merge number 2 is of or makes no token"),
        ({"model__merges": ["h u", [1, 2]]}, "its merge number 1 is of or makes no token"),
    ],
)
def test_a_tokenizer_json_that_asks_for_more_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    """And not approximated: other ids would come out."""
    said = refusal(write_json(tmp_path, huggingface(**changed)))
    assert any(part in said for part in message.split("|"))


def test_tokens_out_of_reach_need_ignore_merges(tmp_path: Path) -> None:
    """A token that no merge makes is found as a whole word only where merges are ignored."""
    vocabulary = ENCODER | {"xyz": 280}
    file = huggingface(model__vocab=vocabulary, model__ignore_merges=True)
    assert load_ranks(write_json(tmp_path, file)).ranks[b"xyz"] == 280
    file = huggingface(model__vocab=vocabulary)
    assert "no merges make token 280" in refusal(write_json(tmp_path, file))

"""What is exported gives the same ids in tiktoken and in Hugging Face's tokenizers."""

import copy
import importlib
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from minbpe import (
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    BasicTokenizer,
    DataError,
    RegexTokenizer,
    Tokenizer,
    UsageError,
    export,
)
from minbpe.export import export_huggingface, export_tiktoken
from minbpe.gpt import RankTokenizer
from minbpe.pretokens import O200K_SPLIT_PATTERN
from minbpe.published import PUBLISHED, Ranks, companion, load_ranks

TEXT = (
    "The quick brown fox doesn't jump; 12345 dogs sleep.\n\n    def f(x):\n        return x\n"
    "Grüße aus München, 你好世界, привет мир, שלום 😀👍🏽 e\u0301t\u00e9\u00a0½\r\n"
    "\t\x00\x1c don'T 'ſ\n"
) * 3
SPECIAL = ("<|end|>", "<|end|>ing", "é ü\n", "Ġ ")
# Letters of a late version of Unicode are none in a library that is older; "ʕ" changed its class.
OLD = unicodedata.ucd_3_2_0
ANY = [chr(c) for c in range(0x3100) if OLD.category(chr(c)) != "Cn" and chr(c) != "ʕ"]
PIECES = [*TEXT, *TEXT.split(), *SPECIAL, "  ", "\n ", "aaaa", "'LL", " \n \t", "🤖"]
PATTERNS = {
    "gpt2": GPT2_SPLIT_PATTERN,
    "gpt4": GPT4_SPLIT_PATTERN,
    "o200k": O200K_SPLIT_PATTERN,
    "gaps": r"\p{L}+(?= )|[0-9]{2}|\n",
    "whole": None,
}


def texts(count: int) -> list[str]:
    """Return random texts of words, odd characters and special tokens."""
    rng = random.Random(0)
    return [
        "".join(rng.choices(PIECES, k=rng.randint(0, 20)) + rng.choices(ANY, k=rng.randint(0, 5)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=PATTERNS)
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    """Return a small tokenizer with one of the patterns, and special tokens with gaps."""
    pattern = PATTERNS[request.param]
    tokenizer = RegexTokenizer(pattern) if pattern else BasicTokenizer()
    tokenizer.train(TEXT, 500)
    tokenizer.register_special_tokens({text: 500 + 7 * k for k, text in enumerate(SPECIAL)})
    return tokenizer


def without_prefixes(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer without the special token that begins another."""
    fewer = copy.copy(tokenizer)
    special = {text: idx for text, idx in tokenizer.special_tokens.items() if idx != 500}
    fewer.register_special_tokens(special)
    return fewer


def in_tiktoken(path: Path) -> Any:
    """Read an exported tokenizer as the documentation of `export` says."""
    tiktoken = pytest.importorskip("tiktoken", reason="the peer we compare with is not installed")
    load_tiktoken_bpe = importlib.import_module("tiktoken.load").load_tiktoken_bpe
    more = json.loads(companion(path).read_text(encoding="utf-8"))
    return tiktoken.Encoding(
        "exported",
        pat_str=more["pattern"],
        mergeable_ranks=load_tiktoken_bpe(str(path), more["sha256"]),
        special_tokens=more["special_tokens"],
    )


def in_huggingface(path: Path) -> Any:
    """Read an exported tokenizer with Hugging Face's library."""
    tokenizers = pytest.importorskip("tokenizers", reason="the peer is not installed")
    return tokenizers.Tokenizer.from_file(str(path))


def test_tiktoken_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    """With each pattern, gaps in it and none at all, special tokens on and off."""
    path = tmp_path / "t.tiktoken"
    trained = without_prefixes(trained)
    export_tiktoken(trained, path)
    peer = in_tiktoken(path)
    for text in texts(1000):
        assert peer.encode_ordinary(text) == trained.encode_ordinary(text), repr(text)
        ids = trained.encode(text, "all")
        assert peer.encode(text, allowed_special="all") == ids, repr(text)
        assert peer.decode_bytes(ids) == trained.decode_bytes(ids)


def test_huggingface_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    """Special tokens included, and the same text back."""
    path = tmp_path / "tokenizer.json"
    export_huggingface(trained, path)
    peer = in_huggingface(path)
    for text in texts(1000):
        ids = trained.encode(text, "all")
        assert peer.encode(text).ids == ids, repr(text)
        assert peer.decode(ids, skip_special_tokens=False) == text
    assert {idx: peer.id_to_token(idx) for idx in trained.special_tokens.values()} == {
        idx: text for text, idx in trained.special_tokens.items()
    }


def test_what_was_exported_can_be_read_back(trained: Tokenizer, tmp_path: Path) -> None:
    """From either format, with the same ranks and special tokens and ids."""
    trained = without_prefixes(trained)
    export_tiktoken(trained, tmp_path / "t.tiktoken")
    export_huggingface(trained, tmp_path / "tokenizer.json")
    for name in ("t.tiktoken", "tokenizer.json"):
        ranks = load_ranks(tmp_path / name)
        assert ranks.ranks == {token: idx for idx, token in trained.vocab.items()}
        assert ranks.special_tokens == trained.special_tokens
        if trained.pattern:
            again = RankTokenizer(ranks)
            for text in texts(100):
                assert again.encode(text, "all") == trained.encode(text, "all"), repr(text)
        else:
            assert ranks.pattern == ""


# ---- the published tokenizers


@pytest.fixture(scope="module", params=["gpt2", "cl100k_base"])
def published(request: pytest.FixtureRequest) -> RankTokenizer:
    """Return a published tokenizer, where its files are at hand."""
    try:
        return RankTokenizer(load_ranks(request.param, download=False))
    except UsageError as error:
        pytest.skip(str(error))


def test_published_tokenizers_are_exported_to_tiktoken(
    published: RankTokenizer, tmp_path: Path
) -> None:
    """The file is the one that was published, byte for byte, for cl100k_base."""
    path = tmp_path / "p.tiktoken"
    export_tiktoken(published, path)
    peer = in_tiktoken(path)
    for text in texts(300):
        ids = published.encode(text, "all")
        assert peer.encode(text, allowed_special="all") == ids, repr(text)
    sha256 = json.loads(companion(path).read_text(encoding="utf-8"))["sha256"]
    if published.vocab_size > 100_000:
        assert sha256 == PUBLISHED["cl100k_base"].files[0].sha256


def test_published_tokenizers_are_exported_to_huggingface(
    published: RankTokenizer, tmp_path: Path
) -> None:
    """And come back from there as they were."""
    path = tmp_path / "tokenizer.json"
    export_huggingface(published, path)
    peer = in_huggingface(path)
    for text in texts(300):
        assert peer.encode(text).ids == published.encode(text, "all"), repr(text)
    ranks = load_ranks(path)
    assert ranks.ranks == {token: idx for idx, token in published.vocab.items()}
    assert (ranks.pattern, ranks.special_tokens) == (published.pattern, published.special_tokens)


# ---- what can't be exported


def test_tokens_of_equal_bytes_are_refused(tmp_path: Path) -> None:
    """No training makes them, but a file can hold them; nothing is written."""
    path = tmp_path / "v1.model"
    path.write_text("minbpe v1\n\n0\n97 98\n98 99\n256 99\n97 257\n")  # abc twice
    tokenizer = BasicTokenizer()
    tokenizer.load(path)
    for write in (export_tiktoken, export_huggingface):
        with pytest.raises(DataError, match=r'tokens 258 and 259 are both "abc"'):
            write(tokenizer, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["v1.model"]


def test_merges_that_ranks_cannot_say_are_refused(tmp_path: Path) -> None:
    """Here "abc" is a + bc, but by then a has joined b: tiktoken would make it of ab + c."""
    path = tmp_path / "v1.model"
    path.write_text("minbpe v1\n\n0\n97 98\n98 99\n97 257\n")
    tokenizer = BasicTokenizer()
    tokenizer.load(path)
    assert tokenizer.encode_ordinary("abc") == [256, 99]
    for write in (export_tiktoken, export_huggingface):
        with pytest.raises(DataError, match=r'token 258, "abc", is not made of the parts'):
            write(tokenizer, tmp_path / "out")


def test_tokens_that_merges_cannot_make_are_refused_by_huggingfaces_format(tmp_path: Path) -> None:
    """By ranks "abc" is a + bc, though its rank is lower than that of bc."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256, b"bc": 257}
    tokenizer = RankTokenizer(Ranks("odd", r"\S+|\s+", ranks, {}))
    assert tokenizer.encode_ordinary("xabc") == [120, 256]
    with pytest.raises(DataError, match=r'token 256, "abc", is out of reach of merges'):
        export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    export_tiktoken(tokenizer, tmp_path / "t.tiktoken")
    assert in_tiktoken(tmp_path / "t.tiktoken").encode_ordinary("xabc") == [120, 256]


def test_tokens_that_only_whole_words_become_are_exported(tmp_path: Path) -> None:
    """As by ranks, a word that is a token is one, whatever the merges."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    tokenizer = RankTokenizer(Ranks("odd", r"\S+|\s+", ranks, {}))
    export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    peer = in_huggingface(tmp_path / "tokenizer.json")
    for text, ids in (("abc", [256]), ("abcd", [97, 98, 99, 100])):
        assert tokenizer.encode_ordinary(text) == peer.encode(text).ids == ids


def test_a_special_token_that_begins_another_is_refused_by_tiktokens_format(
    tmp_path: Path,
) -> None:
    """Which of the two tiktoken finds depends on its hashes."""
    tokenizer = BasicTokenizer()
    tokenizer.register_special_tokens({"<|end|>": 300, "<|e": 301, "<": 302})
    with pytest.raises(DataError, match=r"special token '<' begins '<\|e'"):
        export_tiktoken(tokenizer, tmp_path / "t.tiktoken")


def test_a_special_token_spelled_like_a_token_is_refused_by_huggingfaces_format(
    tmp_path: Path,
) -> None:
    """There it would get that token's id."""
    tokenizer = BasicTokenizer()
    tokenizer.register_special_tokens({"Ġ": 300})
    with pytest.raises(DataError, match=r"special token 'Ġ' is spelled like the token 32"):
        export_huggingface(tokenizer, tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "pattern",
    [r"^a", "a$", r"\w+", r"\bx", "(?i:ss)", "a{1,3}+", "a{2}?", "[[a]]", "[a&&b]", "[+--]",
     "(?<=a)b", r"\X", r"(a)\1", "(?P<n>a)", r"\x41", "a{2", "]", "(?m)a"],
)  # fmt: skip
def test_patterns_that_mean_something_else_elsewhere_are_refused(
    pattern: str, tmp_path: Path
) -> None:
    """Or might: the message shows where they leave what all dialects share."""
    with pytest.raises(DataError, match="libraries differ") as error:
        export_huggingface(RegexTokenizer(pattern), tmp_path / "t")
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match="libraries differ"):
        export_tiktoken(RegexTokenizer(pattern), tmp_path / "t")


@pytest.mark.parametrize("pattern", ["a*", "a|", "(?=a)", "a?b{0}", "(?:a|b*)", "a{0,3}", "(?!a)"])
def test_patterns_that_can_match_nothing_are_refused(pattern: str, tmp_path: Path) -> None:
    """Where a match is empty, each library goes on in its own way."""
    with pytest.raises(DataError, match="can match nothing at all"):
        export_tiktoken(RegexTokenizer(pattern), tmp_path / "t")


@pytest.mark.parametrize(
    "pattern",
    [r"a", r"\p{Lu}?\p{Ll}+|[^\s\p{L}]|\s", r"(?:a|bc)++d*?|.", r"(x)\.{2}",
     r"(?=b)[b-d\]\-]+", r"\d{1,2}(?!\d)"],
)  # fmt: skip
def test_patterns_of_the_common_core_are_exported(pattern: str, tmp_path: Path) -> None:
    """Characters, classes, groups, lookahead, quantifiers: with equal ids."""
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train("abcd bccd. ddx.. 12345 Ab aB x.. b]c-d\n" * 9, 280)
    export_tiktoken(tokenizer, tmp_path / "t.tiktoken")
    export_huggingface(tokenizer, tmp_path / "tokenizer.json")
    ours, theirs = in_tiktoken(tmp_path / "t.tiktoken"), in_huggingface(tmp_path / "tokenizer.json")
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices("abcd .x]-123\nAé", k=12))
        ids = tokenizer.encode_ordinary(text)
        assert ours.encode_ordinary(text) == ids, repr(text)
        assert theirs.encode(text).ids == ids, repr(text)


# ---- the command line


@pytest.mark.parametrize("form", ["tiktoken", "huggingface"])
def test_the_command_line_exports_a_saved_tokenizer(form: str, tmp_path: Path) -> None:
    """And says what it wrote."""
    tokenizer = RegexTokenizer()
    tokenizer.train(TEXT, 300)
    tokenizer.save(tmp_path / "t")
    words = ["--tokenizer", str(tmp_path / "t.model"), "--format", form]
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "minbpe.export", *words, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["tokens"] == 300
    assert told["files"][0] == str(out)
    assert all(Path(name).is_file() for name in told["files"])
    ranks = load_ranks(out).ranks
    assert ranks == {token: idx for idx, token in tokenizer.vocab.items()}


def test_the_command_line_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern that can't be exported, a missing tokenizer, a missing folder."""
    RegexTokenizer(r"\w+").save(tmp_path / "t")
    model, out = str(tmp_path / "t.model"), str(tmp_path / "out")
    none, nowhere = str(tmp_path / "none.model"), str(tmp_path / "none" / "out")
    RegexTokenizer().save(tmp_path / "fine")
    fine = str(tmp_path / "fine.model")
    for source, target, code, said in (
        (model, out, 3, "cannot be exported"),
        (none, out, 2, "cannot be read"),
        (fine, nowhere, 2, "does not exist"),
        (fine, str(tmp_path), 2, "is a folder"),
    ):
        words = ["--tokenizer", source, "--format", "huggingface", "--out", target]
        assert export.main(words) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]


def test_an_interrupt_between_the_two_files_names_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is whole; the second is not there."""
    RegexTokenizer().save(tmp_path / "t")

    def interrupted(_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_json", interrupted)
    out = tmp_path / "t.tiktoken"
    words = ["--tokenizer", str(tmp_path / "t.model"), "--format", "tiktoken", "--out", str(out)]
    assert export.main(words) == 130
    assert capsys.readouterr().err == f"minbpe.export: interrupted after writing {out}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.model", "t.tiktoken"]

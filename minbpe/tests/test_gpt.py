"""The published tokenizers: tiktoken's ids, and what karpathy's GPT4Tokenizer could not do."""

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minbpe import (
    BasicTokenizer,
    DataError,
    RegexTokenizer,
    Tokenizer,
    TokenizerFileError,
    UsageError,
    gpt,
    rank_files,
)
from minbpe.gpt import GPT4Tokenizer, RankTokenizer, load_tokenizer
from minbpe.model_file import RankModel, write_model
from minbpe.pretokens import GPT4_SPLIT_PATTERN, O200K_SPLIT_PATTERN
from minbpe.published import PUBLISHED, Ranks

DATA = Path(os.environ.get("MLE_DATA", "nowhere")) / "tokenizers"
NAMES = ["gpt2", "p50k_base", "cl100k_base", "o200k_base"]
O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"
"""The rank file of o200k_base inside the package litellm."""

TINY = Ranks(
    "tiny",
    PUBLISHED["gpt2"].pattern,
    # Byte b is the id 255 - b, and there are holes.
    {bytes([byte]): 255 - byte for byte in range(256)} | {b"he": 300, b"ll": 302, b"hell": 305},
    {"<|end|>": 301, "<|end|>!": 400, "é \n": 401},
)


@cache
def published(name: str) -> RankTokenizer:
    """Return a published tokenizer; skip where its files are not at hand."""
    if not (DATA / "encoder.json").exists() or not (DATA / "cl100k_base.tiktoken").exists():
        pytest.skip("MLE_DATA has no tokenizers")
    if name in ("gpt2", "cl100k_base"):
        return RankTokenizer(name)
    if name == "p50k_base":  # GPT-2's tokens, and runs of 2 to 25 spaces
        ranks = dict(published("gpt2").ranks)
        ranks |= {b" " * size: 50255 + size for size in range(2, 26)}
    else:
        spec = importlib.util.find_spec("litellm")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("no file of o200k_base: litellm is not installed")
        folder = Path(spec.submodule_search_locations[0])
        path = folder / "litellm_core_utils" / "tokenizers" / O200K
        ranks = rank_files.parse_tiktoken(path, path.read_bytes())
    entry = PUBLISHED[name]
    return RankTokenizer(Ranks(name, entry.pattern, ranks, dict(entry.special_tokens)))


@cache
def tiktokens(name: str) -> Any:
    """Return tiktoken's own encoding of that name, made from our ranks and its own pattern."""
    tiktoken = pytest.importorskip("tiktoken", reason="the peer is not installed")
    openai_public = pytest.importorskip("tiktoken_ext.openai_public")
    ranks = published(name).ranks
    with pytest.MonkeyPatch.context() as patch:
        for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(openai_public, load, lambda *_, **__: ranks)
        return tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())


def random_text(rng: random.Random) -> str:
    """Return a text of words, code, runs of spaces, numbers, emoji, surrogates, or anything."""
    if rng.random() < 0.2:
        top = rng.choice([0x80, 0x3000, 0x110000])
        return "".join(chr(rng.randrange(top)) for _ in range(rng.randint(0, 40)))
    kinds: list[list[str]] = [
        [" ", " ", " ", "\n", "\t", "\r\n", "\v", "  ", "   ", "\xa0", "\u3000", "\x85", "\u2003"],
        [*"!.,;:'\"-/\\(){}[]<>#=_", "//", "...", "'s", "'LL", "'ſ", "\x1c", "\x00", "。", "…"],
        [
            "the",
            "The",
            "ing",
            "camelCase",
            "HTTP",
            "über",
            "中文",
            "ж",
            "ǅ",
            "ʰ",
            "क",
            "ि",
            "\u0301",
        ],
        [*"0123456789", "½", "²", "٣", "123456"],
        ["😀", "👍🏽", "👨‍👩‍👧", "\ud800", "\udfff", "\ud83d\ude00", "<|endoftext|>", "é" * 9],
        ["def f(x):\n    return x\n", "antidisestablishmentarianism", "xqzjk", " qwrtp", "====="],
    ]
    weights = [rng.random() for _ in kinds]
    size = rng.choice([3, 10, 30, 300])
    return "".join(rng.choice(rng.choices(kinds, weights)[0]) for _ in range(size))


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_tiktokens_on_random_text(name: str) -> None:
    """Seen before or not, as list and as array, with and without special tokens."""
    ours, peer = published(name), tiktokens(name)
    assert ours.vocab_size == peer.n_vocab
    rng = random.Random(name)
    for _ in range(300):
        text = random_text(rng)
        expected = peer.encode_ordinary(text)
        assert ours.encode_ordinary(text) == expected, repr(text)
        assert ours.encode_array(text).tolist() == expected
        special = peer.encode(text, allowed_special="all")
        assert ours.encode(text, "all") == special, repr(text)
        assert ours.decode_bytes(special) == peer.decode_bytes(special)


@pytest.mark.parametrize("name", NAMES)
def test_starts_of_tokens_equal_tiktokens_offsets(name: str) -> None:
    """Characters that several tokens share included."""
    ours, peer = published(name), tiktokens(name)
    for text in [
        "The cat, the \u4e2d\u6587 and the \U0001f468\u200d\U0001f469 caf\u00e9",
        "\u0e17\u0e35\u0e48\u10d8\u12ab",
        "a",
    ]:
        shown, starts = peer.decode_with_offsets(peer.encode(text))
        assert shown == text
        assert [start for start, _ in ours.offsets(text)] == starts


@pytest.mark.parametrize("name", NAMES)
def test_case_13_a_long_word_equals_tiktokens(name: str) -> None:
    """Ten thousand letters in one pre-token, at random, in runs, and of English."""
    ours, peer = published(name), tiktokens(name)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=10_000)), "a" * 9_999]
    words += ["theelectrificationofthecountryside" * 300, "-" * 5_001, "\u00e9\u4e2d" * 2_000]
    for word in words:
        assert ours.encode_ordinary(word) == peer.encode_ordinary(word)


@pytest.mark.parametrize("name", NAMES)
def test_the_declaration_of_human_rights_equals_tiktokens_in_every_language(name: str) -> None:
    """46 languages in a dozen scripts; each comes back as it was."""
    ours, peer = published(name), tiktokens(name)
    path = DATA.parent / "multilingual" / "udhr_multiscript.jsonl"
    if not path.exists():
        pytest.skip("MLE_DATA has no multilingual texts")
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) >= 46
    for text in texts:
        ids = ours.encode_ordinary(text)
        assert ids == peer.encode_ordinary(text)
        assert ours.decode(ids) == text


def test_gpt4_is_the_default_and_has_minbpes_attributes() -> None:
    """`GPT4Tokenizer()` is cl100k_base; its merges are worked out when asked for."""
    tokenizer = published("cl100k_base")
    assert GPT4Tokenizer().digest() == tokenizer.digest()
    assert tokenizer.encode("hello world!!!? (안녕하세요!) lol123 😉") == [
        *[15339, 1917, 12340, 30, 320, 31495, 230, 75265, 243, 92245, 16715, 28509, 4513, 57037]
    ]
    assert tokenizer.vocab[15339] == b"hello"
    merges = tokenizer.merges
    assert tokenizer.merges is merges
    assert len(merges) == 100256 - 256
    for (a, b), idx in random.Random(0).sample(sorted(merges.items()), 1000):
        assert tokenizer.vocab[a] + tokenizer.vocab[b] == tokenizer.vocab[idx]


# ---- a small one, for which no file is needed


def test_a_pair_merges_when_its_bytes_are_a_token() -> None:
    """The lowest rank first; bytes in any order; ids with holes."""
    tokenizer = RankTokenizer(TINY)
    assert tokenizer.encode_ordinary("hello") == [305, 255 - ord("o")]
    assert tokenizer.merges == {
        (255 - ord("h"), 255 - ord("e")): 300,
        (255 - ord("l"), 255 - ord("l")): 302,
        (300, 302): 305,
    }
    assert tokenizer.vocab_size == 402
    assert tokenizer.decode([305, 301]) == "hell<|end|>"
    for missing in (303, 401 + 1, -1, -402, 10**9):
        with pytest.raises(DataError, match=rf"id {missing} does not exist in this vocabulary"):
            tokenizer.decode([305, missing])


def test_a_word_of_two_cases_is_split_by_the_pattern() -> None:
    """A plain word goes past the pattern, this one must not: `o200k` begins a word at B."""
    ranks = TINY.ranks | {b"aB": 310, b" aB": 311, b" ab": 312, b" Ab": 313}
    tokenizer = RankTokenizer(Ranks("t", O200K_SPLIT_PATTERN, ranks, {}))
    assert tokenizer.encode("x aB ab Ab")[-2:] == [312, 313]
    assert not {310, 311} & set(tokenizer.encode("x aB ab Ab"))
    tokenizer = RankTokenizer(Ranks("t", GPT4_SPLIT_PATTERN, ranks, {}))
    assert tokenizer.encode("x aB ab")[1:] == [311, 312]


@pytest.mark.parametrize("kind", [RankTokenizer, None])
def test_it_is_saved_and_loaded_with_pattern_and_special_tokens(
    tmp_path: Path, kind: type[RankTokenizer] | None
) -> None:
    """What karpathy's can not; special ids are decoded, odd special tokens survive."""
    tokenizer = RankTokenizer(TINY)
    tokenizer.save(tmp_path / "tiny")
    if kind is None:
        loaded = load_tokenizer(tmp_path / "tiny.model")
    else:
        loaded = kind(Ranks("other", " ", {bytes([byte]): byte for byte in range(256)}, {}))
        assert loaded.merges == {}
        loaded.load(tmp_path / "tiny.model")
    assert isinstance(loaded, RankTokenizer)
    assert (loaded.pattern, loaded.vocab) == (tokenizer.pattern, tokenizer.vocab)
    assert (loaded.digest(), loaded.merges) == (tokenizer.digest(), tokenizer.merges)
    text = "hello<|end|>!<|end|>é \n shell"
    ids = loaded.encode(text, "all")
    assert ids == tokenizer.encode(text, "all")
    assert [idx for idx in ids if idx in (301, 400, 401)] == [400, 301, 401]
    assert loaded.decode(ids) == text


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """With the class to use; `load_tokenizer` takes each."""
    trained: list[Tokenizer] = [BasicTokenizer(), RegexTokenizer(), RegexTokenizer(r"\w+|\n \W+")]
    for k, tokenizer in enumerate(trained):
        tokenizer.train("hug hugs thug", 260)
        tokenizer.save(tmp_path / f"t{k}")
        loaded = load_tokenizer(tmp_path / f"t{k}.model")
        assert type(loaded) is type(tokenizer)
        assert (loaded.pattern, loaded.merges) == (tokenizer.pattern, tokenizer.merges)
        with pytest.raises(UsageError, match="trained tokenizer; load it with RegexTokenizer"):
            RankTokenizer(TINY).load(tmp_path / f"t{k}.model")
    RankTokenizer(TINY).save(tmp_path / "tiny")
    for other in (BasicTokenizer(), RegexTokenizer()):
        with pytest.raises(UsageError, match="by ranks; load it with GPT4Tokenizer"):
            other.load(tmp_path / "tiny.model")
    with pytest.raises(UsageError, match="has no split pattern; load it with BasicTokenizer"):
        RegexTokenizer().load(tmp_path / "t0.model")
    with pytest.raises(UsageError, match=r"has the split pattern .* load it with RegexTokenizer"):
        BasicTokenizer().load(tmp_path / "t1.model")


def test_a_saved_one_is_loaded_without_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`GPT4Tokenizer()` alone would look for cl100k_base."""
    monkeypatch.setattr(gpt, "load_ranks", lambda _: pytest.fail("it looked for a file of ranks"))
    RankTokenizer(TINY).save(tmp_path / "tiny")
    loaded = GPT4Tokenizer.from_file(tmp_path / "tiny.model")
    assert loaded.digest() == RankTokenizer(TINY).digest()
    assert loaded.encode("hell<|end|>", "all") == [305, 301]
    with pytest.raises(UsageError, match=r"none\.model cannot be read"):
        GPT4Tokenizer.from_file(tmp_path / "none.model")


@pytest.mark.parametrize("pattern", ["(", "", "(?r)a"])
def test_files_whose_pattern_cannot_work_are_broken(tmp_path: Path, pattern: str) -> None:
    """Exit code 4, with the name of the file that has the pattern."""
    path = tmp_path / "t.model"
    write_model(path, RankModel(pattern, TINY.ranks, {}))
    content = rank_files.render_tiktoken(TINY.ranks)
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "t.tiktoken").write_bytes(content)
    companion = {"pattern": pattern, "special_tokens": {}, "sha256": digest}
    (tmp_path / "t.tiktoken.json").write_text(json.dumps(companion))
    with pytest.raises(TokenizerFileError, match="split pattern") as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: ")
    assert error.value.exit_code == 4
    with pytest.raises(TokenizerFileError, match="split pattern") as error:
        load_tokenizer(tmp_path / "t.tiktoken")
    assert str(error.value).startswith(f"{tmp_path / 't.tiktoken.json'}: ")
    with pytest.raises(UsageError, match="is neither a file nor one of"):
        load_tokenizer(tmp_path / "none.tiktoken")


def test_it_cannot_be_trained() -> None:
    """And stays as it was."""
    tokenizer = RankTokenizer(TINY)
    with pytest.raises(UsageError, match="cannot be trained; train a RegexTokenizer"):
        tokenizer.train("hello", 300)
    with pytest.raises(UsageError, match="cannot be trained"):
        tokenizer.train_counts({"hello": 1}, 300)
    assert tokenizer.encode("hello") == [305, 144]


def test_case_14_special_tokens_are_refused_under_optimisation_too(tmp_path: Path) -> None:
    """Karpathy's check is an assert, which `python -O` removes; so no text is let through by it."""
    RankTokenizer(TINY).save(tmp_path / "tiny")
    code = (
        "from minbpe.gpt import load_tokenizer\n"
        "try:\n"
        "    print(load_tokenizer('tiny.model').encode('hell<|end|>'))\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error.exit_code)\n"
    )
    command = [sys.executable, "-O", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "DataError 3\n"


def test_ids_come_as_the_machine_writes_them() -> None:
    """Ids beyond 16 bits, as arrays."""
    ranks = TINY.ranks | {b"he": 0x10FFFE, b"ll": 0xDC00, b"hell": 0xD800}
    tokenizer = RankTokenizer(Ranks("wide", TINY.pattern, ranks, {}))
    for text in ("hello", "hell", "he", "xlly", "hell" * 100):
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_array(text).tolist() == ids
        assert max(ids) >= 0xD800
    assert tokenizer.encode_array("hell" * 100).dtype == np.uint32
    assert tokenizer.encode_ordinary("hell" * 100) == [0xD800] * 100

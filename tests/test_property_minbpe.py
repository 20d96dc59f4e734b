"""What holds for every text, vocabulary and corpus that hypothesis can think of."""

import copy
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minbpe import (
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    BasicTokenizer,
    DataError,
    RegexTokenizer,
    Tokenizer,
    TokenizerFileError,
    UsageError,
    corpus,
    get_stats,
    merge,
)
from minbpe.corpus import count_words
from minbpe.gpt import RankTokenizer
from minbpe.model_file import RankModel, parse_model
from minbpe.pretokens import O200K_SPLIT_PATTERN, Splitter
from minbpe.published import PUBLISHED, fill_tiktoken_cache, load_ranks
from minbpe.textbook import train_textbook
from minbpe.trainer import TIE_BREAKS, train_words

CORPUS = (
    "Many hands make light work; 1234 hands make 56789.\n\n  def f(x):\n    return f(x - 1)\n"
    "Viele Hände, много рук, 多くの手, 😀😀 aaaaaaaaaaaaaaaa \t\r\n"
) * 2
PATTERNS = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN, "o200k": O200K_SPLIT_PATTERN}
KINDS = ["basic", *PATTERNS, "letters", "empty"]

# Whole texts at random seldom hold what merges know; corners of the corpus do.
snippets = st.integers(0, len(CORPUS)).flatmap(
    lambda start: st.integers(0, 40).map(lambda size: CORPUS[start : start + size])
)
any_text = st.one_of(st.text(), st.lists(st.one_of(st.text(max_size=5), snippets)).map("".join))
corpora = st.lists(st.text("abcé", min_size=1, max_size=12), min_size=1, max_size=12)

# What encodings treat each in its own way, in any mixture. Left out is what `regex` and tiktoken
# may know from different versions of Unicode: letters to be, and one that changed its class.
known_text = st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="ʕ"))
CODE = [
    "def f(x):",
    "    return",
    "x+=1;",
    "//",
    "/*",
    "!=",
    "->",
    "HTTPServer",
    "a_b",
    '"k":',
    "\\n",
]
CASES = [
    "don't",
    "DON'T",
    "'LL",
    "we'Ve",
    "'ſ",
    "O'Neil",
    "ǅ",
    "ß",
    "İ",
    "é",
    "e\u0301",
    "नमस्ते",
    "한글",
]
odd_text = st.lists(
    st.one_of(
        known_text,
        st.sampled_from([*CODE, *CASES, *"😀🤖👍🏽\u200d\ufe0f🇩🇪\u20e3"]),
        st.text(" \t\n\r\x0b\x1c\x85\xa0\u2003\u2028\u3000", max_size=8),
        st.text("0123456789½²Ⅷ٣一𝟘.,-", max_size=8),
        st.text(st.characters(categories=["Cs"]), max_size=3),  # half characters
        snippets,
    ),
    max_size=12,
).map("".join)
odd_names = st.dictionaries(st.text(min_size=1), st.integers(400, 1000), max_size=5).filter(
    lambda names: len(set(names.values())) == len(names)
)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Return a tokenizer of CORPUS (or of nothing), shared by the examples."""
    if kind == "basic":
        tokenizer: Tokenizer = BasicTokenizer()
    else:
        tokenizer = RegexTokenizer((PATTERNS | {"letters": r"\p{L}+"}).get(kind))
    if kind != "empty":
        tokenizer.train(CORPUS, 400)
    return tokenizer


def encode_by_definition(pieces: list[str], merges: dict[tuple[int, int], int]) -> list[int]:
    """Apply, in each piece, the earliest merge that fits until none does."""
    encoded: list[int] = []
    for piece in pieces:
        ids = list(piece.encode())
        while fitting := [pair for pair in get_stats(ids) if pair in merges]:
            pair = min(fitting, key=merges.__getitem__)
            ids = merge(ids, pair, merges[pair])
        encoded += ids
    return encoded


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # a busy machine is no failure
@given(text=any_text)
@example(text="")
@example(text="\0\x1c\x85\u2028")
def test_decoding_what_was_encoded_gives_the_text(kind: str, text: str) -> None:
    """For any text and several vocabularies, as a list and as an array."""
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode_array(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_any_ids_have_bytes_and_text(kind: str, data: st.DataObject) -> None:
    """Ids in any order are the bytes of each; decoding never fails on them."""
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    joined = tokenizer.decode_bytes(ids)
    assert joined == b"".join(tokenizer.vocab[i] for i in ids)
    assert tokenizer.decode(ids) == joined.decode("utf-8", "replace")


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=any_text)
def test_encoding_equals_its_definition(kind: str, text: str) -> None:
    """The lowest merge first, again and again, in each pre-token."""
    tokenizer = tokenizer_of(kind)
    pieces = [piece for block in tokenizer._blocks(text) for piece in block]
    assert "".join(pieces) == text
    assert tokenizer.encode_ordinary(text) == encode_by_definition(pieces, tokenizer.merges)


@pytest.mark.parametrize("tie_break", TIE_BREAKS)
@settings(deadline=None)
@given(words=corpora, n_merges=st.integers(0, 60))
def test_the_fast_trainer_equals_the_textbook(
    tie_break: str, words: list[str], n_merges: int
) -> None:
    """The same merges in the same order, by either tie-break rule."""
    expected = train_textbook(words, n_merges, tie_break)
    assert train_words(Counter(words), n_merges, tie_break).merges == expected


@settings(deadline=None)
@given(words=corpora, data=st.data())
def test_the_order_of_documents_does_not_matter(words: list[str], data: st.DataObject) -> None:
    """Shuffled documents give the same tokenizer."""
    first, second = RegexTokenizer(), RegexTokenizer()
    first.train(words, 300)
    second.train(data.draw(st.permutations(words)), 300)
    assert first.digest() == second.digest()


@pytest.mark.parametrize("kind", ["basic", "gpt4"])
@settings(deadline=None)
@given(data=st.binary(), ids=st.data())
def test_any_bytes_have_ids(kind: str, data: bytes, ids: st.DataObject) -> None:
    """No UTF-8 is needed: single bytes are tokens, and a sequence of ids may be cut anywhere."""
    tokenizer = tokenizer_of(kind)
    singles = {token: idx for idx, token in tokenizer.vocab.items() if len(token) == 1}
    listed = [singles[data[k : k + 1]] for k in range(len(data))]
    assert tokenizer.decode_bytes(listed) == data
    cut = ids.draw(st.integers(0, len(data)))
    assert tokenizer.decode_bytes(listed[:cut]) + tokenizer.decode_bytes(listed[cut:]) == data


@pytest.mark.parametrize("kind", ["basic", "gpt4", "o200k"])
@settings(deadline=None)
@given(text=odd_text)
def test_half_characters_become_replacement_characters(kind: str, text: str) -> None:
    """As in tiktoken: two halves that belong together are one character, the others U+FFFD."""
    tokenizer = tokenizer_of(kind)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = tokenizer.encode_ordinary(text)
    assert ids == tokenizer.encode_ordinary(whole)
    assert tokenizer.decode(ids) == whole


@pytest.mark.parametrize("kind", ["letters", "gpt4", "o200k"])
@settings(deadline=None)
@given(
    texts=st.lists(st.one_of(odd_text, st.sampled_from(["<|a\nb|>", "<|a\nb", "|>", "c\nd\n"]))),
    block=st.integers(1, 50),
)
def test_a_stream_of_pieces_is_encoded_as_the_whole(
    kind: str, texts: list[str], block: int
) -> None:
    """However small the blocks are that it is encoded in, and across special tokens."""
    tokenizer = copy.copy(tokenizer_of(kind))
    tokenizer.register_special_tokens({"<|a\nb|>": 900, "\nd\n": 901})
    with mock.patch("minbpe.base.STREAM_BLOCK", block):
        ids = [idx for part in tokenizer.encode_stream(texts, "all") for idx in part.tolist()]
    assert ids == tokenizer.encode("".join(texts), "all")


# ---- the published tokenizers


Loader = Callable[[str], tuple[RankTokenizer, Any]]


@pytest.fixture(scope="session")
def published(more_ranks: Path) -> Loader:
    """Return what gives a published tokenizer and tiktoken's, or skips where a file is missing."""
    tiktoken = pytest.importorskip("tiktoken", reason="the peer we compare with is not installed")

    @cache
    def load(name: str) -> tuple[RankTokenizer, Any]:
        with tempfile.TemporaryDirectory() as cache_folder:
            try:
                with mock.patch.dict(os.environ, {"TIKTOKEN_CACHE_DIR": str(more_ranks)}):
                    ours = RankTokenizer(load_ranks(name, download=False))
                    fill_tiktoken_cache(name, Path(cache_folder), download=False)
            except UsageError as error:
                pytest.skip(str(error))
            with mock.patch.dict(os.environ, {"TIKTOKEN_CACHE_DIR": cache_folder}):
                return ours, tiktoken.get_encoding(name)

    return load


@pytest.mark.parametrize("name", PUBLISHED)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(text=odd_text)
@example(text="\ud83d\ude00\ud83d \ude00")
@example(text=" \n \n\n  \t a  b\r\n ")
def test_published_tokenizers_equal_tiktoken(published: Loader, name: str, text: str) -> None:
    """Unicode, code, spaces, numbers, emoji and half characters; and the text comes back."""
    ours, theirs = published(name)
    ids = ours.encode_ordinary(text)
    assert ids == theirs.encode_ordinary(text)
    assert ours.encode_array(text).tolist() == ids
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode_bytes(ids) == theirs.decode_bytes(ids)


@pytest.mark.parametrize("name", PUBLISHED)
@settings(deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<|endoftext|>", "<|endofprompt|>", "<|", "endoftext", "|>", " a", "\n"])
    ),
    data=st.data(),
)
def test_case_14_special_tokens_are_text_or_an_error_unless_allowed(
    published: Loader, name: str, pieces: list[str], data: st.DataObject
) -> None:
    """As in tiktoken, for any set of allowed ones."""
    ours, theirs = published(name)
    text = "".join(pieces)
    allowed = data.draw(st.sets(st.sampled_from(sorted(ours.special_tokens))))
    assert ours.encode(text, "all") == theirs.encode(text, allowed_special="all")
    assert ours.encode(text, "none") == theirs.encode(text, disallowed_special=())
    expected = theirs.encode(text, allowed_special=allowed, disallowed_special=())
    assert ours.encode(text, allowed) == expected
    if any(token in text for token in ours.special_tokens):
        for refused in (ours.encode, theirs.encode):
            with pytest.raises(ValueError, match="special token"):
                refused(text)
        with pytest.raises(DataError):
            ours.encode(text)
    else:
        assert ours.encode(text) == theirs.encode(text)


# ---- training in parts


@pytest.mark.parametrize("kind", PATTERNS)
@settings(deadline=None)
@given(text=odd_text, batch=st.integers(1, 40))
def test_a_corpus_is_counted_in_parts_as_the_whole(kind: str, text: str, batch: int) -> None:
    """Wherever a file is cut, pre-tokens and their order of appearance are those of its text."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = text.replace("\0", "") + "."  # a file with NULs or nothing in it is refused
    expected = Counter(Splitter(PATTERNS[kind]).split(text))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(corpus, "BATCH", batch):
        path = Path(folder) / "corpus.txt"
        path.write_bytes(text.encode())
        counted = count_words([path], PATTERNS[kind])
    assert list(counted.items()) == list(expected.items())


@settings(deadline=None, max_examples=4)  # each starts processes
@given(texts=st.lists(odd_text, min_size=5, max_size=40), workers=st.integers(1, 3))
def test_the_number_of_workers_does_not_matter(texts: list[str], workers: int) -> None:
    """The same counts in the same order, so the same merges by any rule for ties."""
    with mock.patch.object(corpus, "BATCH", 20):
        alone = count_words(texts, GPT4_SPLIT_PATTERN)
        together = count_words(texts, GPT4_SPLIT_PATTERN, workers)
    assert list(together.items()) == list(alone.items())


# ---- files


@settings(deadline=None)
@given(
    pattern=st.one_of(
        st.none(), st.text(min_size=1).map(lambda text: "|".join(map(literal, text)))
    ),
    special=odd_names,
    words=corpora,
)
def test_a_saved_tokenizer_is_loaded_as_it_was(
    pattern: str | None, special: dict[str, int], words: list[str]
) -> None:
    """Odd patterns and special tokens included."""
    tokenizer, loaded = RegexTokenizer(pattern), RegexTokenizer()
    tokenizer.train_counts(Counter(words), 300)  # trying each pattern first would take minutes
    tokenizer.register_special_tokens(special)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / "t")
        loaded.load(Path(folder) / "t.model")
    assert loaded.pattern == tokenizer.pattern
    assert loaded.merges == tokenizer.merges
    assert loaded.special_tokens == special
    text = "".join([*words, *special])
    assert loaded.encode(text, "all") == tokenizer.encode(text, "all")
    assert loaded.decode(loaded.encode(text, "all")) == text
    assert loaded.digest() == tokenizer.digest()


@settings(deadline=None)
@given(
    tokens=st.lists(st.binary(min_size=2, max_size=80), unique=True, max_size=5),
    first=st.integers(0, 100),
    special=odd_names,
    pattern=st.one_of(st.none(), st.text()),
    data=st.data(),
)
def test_a_rank_file_gives_back_what_was_written_or_is_refused(
    tokens: list[bytes],
    first: int,
    special: dict[str, int],
    pattern: str | None,
    data: st.DataObject,
) -> None:
    """Any tokens, names and patterns; and no single byte of it may change."""
    singles = [bytes([byte]) for byte in range(256)]
    ranks = {token: first + k for k, token in enumerate([*singles, *tokens])}
    model = RankModel(pattern, ranks, special)
    content = model.render()
    assert parse_model(Path("t.model"), content) == model
    changed = bytearray(content)
    place = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(content) - 1)))
    changed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TokenizerFileError):
        parse_model(Path("t.model"), bytes(changed))


def literal(character: str) -> str:
    """Return a pattern for one character: itself, unless it is syntax."""
    return f"\\{character}" if character in r"\.^$*+?{}[]|()" else character

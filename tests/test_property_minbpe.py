"""What holds for every text, vocabulary and corpus that hypothesis can think of."""

import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minbpe import (
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    BasicTokenizer,
    RegexTokenizer,
    Tokenizer,
    get_stats,
    merge,
)
from minbpe.textbook import train_textbook
from minbpe.trainer import TIE_BREAKS, train_words

CORPUS = (
    "Many hands make light work; 1234 hands make 56789.\n\n  def f(x):\n    return f(x - 1)\n"
    "Viele Hände, много рук, 多くの手, 😀😀 aaaaaaaaaaaaaaaa \t\r\n"
) * 2
KINDS = ["basic", "gpt2", "gpt4", "letters", "empty"]

# Whole texts at random seldom hold what merges know; corners of the corpus do.
snippets = st.integers(0, len(CORPUS)).flatmap(
    lambda start: st.integers(0, 40).map(lambda size: CORPUS[start : start + size])
)
any_text = st.one_of(st.text(), st.lists(st.one_of(st.text(max_size=5), snippets)).map("".join))
corpora = st.lists(st.text("abcé", min_size=1, max_size=12), min_size=1, max_size=12)
odd_names = st.dictionaries(st.text(min_size=1), st.integers(400, 1000), max_size=5).filter(
    lambda names: len(set(names.values())) == len(names)
)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Return a tokenizer of CORPUS (or of nothing), shared by the examples."""
    if kind == "basic":
        tokenizer: Tokenizer = BasicTokenizer()
    else:
        patterns = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN, "letters": r"\p{L}+"}
        tokenizer = RegexTokenizer(patterns.get(kind))
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
    tokenizer.train(words, 300)
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


def literal(character: str) -> str:
    """Return a pattern for one character: itself, unless it is syntax."""
    return f"\\{character}" if character in r"\.^$*+?{}[]|()" else character

"""Encoding one word: the fast ways equal the definition."""

import random
from collections.abc import Mapping

import pytest

from minbpe import encoder
from minbpe.encoder import WordCache
from minbpe.textbook import Pair, get_stats, merge, train_textbook


def encode_by_definition(word: str, merges: Mapping[Pair, int]) -> list[int]:
    """Apply the earliest merge that fits, until none does (karpathy's loop)."""
    ids = list(word.encode("utf-8"))
    while len(ids) > 1:
        pair = min(get_stats(ids), key=lambda pair: merges.get(pair, 1 << 30))
        if pair not in merges:
            break
        ids = merge(ids, pair, merges[pair])
    return ids


def random_merges(rng: random.Random) -> dict[Pair, int]:
    """Return merges of tokens at random, most of which no training would find."""
    tokens = list(b"abc")
    merges: dict[Pair, int] = {}
    for _ in range(rng.randint(0, 25)):
        pair = (rng.choice(tokens), rng.choice(tokens))
        if pair not in merges:
            merges[pair] = 256 + len(merges)
            tokens.append(merges[pair])
    return merges


@pytest.mark.parametrize("patience", [0, 2, 1000])
@pytest.mark.parametrize("short", [0, 1000])
def test_every_way_of_merging_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch, short: int, patience: int
) -> None:
    """Short search, long search, places, and the change from one to the other midway."""
    monkeypatch.setattr(encoder, "SHORT", short)
    monkeypatch.setattr(encoder, "PATIENCE", patience)
    # Else a search through so short a word would always count as fruitful.
    monkeypatch.setattr(encoder, "FRUITFUL", 3)
    rng = random.Random(short + patience)
    for _ in range(400):
        merges = random_merges(rng)
        word = "".join(rng.choices("abc", k=rng.randint(1, 40)))
        got = [ord(char) for char in WordCache(merges)[word]]
        assert got == encode_by_definition(word, merges), (word, merges)


def test_a_full_cache_starts_anew_and_long_words_are_not_kept() -> None:
    """Memory stays bounded, answers stay right."""
    merges = {pair: 256 + k for k, pair in enumerate(train_textbook(["abab", "ba"], 3))}
    cache = WordCache(merges, limit=3)
    for word in ["a", "b", "ab", "ba", "abab", "ab" * 1000]:
        assert [ord(char) for char in cache[word]] == encode_by_definition(word, merges)
        assert len(cache) <= 3
    assert "abab" in cache
    assert "ab" * 1000 not in cache


def test_a_cache_learns_words_only_when_they_fit() -> None:
    """A trainer's million words do not break the bound."""
    cache = WordCache({}, limit=2)
    cache.learn({"a": "a", "b": "b", "c": "c"})
    assert not cache
    cache.learn({"a": "a", "b" * 1000: "b" * 1000})
    assert set(cache) == {"a"}


def test_case_13_a_megabyte_of_one_character_is_merged_by_doubling() -> None:
    """One letter a million times needs one search for each doubling, not one for each letter."""
    merges: dict[Pair, int] = {(97, 97): 256}
    for idx in range(257, 270):
        merges[idx - 1, idx - 1] = idx
    ids = [ord(char) for char in WordCache(merges)["a" * 1_000_000]]
    assert len(ids) == 1_000_000 // 2**14 + bin(1_000_000 % 2**14).count("1")
    assert ids == sorted(ids, reverse=True)


def test_case_13_a_long_word_of_random_letters_takes_the_list_of_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work grows with the word: searches end after PATIENCE fruitless ones."""
    monkeypatch.setattr(encoder, "PATIENCE", 20)
    rng = random.Random(5)
    letters = "".join(map(chr, range(33, 127)))
    sample = ["".join(rng.choices(letters, k=300)) for _ in range(5)]
    merges = {pair: 256 + k for k, pair in enumerate(train_textbook(sample, 300))}
    places = WordCache._merge_places
    sizes: list[int] = []

    def counted(self: WordCache, ids: str) -> str:
        sizes.append(len(ids))
        return places(self, ids)

    monkeypatch.setattr(WordCache, "_merge_places", counted)
    word = "".join(rng.choices(letters, k=3000))
    assert [ord(char) for char in WordCache(merges)[word]] == encode_by_definition(word, merges)
    assert len(sizes) == 1

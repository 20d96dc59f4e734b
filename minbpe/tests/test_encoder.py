"""Encoding one word: the fast ways equal the definition; caches stay within bounds."""

import random
import sys
from collections.abc import Mapping
from itertools import pairwise, product

import pytest

from minbpe import encoder, lockstep
from minbpe.encoder import (
    NEVER,
    Encoder,
    PairMerges,
    RankMerges,
    WordCache,
    merge_long,
    to_bytes,
)
from minbpe.lockstep import Lockstep, fits
from minbpe.pretokens import GPT4_SPLIT_PATTERN, PATTERNS, Splitter
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


def encode_by_ranks(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Merge the two neighbours whose bytes are the lowest token, the leftmost of equals."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        found = [ranks.get(a + b, 1 << 30) for a, b in pairwise(parts)]
        i = found.index(min(found))
        if found[i] == 1 << 30:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


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


def random_ranks(rng: random.Random) -> dict[bytes, int]:
    """Return ranks that no training would give: any strings, in any order, with holes."""
    tokens = {bytes([byte]) for byte in range(256)}
    tokens |= {bytes(rng.choices(b"abc", k=rng.randint(2, 6))) for _ in range(rng.randint(0, 60))}
    ids = rng.sample(range(5000), len(tokens))
    return dict(zip(sorted(tokens), ids, strict=True))


def ids_of(data: bytes) -> list[int]:
    """Return the numbers in the bytes of an array of uint32."""
    return memoryview(data).cast("I").tolist()


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
        got = ids_of(WordCache(PairMerges(merges))[word])
        assert got == encode_by_definition(word, merges), (word, merges)


@pytest.mark.parametrize("patience", [0, 2, 1000])
@pytest.mark.parametrize("short", [0, 1000])
def test_every_way_of_merging_by_ranks_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch, short: int, patience: int
) -> None:
    """Also for ranks under which a merge makes a pair of a lower rank, or pairs that overlap."""
    monkeypatch.setattr(encoder, "SHORT", short)
    monkeypatch.setattr(encoder, "PATIENCE", patience)
    monkeypatch.setattr(encoder, "FRUITFUL", 3)
    rng = random.Random(short + patience)
    for _ in range(600):
        ranks = random_ranks(rng)
        merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
        word = "".join(rng.choices("abc", k=rng.randint(1, 40)))
        got = ids_of(WordCache(merges)[word])
        assert got == encode_by_ranks(word.encode(), ranks), (word, ranks)


def test_a_long_token_that_no_merge_makes_stays_whole() -> None:
    """As in tiktoken, which looks for the whole word first, however long it is."""
    word = "ab" * 100
    ranks = {bytes([byte]): byte for byte in range(256)} | {word.encode(): 300}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    assert ids_of(WordCache(merges)[word]) == [300]
    assert len(ids_of(WordCache(merges)[word + "a"])) == 201


def test_remembered_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgetting them changes nothing."""
    monkeypatch.setattr(encoder, "MAX_PAIRS", 3)
    monkeypatch.setattr(encoder, "SHORT", 0)
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    assert ids_of(WordCache(merges)["xyzababcdeab"]) == [*b"xyz", 257, *b"cde", 256]
    assert len(merges) <= 3


def test_a_full_cache_grows_old_and_long_words_are_not_kept() -> None:
    """Memory stays bounded, what is used again is not encoded again, answers stay right."""
    merges = {pair: 256 + k for k, pair in enumerate(train_textbook(["abab", "ba"], 3))}
    cache = WordCache(PairMerges(merges), limit=3)
    for word in ["a", "b", "ab", "ba", "abab", "ab" * 1000]:
        assert ids_of(cache[word]) == encode_by_definition(word, merges)
        assert len(cache) <= 3
    assert set(cache) == {"ba", "abab"}
    assert set(cache.old) == {"a", "b", "ab"}
    cache.old["ab"] = to_bytes("!")  # to see that it is taken from there
    assert cache["ab"] == to_bytes("!")
    assert set(cache) == {"ba", "abab", "ab"}


def test_a_cache_learns_words_only_when_they_fit() -> None:
    """A trainer's million words do not break the bound."""
    cache = WordCache(PairMerges({}), limit=2)
    cache.learn({"a": "a", "b": "b", "c": "c"})
    assert not cache
    cache.learn({"a": "a", "b" * 1000: "b" * 1000})
    assert dict(cache) == {"a": to_bytes("a")}


def test_pieces_are_kept_by_what_follows_their_space() -> None:
    """The first one is marked, as no space stands before it; long ones are not kept."""
    made = Encoder(PairMerges({}), Splitter(GPT4_SPLIT_PATTERN))
    assert ids_of(made.encode("a b, a")) == [*b"a b, a"]
    assert made.pieces is not None
    assert set(made.pieces) == {" a", "b,", "a"}
    made.encode("x" * 200 + " " + "y" * 200)
    assert set(made.pieces) == {" a", "b,", "a"}


def test_full_pieces_grow_old_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As words do."""
    monkeypatch.setattr(encoder, "CACHE_SIZE", 2)
    made = Encoder(PairMerges({}), Splitter(GPT4_SPLIT_PATTERN))
    assert made.pieces is not None
    made.pieces.limit = 2
    made.encode("a b c")
    assert (set(made.pieces), set(made.pieces.old)) == ({"c"}, {" a", "b"})
    assert ids_of(made.encode("a b c b")) == [*b"a b c b"]


def test_case_13_a_megabyte_of_one_character_is_merged_by_doubling() -> None:
    """One letter a million times needs one search for each doubling, not one for each letter."""
    merges: dict[Pair, int] = {(97, 97): 256}
    for idx in range(257, 270):
        merges[idx - 1, idx - 1] = idx
    ids = ids_of(WordCache(PairMerges(merges))["a" * 1_000_000])
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
    looked_up: list[str] = []
    known = PairMerges(merges)

    def counted(pair: str) -> str:
        looked_up.append(pair)
        return known[pair]

    word = "".join(rng.choices(letters, k=3000))
    assert list(map(ord, merge_long(word, counted))) == encode_by_definition(word, merges)
    assert len(looked_up) < 5 * len(word)
    assert known["\0\0"] == NEVER


def random_words(rng: random.Random, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return words that `Lockstep` takes: of few letters, so that many tokens fit, and of any."""
    words = [bytes(rng.choices(b"abc", k=rng.randint(2, 16))) for _ in range(40)]
    words += [bytes(rng.choices(range(1, 256), k=rng.randint(2, 16))) for _ in range(5)]
    return [word for word in words if word not in ranks]


def test_merging_in_lockstep_equals_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for ranks that no training would give, and with more words than a batch holds."""
    monkeypatch.setattr(lockstep, "BATCH", 17)
    rng = random.Random(3)
    for _ in range(150):
        ranks = random_ranks(rng) | {
            bytes(rng.choices(b"abc", k=k)): 6000 + k for k in range(7, 17)
        }
        words = random_words(rng, ranks)
        for token in [token for token in ranks if len(token) > 6]:  # as merges would make them
            ranks |= {token[:k]: 7000 + 20 * len(token) + k for k in range(2, len(token))}
            words.append((b"x" + token)[:16])
        words = [word for word in words if word not in ranks]
        got = list(map(ids_of, Lockstep(ranks).encode(words)))
        assert got == [encode_by_ranks(word, ranks) for word in words], ranks


def test_a_zero_byte_is_not_taken_for_the_end_of_a_token() -> None:
    """Tokens are padded with zeros, so those that hold one are left to the other ways."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 300, b"ab\0": 301, b"abc": 302}
    assert [fits(word) for word in (b"ab", b"ab\0", b"a" * 16, b"a" * 17)] == [1, 0, 1, 0]
    assert list(map(ids_of, Lockstep(ranks).encode([b"xab", b"abcab"]))) == [[120, 300], [302, 300]]


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_text_whose_pieces_are_learned_encodes_as_by_itself(
    monkeypatch: pytest.MonkeyPatch, pattern: str, sound: bool
) -> None:
    """Whatever stands between its words, and with a hash that can't be used."""
    monkeypatch.setattr(encoder, "MANY", 1)
    monkeypatch.setattr(encoder, "BLOCK", 256)
    rng = random.Random(9)
    parts = [
        "a",
        "bc",
        "ab",
        "Abc",
        "é",
        "ü'll",
        "'s",
        "12",
        "1234",
        ",",
        ";\n",
        "\n \n",
        "\0",
        "/",
    ]
    spaces = [" ", " ", " ", "  ", "\n", "\n    ", "\t", " \n", "\r\n", "\u3000", "\x1c", " \x85"]
    for _ in range(40):
        ranks = random_ranks(rng)
        merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
        merges._lockstep.sound = sound
        if not sound:
            monkeypatch.setattr(merges._lockstep, "encode", None)
        splitter = Splitter(pattern)
        text = "".join(rng.choice(parts) + rng.choice([*spaces, "", ""]) for _ in range(600))
        words = [word.encode() for word in splitter.split(text)]
        expected = [idx for word in words for idx in encode_by_ranks(word, ranks)]
        assert ids_of(Encoder(merges, splitter).encode(text)) == expected


def test_a_long_text_of_unknown_words_is_learned() -> None:
    """Its words past the first block are merged together, and not kept one by one."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    made = Encoder(merges, Splitter(GPT4_SPLIT_PATTERN))
    text = " ".join("".join(letters) for letters in product("abcdefgh", repeat=4))
    assert ids_of(made.encode(text)) == list(text.encode())
    assert made.pieces is not None
    assert len(made.pieces) == 8**4
    assert len(made.words) < 1000


def test_learning_a_text_leaves_its_pieces_known_and_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What finds no room is left for later; a first piece and long ones are not learned."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    monkeypatch.setattr(encoder, "MANY", 1)
    made = Encoder(merges, Splitter(GPT4_SPLIT_PATTERN))
    assert made.pieces is not None
    made.pieces.learn([[" Many", "b", "", "\nc", "é  "], ["b", "d" * 200, "ef,"]])
    assert {piece: ids_of(ids) for piece, ids in made.pieces.items()} == {
        piece: list(f" {piece}".encode()) for piece in ("b", "é  ", "ef,")
    }
    made.pieces.limit = 4
    made.pieces.learn([[f"x{k}" for k in range(10)]])
    assert len(made.pieces) == 4
    assert set(made.pieces.old) == {"b", "é  ", "ef,"}
    made.pieces.learn([["b"]])
    assert "b" not in made.pieces  # it is among the old


@pytest.mark.parametrize("patience", [1, 2])
def test_a_long_word_by_ranks_equals_the_definition_when_searches_end(
    monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """The last search may make a pair that comes before it; then that search is undone."""
    monkeypatch.setattr(encoder, "PATIENCE", patience)
    monkeypatch.setattr(encoder, "FRUITFUL", 2)
    rng = random.Random(patience)
    for _ in range(120):
        tokens = {bytes([byte]) for byte in range(256)}
        tokens |= {
            bytes(rng.choices(b"ab", k=rng.randint(2, 5))) for _ in range(rng.randint(3, 30))
        }
        ranks = dict(zip(sorted(tokens), rng.sample(range(5000), len(tokens)), strict=True))
        merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
        size = 1900 if rng.random() < 0.02 else 300
        word = "".join(rng.choices("ab", k=size))
        assert ids_of(WordCache(merges)[word]) == encode_by_ranks(word.encode(), ranks), ranks


def test_a_pair_that_comes_first_is_seen_at_the_end_of_patience() -> None:
    """A hundred and twenty-seven merges of one place each, and then the one that matters."""
    left, right = "ABCDEFGHIJKL", "mnopqrstuvwx"
    pairs = [x + y for x in left for y in right][: encoder.PATIENCE - 1]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {pair.encode(): 1000 + k for k, pair in enumerate(pairs)}
    ranks |= {b"ab": 5000, b"abc": 4999, b"abca": 4998}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    word = "z".join(pairs) + "z" * 3 * encoder.FRUITFUL + "abcab"
    assert ids_of(WordCache(merges)[word])[-2:] == [4998, ord("b")]


def test_a_word_that_goes_back_and_forth_between_two_merges_takes_a_moment() -> None:
    """Each "ab" makes an "abc" that comes first: the other places wait, and are not copied.

    The copies took 2 seconds for this word, and four times as long for one of twice the length.
    """
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256, b"ab": 257}
    merges = RankMerges(ranks, {idx: token for token, idx in ranks.items()})
    assert ids_of(WordCache(merges)["abc" * 20_000]) == [256] * 20_000


@pytest.mark.parametrize("learn", [False, True])
def test_remembered_pieces_are_bounded_by_bytes(
    monkeypatch: pytest.MonkeyPatch, learn: bool
) -> None:
    """A hundred characters beyond U+FFFF are two kilobytes with their ids."""
    monkeypatch.setattr(encoder, "CACHE_BYTES", 50_000)
    monkeypatch.setattr(encoder, "BLOCK", 400)
    monkeypatch.setattr(encoder, "SECTION", 1)
    made = Encoder(PairMerges({}), Splitter(GPT4_SPLIT_PATTERN))
    assert made.pieces is not None
    pieces = [chr(0x20000 + k) * 100 for k in range(200)]
    if learn:
        for k in range(0, 200, 5):
            made.pieces.learn([pieces[k : k + 5]])
    else:
        made.encode(" ".join(pieces))
    caches: list[dict[str, bytes]] = [made.pieces, made.words]
    caches += [made.pieces.old, made.words.old]
    for cache in caches:
        held = sum(sys.getsizeof(key) + sys.getsizeof(ids) for key, ids in cache.items())
        assert held < 50_000 + 5 * 3000
    assert any(caches)
    assert ids_of(made.encode(pieces[-1])) == list(pieces[-1].encode())

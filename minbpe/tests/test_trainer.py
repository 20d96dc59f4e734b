"""The fast trainer gives the textbook's merges."""

import gc
import random
from collections import Counter

import pytest

from minbpe import trainer
from minbpe.model_file import build_vocab
from minbpe.textbook import merge, train_textbook
from minbpe.trainer import train_words

N_CORPORA = 10_000


def random_words(rng: random.Random) -> list[str]:
    """Draw a few short words over a few letters, in which ties and overlaps abound."""
    letters = "abcdé"[: rng.randint(1, 5)]
    sizes = [rng.randint(1, rng.choice((3, 8, 20))) for _ in range(rng.randint(1, 8))]
    words = ["".join(rng.choices(letters, k=size)) for size in sizes]
    return rng.choices(words, k=rng.randint(1, 12))


@pytest.mark.parametrize("tie_break", ["smallest", "minbpe"])
def test_the_fast_trainer_equals_the_textbook_on_random_corpora(
    tie_break: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand until no pair is left: as arrays, as strings, and changing on the way."""
    rng = random.Random(tie_break)
    for number in range(N_CORPORA // 2):
        words = random_words(rng)
        few_places = rng.choice((0, 2, 4, 100, 100, 100, 100))
        monkeypatch.setattr(trainer, "FEW_PLACES", few_places)
        expected = train_textbook(words, 60, tie_break)
        trained = train_words(Counter(words), 60, tie_break)
        assert trained.merges == expected, (number, few_places, words)
        assert list(trained.words) == list(dict.fromkeys(words))


@pytest.mark.parametrize("long_word", [1, 10_000])
@pytest.mark.parametrize("tie_break", ["smallest", "minbpe"])
def test_one_long_word_with_many_ties_trains_as_in_the_textbook(
    tie_break: str, long_word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BasicTokenizer's case: hundreds of pairs of count 2 and 1 in one word."""
    monkeypatch.setattr(trainer, "LONG_WORD", long_word)
    rng = random.Random(3)
    for _ in range(5):
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=400))
        expected = train_textbook([word], 250, tie_break)
        assert train_words({word: 1}, 250, tie_break).merges == expected


@pytest.mark.parametrize("few_places", [0, 100])
def test_a_run_of_one_letter_trains_as_in_the_textbook(
    few_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that overlap, of every length, alone and beside others."""
    monkeypatch.setattr(trainer, "FEW_PLACES", few_places)
    for length in range(1, 40):
        for word in ("a" * length, "b" + "a" * length + "bb", "ab" * length):
            words = [word, word[1:] or "c", word]
            expected = train_textbook(words, 60)
            assert train_words(Counter(words), 60).merges == expected, word


def test_rustbpes_merges_are_ours() -> None:
    """Those of the package itself, on 500 corpora full of ties."""
    rustbpe = pytest.importorskip("rustbpe")
    rng = random.Random(5)
    for _ in range(500):
        words = random_words(rng)
        peer = rustbpe.Tokenizer()
        peer.train_from_iterator(iter([" ".join(words)]), 256 + 60, pattern="[^ ]+")
        theirs = {bytes(token): rank for token, rank in peer.get_mergeable_ranks()}
        merges = train_words(Counter(words), 60, "rustbpe").merges
        assert merges == train_textbook(words, 60, "rustbpe")
        vocab = build_vocab(merges)
        assert theirs == {token: idx for idx, token in enumerate(vocab)}


def test_smallest_ties_make_the_order_of_words_irrelevant() -> None:
    """Shuffled words give the same merges; minbpe's own rule does depend on the order."""
    words = ["ab", "cd", "ef", "gh"]
    assert train_words(Counter(words), 4).merges == train_words(Counter(words[::-1]), 4).merges
    first = [train_words(Counter(w), 1, "minbpe").merges[0] for w in (words, words[::-1])]
    assert first == [(97, 98), (103, 104)]


def test_counts_weigh_words() -> None:
    """A word that occurs five times outweighs four others with a common pair."""
    counts = {"xy": 5, "aba": 1, "abb": 1, "abc": 1, "abd": 1}
    assert train_words(counts, 2).merges == [(120, 121), (97, 98)]


@pytest.mark.parametrize("few_places", [0, 100])
def test_the_trainer_hands_back_its_words_encoded(
    few_places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training leaves of each word is what applying the merges in order gives."""
    monkeypatch.setattr(trainer, "FEW_PLACES", few_places)
    words = random_words(random.Random(0))
    trained = train_words(Counter(words), 20)
    for word in words:
        ids = list(word.encode())
        for k, pair in enumerate(trained.merges):
            ids = merge(ids, pair, 256 + k)
        assert [ord(char) for char in trained.words[word]] == ids


def test_progress_hears_of_each_merge_and_its_count() -> None:
    """The callback gets both ids and how often the pair occurred."""
    heard: list[tuple[int, int, int]] = []
    train_words({"aaab": 3}, 2, progress=lambda *merge: heard.append(merge))
    assert heard == [(97, 97, 6), (97, 98, 3)]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    """Also when training fails."""

    def stop(*merge: int) -> None:
        raise RuntimeError("stop")

    was_on = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(RuntimeError, match="stop"):
            train_words({"ab": 1}, 1, progress=stop)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was_on else gc.disable)()

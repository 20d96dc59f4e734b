"""Text to tokens: the split, the vocabulary, the cache, and bits per byte."""

import math
from pathlib import Path

import numpy as np
import pytest

from gpt2.data import END_OF_TEXT, Corpus, corpus_folder, load_corpus
from shared.datasets import Dataset, resolve
from shared.errors import ArtefactError, DataError

TEXT = "".join(f"The {n}th king sat on throne number {n * n}.\n" for n in range(400))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what the tests make out of the user's cache."""
    monkeypatch.setenv("MLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    file = tmp_path / "kings.txt"
    file.write_text(TEXT)
    return resolve(file)


def text_of(corpus: Corpus, part: str) -> str:
    tokens = getattr(corpus, part)
    return corpus.tokenizer.decode(tokens.read(0, len(tokens)))


def test_the_parts_are_the_first_nine_tenths_and_the_rest(dataset: Dataset) -> None:
    """Decoded, the two parts are the text, each after one <|endoftext|>."""
    corpus = load_corpus(dataset, 300)
    cut = int(0.9 * len(TEXT))
    assert text_of(corpus, "train") == END_OF_TEXT + TEXT[:cut]
    assert text_of(corpus, "validation") == END_OF_TEXT + TEXT[cut:]
    assert corpus.train_bytes + corpus.validation_bytes == len(TEXT)


def test_the_vocabulary_has_the_size_asked_for_and_sees_the_training_part_only(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Another end of the text changes nothing in the merges."""
    corpus = load_corpus(dataset, 300)
    assert corpus.tokenizer.vocab_size == 300
    assert corpus.tokenizer.special_tokens == {END_OF_TEXT: 299}
    other = tmp_path / "other.txt"
    cut = int(0.9 * len(TEXT))
    other.write_text(TEXT[:cut] + "z" * (len(TEXT) - cut))
    assert load_corpus(resolve(other), 300).tokenizer.merges == corpus.tokenizer.merges


def test_documents_begin_with_end_of_text(tmp_path: Path) -> None:
    """Every document of a folder is set apart; the one that the split cuts begins twice."""
    for n in range(4):
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / f"{n}.txt").write_text(f"document {n} " * 50)
    corpus = load_corpus(resolve(tmp_path / "docs"), 270)
    train, validation = text_of(corpus, "train"), text_of(corpus, "validation")
    assert train.count(END_OF_TEXT) == 4
    assert validation.count(END_OF_TEXT) == 1
    assert (train + validation).replace(END_OF_TEXT, "") == "".join(
        f"document {n} " * 50 for n in range(4)
    )


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    """A data set with parts named train and valid is not cut again."""
    train, valid = tmp_path / "a.txt", tmp_path / "b.txt"
    train.write_text("training text " * 30)
    valid.write_text("held out " * 30)
    members = [
        type(m)(part, m.path, m.sha256)
        for part, path in (("train", train), ("valid", valid))
        for m in resolve(path).members
    ]
    corpus = load_corpus(Dataset("two parts", "ours", tuple(members)), 260)
    assert text_of(corpus, "train") == END_OF_TEXT + "training text " * 30
    assert text_of(corpus, "validation") == END_OF_TEXT + "held out " * 30


def test_the_cache_is_used_and_its_key_covers_text_and_vocabulary(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second load trains no tokenizer; another text or size has another folder."""
    first = load_corpus(dataset, 300)
    monkeypatch.setattr("gpt2.data.RegexTokenizer.train", None)
    again = load_corpus(dataset, 300)
    assert again.tokenizer.digest() == first.tokenizer.digest()
    changed = tmp_path / "changed.txt"
    changed.write_text(TEXT + "!")
    folders = {
        corpus_folder(dataset, 300),
        corpus_folder(dataset, 301),
        corpus_folder(resolve(changed), 300),
    }
    assert len(folders) == 3


def test_a_killed_build_leaves_no_folder_that_passes_for_whole(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while encoding leaves neither the folder nor a temporary one."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gpt2.data._encode", fail)
        with pytest.raises(KeyboardInterrupt):
            load_corpus(dataset, 300)
    folder = corpus_folder(dataset, 300)
    assert list(folder.parent.iterdir()) == []
    assert len(load_corpus(dataset, 300).validation) > 0


def test_a_damaged_cache_is_refused_by_name(dataset: Dataset) -> None:
    """A flipped byte in a shard is found before training."""
    load_corpus(dataset, 300)
    shard = next(corpus_folder(dataset, 300).glob("train-*.tokens"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtefactError, match=shard.name):
        load_corpus(dataset, 300)


def test_a_text_too_short_to_split_is_refused(tmp_path: Path) -> None:
    """One character has no nine tenths."""
    file = tmp_path / "short.txt"
    file.write_text("x")
    with pytest.raises(DataError, match="too short"):
        load_corpus(resolve(file), 257)


def test_bits_per_byte_of_a_uniform_model(dataset: Dataset) -> None:
    """ln(V) nats for each token is log2(V) bits times the tokens per byte."""
    corpus = load_corpus(dataset, 300)
    tokens = len(corpus.validation) - 1  # <|endoftext|> is predicted by nobody
    expected = math.log2(300) * tokens / corpus.validation_bytes
    assert corpus.bits_per_byte(math.log(300)) == pytest.approx(expected)


def test_windows_cover_the_validation_text_once(dataset: Dataset) -> None:
    """Every token but the first is a target exactly once."""
    corpus = load_corpus(dataset, 300)
    windows = corpus.validation_windows(16)
    _, targets = windows.batch(np.arange(len(windows)), np.zeros(len(windows), dtype=np.int64))
    kept = targets[targets != -100].numpy()
    np.testing.assert_array_equal(kept, corpus.validation.read(1, len(corpus.validation) - 1))

"""From a text to windows: split, ids, windows that count every target once, and the measure."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mingpt import data
from mingpt.data import (
    Text,
    Vocabulary,
    Windows,
    check_length,
    find_data,
    load_text,
    mean_nats,
    target_nats,
)
from mingpt.model import IGNORED
from shared import registry
from shared.datasets import find, resolve
from shared.errors import DataError, NumericalError
from shared.sampler import Sampler


class Table(nn.Module):
    """A bigram: the logits of what follows a character are a row of a table."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size))
        self.dropout = nn.Dropout(0.5)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits; the loss is not asked for here."""
        assert targets is None
        out: Tensor = self.dropout(self.table)[idx]
        return out

    def flops_per_character(self) -> float:
        """Return what looking up costs."""
        return 0.0


def write(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    return path


# -- characters ----------------------------------------------------------------------------------


@given(st.text(st.characters(codec="utf-8")))
@settings(deadline=None)
def test_decoding_undoes_encoding(text: str) -> None:
    """For any text, with the vocabulary of that text; ids are below its size."""
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids.tolist()) == text
    assert ids.dtype == np.int64
    assert sorted(set(ids.tolist())) == list(range(len(vocabulary)))


def test_ids_follow_the_order_of_code_points() -> None:
    """As nanoGPT's sorted(set(text)) has it."""
    vocabulary = Vocabulary.of("ba\nb")
    assert vocabulary.characters == "\nab"
    assert vocabulary.encode("ab\n").tolist() == [1, 2, 0]


def test_unseen_characters_are_listed() -> None:
    """Each once, in order, whether above, below or between those known; surrogates too."""
    with pytest.raises(DataError, match=r"never seen: 'bé\\ud800'; it knows 'ac'"):
        Vocabulary("ac").encode("a\ud800cébé")
    with pytest.raises(DataError, match="never seen: 'a'; it knows ''"):
        Vocabulary("").encode("a")


# -- the text ------------------------------------------------------------------------------------


@given(st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_the_first_nine_tenths_are_to_train_on(n: int) -> None:
    """int(0.9 n) characters, the rest to validate; together they are the text."""
    letters = "".join(chr(97 + i % 26) for i in range(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.datasets.Dataset.text", lambda _: letters)
        text = load_text(resolve("python-docs"))
    assert len(text.train) == int(0.9 * n)
    assert text.vocabulary.decode([*text.train.tolist(), *text.val.tolist()]) == letters


def test_the_vocabulary_is_that_of_the_whole_text(tmp_path: Path) -> None:
    """A character that only validation has gets an id; a byte order mark gets none."""
    text = load_text(resolve(write(tmp_path, "\ufeff" + "a" * 90 + "z" * 10)))
    assert text.vocabulary == Vocabulary("az")
    assert (text.train.tolist(), text.val.tolist()) == ([0] * 90, [1] * 10)
    with pytest.raises(DataError, match="never seen: 'z'"):
        load_text(resolve(tmp_path / "text.txt"), Vocabulary("a"))


def test_shakespeare_is_divided_as_nanogpt_does() -> None:
    """1,003,854 characters and 111,540, of 65 different ones (its prepare.py prints these)."""
    if find(registry.sources()["shakespeare"].entries[0]) is None:
        pytest.skip("the data set shakespeare is not here")
    text = load_text(resolve("shakespeare"))
    assert (len(text.train), len(text.val), len(text.vocabulary)) == (1003854, 111540, 65)
    assert text.vocabulary.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]


def test_a_default_may_fall_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In one line, once; a name that was asked for does not."""
    stand_in = resolve("python-docs")
    monkeypatch.setattr(data, "resolve_default", lambda *names: (stand_in, f"no {names}"))
    assert find_data("") is stand_in
    assert capsys.readouterr().err == "no ('shakespeare', 'python-docs')\n"
    assert find_data("", quiet=True) is stand_in
    assert find_data(str(write(tmp_path, "abc"))).text() == "abc"
    assert capsys.readouterr().err == ""


def test_a_text_too_short_for_a_window_is_refused_with_the_sizes() -> None:
    """One window to train on and one target to validate are needed; a remedy is named."""
    ids = np.zeros(100, dtype=np.int64)
    text = Text("a.txt", "", Vocabulary("a"), ids[:90], ids[90:])
    check_length(text, 89)
    with pytest.raises(DataError) as error:
        check_length(text, 90)
    assert str(error.value) == (
        "a.txt has 100 characters, 90 to train on and 10 to validate; block_size=90 needs 91 and "
        "2. Take a longer text, or a --block-size of at most 89"
    )
    with pytest.raises(DataError, match=r"9 to train on and 1 to .* 3 and 2. Take a longer text$"):
        check_length(Text("a.txt", "", Vocabulary("a"), ids[:9], ids[:1]), 2)


# -- windows -------------------------------------------------------------------------------------

SIZES = st.integers(1, 12).flatmap(
    lambda block_size: st.tuples(
        st.integers(2, 70), st.just(block_size), st.integers(1, block_size)
    )
)


@given(SIZES)
@settings(deadline=None)
def test_in_validation_every_target_counts_exactly_once(sizes: tuple[int, int, int]) -> None:
    """For any text, window and stride, in the text's order, after the character before it."""
    n, block_size, stride = sizes
    ids = np.arange(n)
    windows = Windows(ids, block_size, jitter=False, stride=stride)
    idx, targets = windows.batch(np.arange(len(windows)))
    counted = targets != IGNORED
    assert targets[counted].tolist() == ids[1:].tolist()
    assert (idx[counted] + 1).tolist() == targets[counted].tolist()
    assert windows.weight((idx, targets)) == windows.targets == n - 1
    assert idx.shape == targets.shape == (len(windows), block_size)
    places = torch.arange(block_size).expand_as(idx)[counted]
    assert windows.positions().tolist() == places.tolist()


@given(SIZES)
@settings(deadline=None)
def test_overlapping_windows_give_every_target_its_context(sizes: tuple[int, int, int]) -> None:
    """More than block_size - stride characters, but for those at the text's beginning."""
    n, block_size, stride = sizes
    positions = Windows(np.arange(n), block_size, jitter=False, stride=stride).positions()
    assert (positions[block_size:] + 1 > block_size - stride).all()
    assert positions[:block_size].tolist() == list(range(min(block_size, n - 1)))


@given(st.integers(1, 12), st.integers(1, 90), st.integers(0, 50))
@settings(deadline=None)
def test_in_training_each_character_is_a_target_about_once_an_epoch(
    block_size: int, more: int, epoch: int
) -> None:
    """Never twice; at most two windows' length is left out; all windows are full."""
    ids = np.arange(block_size + more)
    windows = Windows(ids, block_size, jitter=True)
    indices = np.arange(len(windows))
    idx, targets = windows.batch(indices, np.full(len(windows), epoch))
    assert (idx + 1).tolist() == targets.tolist()
    assert max(Counter(targets.flatten().tolist()).values()) == 1
    assert targets.numel() >= len(ids) - 2 * block_size
    assert windows.weight((idx, targets)) == targets.numel() == len(windows) * block_size


def test_every_epoch_cuts_elsewhere() -> None:
    """The first offset is 0; in as many epochs as a window is long, most offsets come about."""
    windows = Windows(np.arange(1000), 64, jitter=True)
    offsets = windows.offset(np.arange(64)).tolist()
    assert offsets[0] == 0
    assert all(a != b for a, b in itertools.pairwise(offsets))
    assert len(set(offsets)) > 50
    assert (min(offsets), max(offsets)) == (0, 63)
    fixed = Windows(np.arange(1000), 64, jitter=False).offset(np.arange(64))
    assert set(fixed.tolist()) == {0}


def test_a_batch_is_a_function_of_its_numbers() -> None:
    """One that spans two epochs, as the sampler draws it, is its parts; int64, free to change."""
    ids = np.arange(300)
    windows = Windows(ids, 7, jitter=True)
    indices, epochs = Sampler(len(windows), seed=3).draw(len(windows) - 4, 8)
    assert set(epochs.tolist()) == {0, 1}
    idx, targets = windows.batch(indices, epochs)
    for row, (i, epoch) in enumerate(zip(indices, epochs, strict=True)):
        first = int(i) * 7 + int(windows.offset(np.array([epoch]))[0])
        assert idx[row].tolist() == list(range(first, first + 7))
    assert idx.dtype == targets.dtype == torch.int64
    idx.zero_()
    assert ids.tolist() == list(range(300))


def test_windows_that_cannot_be_cut_are_refused() -> None:
    """Too few characters, with both sizes; a stride outside of the window, or in training."""
    ids = np.arange(8)
    with pytest.raises(DataError, match=r"8 characters are too few for .*block_size=8: 9 are"):
        Windows(ids, 8, jitter=True)
    with pytest.raises(DataError, match=r"1 characters are too few for .*block_size=8: 2 are"):
        Windows(ids[:1], 8, jitter=False)
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"stride={stride} must be from 1 to block_size=4"):
            Windows(ids, 4, jitter=False, stride=stride)
    with pytest.raises(ValueError, match="stride=2 is for validation"):
        Windows(ids, 4, jitter=True, stride=2)


# -- the measure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 9, 41])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_measure_is_the_mean_over_every_target(n: int, batch_size: int) -> None:
    """A bigram's needs no windows to work out: -log p of each pair of neighbours."""
    model, ids = Table(5, 8), torch.randint(5, (n,)).numpy()
    log_probs = model.table.detach().double().log_softmax(-1).numpy()
    expected = -log_probs[ids[:-1], ids[1:]]
    found = target_nats(model, Windows(ids, 8, jitter=False, stride=3), batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert mean_nats(model, ids, 8, batch_size) == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_measured_without_dropout_and_left_as_it_was(training: bool) -> None:
    """Also when the measure fails, as on numbers that are none."""
    model, ids = Table(5, 8).train(training), np.arange(5)
    assert mean_nats(model, ids, 8) == mean_nats(model, ids, 8)
    assert model.training is training
    model.table.data[0, 0] = math.nan
    with pytest.raises(NumericalError, match="not numbers; its weights are broken"):
        mean_nats(model, ids, 8)
    assert model.training is training

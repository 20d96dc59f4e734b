"""From a text to numbered windows: read, split, encode, cut.

    text   --split-->   the first 90% to train on | the rest to validate          (as nanoGPT)
    text   --encode-->  ids, one a character:   F i r s t   C i t ...
    ids    --cut-->     windows of block_size = 4 targets, here with offset 0

        idx      F i r s | t   C i | ...       what the model reads
        targets  i r s t |   C i t | ...       what it predicts, a character later

In training every epoch cuts elsewhere, so that a character is not always the first of its window,
where there is nothing to look back at. In validation every target counts exactly once.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from mingpt.model import IGNORED, LanguageModel
from shared.datasets import Dataset, resolve, resolve_default
from shared.errors import DataError, NumericalError
from shared.parallel import to_device
from shared.sampler import IntArray

DEFAULT_DATA, FALLBACK_DATA = "shakespeare", "python-docs"
TRAIN_SHARE = 0.9  # nanoGPT, data/shakespeare_char/prepare.py
GOLDEN = (5**0.5 - 1) / 2  # the golden ratio's fraction
FloatArray = npt.NDArray[np.float64]
Batch = tuple[Tensor, Tensor]
"""`idx` (B, T) and `targets` (B, T), int64; targets of -100 do not count."""


@dataclass(frozen=True)
class Vocabulary:
    """Characters as ids: 0, 1, 2, ... in the order of their code points."""

    characters: str
    """Each once, ascending."""

    @classmethod
    def of(cls, text: str) -> "Vocabulary":
        """Collect the characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        """Count the ids."""
        return len(self.characters)

    def encode(self, text: str) -> IntArray:
        """Return the ids of the characters of `text`: (len(text),).

        Raises DataError listing the characters that are not in the vocabulary.
        """
        known = _code_points(self.characters)
        codes = _code_points(text)
        places = np.minimum(np.searchsorted(known, codes), max(len(known) - 1, 0))
        found = known[places] == codes if len(known) else np.zeros(len(codes), bool)
        if not found.all():
            strange = "".join(chr(code) for code in np.unique(codes[~found]))
            raise DataError(
                f"characters the model has never seen: {strange!r}; it knows {self.characters!r}"
            )
        return places.astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""
        return "".join(self.characters[i] for i in ids)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@dataclass(frozen=True)
class Text:
    """A text, encoded and divided."""

    name: str
    sha256: str
    """Digest of the data set."""
    vocabulary: Vocabulary
    """The characters of the whole text, so that validation has none that are unseen."""
    train: IntArray
    """Ids of the characters to train on: (N,)."""
    val: IntArray
    """Ids of the characters to validate on: (M,)."""


def find_data(data: str, quiet: bool = False) -> Dataset:
    """Return the data set asked for, or where `data` is empty Shakespeare or its stand-in.

    Says in a line on stderr that it is the stand-in, unless `quiet`.
    """
    if data:
        return resolve(data)
    dataset, excuse = resolve_default(DEFAULT_DATA, FALLBACK_DATA)
    if excuse and not quiet:
        print(excuse, file=sys.stderr)
    return dataset


def load_text(dataset: Dataset, vocabulary: Vocabulary | None = None) -> Text:
    """Read a text, divide it as nanoGPT does (the first 90% is to train on) and encode it.

    The vocabulary is that of the whole text unless given. Raises DataError for a text with
    characters that a given vocabulary lacks, and whatever `Dataset.text` raises. Whether it is
    long enough is for `check_length` to say.
    """
    text = dataset.text().removeprefix("\ufeff")  # a byte order mark, as Windows writes it
    vocabulary = Vocabulary.of(text) if vocabulary is None else vocabulary
    ids = vocabulary.encode(text)
    cut = int(TRAIN_SHARE * len(ids))
    return Text(dataset.name, dataset.sha256, vocabulary, ids[:cut], ids[cut:])


def check_length(text: Text, block_size: int) -> None:
    """Raise DataError, with the sizes, unless there is a window to train on and one to validate."""
    train, val = len(text.train), len(text.val)
    if train > block_size and val >= 2:
        return
    shorter = f", or a --block-size of at most {train - 1}" if train >= 2 and val >= 2 else ""
    raise DataError(
        f"{text.name} has {train + val:,} characters, {train:,} to train on and {val:,} to "
        f"validate; block_size={block_size} needs {block_size + 1:,} and 2. Take a longer "
        f"text{shorter}"
    )


class Windows:
    """Windows of `block_size` targets, cut from ids: the trainer's examples.

    With `jitter` (training) window i of epoch e starts at `i * block_size + offset(e)`; all are
    full, and each character is a target about once an epoch: those of at most two windows' length
    at the ends of the text may be left out.

    Without it (validation) window i starts at `i * stride`, whatever the epoch, and every target
    ids[1:] counts exactly once: in the first window that has it. A stride below block_size lets
    windows overlap, so that after the first window a target is predicted from more than
    `block_size - stride` characters. What is missing at the end of the last window is padding.

    Raises DataError for too few ids: with jitter fewer than block_size + 1, else fewer than 2;
    ValueError for a stride that is not from 1 to block_size.
    """

    def __init__(
        self, ids: IntArray, block_size: int, *, jitter: bool, stride: int | None = None
    ) -> None:
        self.ids, self.block_size, self.jitter = ids, block_size, jitter
        self.stride = block_size if stride is None else stride
        if not 1 <= self.stride <= block_size:
            raise ValueError(f"stride={stride} must be from 1 to block_size={block_size}")
        if jitter and self.stride != block_size:
            raise ValueError(f"stride={stride} is for validation, where jitter is False")
        least = block_size + 1 if jitter else 2
        if len(ids) < least:
            raise DataError(
                f"{len(ids):,} characters are too few for windows of block_size={block_size}: "
                f"{least:,} are needed"
            )
        if jitter:
            # The last window must be full for every offset below block_size. A text shorter than
            # two windows has one, and fewer offsets.
            self.count = max(1, len(ids) // block_size - 1)
            self.offsets = min(block_size, len(ids) - self.count * block_size)
        else:
            self.count = 1 + max(0, -(-(self.targets - block_size) // self.stride))
            self.offsets = 1

    def __len__(self) -> int:
        """Count the windows of an epoch."""
        return self.count

    @property
    def targets(self) -> int:
        """The number of characters that have one before them."""
        return len(self.ids) - 1

    def offset(self, epochs: IntArray) -> IntArray:
        """Return where the first window of each of `epochs` (n,) starts: (n,).

        Multiples of the golden ratio, taken modulo one, spread evenly however few there are.
        """
        return (self.offsets * (epochs * GOLDEN % 1.0)).astype(np.int64)

    def places(self, indices: IntArray, epochs: IntArray | None = None) -> IntArray:
        """Return where in the text windows `indices` (B,) read: (B, T).

        As they are in `epochs` (B,); epoch 0 if not given. Padding lies beyond the text's end.
        """
        starts = indices * self.stride
        if epochs is not None:
            starts = starts + self.offset(epochs)
        return starts[:, None] + np.arange(self.block_size)

    def batch(self, indices: IntArray, epochs: IntArray | None = None) -> Batch:
        """Cut the windows `indices` (B,) as they are in `epochs` (B,); epoch 0 if not given."""
        places = self.places(indices, epochs)  # (B, T)
        if self.jitter:
            return torch.from_numpy(self.ids[places]), torch.from_numpy(self.ids[places + 1])
        inside = places < self.targets
        idx = np.where(inside, self.ids[np.minimum(places, self.targets)], 0)
        targets = self.ids[np.minimum(places + 1, self.targets)]
        # The window before has counted the first ones of an overlapping window.
        late = np.arange(self.block_size) >= self.block_size - self.stride
        new = (indices[:, None] == 0) | late
        return torch.from_numpy(idx), torch.from_numpy(np.where(inside & new, targets, IGNORED))

    def weight(self, batch: Batch) -> float:
        """Return the number of targets that count."""
        return float((batch[1] != IGNORED).sum())

    def positions(self) -> IntArray:
        """Return the position in its window at which each target is predicted: (targets,).

        Without jitter; `targets` in the order of the text.
        """
        every = np.arange(self.targets)
        again = self.block_size - self.stride + (every - self.block_size) % self.stride
        return np.where(every < self.block_size, every, again)


@runtime_checkable
class Windowed(Protocol):
    """A model that cuts its windows itself, as more than the window's ids comes with each."""

    def windows(self, ids: IntArray, *, stride: int | None = None) -> Windows:
        """Return the windows to measure the model in; `batch` gives all that it is called with."""


def cut(model: LanguageModel, ids: IntArray, stride: int | None = None) -> Windows:
    """Return the windows in which a model is measured: of its size, every target counting once.

    Raises what `Windows` raises.
    """
    if isinstance(model, Windowed):
        return model.windows(ids, stride=stride)
    return Windows(ids, model.block_size, jitter=False, stride=stride)


@contextlib.contextmanager
def evaluation_mode(model: LanguageModel) -> Iterator[nn.Module]:
    """Have a model in evaluation mode (no dropout) meanwhile, whatever ends it; yield it."""
    assert isinstance(model, nn.Module)  # as all language models are
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


@torch.no_grad()
def target_nats(model: LanguageModel, windows: Windows, batch_size: int = 64) -> FloatArray:
    """Return -log p of every target in the text's order: (windows.targets,), in nats.

    The model is in evaluation mode meanwhile. Raises NumericalError when one is not a number.
    """
    found: list[FloatArray] = []
    with evaluation_mode(model) as module:
        device = next(chain(module.parameters(), module.buffers()), torch.empty(0)).device
        for first in _progress(range(0, len(windows), batch_size)):
            indices = np.arange(first, min(first + batch_size, len(windows)))
            idx, targets, *hints = to_device(windows.batch(indices), device)
            keep = targets != IGNORED
            # From the logits and not from the loss, which a model may smooth in training.
            log_probs = module(idx, None, *hints)[keep].double().log_softmax(-1)  # (N, V)
            picked = log_probs.gather(-1, targets[keep][:, None]).squeeze(-1)
            found.append(-picked.cpu().numpy())
    nats = np.concatenate(found)
    if np.isnan(nats).any():
        raise NumericalError("the model gave scores that are not numbers; its weights are broken")
    return nats


def mean_nats(
    model: LanguageModel, ids: IntArray, block_size: int = 0, batch_size: int = 64
) -> float:
    """Return nats per character over every target ids[1:], in windows that do not overlap.

    They are of the model's block_size unless a shorter one is given. Raises what `Windows` and
    `target_nats` raise.
    """
    if block_size in (0, model.block_size):
        windows = cut(model, ids)
    else:
        windows = Windows(ids, block_size, jitter=False)
    return float(target_nats(model, windows, batch_size).mean())


def _progress(firsts: Sequence[int]) -> Iterable[int]:
    """Show a bar on stderr while going through many batches, if that is a terminal."""
    console = Console(stderr=True)
    hide = not console.is_terminal or len(firsts) < 10
    return track(firsts, "evaluating", console=console, disable=hide, transient=True)

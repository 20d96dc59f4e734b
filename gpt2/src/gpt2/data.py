"""From a text to windows of tokens: split, train a tokenizer, encode once, reuse by digest.

    text --split--> train | validation
    train --BPE--> tokenizer            (the validation text has no say in the vocabulary)
    both --encode--> shards on disk --memory-map--> windows

Every document begins with <|endoftext|>, which GPT-2 puts between documents. So the first token of
a text has something to be predicted from, and bits per byte count every byte. The text streams
through in pieces: memory is bounded by one document, however large the data set.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minbpe import RegexTokenizer
from shared import files
from shared.datasets import Dataset, cache_folder
from shared.errors import DataError
from shared.tokens import EvalWindows, ShardWriter, Tokens, TokenWindows

DEFAULT_DATA = "shakespeare"
END_OF_TEXT = "<|endoftext|>"
TOKENIZER = "tokenizer.model"
BYTES = "bytes.json"  # of text, by part
TRAIN_SHARE = 0.9  # of the characters, from the start, as in nanoGPT
FORMAT = 1  # raise it when the same text would give other tokens
PARTS = ("train", "validation")

Pieces = Iterator[tuple[bool, str]]
"""A text in order, piece by piece, each with whether it begins a document."""


@dataclass(frozen=True)
class Corpus:
    """A text as a tokenizer and two sets of tokens, ready for any `block_size`."""

    name: str
    sha256: str
    tokenizer: RegexTokenizer
    train: Tokens
    validation: Tokens
    train_bytes: int
    validation_bytes: int

    def train_windows(self, block_size: int, seed: int) -> TokenWindows:
        """Return the training examples; each epoch cuts the text at other places."""
        return TokenWindows(self.train, block_size, jitter_seed=seed)

    def validation_windows(self, block_size: int) -> EvalWindows:
        """Return windows that have every token of the validation text as target exactly once."""
        return EvalWindows(self.validation, block_size)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Turn the mean loss over the validation tokens into bits per byte of validation text."""
        nats = nats_per_token * (len(self.validation) - 1)
        return nats / self.validation_bytes / math.log(2)


def load_corpus(dataset: Dataset, vocab_size: int) -> Corpus:
    """Split, tokenize and encode `dataset`, or take what an earlier run left in the cache.

    `vocab_size` counts the 256 bytes, the merges and <|endoftext|>; a small text may give fewer.
    Raises `DataError` for a text too short to split, `ArtefactError` for a damaged cache (naming
    the file) and `ResourceError` when it can't be written.
    """
    folder = corpus_folder(dataset, vocab_size)
    if not folder.exists():
        _build(dataset, vocab_size, folder)
    tokenizer = RegexTokenizer()
    tokenizer.load(str(folder / TOKENIZER))
    train, validation = (
        Tokens.open(folder, part, vocab_size=vocab_size, tokenizer_sha256=tokenizer.digest())
        for part in PARTS
    )
    sizes = files.read_json(folder / BYTES)
    return Corpus(
        dataset.name, dataset.sha256, tokenizer, train, validation, *(sizes[part] for part in PARTS)
    )


def corpus_folder(dataset: Dataset, vocab_size: int) -> Path:
    """Return the cache folder of a data set's tokens: all that decides them is in its name."""
    key = json.dumps([FORMAT, dataset.sha256, vocab_size, RegexTokenizer().pattern])
    label = "".join(c if c.isalnum() else "-" for c in Path(dataset.name).name)
    name = f"{label}-{vocab_size}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return cache_folder() / "gpt2" / name


def _build(dataset: Dataset, vocab_size: int, folder: Path) -> None:
    """Make a corpus folder: in a temporary one, renamed when it is whole."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        files.make_folder(temporary)
        tokenizer = _train_tokenizer(dataset, vocab_size)
        tokenizer.save(str(temporary / TOKENIZER.removesuffix(".model")))
        sizes = {part: _encode(dataset, part, tokenizer, temporary) for part in PARTS}
        files.write_json(temporary / BYTES, sizes)
        try:
            files.replace(temporary, folder)
        except OSError:  # another process was faster, with the same content
            if not folder.exists():
                raise
    finally:
        files.remove_folder(temporary)


def _train_tokenizer(dataset: Dataset, vocab_size: int) -> RegexTokenizer:
    tokenizer = RegexTokenizer()
    texts = (text for _, text in read_part(dataset, "train"))
    tokenizer.train(texts, vocab_size - 1)  # the last place is for the special token
    tokenizer.register_special_tokens({END_OF_TEXT: len(tokenizer.vocab)})
    return tokenizer


def _encode(dataset: Dataset, part: str, tokenizer: RegexTokenizer, folder: Path) -> int:
    """Write one part's tokens as shards; return the bytes of its text."""
    size = 0
    kind = {"vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.digest()}
    with ShardWriter(folder, part, **kind) as writer:  # type: ignore[arg-type]
        for begins, text in read_part(dataset, part):
            if begins:
                writer.append([tokenizer.special_tokens[END_OF_TEXT]])
            writer.append(tokenizer.encode_array(text))
            size += len(text.encode())
    return size


def read_part(dataset: Dataset, part: str) -> Pieces:
    """Read the train or validation part of a text: the official one, or one cut at `TRAIN_SHARE`.

    Raises `DataError` for a text too short to be cut.
    """
    official = dataset.splits
    if "train" in official and "valid" in official:
        return _pieces(official["train" if part == "train" else "valid"])
    cut = int(_characters(dataset) * TRAIN_SHARE)
    if cut == 0:
        raise DataError(f"{dataset.name} is too short to be split into training and validation")
    return (_before if part == "train" else _after)(_pieces(dataset), cut)


@functools.lru_cache(maxsize=1)
def _characters(dataset: Dataset) -> int:
    return sum(len(text) for _, text in _pieces(dataset))


def _pieces(dataset: Dataset) -> Pieces:
    for document in dataset.documents():
        begins = True
        for text in document:
            yield begins, text
            begins = False


def _before(pieces: Pieces, cut: int) -> Pieces:
    """Keep the first `cut` characters."""
    for begins, text in pieces:
        if cut <= 0:
            return
        yield begins, text[:cut]
        cut -= len(text)


def _after(pieces: Pieces, cut: int) -> Pieces:
    """Keep what comes after the first `cut` characters, which begins a document of its own."""
    first = True
    for begins, text in pieces:
        if rest := text[max(cut, 0) :]:
            yield begins or first, rest
            first = False
        cut -= len(text)

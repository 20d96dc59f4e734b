"""What every tokenizer here has: train, encode, decode, special tokens, save and load.

The tokenizers differ only in how they split text into pre-tokens, the pieces that merges never
cross. Names follow karpathy's minbpe, so that programs written for it run unchanged.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minbpe.encoder import WordCache
from minbpe.errors import DataError, UsageError
from minbpe.model_file import (
    MAX_ID,
    MAX_MERGES,
    Model,
    build_vocab,
    read_model,
    render_token,
    write_model,
)
from minbpe.textbook import Pair
from minbpe.trainer import TIE_BREAKS, Progress, train_words

log = logging.getLogger("minbpe")


class Tokenizer(ABC):
    """A byte-pair-encoding tokenizer; before training, ids are the bytes 0..255.

    Attributes: `merges` maps a pair of ids to the id it becomes, in the order of training;
    `vocab` maps an id to its bytes (special tokens not included); `special_tokens` maps a text
    to its id; `pattern` is the split pattern, "" for none; `requested_vocab_size` is what `train`
    was asked for, which `vocab_size` misses when the corpus was too small.
    """

    def __init__(self) -> None:
        self.pattern = ""
        self.requested_vocab_size: int | None = None
        self.special_tokens: dict[str, int] = {}
        self._set_merges([])

    @abstractmethod
    def _blocks(self, text: str) -> Iterator[list[str]]:
        """Yield the pre-tokens of `text`, any number at a time."""

    @abstractmethod
    def _set_pattern(self, pattern: str | None) -> None:
        """Take over a pattern from a file; raise UsageError when it does not suit the class."""

    # ---- training

    def train(
        self,
        text: str | Iterable[str],
        vocab_size: int,
        verbose: bool = False,
        *,
        tie_break: str = "smallest",
        progress: Progress | None = None,
    ) -> None:
        """Learn `vocab_size - 256` merges from a text, or from texts that tokens do not span.

        Of equally frequent pairs `tie_break="smallest"` merges the one with the smallest ids, so
        that the same pre-tokens give the same merges in any order; `"minbpe"` merges the one that
        occurs first, as karpathy's code does. `verbose` prints each merge; `progress` is called
        after each with (left id, right id, count).

        A corpus without enough pairs ends training early: a warning is logged, and `vocab_size`
        is less than `requested_vocab_size`. Raises UsageError for a size below 256 or one that
        reaches into registered special tokens, DataError for an empty corpus.
        """
        self.check_training(vocab_size, tie_break)
        word_counts: Counter[str] = Counter()
        for part in [text] if isinstance(text, str) else text:
            if not isinstance(part, str):
                raise UsageError(f"train needs text, not {type(part).__name__}; decode it first")
            for block in self._blocks(_without_surrogates(part)):
                word_counts.update(block)
        if not word_counts:
            raise DataError("the corpus is empty, there is nothing to learn from")
        n_merges = vocab_size - 256
        report = self._printer(n_merges, progress) if verbose else progress
        trained = train_words(word_counts, n_merges, tie_break, report)
        self._set_merges(trained.merges)
        self._words.learn(trained.words)
        self.requested_vocab_size = vocab_size
        if len(trained.merges) < n_merges:
            log.warning(
                "the corpus has too few pairs for a vocabulary of %d: stopped at %d",
                vocab_size,
                256 + len(trained.merges),
            )

    def check_training(self, vocab_size: int, tie_break: str = "smallest") -> None:
        """Raise UsageError for arguments that `train` would refuse, before a corpus is read."""
        if not 256 <= vocab_size <= 256 + MAX_MERGES:
            raise UsageError(
                f"vocab_size={vocab_size} must be from 256, the bytes, to {256 + MAX_MERGES}"
            )
        if tie_break not in TIE_BREAKS:
            raise UsageError(f"tie_break={tie_break!r} must be one of {', '.join(TIE_BREAKS)}")
        for token, idx in self.special_tokens.items():
            if idx < vocab_size:
                raise UsageError(
                    f"special token {token!r} has id {idx}, which vocab_size={vocab_size} would "
                    "give to a merge; register special tokens after training"
                )

    @staticmethod
    def _printer(n_merges: int, also: Progress | None) -> Progress:
        """Return a progress function that prints what karpathy's `verbose` prints."""
        vocab = build_vocab([])

        def report(a: int, b: int, count: int) -> None:
            idx = len(vocab)
            vocab.append(vocab[a] + vocab[b])
            print(
                f"merge {idx - 255}/{n_merges}: {a, b} -> {idx} ({vocab[idx]!r}) "
                f"had {count} occurrences"
            )
            if also is not None:
                also(a, b, count)

        return report

    def _set_merges(self, merges: Iterable[Pair]) -> None:
        self.merges: dict[Pair, int] = {pair: 256 + k for k, pair in enumerate(merges)}
        self.vocab: dict[int, bytes] = dict(enumerate(build_vocab(list(self.merges))))
        self._words = WordCache(self.merges)
        self._set_special(self.special_tokens)

    # ---- special tokens

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included: the rows an embedding needs."""
        return max(self._bytes) + 1

    def register_special_tokens(self, special_tokens: dict[str, int]) -> None:
        """Set the special tokens, text to id: `{"<|endoftext|>": 4096}`; replaces earlier ones.

        Raises UsageError for an empty text, and for an id that is taken or out of range.
        """
        owner: dict[int, str] = {}
        for token, idx in special_tokens.items():
            if not isinstance(token, str) or not token or token != _without_surrogates(token):
                raise UsageError(f"special token {token!r} must be a text of at least a character")
            if isinstance(idx, bool) or not isinstance(idx, int) or not 0 <= idx <= MAX_ID:
                raise UsageError(f"special token {token!r}: id {idx!r} is not in 0..{MAX_ID}")
            if idx in self.vocab:
                raise UsageError(
                    f"special token {token!r}: id {idx} is the token "
                    f"{render_token(self.vocab[idx])}; the next free one is {len(self.vocab)}"
                )
            if idx in owner:
                raise UsageError(f"special tokens {owner[idx]!r} and {token!r} share the id {idx}")
            owner[idx] = token
        self._set_special(dict(special_tokens))

    def _set_special(self, special_tokens: dict[str, int]) -> None:
        self.special_tokens = special_tokens
        self._bytes = self.vocab | {i: text.encode("utf-8") for text, i in special_tokens.items()}

    def _allowed(self, text: str, allowed_special: str | Collection[str]) -> dict[str, int]:
        """Return the special tokens to look for in `text`; raise DataError as `encode` says."""
        if allowed_special == "all":
            return self.special_tokens
        if allowed_special == "none":
            return {}
        if allowed_special == "none_raise":
            for token in self.special_tokens:
                if token in text:
                    raise DataError(
                        f"the text contains the special token {token!r}: pass "
                        f"allowed_special={{{token!r}}} to encode it as one id, or "
                        "allowed_special='none' (or encode_ordinary) to encode it as plain text"
                    )
            return {}
        if isinstance(allowed_special, str):
            raise UsageError(
                f"allowed_special={allowed_special!r} must be 'all', 'none', 'none_raise' or a set"
            )
        return {t: idx for t, idx in self.special_tokens.items() if t in allowed_special}

    # ---- text to ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special tokens are text like any other.

        Lone surrogates, which UTF-8 cannot express, become U+FFFD as in tiktoken.
        """
        ids: list[int] = _ids(self._encode_chars(text)).tolist()
        return ids

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Return `encode_ordinary(text)` as an array (n,) of uint32, without making a list."""
        return _ids(self._encode_chars(text)).astype(np.uint32)

    def encode(self, text: str, allowed_special: str | Collection[str] = "none_raise") -> list[int]:
        """Return the ids of `text`, with special tokens as `allowed_special` says.

        "all": each is its id (of two that begin alike, the longer). "none": they are plain text.
        "none_raise": they are an error, so that a user's text can never pass for control. A
        set of them: those are ids, the others plain text. Raises DataError for "none_raise".
        """
        special = self._allowed(text, allowed_special)
        if not special:
            return self.encode_ordinary(text)
        # Alternatives are tried from left to right, so the longer must come first.
        longest_first = sorted(special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        ids: list[int] = []
        for k, part in enumerate(parts):
            if k % 2:  # re.split puts what it matched at the odd places
                ids.append(special[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    def _encode_chars(self, text: str) -> str:
        """Return the ids of `text` as a string with the character chr(id) for each."""
        word = self._words.__getitem__
        return "".join(
            ["".join(map(word, block)) for block in self._blocks(_without_surrogates(text))]
        )

    # ---- ids to text

    def decode_bytes(self, ids: Iterable[int] | NDArray[Any]) -> bytes:
        """Return the bytes that `ids` stand for. Raises DataError for an id that does not exist."""
        listed: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        try:
            return b"".join(map(self._bytes.__getitem__, listed))
        except KeyError as error:
            raise DataError(
                f"id {error.args[0]} does not exist in this vocabulary of {self.vocab_size}"
            ) from None

    def decode(self, ids: Iterable[int] | NDArray[Any]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, the black diamond."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # ---- files

    def _model(self) -> Model:
        return Model(self.pattern or None, list(self.merges), self.special_tokens)

    def digest(self) -> str:
        """Return a SHA-256, in hex, of pattern, merges and special tokens: the file's own."""
        return self._model().digest()

    def save(self, file_prefix: str | Path) -> None:
        """Write `<file_prefix>.model` (see `minbpe.model_file`), whole or not at all.

        Raises UsageError when the folder is missing, ResourceError when the disk refuses.
        """
        write_model(Path(f"{file_prefix}.model"), self._model())

    def load(self, model_file: str | Path) -> None:
        """Read a file that `save` wrote, or karpathy's minbpe (version 1), pattern included.

        Raises TokenizerFileError when anything in it is wrong, UsageError when there is no such
        file or it is for another class; the tokenizer is then as it was.
        """
        model = read_model(Path(model_file))
        try:
            self._set_pattern(model.pattern)
        except UsageError as error:
            raise type(error)(f"{model_file}: {error}") from None
        self.special_tokens = model.special_tokens
        self.requested_vocab_size = None
        self._set_merges(model.merges)


def _ids(chars: str) -> NDArray[np.uint32]:
    """Return the code points of `chars`; ids 0xD800..0xDFFF are surrogates, which may pass."""
    return np.frombuffer(chars.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _without_surrogates(text: str) -> str:
    """Return `text` with lone surrogates replaced as tiktoken does: by way of UTF-16."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

"""What every tokenizer here has: train, encode, decode, special tokens, save and load.

The tokenizers differ only in how they split text into pre-tokens, the pieces that merges never
cross. Names follow karpathy's minbpe, so that programs written for it run unchanged.
"""

import contextlib
import logging
import re
import sys
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import index, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minbpe.encoder import Encoder, Merges, PairMerges
from minbpe.errors import DataError, TokenizerFileError, UsageError
from minbpe.model_file import (
    MAX_ID,
    MAX_MERGES,
    Model,
    RankModel,
    build_vocab,
    read_model,
    render_token,
    write_model,
)
from minbpe.pretokens import TIME_LIMIT, Splitter, replace_surrogates
from minbpe.probe import check_pattern
from minbpe.textbook import Pair
from minbpe.textbook import get_stats as get_stats  # programs for karpathy's minbpe have them from
from minbpe.textbook import merge as merge  # here
from minbpe.trainer import TIE_BREAKS, Progress, train_words

log = logging.getLogger("minbpe")


STREAM_BLOCK = 1 << 16
"""Characters that `encode_stream` gathers before it encodes them."""


DECODE_BLOCK = 2048
"""Ids decoded at once, few enough to stay in the processor's cache."""

MAX_CHARACTERS = 1 << 60
"""Of a corpus, so that counts fit 64 bits."""


class Tokenizer(ABC):
    """A byte-pair-encoding tokenizer; before training, ids are the bytes 0..255.

    Attributes: `merges` maps a pair of ids to the id it becomes, in the order of training;
    `vocab` maps an id to its bytes (special tokens not included); `special_tokens` maps a text
    to its id; `pattern` is the split pattern, "" for none; `requested_vocab_size` is what `train`
    was asked for, which `vocab_size` misses when the corpus was too small.
    """

    _table: list[bytes | None]

    def __init__(self, pattern: str | None = None, *, time_limit: float = TIME_LIMIT) -> None:
        self._time_limit = time_limit
        self.requested_vocab_size: int | None = None
        self.special_tokens: dict[str, int] = {}
        self._set_pattern(pattern)
        self._set_merges([])

    @abstractmethod
    def _refusal(self, model: Model | RankModel) -> str | None:
        """Return why the content of a file is not for this class, None when it is."""

    def _set_pattern(self, pattern: str | None) -> None:
        """Split by `pattern` from now on, or not at all; the encoder has to be made anew."""
        limit = self._time_limit
        self._splitter = None if pattern is None else Splitter(pattern, time_limit=limit)
        self.pattern = pattern or ""

    def _blocks(self, text: str) -> Iterator[list[str]]:
        """Yield the pre-tokens of `text`, some thousand at a time."""
        if self._splitter is not None:
            yield from self._splitter.blocks(text)
        elif text:
            yield [text]

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
        reaches into registered special tokens, DataError for an empty corpus and for a pattern of
        your own that might take for ever: it is tried on small texts first, in a process of its
        own, and then has a time limit (see `Splitter`).
        """
        self.check_training(vocab_size, tie_break)
        if self.pattern:
            check_pattern(self.pattern, self._time_limit)
        word_counts: Counter[str] = Counter()
        for part in [text] if isinstance(text, str) or text is None else text:
            if not isinstance(part, str):
                raise _no_text("train", part)
            for block in self._blocks(replace_surrogates(part)):
                word_counts.update(block)
        self.train_counts(word_counts, vocab_size, verbose, tie_break=tie_break, progress=progress)

    def train_counts(
        self,
        counts: Mapping[str, int],
        vocab_size: int,
        verbose: bool = False,
        *,
        tie_break: str = "smallest",
        progress: Progress | None = None,
    ) -> None:
        """Train as `train` does, on pre-tokens counted before (see `minbpe.corpus`).

        `counts` maps a pre-token to how often it occurs, in the order of first appearance (which
        matters to `tie_break="minbpe"` alone). Raises DataError for counts that are no such thing.
        """
        self.check_training(vocab_size, tie_break)
        _check_counts(counts)
        n_merges = vocab_size - 256
        report = self._printer(n_merges, progress) if verbose else progress
        trained = train_words(counts, n_merges, tie_break, report)
        self._set_merges(trained.merges)
        self._encoder.words.learn(trained.words)
        self.requested_vocab_size = vocab_size
        if len(trained.merges) < n_merges:
            log.warning(
                "the corpus has too few pairs for a vocabulary of %d: stopped at %d",
                vocab_size,
                256 + len(trained.merges),
            )

    def check_training(self, vocab_size: int, tie_break: str = "smallest") -> None:
        """Raise UsageError for arguments that `train` would refuse, before a corpus is read."""
        if not isinstance(vocab_size, int) or not 256 <= vocab_size <= 256 + MAX_MERGES:
            raise UsageError(
                f"vocab_size={vocab_size!r} must be from 256, the bytes, to {256 + MAX_MERGES}"
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
        self._merges: dict[Pair, int] = {pair: 256 + k for k, pair in enumerate(merges)}
        vocab = dict(enumerate(build_vocab(list(self._merges))))
        self._set_vocab(vocab, PairMerges(self._merges))

    def _set_vocab(self, vocab: dict[int, bytes], merges: Merges) -> None:
        self.vocab = vocab
        self._encoder = Encoder(merges, self._splitter)
        self._set_special(self.special_tokens)

    @property
    def merges(self) -> dict[Pair, int]:
        """The merges, a pair of ids to the id it becomes, in their order."""
        return self._merges

    # ---- special tokens

    @property
    def inverse_special_tokens(self) -> dict[int, str]:
        """The special tokens, id to text, as in karpathy's minbpe; a copy."""
        return {idx: token for token, idx in self.special_tokens.items()}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included: the rows an embedding needs."""
        return self._size

    def register_special_tokens(self, special_tokens: dict[str, int]) -> None:
        """Set the special tokens, text to id: `{"<|endoftext|>": 4096}`; replaces earlier ones.

        Raises UsageError for an empty text, and for an id that is taken or out of range.
        """
        owner: dict[int, str] = {}
        for token, idx in special_tokens.items():
            if not isinstance(token, str) or not token or token != replace_surrogates(token):
                raise UsageError(f"special token {token!r} must be a text of at least a character")
            if isinstance(idx, bool) or not isinstance(idx, int) or not 0 <= idx <= MAX_ID:
                raise UsageError(f"special token {token!r}: id {idx!r} is not in 0..{MAX_ID}")
            if idx in self.vocab:
                raise UsageError(
                    f"special token {token!r}: id {idx} is the token "
                    f"{render_token(self.vocab[idx])}; the next free one is {max(self.vocab) + 1}"
                )
            if idx in owner:
                raise UsageError(f"special tokens {owner[idx]!r} and {token!r} share the id {idx}")
            owner[idx] = token
        self._set_special(dict(special_tokens))

    def _set_special(self, special_tokens: dict[str, int]) -> None:
        self.special_tokens = special_tokens
        self._size = max(max(self.vocab), max(special_tokens.values(), default=0)) + 1
        self._table = [None] * self._size  # faster to decode with than a dictionary
        for idx, token in self.vocab.items():
            self._table[idx] = token
        for text, idx in special_tokens.items():
            self._table[idx] = text.encode("utf-8")

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
        if unknown := sorted(set(allowed_special) - self.special_tokens.keys()):
            known = ", ".join(map(repr, self.special_tokens)) or "none"
            raise UsageError(
                f"allowed_special has {unknown[0]!r}, which is no special token; there are: {known}"
            )
        return {t: idx for t, idx in self.special_tokens.items() if t in allowed_special}

    # ---- text to ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of `text`, in which special tokens are text like any other.

        Lone surrogates, which UTF-8 cannot express, become U+FFFD as in tiktoken. Raises UsageError
        for what is no text.
        """
        return memoryview(self._encode(text)).cast("I").tolist()

    def encode_array(self, text: str) -> NDArray[np.uint32]:
        """Return `encode_ordinary(text)` as an array (n,) of uint32, without making a list."""
        return np.frombuffer(self._encode(text), np.uint32).copy()

    def _encode(self, text: str) -> bytes:
        try:
            return self._encoder.encode(text if text.isascii() else replace_surrogates(text))
        except (AttributeError, TypeError):
            if isinstance(text, str):
                raise
            raise _no_text("encode", text) from None

    def encode(self, text: str, allowed_special: str | Collection[str] = "none_raise") -> list[int]:
        """Return the ids of `text`, with special tokens as `allowed_special` says.

        "all": each is its id (of two that begin alike, the longer). "none": they are plain text.
        "none_raise": they are an error, so that a user's text can never pass for control. A
        set of them: those are ids, the others plain text. Surrogates are replaced first, which may
        make a special token, but not one that "none_raise" sees: all as in tiktoken. Raises
        DataError for "none_raise", UsageError for what is no text.
        """
        return memoryview(self._encode_special(text, allowed_special)).cast("I").tolist()

    def _encode_special(self, text: str, allowed_special: str | Collection[str]) -> bytes:
        try:
            special = self._allowed(text, allowed_special)
        except TypeError:
            if isinstance(text, str):
                raise
            raise _no_text("encode", text) from None
        if not special:
            return self._encode(text)
        if not isinstance(text, str):
            raise _no_text("encode", text)
        text = replace_surrogates(text)
        # Alternatives are tried from left to right, so the longer must come first.
        longest_first = sorted(special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        ids = list(map(self._encode, parts))
        for k in range(1, len(parts), 2):  # re.split puts what it matched at the odd places
            ids[k] = special[parts[k]].to_bytes(4, sys.byteorder)
        return b"".join(ids)

    def count_tokens(self, counts: Mapping[str, int]) -> int:
        """Return the number of tokens of pre-tokens, given as for `train_counts`."""
        ids = self._encoder.words  # four bytes an id
        return sum(n * len(ids[word]) for word, n in counts.items()) // 4

    def encode_batch(
        self, texts: Iterable[str], allowed_special: str | Collection[str] = "none_raise"
    ) -> list[list[int]]:
        """Return the ids of each text, as `encode` gives them."""
        return [self.encode(text, allowed_special) for text in texts]

    def encode_stream(
        self, texts: Iterable[str], allowed_special: str | Collection[str] = "none_raise"
    ) -> Iterator[NDArray[np.uint32]]:
        """Yield the ids of `"".join(texts)`, as `encode` gives them, in arrays (n,) of uint32.

        A file's blocks may be cut anywhere, within a word or a special token. Memory is bounded by
        the longest stretch without a cut (see `find_cut`): of one of the known patterns it is a
        word or so, of a pattern of your own and of BasicTokenizer it is all there is.
        """
        waiting, enough = "", STREAM_BLOCK
        for text in texts:
            if not isinstance(text, str):
                raise _no_text("encode_stream", text)
            waiting += text
            if len(waiting) >= enough:
                end = self.find_cut(waiting, len(waiting) // 2)
                if end:
                    ids = self._encode_special(waiting[:end], allowed_special)
                    yield np.frombuffer(ids, np.uint32)
                    waiting = waiting[end:]
                enough = max(STREAM_BLOCK, 2 * len(waiting))  # no stretch is searched often
        if waiting:
            yield np.frombuffer(self._encode_special(waiting, allowed_special), np.uint32)

    def find_cut(self, text: str, start: int = 0) -> int | None:
        """Return the first place from `start` on where `text` may be cut in two, None for none.

        The ids of the parts, one after the other, are then those of the whole, whatever
        `allowed_special` is, and also when the text goes on. Only the patterns that have names in
        `minbpe.pretokens` have such places.
        """
        if self._splitter is None:
            return None
        special = {token: _width(token) for token in self.special_tokens}
        margin = max(special.values(), default=-1) + 1
        end = self._splitter.find_cut(text, start)
        while end is not None and end + margin <= len(text):
            # A special token ends the text before it, which changes what becomes of a space there.
            # So it must not even lie one character from the cut, which is as far as a cut looks.
            around = [(t, text[max(0, end - w - 1) : end + w + 1]) for t, w in special.items()]
            if not any(t in part or t in replace_surrogates(part) for t, part in around):
                return end
            end = self._splitter.find_cut(text, end + 1)
        return None

    def offsets(
        self, text: str, allowed_special: str | Collection[str] = "none_raise"
    ) -> list[tuple[int, int]]:
        """Return for each id of `encode(text)` the characters it stands for, as (start, end).

        `text[start:end]` are the characters that have at least a byte in the token, so of a token
        that ends inside a character, both it and the next one hold that character. The starts are
        those of tiktoken's `decode_with_offsets`. In a text with surrogates, characters are
        counted after their replacement.
        """
        ids = self.encode(text, allowed_special)
        if not ids:
            return []
        data = np.frombuffer(replace_surrogates(text).encode("utf-8"), np.uint8)
        # UTF-8 marks all but the first byte of a character by the bits 10.
        character = np.cumsum((data & 0xC0) != 0x80) - 1
        ends = np.cumsum([len(self.decode_bytes([idx])) for idx in ids])
        starts = np.concatenate(([0], ends[:-1]))
        return list(
            zip(character[starts].tolist(), (character[ends - 1] + 1).tolist(), strict=True)
        )

    # ---- ids to text

    def decode_bytes(self, ids: Iterable[int] | NDArray[Any]) -> bytes:
        """Return the bytes that `ids` stand for. Raises DataError for an id that does not exist."""
        listed = _listed(ids)
        unsigned = isinstance(ids, np.ndarray) and ids.dtype.kind == "u"
        table: Any = self._table
        parts: list[bytes] = []
        try:
            for k in range(0, len(listed), DECODE_BLOCK):
                block = listed[k : k + DECODE_BLOCK]
                if not unsigned:
                    array("I", block)  # refuses -1, which the table would take for the last id
                # With one id, itemgetter gives the item itself and no tuple.
                tokens = itemgetter(*block)(table) if len(block) > 1 else [table[block[0]]]
                parts.append(b"".join(tokens))
        except (IndexError, OverflowError, TypeError):  # beyond the table, no id, or None in it
            missing = next(idx for idx in listed if not self._exists(idx))
            message = f"id {missing} does not exist in this vocabulary of {self.vocab_size}"
            if missing in self.special_tokens.values():
                message += "; add special tokens with register_special_tokens"
            raise DataError(message) from None
        return b"".join(parts)

    def _exists(self, idx: Any) -> bool:
        try:
            k = index(idx)
        except TypeError:
            return False
        return 0 <= k < self._size and self._table[k] is not None

    def decode(self, ids: Iterable[int] | NDArray[Any]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, the black diamond."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # ---- files

    def _model(self) -> Model | RankModel:
        return Model(self.pattern or None, list(self.merges), self.special_tokens)

    def digest(self) -> str:
        """Return a SHA-256, in hex, of pattern, merges and special tokens: the file's own."""
        return self._model().digest()

    def save(self, file_prefix: str | Path) -> None:
        """Write `<file_prefix>.model` (see `minbpe.model_file`), whole or not at all.

        karpathy's minbpe also writes `<file_prefix>.vocab`, for people to read. This one file is
        for both: it shows the text of each token.

        Raises UsageError when the folder is missing, ResourceError when the disk refuses.
        """
        write_model(Path(f"{file_prefix}.model"), self._model())

    def load(self, model_file: str | Path) -> None:
        """Read a file that `save` wrote, or karpathy's minbpe (version 1), pattern included.

        Raises TokenizerFileError when anything in it is wrong, UsageError when there is no such
        file or it is for another class; the tokenizer is then as it was.
        """
        model = read_model(Path(model_file))
        if refusal := self._refusal(model):
            raise UsageError(f"{model_file}: {refusal}")
        try:
            self._set_pattern(model.pattern)
        except UsageError as error:
            raise TokenizerFileError(f"{model_file}: {error}") from None
        self.special_tokens = model.special_tokens
        self.requested_vocab_size = None
        self._take(model)

    def _take(self, model: Model | RankModel) -> None:
        assert isinstance(model, Model)  # or it was refused
        self._set_merges(model.merges)


def _no_text(method: str, given: object) -> UsageError:
    return UsageError(f"{method} needs text, not {type(given).__name__}; decode it first")


def _width(token: str) -> int:
    """Return the most characters that `token` is in a text, where two surrogates may be one."""
    return len(token) + sum(char > "\uffff" for char in token)


def _listed(ids: Iterable[int] | NDArray[Any]) -> list[int]:
    listed: Any = ids
    with contextlib.suppress(TypeError):
        listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not isinstance(listed, list):
        raise DataError(f"ids must be a sequence of whole numbers, not {listed!r}")
    return listed


def _check_counts(counts: Mapping[str, int]) -> None:
    """Raise DataError unless `counts` are texts and how often they occur."""
    if not counts:
        raise DataError("the corpus is empty, there is nothing to learn from")
    total = 0
    for word, n in counts.items():
        if not isinstance(word, str) or word != replace_surrogates(word):
            raise DataError(f"a pre-token must be text that UTF-8 can express, not {word!r}")
        if not isinstance(n, int | np.integer) or n < 1:
            raise DataError(f"the pre-token {word!r} has the count {n!r}, which must be 1 or more")
        total += int(n) * len(word)
    if total > MAX_CHARACTERS:
        raise DataError(f"the counts make {total} characters, at most {MAX_CHARACTERS} can be")

"""Encode text: look up what was seen before, and merge what was not.

One pre-token is encoded by merging, again and again, the pair of neighbours with the lowest new
token anywhere in it. While it is merged it is a sequence of characters that are token ids. A short
word keeps its pairs' new tokens in a list; a long one (a megabyte of one letter is one pre-token)
would take quadratic time that way, and goes through merges in their order instead.

Two caches stand before that. `WordCache` remembers pre-tokens. `PieceCache` remembers whole pieces
of text between spaces, so that known text needs neither the pattern nor a look at each pre-token:
`str.split`, a dictionary and `bytes.join` do it, all in C. Before a long text is encoded of which
much is unknown, `PieceCache` learns its pieces together, which takes less time.
"""

import codecs
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice, pairwise
from operator import add
from sys import getsizeof
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from minbpe.lockstep import Lockstep, fits
from minbpe.pretokens import BLOCK, CUT, Splitter, cut_at_spaces
from minbpe.textbook import Pair

SHORT = 128
"""Ids up to which a word is merged by the list of its pairs; characters up to which it is kept."""

CACHE_SIZE = 1 << 17
"""Words or pieces in a generation of a cache, at most; of English they take about 25 MB."""

CACHE_BYTES = 32 << 20
"""Memory from which on a generation is full as well. There are two of words and two of pieces, and
each may go beyond this by what one section of a text brings; text made to fill them, of long words
beyond U+FFFF that never come again, took 170 MB in all."""

ENTRY_BYTES = 100
"""What an entry takes in a dictionary, besides its key and its value."""

MAX_PAIRS = 1 << 18
"""Pairs that `RankMerges` remembers; about 30 MB."""

PATIENCE = 128
"""Fruitless searches through a long word, until its places are listed instead."""

FRUITFUL = 512
"""A search bears fruit when it merges at least one in so many of the word's tokens."""

SECTION = 1 << 8
"""Blocks whose new pieces are learned together."""

NEWS = 40
"""They are when the block before them had one new piece in so many."""

MANY = 256
"""Words from which on it takes less time to merge them all at once."""

NEVER = "\U0010ffff\U0010ffff"
"""What a pair merges into that does not merge: behind every character in the order of strings."""

NO_RANK = 1 << 62
"""The rank of what is no token: behind all others."""

BYTE_ORDER: Literal["little", "big"] = sys.byteorder


def to_bytes(ids: str) -> bytes:
    """Return ids that are characters as the bytes of an array of uint32."""
    encode = codecs.utf_32_le_encode if BYTE_ORDER == "little" else codecs.utf_32_be_encode
    return encode(ids, "surrogatepass")[0]


class Merges(Protocol):
    """What pairs of ids become. Ids are characters here, and the lowest new one comes first."""

    def __getitem__(self, pair: str) -> str:
        """Return what a pair, two characters, becomes, or NEVER."""

    def letters(self, word: bytes) -> str:
        """Return the ids of the bytes of a word, before any merge."""

    def is_token(self, word: bytes) -> bool:
        """Tell whether a word is a token as it is, and no merging is to be tried."""

    def encode_short(self, word: bytes) -> bytes:
        """Return the ids of a word that is a token or has a few bytes, four bytes each."""

    def encode_many(self, words: list[bytes]) -> dict[bytes, bytes]:
        """Return what `encode_short` gives, for those words where this is the faster way."""


class PairMerges(dict[str, str]):
    """Merges of pairs of ids, as a trainer finds them."""

    def __init__(self, merges: Mapping[Pair, int]) -> None:
        super().__init__((chr(a) + chr(b), chr(idx)) for (a, b), idx in merges.items())

    def __missing__(self, pair: str) -> str:
        return NEVER

    def letters(self, word: bytes) -> str:
        """Return bytes as the ids 0..255, which Latin-1 does."""
        return word.decode("latin-1")

    def is_token(self, word: bytes) -> bool:  # noqa: ARG002
        """Return False: only its merges make a token."""
        return False

    def encode_short(self, word: bytes) -> bytes:
        """Merge the lowest pair, again and again, and look up the two pairs this makes."""
        ids, get = word.decode("latin-1"), self.get
        tokens = list(ids)
        wants = [get(pair, NEVER) for pair in map(add, ids, ids[1:])]
        while wants and (new := min(wants)) != NEVER:
            i = wants.index(new)
            tokens[i] = new
            del tokens[i + 1], wants[i]
            if i < len(wants):
                wants[i] = get(new + tokens[i + 1], NEVER)
            if i:
                wants[i - 1] = get(tokens[i - 1] + new, NEVER)
        return to_bytes("".join(tokens))

    def encode_many(self, words: list[bytes]) -> dict[bytes, bytes]:  # noqa: ARG002
        """Return nothing: what a tokenizer has been trained on is known already."""
        return {}


class RankMerges(dict[str, str]):
    """Merges by ranks: two tokens merge when their bytes together are a token, as in tiktoken.

    Pairs that are looked up as such are remembered.
    """

    def __init__(self, ranks: Mapping[bytes, int], vocab: Mapping[int, bytes]) -> None:
        super().__init__()
        self._ranks = ranks
        self._vocab = vocab
        self._letters = "".join(chr(ranks[bytes([byte])]) for byte in range(256))
        self._lockstep = Lockstep(ranks)

    def __missing__(self, pair: str) -> str:
        rank = self._ranks.get(self._vocab[ord(pair[0])] + self._vocab[ord(pair[1])])
        if len(self) >= MAX_PAIRS:
            self.clear()
        self[pair] = new = NEVER if rank is None else chr(rank)
        return new

    def letters(self, word: bytes) -> str:
        """Return bytes as the ids of the single-byte tokens, which come in any order."""
        return codecs.charmap_decode(word, "strict", self._letters)[0]

    def is_token(self, word: bytes) -> bool:
        """Tell whether a word is a token; tiktoken looks for it before it merges."""
        return word in self._ranks

    def encode_short(self, word: bytes) -> bytes:
        """Merge likewise, on the bytes: a token is a slice of the word, and a pair a longer one."""
        get = self._ranks.get
        if (whole := get(word)) is not None:
            return whole.to_bytes(4, BYTE_ORDER)
        starts = list(range(len(word) + 1))
        wants = [get(word[i : i + 2], NO_RANK) for i in range(len(word) - 1)]
        while wants and (rank := min(wants)) != NO_RANK:
            i = wants.index(rank)
            del starts[i + 1], wants[i]
            if i < len(wants):
                wants[i] = get(word[starts[i] : starts[i + 2]], NO_RANK)
            if i:
                wants[i - 1] = get(word[starts[i - 1] : starts[i + 1]], NO_RANK)
        return array("I", [self._ranks[word[i:j]] for i, j in pairwise(starts)]).tobytes()

    def encode_many(self, words: list[bytes]) -> dict[bytes, bytes]:
        """Return the ids of tokens and, if they are many, of short words, merged together."""
        pairs = zip(words, map(self._ranks.get, words), strict=True)
        known = {word: rank.to_bytes(4, BYTE_ORDER) for word, rank in pairs if rank is not None}
        short = [word for word in words if word not in known and fits(word)]
        if len(short) >= MANY and self._lockstep.sound:
            known.update(zip(short, self._lockstep.encode(short), strict=True))
        return known


class _Cache(dict[str, bytes]):
    """A bounded cache in two generations: a full one grows old, and what is used again stays."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.bytes = 0
        self.old: dict[str, bytes] = {}

    def keep(self, text: str, ids: bytes) -> None:
        """Remember the ids of a word or piece, unless it is long."""
        if len(text) <= SHORT:
            if self.is_full():
                self.turn()
            self.bytes += getsizeof(text) + getsizeof(ids) + ENTRY_BYTES
            self[text] = ids

    def keep_all(self, items: Mapping[str, bytes]) -> None:
        """Remember those for which there is room."""
        self.bytes += sum(map(getsizeof, items)) + sum(map(getsizeof, items.values()))
        self.bytes += ENTRY_BYTES * len(items)
        self.update(items)

    def is_full(self) -> bool:
        """Tell whether a new generation is to begin."""
        return len(self) >= self.limit or self.bytes >= CACHE_BYTES

    def turn(self) -> None:
        """Begin a new generation."""
        self.old = dict(self)
        self.clear()
        self.bytes = 0


class WordCache(_Cache):
    """Maps a pre-token to its ids, as the bytes of an array of uint32."""

    def __init__(self, merges: Merges, limit: int = CACHE_SIZE) -> None:
        super().__init__(limit)
        self._merges = merges

    def __missing__(self, word: str) -> bytes:
        ids = self.old.get(word)
        if ids is None:
            ids = self.encode_word(word)
        self.keep(word, ids)
        return ids

    def encode_words(self, words: list[str]) -> list[bytes]:
        """Return the ids of pre-tokens, of which many may be new; not all are kept."""
        data = list(map(str.encode, words))
        known = self._merges.encode_many(data)
        return [known.get(key) or self[word] for key, word in zip(data, words, strict=True)]

    def encode_word(self, word: str) -> bytes:
        """Return the ids of one pre-token."""
        data = word.encode("utf-8")
        if len(data) <= SHORT or self._merges.is_token(data):
            return self._merges.encode_short(data)
        return to_bytes(merge_long(self._merges.letters(data), self._merges.__getitem__))

    def learn(self, words: Mapping[str, str]) -> None:
        """Take over encoded words, such as the trainer's, as far as there is room for them.

        Their ids are characters, and must be those that `encode_word` would give.
        """
        if len(words) <= self.limit - len(self):
            for word, ids in words.items():
                if self.bytes < CACHE_BYTES:
                    self.keep(word, to_bytes(ids))


class PieceCache(_Cache):
    """Maps a piece of `cut_at_spaces` to its ids, as the bytes of an array of uint32.

    A piece stands for one with a space before it. The first of a text, which has no space before
    it, comes marked by one: a marked piece is no other, as no piece but the first begins with a
    space.
    """

    def __init__(self, words: WordCache, splitter: Splitter, limit: int = CACHE_SIZE) -> None:
        super().__init__(limit)
        self._words = words
        self._split = splitter.split_small

    def __missing__(self, piece: str) -> bytes:
        ids = self.old.get(piece)
        if ids is None:
            text = piece[1:] if piece[:1] == " " else " " + piece
            if piece.isascii() and piece.isalpha() and piece[1:].islower():
                ids = self._words[text]  # such a word is one pre-token by all patterns
            else:
                ids = b"".join(map(self._words.__getitem__, self._split(text)))
        self.keep(piece, ids)
        return ids

    def learn(self, blocks: list[list[str]]) -> None:
        """Encode the new pieces in blocks all at once, as far as there is room for them.

        A piece that begins with a visible character may be cut from what is before its space (see
        `CUT`), so joined by spaces they split as each by itself.
        """
        new = [
            piece
            for piece in set[str]().union(*blocks)
            if piece not in self and piece not in self.old
            if 0 < len(piece) <= SHORT and not piece[0].isspace()
        ]
        if len(new) > self.limit - len(self) or self.is_full():
            self.turn()
            new = new[: self.limit]
        plain = [piece for piece in new if piece.isascii()]
        self._learn(plain)  # by themselves, as they split faster
        if len(plain) < len(new):
            self._learn([piece for piece in new if not piece.isascii()])

    def _learn(self, pieces: list[str]) -> None:
        words = self._split("".join([" " + piece for piece in pieces]))
        distinct = list(dict.fromkeys(words))
        known = dict(zip(distinct, self._words.encode_words(distinct), strict=True))
        ids = list(map(known.__getitem__, words))
        # Where a piece ends in the text, a word ends, and so do its ids.
        word_ends, ids_ends = np.cumsum(_sizes(words)), np.cumsum(_sizes(ids))
        last_words = np.searchsorted(word_ends, np.cumsum(_sizes(pieces) + 1))
        ends = ids_ends[last_words].tolist()
        data = b"".join(ids)
        parts = [data[i:j] for i, j in pairwise([0, *ends])]
        self.keep_all(dict(zip(pieces, parts, strict=True)))


def _sizes(values: Sequence[str] | Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, values), np.int64, len(values))


class Encoder:
    """Text to ids, by words and, where the pattern is known, by pieces; see this module's head."""

    def __init__(self, merges: Merges, splitter: Splitter | None) -> None:
        self.words = WordCache(merges)
        self._splitter = splitter
        self.pieces = PieceCache(self.words, splitter) if splitter and splitter.known else None

    def encode(self, text: str) -> bytes:
        """Return the ids of a text (no lone surrogates) as the bytes of an array of uint32."""
        if self.pieces is None:
            if self._splitter is None:
                return self.words[text]
            return b"".join(map(self.words.__getitem__, self._splitter.split(text)))
        if len(text) > BLOCK:
            return _encode_blocks(text, self.pieces)
        pieces = cut_at_spaces(text)
        pieces[0] = " " + pieces[0]
        return b"".join(map(self.pieces.__getitem__, pieces))


def _encode_blocks(text: str, known: PieceCache) -> bytes:
    """Encode a long text in blocks that stay in the processor's cache."""
    parts = []
    blocks = _cut_blocks(text)
    for block in blocks:
        size = len(known)
        parts.append(b"".join(map(known.__getitem__, block)))
        if (len(known) - size) * NEWS > len(block):
            section = list(islice(blocks, SECTION))
            known.learn(section)
            parts += [b"".join(map(known.__getitem__, block)) for block in section]
    return b"".join(parts)


def _cut_blocks(text: str) -> Iterator[list[str]]:
    """Yield the pieces of a long text, some hundred at a time, with the first one marked."""
    mark, start = " ", 0
    while True:
        found = CUT.search(text, start + BLOCK)
        pieces = cut_at_spaces(text[start : found.start()] if found else text[start:])
        pieces[0] = mark + pieces[0]
        yield pieces
        if not found:
            return
        mark, start = "", found.end()


def merge_long(ids: str, of: Callable[[str], str]) -> str:
    """Merge a long word: all places of the lowest pair at once, as long as that merges much.

    That is right as long as no pair it makes comes before it, and no token can be made of two
    pairs; for merges that a training found both are always so. Where one is not, or little is
    merged, `_merge_places` goes on.
    """
    pair_of: dict[str, str] = {}
    waiting: list[str] = []
    fresh, before, new = set(map(add, ids, ids[1:])), ids, ""
    patience = PATIENCE
    while True:
        wanted = [(of(pair), pair) for pair in fresh]
        if any(later < new for later, _ in wanted):
            return _merge_places(before, of)  # the last merge did too many places
        if not patience:
            break
        for later, pair in wanted:
            if later == NEVER or pair_of.get(later) == pair:
                continue
            if later in pair_of:
                return _merge_places(ids, of)
            pair_of[later] = pair
            heappush(waiting, later)
        if not waiting:
            return ids
        new = heappop(waiting)
        pair = pair_of[new]
        if of(new + pair[0]) < new:
            break  # of two places in a row, the first would see the second unmerged
        before, parts = ids, ids.split(pair)
        ids, fresh = new.join(parts), _pairs_around(new, parts)
        if (len(parts) - 1) * FRUITFUL < len(ids):
            patience -= 1
    return _merge_places(ids, of)


def _pairs_around(new: str, parts: list[str]) -> set[str]:
    """Return the pairs that hold the token `new`, which stands between the parts."""
    pairs = {part[-1] + new for part in parts[:-1] if part}
    pairs |= {new + part[0] for part in parts[1:] if part}
    if "" in parts[1:-1]:
        pairs.add(new + new)
    return pairs


def _merge_places(ids: str, of: Callable[[str], str]) -> str:
    """Merge with a linked list of tokens and, for each new token, a heap of places that want it."""
    size = len(ids)
    token, following, before = list(ids), list(range(1, size + 1)), list(range(-1, size - 1))
    wants = [*map(of, map(add, ids, ids[1:])), NEVER]
    places: dict[str, list[int]] = {}
    for i, new in enumerate(wants):
        places.setdefault(new, []).append(i)  # an ascending list is a heap
    waiting = list(places)
    heapify(waiting)
    while (new := waiting[0]) != NEVER:  # which waits for ever, as the last place wants nothing
        if not places[new]:
            del places[heappop(waiting)]
            continue
        i = heappop(places[new])
        if wants[i] != new:
            continue  # changed since it was listed
        j = following[i]
        following[i] = k = following[j]
        token[i], token[j], wants[i], wants[j] = new, "", NEVER, NEVER
        touched = []
        if k < size:
            before[k] = i
            touched.append((i, of(new + token[k])))
        h = before[i]
        if h >= 0:
            touched.append((h, of(token[h] + new)))
        for place, later in touched:
            wants[place] = later
            if later == NEVER:
                continue
            if later not in places:
                places[later] = []
                heappush(waiting, later)
            heappush(places[later], place)
    return "".join(token)

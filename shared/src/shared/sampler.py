"""Which example comes when: a pure function of (seed, draw number), so resuming needs no state.

Training reads one endless list of draws. Draw d belongs to epoch d // n, and within an epoch each
of the n examples comes once, in an order that only the seed and the epoch decide. No order is
stored: a keyed permutation gives the example at any place at once, for a data set of any size.

    draw      0 1 2 3 4 | 5 6 7 8 9 | 10 ...        n = 5
    epoch     0 0 0 0 0 | 1 1 1 1 1 | 2  ...
    example   3 0 4 1 2 | 1 4 0 2 3 | 0  ...

Step s with a global batch of G examples takes draws s * G to s * G + G - 1, however those are
divided among processes and micro-batches (`first_draw`). So neither resuming nor another number
of processes repeats or skips an example.

References: M. Luby and C. Rackoff, "How to construct pseudorandom permutations from pseudorandom
functions", 1988 (Feistel networks); J. Black and P. Rogaway, "Ciphers with arbitrary finite
domains", 2002 (cycle walking; Feistel networks on Z_a x Z_b); J. Patarin, "Generic attacks on
Feistel schemes", 2001 (how many rounds).
"""

import math
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from shared.errors import UsageError

IntArray: TypeAlias = npt.NDArray[np.int64]
_Words: TypeAlias = npt.NDArray[np.uint64]
Batch = TypeVar("Batch")

MAX_DRAWS = 2**53  # one a microsecond for 285 years; leaves room for 64-bit arithmetic below
_BLOCK = 4096  # draws computed together: 32 KiB per array, and numpy's call overhead spread thin
# Telling k rounds from true randomness takes about n**((k - 4) / 2) looks (Patarin, 2001): with
# 8 rounds n**2 draws, which is n epochs. Small n get true shuffles instead, from a sort.
_ROUNDS = 8
_WORD = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step: 2**64 over the golden ratio, odd
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # see _scramble
_U27, _U30, _U31, _U32 = (np.uint64(bits) for bits in (27, 30, 31, 32))


class Examples(Protocol[Batch]):
    """What a package hands the trainer as data: numbered examples, and how to batch them."""

    def __len__(self) -> int:
        """Count the examples of one epoch."""
        ...

    def batch(self, indices: IntArray, epochs: IntArray) -> Batch:
        """Build the batch of examples `indices` (n,) as they look in `epochs` (n,), on the CPU."""
        ...

    def weight(self, batch: Batch) -> float:
        """Return how much this batch's mean loss counts in an evaluation (say, its targets)."""
        ...


def first_draw(
    step: int, micro: int, rank: int, *, batch_size: int, grad_accum_steps: int, world_size: int
) -> int:
    """Return the first of the `batch_size` draws that one forward pass takes.

    `step` counts optimizer updates from 0, `micro` the micro-batches of a step, `rank` the
    processes. The passes of a step cover its global batch without gap or overlap:

    >>> [first_draw(1, m, r, batch_size=4, grad_accum_steps=2, world_size=2)
    ...  for m in (0, 1) for r in (0, 1)]
    [16, 20, 24, 28]
    """
    return ((step * grad_accum_steps + micro) * world_size + rank) * batch_size


class Sampler:
    """The order of examples: draw number -> (example, epoch); holds no state but a cache.

    `n_samples` is the number of examples in an epoch, from 1 to 2**53; `seed` from 0 to
    2**64 - 1. With `shuffle=False` every epoch runs 0, 1, ..., n_samples - 1. Calls may come in
    any order and from any thread; going forward is fast.

    Raises `UsageError` for a size or seed out of range.
    """

    def __init__(self, n_samples: int, seed: int, shuffle: bool = True) -> None:
        if not 1 <= n_samples <= MAX_DRAWS:
            raise UsageError(f"n_samples={n_samples} must be from 1 to 2**53")
        if not 0 <= seed <= _WORD:
            raise UsageError(f"seed={seed} must be from 0 to 2**64 - 1")
        self.n_samples = n_samples
        self.seed = seed
        self.shuffle = shuffle
        empty = np.zeros(0, dtype=np.int64)
        self._cache = (-1, empty, empty)  # (block number, indices, epochs), replaced as one

    def draw(self, first: int, count: int) -> tuple[IntArray, IntArray]:
        """Return (indices, epochs), both (count,) int64, of draws first ... first + count - 1.

        The arrays are read-only, as they may be views of a cache. Raises `UsageError` for a
        negative number or a draw beyond 2**53.
        """
        if first < 0 or count < 0 or first + count > MAX_DRAWS:
            raise UsageError(f"draws {first} + {count} must lie between 0 and 2**53")
        block, start = divmod(first, _BLOCK)
        stop = start + count
        if stop <= _BLOCK:
            indices, epochs = self._block(block)
            return indices[start:stop], epochs[start:stop]
        parts = [self._block(b) for b in range(block, (first + count - 1) // _BLOCK + 1)]
        indices, epochs = (np.concatenate(side)[start:stop] for side in zip(*parts, strict=True))
        indices.flags.writeable = epochs.flags.writeable = False
        return indices, epochs

    def _block(self, block: int) -> tuple[IntArray, IntArray]:
        """Return the draws of one block, from the cache when it was the last one asked for."""
        cached, indices, epochs = self._cache
        if cached == block:
            return indices, epochs
        draws = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
        n = np.uint64(self.n_samples)
        epoch = draws // n
        place = draws - epoch * n
        if self.shuffle and self.n_samples <= _BLOCK:
            place = _sorted_orders(place, epoch, self.seed, self.n_samples)
        elif self.shuffle:
            place = _permute(place, epoch_keys(self.seed, epoch), self.n_samples)
        indices, epochs = place.astype(np.int64), epoch.astype(np.int64)
        indices.flags.writeable = epochs.flags.writeable = False
        self._cache = (block, indices, epochs)
        return indices, epochs


def epoch_keys(seed: int, epochs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a random-looking 64-bit word for each (seed, epoch); (n,) uint64 to (n,) uint64.

    This is the stream of SplitMix64 (Steele et al., 2014) that starts at the scrambled seed.
    """
    start = _scramble(np.array([seed], dtype=np.uint64))
    return _scramble(start + (epochs + np.uint64(1)) * _GOLDEN)


def _sorted_orders(places: _Words, epochs: _Words, seed: int, n: int) -> _Words:
    """Order a small epoch by a random word for each example: every order is equally likely."""
    first = epochs[0]
    rows = np.arange(first, epochs[-1] + np.uint64(1), dtype=np.uint64)
    keys = epoch_keys(seed, rows)[:, None]
    words = _scramble(keys + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)  # (rows, n)
    orders = np.argsort(words, axis=1).astype(np.uint64)  # one epoch's words are all different
    chosen: _Words = orders[epochs - first, places]
    return chosen


def _permute(places: _Words, keys: _Words, n: int) -> _Words:
    """Send each place in [0, n) to its example in [0, n), one to one for each key.

    The network permutes [0, a * b), a little more than [0, n). Whoever lands outside walks on
    along the cycle until back inside; two walkers of one key can't meet, as the network is one
    to one.
    """
    a = math.isqrt(n - 1) + 1
    a += a % 2  # with a and b both odd, only even permutations could come out
    b = -(-n // a)
    out = _feistel(places, keys, a, b)
    outside = np.flatnonzero(out >= n)
    while len(outside):
        out[outside] = _feistel(out[outside], keys[outside], a, b)
        outside = outside[out[outside] >= n]
    return out


def _feistel(x: _Words, keys: _Words, a: int, b: int) -> _Words:
    """Permute [0, a * b): write x as (left, right) in Z_a x Z_b and turn each by the other."""
    A, B = np.uint64(a), np.uint64(b)
    left = x // B
    right = x - left * B
    for r in range(_ROUNDS):
        salt = np.uint64((r * 0xD1B54A32D192ED03) & _WORD)
        if r % 2 == 0:
            left = _turn(left, right, keys ^ salt, A)
        else:
            right = _turn(right, left, keys ^ salt, B)
    return left * B + right


def _turn(half: _Words, other: _Words, keys: _Words, modulus: np.uint64) -> _Words:
    """Return (half + F(other, keys)) mod modulus, for half < modulus < 2**32."""
    noise = _scramble(other * _GOLDEN + keys)
    noise >>= _U32
    noise *= modulus  # scales the noise from [0, 2**32)
    noise >>= _U32  # to [0, modulus)
    noise += half
    # Below 2 * modulus: subtract it once where that is possible; elsewhere it wraps to a huge word.
    turned: _Words = np.minimum(noise, noise - modulus)
    return turned


def _scramble(x: _Words) -> _Words:
    """Mix the bits of each word one to one, in place (Stafford's variant 13 of MurmurHash3)."""
    x ^= x >> _U30
    x *= _MIX1
    x ^= x >> _U27
    x *= _MIX2
    x ^= x >> _U31
    return x

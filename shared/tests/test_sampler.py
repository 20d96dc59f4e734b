"""The order of examples: complete, random-looking, and the same however it is asked for."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UsageError
from shared.sampler import MAX_DRAWS, IntArray, Sampler, epoch_keys, first_draw

sizes = st.one_of(st.integers(1, 40), st.integers(4000, 4200), st.integers(1, 10**12))
seeds = st.integers(0, 2**64 - 1)
draws = st.one_of(st.integers(0, 20_000), st.integers(0, MAX_DRAWS - 20_000))


def one_epoch(sampler: Sampler, epoch: int) -> IntArray:
    return sampler.draw(epoch * sampler.n_samples, sampler.n_samples)[0]


def chi_squared(counts: IntArray) -> float:
    """How many standard deviations the counts are less even than chance allows."""
    expected = counts.sum() / counts.size
    df = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - df) / math.sqrt(2 * df))


@given(n=st.one_of(st.integers(1, 300), st.integers(4090, 12_000)), seed=seeds, epoch=draws)
@settings(deadline=None, max_examples=60)
def test_each_epoch_visits_each_example_once(n: int, seed: int, epoch: int) -> None:
    """The draws of any one epoch are a permutation of 0 ... n - 1."""
    epoch %= MAX_DRAWS // n
    indices, epochs = Sampler(n, seed).draw(epoch * n, n)
    assert np.array_equal(np.sort(indices), np.arange(n))
    assert (epochs == epoch).all()


@given(n=sizes, seed=seeds, first=draws, counts=st.lists(st.integers(0, 5000), max_size=4))
@settings(deadline=None, max_examples=60)
def test_draws_are_the_same_however_they_are_divided(
    n: int, seed: int, first: int, counts: list[int]
) -> None:
    """One long draw equals its pieces, asked of a fresh sampler from the last to the first."""
    whole = Sampler(n, seed).draw(first, sum(counts))
    pieces = Sampler(n, seed)
    starts = [first + sum(counts[:i]) for i in range(len(counts))]
    for start, count in reversed(list(zip(starts, counts, strict=True))):
        for side, piece in zip(whole, pieces.draw(start, count), strict=True):
            assert np.array_equal(piece, side[start - first : start - first + count])


@given(n=sizes, seed=seeds, first=draws, count=st.integers(0, 300), shuffle=st.booleans())
@settings(deadline=None)
def test_examples_and_epochs_are_in_range(
    n: int, seed: int, first: int, count: int, shuffle: bool
) -> None:
    """Draw d belongs to epoch d // n and gives an example in [0, n), as int64."""
    indices, epochs = Sampler(n, seed, shuffle).draw(first, count)
    assert indices.shape == epochs.shape == (count,)
    assert indices.dtype == epochs.dtype == np.int64
    assert ((indices >= 0) & (indices < n)).all()
    assert epochs.tolist() == [d // n for d in range(first, first + count)]


@given(
    n=sizes,
    seed=seeds,
    step=st.integers(0, 1000),
    split=st.sampled_from([(24, 1, 1), (1, 24, 1), (1, 1, 24), (4, 3, 2), (2, 3, 4), (6, 2, 2)]),
)
@settings(deadline=None)
def test_case_31_any_world_size_and_accumulation_sees_the_same_examples(
    n: int, seed: int, step: int, split: tuple[int, int, int]
) -> None:
    """A step's global batch of 24 is the same however it is divided, and follows the last one."""
    batch_size, grad_accum_steps, world_size = split
    seen: list[tuple[int, int]] = []
    for rank in reversed(range(world_size)):
        sampler = Sampler(n, seed)  # each process has its own
        for micro in range(grad_accum_steps):
            first = first_draw(
                step,
                micro,
                rank,
                batch_size=batch_size,
                grad_accum_steps=grad_accum_steps,
                world_size=world_size,
            )
            seen += zip(*(side.tolist() for side in sampler.draw(first, batch_size)), strict=True)
    whole = Sampler(n, seed).draw(step * 24, 24)
    assert Counter(seen) == Counter(zip(*(side.tolist() for side in whole), strict=True))


def test_first_draw_gives_micro_batch_then_rank() -> None:
    """Micro-batch m of rank r starts at s * G + (m * world_size + r) * batch_size."""
    first = first_draw(5, 1, 1, batch_size=4, grad_accum_steps=3, world_size=2)
    assert first == 5 * (4 * 3 * 2) + (1 * 2 + 1) * 4


def test_without_shuffling_the_order_is_counting() -> None:
    """Every epoch runs 0, 1, ..., n - 1."""
    indices, epochs = Sampler(3, seed=1, shuffle=False).draw(1, 7)
    assert indices.tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert epochs.tolist() == [0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("n", [30, 5000, 10**12])
def test_other_seeds_give_other_orders(n: int) -> None:
    """A hundred seeds, neighbours among them, give a hundred orders; the same seed gives one."""
    orders = {tuple(Sampler(n, seed).draw(0, 20)[0].tolist()) for seed in range(100)}
    assert len(orders) == 100
    assert Sampler(n, 7).draw(0, 20)[0].tolist() == Sampler(n, 7).draw(0, 20)[0].tolist()


def test_the_order_never_changes_between_versions() -> None:
    """Golden values: another order would make old checkpoints resume on other examples."""
    assert Sampler(10, seed=1).draw(0, 10)[0].tolist() == [7, 4, 9, 0, 2, 8, 3, 5, 6, 1]
    assert Sampler(10**6, seed=1).draw(10**6 - 2, 4)[0].tolist() == [265252, 913932, 140126, 213282]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_small_epoch_are_equally_likely(n: int) -> None:
    """Over 40,000 epochs each of the n! orders comes equally often."""
    orders = Sampler(n, seed=7).draw(0, 40_000 * n)[0].reshape(-1, n)
    codes = (orders * n ** np.arange(n)).sum(axis=1)
    _, counts = np.unique(codes, return_counts=True)
    assert counts.size == math.factorial(n)
    assert chi_squared(counts) < 4


@pytest.mark.parametrize("n", [50, 5000, 5003, 10**6 + 3, 10**12])
def test_the_first_example_is_uniform_over_seeds(n: int) -> None:
    """The examples that 3,000 seeds begin with fall evenly into ten bins."""
    firsts = np.array([Sampler(n, seed).draw(0, 1)[0][0] for seed in range(3000)])
    assert chi_squared(np.bincount(firsts * 10 // n, minlength=10)) < 4


@pytest.mark.parametrize("n", [4096, 5000, 5041, 65_536, 100_003])
def test_an_epoch_has_no_visible_structure(n: int) -> None:
    """Place against example, neighbours, and the same place one epoch later are all independent."""
    sampler = Sampler(n, seed=3)
    orders = [one_epoch(sampler, epoch) for epoch in range(400_000 // n + 1)]
    places = np.arange(n)

    def independent(x: IntArray, y: IntArray) -> bool:
        bins = 16
        cells = np.bincount((x * bins // n) * bins + y * bins // n, minlength=bins**2)
        return chi_squared(cells) < 4

    assert independent(np.tile(places, len(orders)), np.concatenate(orders))
    assert independent(
        np.concatenate([order[:-1] for order in orders]),
        np.concatenate([order[1:] for order in orders]),
    )
    assert independent(np.concatenate(orders[:-1]), np.concatenate(orders[1:]))
    steps = np.concatenate([(order[1:] - order[:-1]) % n for order in orders])
    assert chi_squared(np.bincount(steps * 16 // n, minlength=16)) < 4


@pytest.mark.parametrize("n", [100, 5000])
def test_fixed_points_are_as_rare_as_in_a_true_shuffle(n: int) -> None:
    """A random permutation leaves one example in its place on average, for any n."""
    epochs = 400
    fixed = sum(int((one_epoch(Sampler(n, 5), e) == np.arange(n)).sum()) for e in range(epochs))
    assert abs(fixed - epochs) < 5 * math.sqrt(epochs)


def test_even_and_odd_orders_are_equally_common() -> None:
    """A Feistel network on two odd sides gives even permutations only; ours must not."""
    n, epochs = 71 * 71, 60  # the smallest sides whose product is large and that are both odd

    def is_odd(order: list[int]) -> bool:
        seen, cycles = [False] * n, 0
        for start in range(n):
            cycles += not seen[start]
            while not seen[start]:
                seen[start], start = True, order[start]
        return (n - cycles) % 2 == 1

    odd = sum(is_odd(one_epoch(Sampler(n, 11), epoch).tolist()) for epoch in range(epochs))
    assert abs(odd - epochs / 2) < 4 * math.sqrt(epochs) / 2


def test_epoch_keys_do_not_overlap_between_seeds() -> None:
    """Neighbouring seeds and epochs share no key: seed s at epoch e + 1 is not s + 1 at e."""
    keys = [epoch_keys(seed, np.arange(1000, dtype=np.uint64)) for seed in range(100)]
    assert len(np.unique(np.concatenate(keys))) == 100_000


def test_what_is_drawn_cannot_be_changed() -> None:
    """The arrays may be views of a cache, so writing to them is refused."""
    for count in (5, 5000):
        for side in Sampler(10, seed=1).draw(0, count):
            with pytest.raises(ValueError, match="read-only"):
                side[0] = 1


@pytest.mark.parametrize(
    ("n", "seed", "message"),
    [
        (0, 1, r"n_samples=0 must be from 1 to 2\*\*53"),
        (2**53 + 1, 1, "n_samples=9007199254740993"),
        (5, -1, "seed=-1 must be from 0"),
        (5, 2**64, "seed=18446744073709551616"),
    ],
)
def test_a_size_or_seed_out_of_range_is_refused(n: int, seed: int, message: str) -> None:
    """The message names the value and the rule."""
    with pytest.raises(UsageError, match=message):
        Sampler(n, seed)


@pytest.mark.parametrize(("first", "count"), [(-1, 5), (0, -1), (2**53 - 2, 3)])
def test_draws_out_of_range_are_refused(first: int, count: int) -> None:
    """Numbers below 0 or beyond 2**53 have no draw."""
    with pytest.raises(UsageError, match="must lie between 0 and"):
        Sampler(5, seed=1).draw(first, count)


def test_the_last_draws_and_the_largest_epoch_exist() -> None:
    """Both limits can be reached."""
    sampler = Sampler(MAX_DRAWS, seed=1)
    indices, epochs = sampler.draw(MAX_DRAWS - 3, 3)
    assert len(set(indices.tolist())) == 3
    assert epochs.tolist() == [0, 0, 0]
    assert Sampler(1, seed=1).draw(MAX_DRAWS - 1, 1)[1].tolist() == [MAX_DRAWS - 1]

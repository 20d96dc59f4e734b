"""Which steps may update the weights."""

import math
import random

from shared.health import Health, Verdict


def train(health: Health, losses: list[float]) -> list[Verdict]:
    return [health.judge(loss, 1.0, spike_sigma=6.0) for loss in losses]


def noise(n: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [2.0 + rng.gauss(0, 0.1) for _ in range(n)]


def test_ordinary_noise_is_never_skipped() -> None:
    """Ten thousand Gaussian losses around a falling mean pass."""
    rng = random.Random(1)
    losses = [1 + 3 * math.exp(-i / 500) + rng.gauss(0, 0.05) for i in range(10_000)]
    health = Health()
    assert set(train(health, losses)) == {Verdict.UPDATE}
    assert health.skipped == 0


def test_a_spike_is_skipped_and_a_lasting_change_becomes_normal() -> None:
    """One loss ten deviations up is skipped; when losses stay there, updates go on."""
    health = Health()
    train(health, noise(200))
    assert train(health, [3.0]) == [Verdict.SPIKE]
    assert train(health, [2.0]) == [Verdict.UPDATE]
    verdicts = train(health, [loss + 1.5 for loss in noise(30)])
    assert verdicts[0] is Verdict.SPIKE
    assert set(verdicts[5:]) == {Verdict.UPDATE}


def test_nothing_is_a_spike_before_enough_was_seen_or_when_switched_off() -> None:
    """The first fifty losses pass whatever they are; so does everything at 0 sigma."""
    assert train(Health(), [1.0, 1.1, 50.0]) == [Verdict.UPDATE] * 3
    health = Health()
    train(health, noise(100))
    assert health.judge(99.0, 1.0, spike_sigma=0) is Verdict.UPDATE


def test_falling_suddenly_is_no_spike() -> None:
    """Only losses above the mean are suspicious."""
    health = Health()
    train(health, noise(100))
    assert train(health, [0.1]) == [Verdict.UPDATE]


def test_non_finite_numbers_are_counted_in_a_row_and_leave_the_mean_alone() -> None:
    """A nan or infinite loss or norm is skipped; a finite step ends the row."""
    health = Health()
    train(health, noise(100))
    mean = health.mean
    assert health.judge(math.nan, 1.0, 6.0) is Verdict.NON_FINITE
    assert health.judge(2.0, math.inf, 6.0) is Verdict.NON_FINITE
    assert (health.non_finite_in_a_row, health.skipped, health.mean) == (2, 2, mean)
    train(health, [2.0])
    assert health.non_finite_in_a_row == 0

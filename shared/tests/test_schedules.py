"""Schedules are pure functions of the step."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.schedules import ScheduleName, make_schedule

NAMES: tuple[ScheduleName, ...] = ("cosine", "wsd", "linear", "inverse_sqrt", "constant")


@given(
    name=st.sampled_from(NAMES),
    max_steps=st.integers(1, 500),
    warmup=st.integers(0, 600),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_a_schedule_rises_once_and_then_never_rises_again(
    name: ScheduleName, max_steps: int, warmup: int, final: float, decay: float
) -> None:
    """Factors stay within [0, 1], rise during warmup and fall or stay after it."""
    schedule = make_schedule(
        name,
        max_steps=max_steps,
        warmup_steps=warmup,
        final_fraction=final,
        decay_fraction=decay,
    )
    factors = [schedule(step) for step in range(max_steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    # The paper counts updates from 1 and peaks at number `warmup`, the others one later.
    top = max(0, warmup - 1) if name == "inverse_sqrt" else warmup
    assert factors[: top + 1] == sorted(factors[: top + 1])
    rest = factors[top:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(rest))


def test_cosine_passes_through_the_points_of_its_formula() -> None:
    """Half-way down a cosine to 0.1 is the mean of 1 and 0.1; the end is 0.1."""
    cosine = make_schedule("cosine", max_steps=110, warmup_steps=10, final_fraction=0.1)
    assert cosine(10) == 1.0
    assert cosine(60) == pytest.approx(0.55)
    assert cosine(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert cosine(110) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay() -> None:
    """Warmup, a plateau at one, and a straight line over the last fifth."""
    wsd = make_schedule("wsd", max_steps=100, warmup_steps=4, decay_fraction=0.2)
    assert [wsd(step) for step in (0, 1, 3)] == pytest.approx([0.2, 0.4, 0.8])
    assert {wsd(step) for step in range(4, 81)} == {1.0}
    assert [wsd(step) for step in (85, 90, 100)] == pytest.approx([0.75, 0.5, 0.0])


def test_linear_and_constant_do_what_they_say() -> None:
    """Linear halves at half the run; constant never moves."""
    linear = make_schedule("linear", max_steps=10)
    constant = make_schedule("constant", max_steps=10)
    assert linear(5) == 0.5
    assert [constant(step) for step in (0, 9, 99)] == [1.0, 1.0, 1.0]


def test_inverse_sqrt_is_equation_3_of_the_paper() -> None:
    """With the peak (d_model * warmup)**-0.5 it is the rate of Vaswani et al. (2017), sec. 5.3."""
    d_model, warmup = 512, 4000
    schedule = make_schedule("inverse_sqrt", max_steps=100_000, warmup_steps=warmup)
    learning_rate = (d_model * warmup) ** -0.5
    for update in (1, 2, 1000, 3999, 4000, 4001, 16_000, 100_000):
        paper = d_model**-0.5 * min(update**-0.5, update * warmup**-1.5)
        assert learning_rate * schedule(update - 1) == pytest.approx(paper, rel=1e-12)
    assert schedule(warmup - 1) == 1.0
    assert schedule(4 * warmup - 1) == 0.5
    assert make_schedule("inverse_sqrt", max_steps=9)(3) == 0.5

"""Drawing from scores: frequencies, greedy, the k likeliest, the nucleus, and what is refused."""

import math
from typing import Any

import pytest
import torch

from shared.errors import NumericalError
from shared.sampling import check_sampling, sample

DRAWS = 20_000
SCORES = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def shares(**settings: Any) -> list[float]:
    """Return how often each id was drawn."""
    generator = torch.Generator().manual_seed(0)
    drawn = sample(SCORES.expand(DRAWS, -1), generator=generator, **settings)
    return [float(share) for share in drawn.bincount(minlength=4) / DRAWS]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        # 0.5 is not 0.7 yet, so the second is drawn as well; the third comes after 0.8.
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        # Squared and divided by their sum, 0.365.
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
        # The k likeliest first: of 0.625 and 0.375 the first is enough for 0.6.
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 0, 0]),
    ],
)
def test_ids_come_as_often_as_they_are_likely(
    settings: dict[str, Any], expected: list[float]
) -> None:
    """Twenty thousand draws, within four standard errors at most."""
    assert shares(**settings) == pytest.approx(expected, abs=0.014)
    never = [i for i, share in enumerate(expected) if share == 0]
    assert all(shares(**settings)[i] == 0 for i in never)


def test_temperature_0_takes_the_likeliest_and_a_tiny_one_does_too() -> None:
    """Neither underflows nor overflows, whatever the scores' size."""
    scores = torch.tensor([[1.0, 3.0, 2.0], [1e30, 0.0, -1e30]])
    for temperature in (0.0, 1e-30, 5e-324):
        assert sample(scores, temperature=temperature).tolist() == [1, 0]


def test_what_has_no_probability_is_never_drawn() -> None:
    """A score of -inf, in a row with others."""
    scores = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]).expand(1000, -1)
    assert set(sample(scores).tolist()) == {1, 3}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_not_numbers_are_refused(bad: float, temperature: float) -> None:
    """In any row, greedy or not; so is a row that leaves nothing to draw."""
    scores = torch.zeros(3, 4)
    scores[1, 2] = bad
    with pytest.raises(NumericalError, match="not finite; its weights are broken"):
        sample(scores, temperature=temperature)
    with pytest.raises(NumericalError, match="not finite"):
        sample(torch.full((1, 4), -math.inf), temperature=temperature)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((-1.0,), "temperature=-1.0 must be 0 or more"),
        ((math.nan,), "temperature=nan must be 0 or more"),
        ((math.inf,), "temperature=inf must be 0 or more"),
        ((1.0, 0), "top_k=0 must be at least 1"),
        ((1.0, None, 0.0), "top_p=0.0 must be above 0"),
        ((1.0, None, 1.5), "top_p=1.5 must be above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be_sampled_with_are_refused(
    settings: tuple[float, ...], said: str
) -> None:
    """With the value and the rule."""
    with pytest.raises(ValueError, match=said):
        check_sampling(*settings)  # type: ignore[arg-type]
    check_sampling(0.0, 1, 1.0)

"""The toy problems: what they look like, that a seed repeats them, and mistakes."""

import math

import pytest

from micrograd import data
from micrograd.errors import UsageError


@pytest.mark.parametrize("name", data.PROBLEMS)
def test_points_are_in_the_plane_and_classes_take_turns(name: str) -> None:
    """N points [x, y], near the origin; each class as often as any other, or once more."""
    points, labels = data.make(name, 100)
    n_classes = data.PROBLEMS[name].n_classes
    assert [len(p) for p in points] == [2] * 100
    assert labels == [k % n_classes for k in range(100)]
    assert all(math.hypot(x, y) < 3.0 for x, y in points)
    assert len({tuple(p) for p in points}) == 100


@pytest.mark.parametrize("name", data.PROBLEMS)
def test_a_seed_repeats_and_another_differs(name: str) -> None:
    """To the bit, and each problem has its own points."""
    assert data.make(name, 20, 3) == data.make(name, 20, 3)
    assert data.make(name, 20, 3) != data.make(name, 20, 4)


def test_without_noise_the_shapes_are_exact() -> None:
    """Moons are half circles of radius 1, circles have radii 1 and 0.5, blobs are three points."""
    for (x, y), label in zip(*data.make("moons", 50, noise=0.0), strict=True):
        centre = (1.0, 0.5) if label else (0.0, 0.0)
        assert math.dist((x, y), centre) == pytest.approx(1.0)
        assert (y <= 0.5) if label else (y >= 0.0)
    for point, label in zip(*data.make("circles", 50, noise=0.0), strict=True):
        assert math.hypot(*point) == pytest.approx(0.5 if label else 1.0)
    for (x, y), label in zip(*data.make("xor", 50), strict=True):
        assert (x * y > 0) == (label == 0)
    for (x, y), label in zip(*data.make("spiral", 50, noise=0.0), strict=True):
        t = math.hypot(x, y)
        turned = math.atan2(y, x) - 3.0 * math.pi * t - math.pi * label
        assert math.cos(turned) == pytest.approx(1.0)
    points, labels = data.make("blobs", 50, noise=0.0)
    assert {tuple(p) for p in points[3:]} == {tuple(p) for p in points[:3]}
    assert labels[:3] == [0, 1, 2]
    for k in range(3):
        assert math.dist(points[k], points[k - 1]) == pytest.approx(math.sqrt(3.0))


def test_noise_has_the_deviation_asked_for() -> None:
    """Around the three points of the blobs, by default their 0.3."""
    for noise, expected in ((None, 0.3), (0.05, 0.05)):
        points, labels = data.make("blobs", 3000, noise=noise)
        clean, _ = data.make("blobs", 3000, noise=0.0)
        off = [a - b for p, q in zip(points, clean, strict=True) for a, b in zip(p, q, strict=True)]
        assert math.sqrt(sum(d * d for d in off) / len(off)) == pytest.approx(expected, rel=0.05)
        assert len(labels) == 3000


@pytest.mark.parametrize(
    ("name", "n", "noise", "message"),
    [
        ("moon", 10, None, "data='moon' must be one of moons, circles, xor, spiral, blobs"),
        ("moons", 1, None, "samples=1 must be at least 2"),
        ("moons", 10, -0.1, "noise=-0.1 must be at least 0"),
        ("moons", 10, math.nan, "noise=nan must be"),
        ("moons", 10, math.inf, "noise=inf must be"),
    ],
)
def test_mistakes_name_value_and_rule(name: str, n: int, noise: float | None, message: str) -> None:
    """Before any point is made."""
    with pytest.raises(UsageError, match=message):
        data.make(name, n, noise=noise)

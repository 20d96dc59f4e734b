"""Toy problems in the plane: points as lists [x, y] and their classes as 0, 1 (, 2).

Made by Python's own generator from a seed, so that a seed gives the same points everywhere.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from micrograd.errors import UsageError

Points = list[list[float]]


@dataclass(frozen=True)
class Problem:
    """A cloud of points and what trains well on it."""

    draw: Callable[[random.Random, int], tuple[float, float]]
    """Maps a class to a point of it, without noise."""
    noise: float
    """Standard deviation of the noise, in the unit of the axes."""
    n_classes: int = 2
    steps: int = 400
    """Steps on all points that solve it with the defaults of `train`."""


def _moon(rng: random.Random, label: int) -> tuple[float, float]:
    t = rng.uniform(0.0, math.pi)
    x, y = math.cos(t), math.sin(t)
    return (1.0 - x, 0.5 - y) if label else (x, y)


def _circle(rng: random.Random, label: int) -> tuple[float, float]:
    t, radius = rng.uniform(0.0, math.tau), 0.5 if label else 1.0
    return radius * math.cos(t), radius * math.sin(t)


def _xor(rng: random.Random, label: int) -> tuple[float, float]:
    x, y = rng.uniform(-1.0, 1.0), rng.uniform(0.0, 1.0)
    return x, y if (x > 0.0) != bool(label) else -y


def _spiral(rng: random.Random, label: int) -> tuple[float, float]:
    t = rng.uniform(0.1, 1.0)  # along the arm; both start near the middle
    angle = 1.5 * math.tau * t + math.pi * label
    return t * math.cos(angle), t * math.sin(angle)


def _blob(_: random.Random, label: int) -> tuple[float, float]:
    angle = math.tau * label / 3.0
    return math.cos(angle), math.sin(angle)


PROBLEMS = {
    "moons": Problem(_moon, noise=0.1),
    "circles": Problem(_circle, noise=0.06),
    "xor": Problem(_xor, noise=0.0),
    "spiral": Problem(_spiral, noise=0.015, steps=1500),
    "blobs": Problem(_blob, noise=0.3, n_classes=3),
}
"""`moons` and `circles` have the shapes of scikit-learn's data sets of these names."""


def make(name: str, n: int, seed: int = 0, noise: float | None = None) -> tuple[Points, list[int]]:
    """Return `n` points of problem `name` and their classes, which take turns.

    `noise` is the standard deviation of each coordinate's error, by default the problem's own.
    Raises UsageError for an unknown name, fewer than 2 points, or negative noise.
    """
    if name not in PROBLEMS:
        raise UsageError(f"data={name!r} must be one of {', '.join(PROBLEMS)}")
    if n < 2:
        raise UsageError(f"samples={n} must be at least 2, one for each class")
    problem, rng = PROBLEMS[name], random.Random(f"{name} {seed}")
    spread = problem.noise if noise is None else noise
    if not 0.0 <= spread < math.inf:
        raise UsageError(f"noise={spread} must be at least 0")
    labels = [k % problem.n_classes for k in range(n)]
    points = [[c + rng.gauss(0.0, spread) for c in problem.draw(rng, y)] for y in labels]
    return points, labels

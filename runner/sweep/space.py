"""From a space to its trials: which values each of them tries. Pure, and the same every time."""

from __future__ import annotations

import math
import random
from itertools import product

from runner.sweep.config import MOST_TRIALS, Distribution, Scalar, Space

Values = dict[str, Scalar]
DIGITS = 6  # of a drawn number: a learning rate with 17 digits can't be read
DRAWS = 50  # for each trial: after so many repetitions a small space is used up


def trials(space: Space) -> list[Values]:
    """The values of each trial, in order. A longer list of the same space begins with the shorter one.

    Raises ValueError where a grid has more than MOST_TRIALS points.
    """
    if space.grid is not None:
        count = math.prod(len(values) for values in space.grid.values())
        if count > MOST_TRIALS:
            raise ValueError(f"the grid has {count} points; at most {MOST_TRIALS} are run")
        return [dict(zip(space.grid, point, strict=True)) for point in product(*space.grid.values())]
    if space.rows is not None:
        return [dict(row) for row in space.rows]
    return _drawn(space.random or {}, space.trials or 0, space.seed)


def _drawn(space: dict[str, Distribution], count: int, seed: int) -> list[Values]:
    """``count`` trials that differ, or fewer where the space has no more."""
    found: list[Values] = []
    number = 0
    while len(found) < count and number < count * DRAWS:
        # A generator for each value: another key in the file leaves the values of the others as they are.
        values = {
            key: draw(distribution, random.Random(f"{seed}/{number}/{key}"))
            for key, distribution in space.items()
        }
        number += 1
        if values not in found:
            found.append(values)
    return found


def draw(distribution: Distribution, generator: random.Random) -> Scalar:
    """One value."""
    if distribution.uniform is not None:
        low, high = distribution.uniform
        return float(f"{generator.uniform(low, high):.{DIGITS}g}")
    if distribution.loguniform is not None:
        low, high = (math.log(bound) for bound in distribution.loguniform)
        return float(f"{math.exp(generator.uniform(low, high)):.{DIGITS}g}")
    if distribution.ints is not None:
        return generator.randint(*distribution.ints)
    return generator.choice(distribution.choice or [None])

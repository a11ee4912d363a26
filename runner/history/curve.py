"""A curve of any length in bounded memory: neighbours are joined when there are too many of them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Axis = Literal["step", "tokens", "time"]
AXES: tuple[Axis, ...] = ("step", "tokens", "time")

# More points than a screen or a page has columns to show; between half of it and all of it are kept.
MOST_POINTS = 2048


class Point(NamedTuple):
    """``weight`` neighbours: where the last of them is, the mean of their values and how far they spread."""

    step: float
    tokens: float
    seconds: float  # in training steps, since the run's first
    value: float
    low: float
    high: float
    weight: int = 1

    def at(self, axis: Axis) -> float:
        """Its place on the x axis."""
        return self.seconds if axis == "time" else self.tokens if axis == "tokens" else self.step


class Curve:
    """Points in the order of their steps. Up to MOST_POINTS of them are kept as they are."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.width = 1  # neighbours that a full point holds

    def add(self, step: float, tokens: float, seconds: float, value: float) -> None:
        """One value. What is no finite number is left out."""
        if not math.isfinite(value):
            return
        last = self.points[-1] if self.points else None
        new = Point(step, tokens, seconds, value, value, value)
        if last is not None and last.weight < self.width:
            self.points[-1] = joined(last, new)
            return
        if len(self.points) >= MOST_POINTS:
            self.points = thinned(self.points, MOST_POINTS // 2)
            self.width *= 2
        self.points.append(new)

    def copy(self) -> Curve:
        """As it is now."""
        other = Curve()
        other.points, other.width = list(self.points), self.width
        return other

    def __len__(self) -> int:
        return len(self.points)

    def __bool__(self) -> bool:
        return bool(self.points)


def joined(left: Point, right: Point) -> Point:
    """Two neighbours as one."""
    weight = left.weight + right.weight
    value = (left.value * left.weight + right.value * right.weight) / weight
    low, high = min(left.low, right.low), max(left.high, right.high)
    return Point(right.step, right.tokens, right.seconds, value, low, high, weight)


def thinned(points: list[Point], most: int) -> list[Point]:
    """At most ``most`` points, each the mean of as many neighbours."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    return [_joined_all(points[i : i + size]) for i in range(0, len(points), size)]


def _joined_all(points: list[Point]) -> Point:
    whole = points[0]
    for point in points[1:]:
        whole = joined(whole, point)
    return whole

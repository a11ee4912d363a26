"""A run's numbers: the lines of metrics.jsonl as curves, and the newest of each.

Lines come in the order of their steps. Nothing is believed of them: one that is cut, or whose numbers are none, is
passed over. An experiment logs what it likes: each of its numbers is a curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

# What a line of the trainer may hold and is drawn; a device that does not measure one leaves it out.
KNOWN = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "gpu_use",
    "val_loss",
)

NOT_DRAWN = {"kind", "step", "tokens", "eval_tokens"}

NOT_READ = {"checkpoint"}  # kinds of lines

MOST_CURVES = 40


class Metrics:
    """The curves ``loss``, ``lr`` … of training, ``val_loss`` of the evaluations, ``KIND/KEY`` of whatever else was
    logged, and their newest values."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {key: Curve() for key in KNOWN}
        self.newest: dict[str, float] = {}
        self.step = 0
        self.tokens = 0.0
        self.seconds = 0.0  # in training steps: tokens by tokens a second, summed up
        self.tokens_per_step: float | None = None
        self.best: tuple[int, float] | None = None  # step and loss of the lowest validation loss
        self._train_step = 0

    @property
    def others(self) -> list[str]:
        """The curves that only this run has."""
        return [key for key, curve in self.curves.items() if key not in KNOWN and curve]

    def read(self, lines: Iterable[bytes]) -> None:
        """Add the lines of a metrics.jsonl."""
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            step = _number(row.get("step")) if isinstance(row, dict) else None
            if step is None or row.get("kind") in NOT_READ:
                continue
            kind = str(row.get("kind") or "train")
            if kind == "train":
                self._advance(int(step), row)
            self.step = max(self.step, int(step))
            prefix = {"train": "", "val": "val_"}.get(kind, f"{kind}/")
            for key in (key for key in row if key not in NOT_DRAWN):
                self._add(prefix + key, step, row[key])

    def _advance(self, step: int, row: dict[str, Any]) -> None:
        """Tokens and seconds go on with a training step."""
        tokens, speed = _number(row.get("tokens")), _number(row.get("tokens_per_second"))
        if tokens is None or tokens <= self.tokens:
            return
        if step > self._train_step:
            self.tokens_per_step = (tokens - self.tokens) / (step - self._train_step)
        if speed and speed > 0:
            self.seconds += (tokens - self.tokens) / speed
        self.tokens, self._train_step = tokens, step

    def _add(self, key: str, step: float, value: Any) -> None:
        number = _number(value)
        if number is None:
            self.newest.pop(key, None)
            return
        if key not in self.curves:
            if len(self.curves) >= MOST_CURVES:
                return
            self.curves[key] = Curve()
        self.newest[key] = number
        self.curves[key].add(step, self.tokens, self.seconds, number)
        if key == "val_loss" and (self.best is None or number < self.best[1]):
            self.best = (int(step), number)

    def copy(self) -> Metrics:
        """As it is now; what is read later is not in it."""
        other = Metrics()
        other.__dict__.update(self.__dict__)
        other.newest = dict(self.newest)
        other.curves = {key: curve.copy() for key, curve in self.curves.items()}
        return other

    @property
    def step_seconds(self) -> float | None:
        """How long a step takes now; None where that was not measured."""
        speed = self.newest.get("tokens_per_second")
        return (
            self.tokens_per_step / speed if self.tokens_per_step and speed and speed > 0 else None
        )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


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

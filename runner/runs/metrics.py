"""The lines of metrics.jsonl as curves, and the newest value of each.

Lines come in the order of their steps. Damaged lines and values that are not finite numbers are
skipped. Each number that an experiment logs is a curve.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, NamedTuple

# Curves of the trainer; a device that does not measure a value leaves it out.
TRAINER_CURVES = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "memory_bytes",
    "gpu_use",
    "val_loss",
)

# Of each GPU of the machine: shown together, not as curves of their own.
GPU_VALUE = re.compile(r"gpu_(?:use|memory|clock)_\d+")

KEYS_WITHOUT_CURVE = {"kind", "step", "tokens", "eval_tokens"}

SKIPPED_KINDS = {"checkpoint"}

MAX_CURVES = 60

MAX_GPUS = 16  # of one machine

Axis = Literal["step", "tokens", "time"]

# More points than a screen or a page has columns. A long curve keeps between half of them and all.
MAX_POINTS = 2048


class Metrics:
    """Curves: ``loss``, ``lr`` … of training, ``val_loss`` of evaluations, ``KIND/KEY``."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {key: Curve() for key in TRAINER_CURVES}
        self.newest: dict[str, float] = {}
        self.step = 0
        self.tokens = 0.0
        self.seconds = 0.0  # in training steps: the sum of tokens by tokens per second
        self.tokens_per_step: float | None = None
        self.best: tuple[int, float] | None = None  # step and value of the lowest validation loss
        self._train_step = 0

    @property
    def extra_curves(self) -> list[str]:
        """Return the curves that the trainer does not have."""
        return [
            key
            for key, curve in self.curves.items()
            if key not in TRAINER_CURVES and curve and not GPU_VALUE.fullmatch(key)
        ]

    def per_gpu(self, name: str) -> list[float]:
        """Return the newest ``use``, ``memory`` or ``clock`` of each GPU of the machine."""
        values = (self.newest.get(f"gpu_{name}_{gpu}") for gpu in range(MAX_GPUS))
        return [value for value in values if value is not None]

    def read(self, lines: Iterable[bytes]) -> None:
        """Add the lines of a metrics.jsonl."""
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            step = _number(row.get("step")) if isinstance(row, dict) else None
            if step is None or row.get("kind") in SKIPPED_KINDS:
                continue
            kind = str(row.get("kind") or "train")
            if kind == "train":
                self._count_step(int(step), row)
            self.step = max(self.step, int(step))
            prefix = {"train": "", "val": "val_"}.get(kind, f"{kind}/")
            for key in (key for key in row if key not in KEYS_WITHOUT_CURVE):
                self._add(prefix + key, step, row[key])

    def _count_step(self, step: int, row: dict[str, Any]) -> None:
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
            if len(self.curves) >= MAX_CURVES:
                return
            self.curves[key] = Curve()
        self.newest[key] = number
        self.curves[key].add(step, self.tokens, self.seconds, number)
        if key == "val_loss" and (self.best is None or number < self.best[1]):
            self.best = (int(step), number)

    def copy(self) -> Metrics:
        """Return a copy that later lines do not change."""
        other = Metrics()
        other.__dict__.update(self.__dict__)
        other.newest = dict(self.newest)
        other.curves = {key: curve.copy() for key, curve in self.curves.items()}
        return other

    @property
    def step_seconds(self) -> float | None:
        """Return the current duration of a step; None if it was not measured."""
        speed = self.newest.get("tokens_per_second")
        if not self.tokens_per_step or not speed or speed <= 0:
            return None
        return self.tokens_per_step / speed


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class Point(NamedTuple):
    """``weight`` neighboring values: the position of the last, their mean and their range."""

    step: float
    tokens: float
    seconds: float  # in training steps, since the start of the run
    value: float
    low: float
    high: float
    weight: int = 1

    def at(self, axis: Axis) -> float:
        """Return the position on the x axis."""
        return self.seconds if axis == "time" else self.tokens if axis == "tokens" else self.step


@dataclass
class Curve:
    """Points in the order of their steps, downsampled to at most MAX_POINTS."""

    points: list[Point] = field(default_factory=list)
    values_per_point: int = 1

    def add(self, step: float, tokens: float, seconds: float, value: float) -> None:
        """Add one value, which is a finite number."""
        last = self.points[-1] if self.points else None
        new = Point(step, tokens, seconds, value, value, value)
        if last is not None and last.weight < self.values_per_point:
            self.points[-1] = merge_points(last, new)
            return
        if len(self.points) >= MAX_POINTS:
            self.points = downsample(self.points, MAX_POINTS // 2)
            self.values_per_point *= 2
        self.points.append(new)

    def copy(self) -> Curve:
        """Return a copy that later values do not change."""
        return Curve(list(self.points), self.values_per_point)

    def __len__(self) -> int:
        return len(self.points)


def merge_points(first: Point, second: Point) -> Point:
    """Merge two neighbors."""
    weight = first.weight + second.weight
    value = (first.value * first.weight + second.value * second.weight) / weight
    low, high = min(first.low, second.low), max(first.high, second.high)
    return Point(second.step, second.tokens, second.seconds, value, low, high, weight)


def downsample(points: list[Point], max_points: int) -> list[Point]:
    """Return at most ``max_points`` points, each merged from equally many neighbors."""
    if len(points) <= max_points:
        return list(points)
    size = math.ceil(len(points) / max_points)
    return [reduce(merge_points, points[i : i + size]) for i in range(0, len(points), size)]

"""Tests of metrics.jsonl as curves: bounded in size, and robust to damaged lines."""

from __future__ import annotations

import json
import random

import pytest

from runner.runs.metrics import MAX_CURVES, MAX_POINTS, Curve, Metrics, downsample


def train(step: int, **values: object) -> bytes:
    return json.dumps({"kind": "train", "step": step, "tokens": step * 100, **values}).encode()


def val(step: int, loss: float) -> bytes:
    return json.dumps({"kind": "val", "step": step, "loss": loss}).encode()


def test_curves_newest_and_best() -> None:
    metrics = Metrics()
    metrics.read(
        [
            train(1, loss=3.0, tokens_per_second=50.0, mfu=None),
            train(2, loss=2.0, tokens_per_second=25.0),
        ]
    )
    metrics.read([val(1, 2.5), val(2, 2.75)])
    assert [(p.step, p.tokens, p.seconds, p.value) for p in metrics.curves["loss"].points] == [
        (1, 100, 2.0, 3.0),
        (2, 200, 6.0, 2.0),
    ]
    assert metrics.newest == {"loss": 2.0, "tokens_per_second": 25.0, "val_loss": 2.75}
    assert metrics.best == (1, 2.5)
    assert metrics.step_seconds == 4.0
    assert not metrics.curves["mfu"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"kind": "train"}',
        b'{"kind": "train", "step": "7", "loss": 1}',
        b'{"kind": "train", "step": 7, "loss": NaN}',
        b'{"kind": "val", "step": 7, "loss": true}',
        b'{"kind": "val", "step": 7, "loss": 1' + b"0" * 400 + b"}",
        b'{"kind": "checkpoint", "step": 7, "loss": 1}',
    ],
)
def test_invalid_lines_are_skipped(line: bytes) -> None:
    metrics = Metrics()
    metrics.read([line, train(8, loss=1.0)])
    assert [p.value for p in metrics.curves["loss"].points] == [1.0]
    assert not metrics.curves["val_loss"]


def test_a_copy_stays_the_same() -> None:
    metrics = Metrics()
    metrics.read([train(1, loss=3.0)])
    before = metrics.copy()
    metrics.read([train(2, loss=2.0), val(2, 1.0)])
    assert (len(before.curves["loss"]), before.newest["loss"], before.best) == (1, 3.0, None)


def test_a_long_curve_keeps_its_mean_and_its_ends() -> None:
    curve, values = Curve(), [random.Random(7).random() for _ in range(100_000)]
    for step, value in enumerate(values, 1):
        curve.add(step, step * 10, step / 2, value)
        assert len(curve) <= MAX_POINTS
    assert len(curve) > MAX_POINTS / 2 - 1
    points = curve.points
    assert sum(p.weight for p in points) == len(values)
    assert sum(p.value * p.weight for p in points) == pytest.approx(sum(values))
    assert (min(p.low for p in points), max(p.high for p in points)) == (min(values), max(values))
    assert (points[-1].step, points[-1].tokens, points[-1].seconds) == (100_000, 1_000_000, 50_000)
    assert len(downsample(points, 100)) <= 100


def test_other_kinds_of_lines_are_curves_too() -> None:
    metrics = Metrics()
    rows = [{"kind": "train", "step": i, "reward": i / 10} for i in range(5)]
    rows += [{"kind": "test", "step": 4, "accuracy": 0.9, "note": "text"}]
    metrics.read([json.dumps(row).encode() for row in rows])
    assert metrics.extra_curves == ["reward", "test/accuracy"]
    assert metrics.newest == {"reward": 0.4, "test/accuracy": 0.9}
    assert (metrics.step, metrics.step_seconds) == (4, None)
    metrics.read(
        [json.dumps({"kind": "train", "step": 5, **{f"k{i}": i for i in range(1000)}}).encode()]
    )
    assert len(metrics.curves) <= MAX_CURVES

"""bench/crash_test.py at a tenth of its size: runs survive, and it detects each difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.crash_test import CrashTest, differences
from bench.kill_points import RUN
from job.paths import VolumePaths


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    outcome = CrashTest(tmp_path, seed=1).kill(10)  # its first points are in the preparation
    assert outcome.kills == 10
    assert outcome.differences == []
    assert len(outcome.states) >= 3  # the kills hit several states

    # One bit of the weights, one step's loss, and a step logged twice: each is a difference.
    one, other = tmp_path / "twin_plain", tmp_path / "twin_again_plain"
    run = VolumePaths.under(other).run(RUN)
    weights = run / "step_00000060" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace('"loss": ', '"loss": 1')
    metrics.write_text("".join([*lines, lines[1]]))
    found = differences(one, other)
    assert len(found) == 3
    assert "model.safetensors" in found[0]
    assert found[1].startswith("step train 000001")
    assert found[2].startswith("step train 000002")

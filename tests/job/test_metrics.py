"""What is read of metrics.jsonl, whatever a kill or an editor made of it."""

from __future__ import annotations

from pathlib import Path

from job.metrics import read_metrics


def test_only_whole_lines_of_ours_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        'null\n3\n{"loss": 1}\n{"kind": "val", "step": 2, "loss": 1.5}\n\n{"kind": "train", "st'
    )
    assert read_metrics(path) == [{"kind": "val", "step": 2, "loss": 1.5}]
    assert read_metrics(tmp_path / "none") == []

"""bench/transfer_faults.py at a twenty-fifth of its size."""

from __future__ import annotations

from pathlib import Path

from bench.transfer_faults import TransferTest


def test_forty_faults_corrupt_no_file_and_every_failure_is_reported(tmp_path: Path) -> None:
    result = TransferTest(tmp_path, size=40_000_000, files=200, faults=40, seed=3, wait=False).run()
    assert result.corrupt == []
    assert result.unnamed == []
    assert result.ended_incomplete >= 1
    assert result.unchanged_transfers == 0
    assert sum(result.faults_fired.values()) + sum(result.kills.values()) >= 36
    assert sum(result.kills.values()) >= 3

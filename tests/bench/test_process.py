"""Measured processes that hang or fail are killed and become results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.results import Results, RunFailed
from bench.setup import run_until
from tests.bench.conftest import read_results


def test_a_process_that_hangs_or_fails_is_killed_and_reported(tmp_path: Path) -> None:
    log = tmp_path / "baseline.log"
    hang = "import time; print('here', flush=True); time.sleep(600)"
    with pytest.raises(RunFailed, match="still running after"):
        run_until([sys.executable, "-c", hang], tmp_path, {}, log, 1.0)
    results = Results(tmp_path / "out.jsonl")
    fail = "raise SystemExit('out of memory')"
    with results.record_failure(trainer="baseline"):
        run_until([sys.executable, "-c", fail], tmp_path, {}, log, 60.0)
    (failed,) = read_results(tmp_path / "out.jsonl")
    assert (failed["what"], failed["trainer"]) == ("failed", "baseline")
    assert "exit status 1" in failed["why"]
    assert "out of memory" in failed["why"]

"""A short run of every harness; their docstrings have the commands for long ones."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, /proc and LD_PRELOAD of Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the disk faults")
def test_a_short_run_of_every_harness_finds_no_fault() -> None:
    # In a separate process: the harnesses fork, and pytest may have threads.
    command = [sys.executable, "-m", "tests.harness"]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr

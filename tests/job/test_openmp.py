"""OpenMP's threads spin only briefly, because training shares the cores with other processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from job import GOMP_SPINCOUNT
from tests.conftest import CHECKOUT

PRINT_SPIN_COUNT = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python without a spin count in its environment, unless ``variables`` has one."""
    environ = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environ |= {"PYTHONPATH": str(CHECKOUT), **variables}
    return subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("package", ["model", "corpus.prepare", "experiment.run", "runner.cli"])
def test_every_entry_point_sets_the_spin_count(package: str) -> None:
    assert run("-c", f"import {package}; {PRINT_SPIN_COUNT}").stdout.split() == [GOMP_SPINCOUNT]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_setting_of_the_user_wins(variables: dict[str, str], expected: str) -> None:
    assert run("-c", f"import job; {PRINT_SPIN_COUNT}", **variables).stdout.split() == [expected]


def test_a_user_command_inherits_it(tmp_path: Path) -> None:
    words = [
        "--name",
        "mine",
        "--folder",
        str(tmp_path),
        "--",
        sys.executable,
        "-c",
        PRINT_SPIN_COUNT,
    ]
    done = run(
        "-P", "-m", "job.user_command.supervisor", *words, CHECKPOINTS_PATH=str(tmp_path / "runs")
    )
    assert GOMP_SPINCOUNT in done.stdout.split()


def test_the_trainers_openmp_library_reads_it() -> None:
    shown = run("-c", "import model.attempt", OMP_DISPLAY_ENV="verbose").stderr
    assert re.search(rf"GOMP_SPINCOUNT = '{GOMP_SPINCOUNT}'", shown)

"""Plans that can't end well say so, and those that can't begin are refused, without Modal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runner.cli import main
from runner.console import CliContext
from runner.format import dollars

ROOT = Path(__file__).resolve().parents[3]


def plan(line: str, home: Path) -> Result:
    """``runner LINE --dry-run`` with the recipes of this checkout, without a Modal token."""
    cli = CliContext(
        environ={"PATH": os.environ["PATH"], "HOME": str(home)}, cwd=ROOT, terminal=False
    )
    return CliRunner().invoke(main, [*line.split(), "--dry-run"], obj=cli)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "cloud gpt2_124m --gpu T4 --max-cost 5",
            "the cap pays for 0.59 % of it, $5.00 of about $844.19",
        ),
        ("cloud gpt2_124m --gpu T4", "its time ends after 2.4 % of it, 24 h of about 41.7 d"),
        ("cloud --max-cost 0.0001", "the cap pays for 0.07 % of it, $0.0001 of about $0.14"),
        ("cloud --timeout 1s", "its time ends after 0.82 % of it, 1 s of about"),
    ],
)
def test_a_cap_or_a_time_that_does_not_suffice_is_warned_of(
    line: str, words: str, tmp_path: Path
) -> None:
    planned = plan(line, tmp_path)
    assert planned.exit_code == 0, planned.stderr
    assert "warning" in planned.stderr
    assert words in " ".join(planned.stderr.split())


def test_what_suffices_has_no_warning(tmp_path: Path) -> None:
    assert "warning" not in plan("cloud --max-cost 1", tmp_path).stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "cloud gpt2_1558m --gpu T4",
            "not even one sequence fits on a T4: it takes about 34 of 16 GB",
        ),
        ("cloud gpt2_1558m --gpu H100,T4", "not even one sequence fits on a T4"),
        ("cloud --device mps", "--device mps is a Mac's own GPU, which cloud does not see"),
    ],
)
def test_what_can_not_begin_is_refused(line: str, words: str, tmp_path: Path) -> None:
    refused = plan(line, tmp_path)
    assert refused.exit_code == 2, refused.stderr
    assert words in refused.stderr


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0, "$0.00"), (0.0001, "$0.0001"), (0.00416, "$0.0042"), (0.01, "$0.01"), (25, "$25.00")],
)
def test_small_dollars_are_not_rounded_away(amount: float, text: str) -> None:
    assert dollars(amount) == text

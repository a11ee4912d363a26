"""The progress of a transfer: a line every ten seconds, or a bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from runner.console import CliContext
from runner.transfer.progress import Progress, count
from tests.runner.transfer.conftest import Cloud, random_bytes


def test_without_a_terminal_a_line_is_printed_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    time = [0.0]
    progress = Progress(CliContext(terminal=False), "pulling", 2000, 10**9, now=lambda: time[0])
    with progress:
        for second in range(25):
            time[0] = float(second)
            progress.advance(10**7)
            progress.file_done()
    assert capsys.readouterr().err.splitlines() == [
        "pulling 10 of 2,000 files, 110.0 MB of 1.0 GB, 11.0 MB/s",
        "pulling 20 of 2,000 files, 210.0 MB of 1.0 GB, 10.5 MB/s",
    ]


def test_terminal_shows_a_bar_on_stderr(
    cli: CliContext, invoke: Callable[[str], Result], cloud: Cloud, local: Path
) -> None:
    cli.terminal = True
    cloud.put("data", "a.bin", random_bytes(100_000))
    result = invoke("runner pull data")
    assert result.exit_code == 0
    assert "pulling" in result.stderr
    assert result.stdout == ""


def test_count_uses_singular_and_plural() -> None:
    assert [count(1, "file"), count(2000, "file")] == ["1 file", "2,000 files"]

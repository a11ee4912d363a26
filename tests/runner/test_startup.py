"""The command line starts fast, and lists its commands without importing them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest

from runner.cli import COMMANDS, first_line
from tests.runner.conftest import ROOT

NAMES = sorted(path.stem for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))

HELP = """
import sys
sys.argv = ["runner", *{words!r}]
from runner.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "modal", "numpy", "pydantic", "rich", "yaml", "requests"}} & set(sys.modules)
sys.exit(f"imported {{sorted(heavy)}}" if heavy else 0)
"""


@pytest.mark.parametrize("words", [["--help"], ["local", "--help"], ["host", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(words=words)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: runner" in done.stdout


def test_help_takes_less_than_100_ms() -> None:
    def seconds() -> float:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return usage.ru_utime + usage.ru_stime  # CPU time: independent of other programs

    assert min(seconds() for _ in range(10)) < 0.100


def test_estimate_imports_neither_torch_nor_modal() -> None:
    words = ["estimate", "shakespeare_char", "--json"]
    code = HELP.format(words=words).replace('"pydantic", "rich", "yaml", ', "")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["gpus"]
    assert [row["gpu"] for row in rows if row["cheapest"]] == [rows[0]["gpu"]]
    assert {"tokens_per_second", "seconds", "usd", "usd_per_billion_tokens", "fit"} <= rows[
        0
    ].keys()


@pytest.mark.parametrize("name", NAMES)
def test_listed_text_is_that_of_the_command(name: str) -> None:
    command = import_module(f"runner.commands.{name}").command
    assert command.help.splitlines()[0] == first_line(COMMANDS / f"{name}.py")


def test_every_command_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "runner.md").read_text()
    assert [name for name in NAMES if f"runner {name}" not in page] == []


def test_version_is_printed(type_) -> None:
    assert type_("runner --version").stdout.startswith("runner ")


def test_unknown_command_gets_a_suggestion(type_) -> None:
    result = type_("runner locl")
    assert result.exit_code == 2
    assert "did you mean 'local'?" in result.stderr

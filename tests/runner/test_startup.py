"""The command line starts fast, and lists its commands without importing them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from runner.cli import COMMANDS, MODULES, main
from tests.runner.conftest import ROOT

ROOT_CONTEXT = click.Context(main)
NAMES = main.list_commands(ROOT_CONTEXT)

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


def test_help_takes_little_longer_than_importing_click() -> None:
    """At most 1.6 times as long; measured: 1.1 to 1.35. Other programs slow both down."""

    def seconds(*args: str) -> float:
        command = [sys.executable, *args]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        assert status == 0
        return usage.ru_utime + usage.ru_stime

    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    pairs = [(seconds("-m", "runner", "--help"), seconds("-c", "import click")) for _ in range(20)]
    ours, click = map(min, zip(*pairs, strict=True))
    assert ours < 1.6 * click


def test_a_command_exits_without_a_last_garbage_collection() -> None:
    code = "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects())))\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "from runner.cli import main; main(['--help'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0")


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


def test_launch_on_modal_imports_nothing_heavy_before_the_client() -> None:
    code = (
        "import sys, runner.launch.execute, runner.targets.modal.target\n"
        "print(*{'modal', 'pydantic', 'rich', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_no_garbage_is_collected_while_modules_load() -> None:
    code = (
        "import gc; from runner.cli import main\n"
        "main(['--version'], standalone_mode=False)\n"
        "before = [stats['collections'] for stats in gc.get_stats()]\n"
        "import modal, job.recipe\n"
        "assert [stats['collections'] for stats in gc.get_stats()] == before"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_listed_text_is_the_one_of_the_command(name: str) -> None:
    command = main.get_command(ROOT_CONTEXT, name)
    assert command.name == name
    assert command.help.splitlines()[0] == COMMANDS[MODULES[name]][name]


def test_every_command_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "runner.md").read_text()
    assert [name for name in NAMES if f"runner {name}" not in page] == []


def test_version_is_printed(type_) -> None:
    assert type_("runner --version").stdout.startswith("runner ")


def test_no_arguments_show_the_help(type_) -> None:
    shown = type_("runner")
    assert (shown.exit_code, shown.stdout) == (0, type_("runner --help").stdout)


def test_unknown_command_gets_a_suggestion(type_) -> None:
    result = type_("runner locl")
    assert result.exit_code == 2
    assert "did you mean 'local'?" in result.stderr

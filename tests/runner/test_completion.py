"""Shell completion: the suggestions, the scripts, and the imported modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runner.conftest import ROOT

Offer = Callable[..., list[str]]


@pytest.fixture
def offer(checkout: Path) -> Offer:
    """Return ``offer("host", "wa")``, which returns bash's completions of ``runner host wa``."""

    def ask(*words: str, kind: str = "plain") -> list[str]:
        code = (
            "import sys; sys.argv = ['runner']\n"
            "from runner.cli import main\n"
            "try: main()\n"
            "finally:\n"
            "    slow = {'torch', 'modal', 'rich', 'pydantic'} & set(sys.modules)\n"
            "    print(*slow, file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=checkout,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "_RUNNER_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(("runner", *words)),
                "COMP_CWORD": str(len(words)),
            },
            capture_output=True,
            text=True,
        )
        assert done.stderr.strip() == "", "completion loads slow modules"
        lines = [line.split(",", 1) for line in done.stdout.splitlines()]
        assert {found for found, _ in lines} <= {kind}
        return [value for _, value in lines]

    return ask


class TestOffers:
    def test_commands(self, offer: Offer) -> None:
        assert offer("re") == ["remote", "report", "resume"]

    def test_recipes_and_jobs(self, offer: Offer) -> None:
        assert offer("host", "wa") == ["warm"]
        assert offer("host", "sam") == ["sample"]

    def test_runs_of_machine_name(self, offer: Offer, make_run) -> None:
        make_run("lower-lr", step=5)
        for words in (["status", "lo"], ["pull", "checkpoints", "lo"], ["host", "--name", "lo"]):
            assert offer(*words) == ["lower-lr"]

    @pytest.mark.parametrize(
        ("typed", "offered"),
        [
            ("B", ["B200", "B200+", "B300"]),
            ("l4", ["L4", "L40S"]),
            ("H200,L40", ["H200,L40S"]),
            ("A10:", ["A10:1", "A10:2", "A10:4"]),
        ],
    )
    def test_gpus(self, offer: Offer, typed: str, offered: list[str]) -> None:
        assert offer("cloud", "--gpu", typed) == offered

    def test_shell_completes_paths(self, offer: Offer) -> None:
        assert offer("host", "--dir", "../na", kind="dir") == ["../na"]

    def test_no_error_outside_a_checkout(self, offer: Offer, checkout: Path) -> None:
        shutil.rmtree(checkout / "configs")
        assert offer("host", "tra") == ["train"]


class TestScripts:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_each_shell_has_a_script(self, type_, shell: str) -> None:
        result = type_(f"runner completion {shell}")
        assert result.exit_code == 0
        assert f"{shell}_complete" in result.stdout

    def test_unknown_shell_is_a_usage_error(self, type_) -> None:
        assert type_("runner completion tcsh").exit_code == 2

    def test_bash_completes(self, spawn, checkout: Path, tmp_path: Path) -> None:
        script, _ = spawn("completion", "bash").communicate()
        program = tmp_path / "bin" / "runner"
        program.write_text(f"#!{sys.executable}\nfrom runner.cli import main\nmain()\n")
        program.chmod(0o755)
        (tmp_path / "complete.sh").write_text(
            f"{script}\nCOMP_WORDS=(runner host wa)\nCOMP_CWORD=2\n_runner_completion runner\n"
            'echo "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            ["bash", str(tmp_path / "complete.sh")],
            cwd=checkout,
            env={"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout.strip(), done.stderr) == ("warm", "")

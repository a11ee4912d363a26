"""Output is sanitized on a terminal and unchanged in a pipe; every key answers a question."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from runner.console import CliContext
from runner.signals import JobOutput, press_ctrl_c
from tests.runner.conftest import ROOT

ESCAPE_SEQUENCES = "\x1b]0;title\x07\x1b[31mred"

PRINT_ESCAPES = f"""
from rich.table import Table
from runner.console import CliContext
cli = CliContext()
value = {ESCAPE_SEQUENCES!r}
cli.write(value)
cli.info(value)
cli.warn(value)
table = Table(box=None)
table.add_column(value)
table.add_row(value)
cli.print_table(table, data=True)
"""

ASK = """
from runner.console import CliContext
print("answer", CliContext().ask("continue?"))
"""


def on_terminal(code: str, key: str = "", after: str = "[y/N]") -> tuple[str, int]:
    """Run code on a pseudoterminal, press ``key`` at ``after``, return output and status."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    terminal = pexpect.spawn(
        sys.executable, ["-c", code], env=environ, encoding="utf-8", timeout=60
    )
    out = ""
    if key:
        terminal.expect_exact(after)
        out = terminal.before + terminal.after
        terminal.send(key)
    terminal.expect(pexpect.EOF)
    terminal.close()
    return out + terminal.before, terminal.exitstatus


def test_no_escape_sequence_of_a_value_reaches_a_terminal() -> None:
    out, status = on_terminal(PRINT_ESCAPES)
    assert status == 0, out
    assert out.count("·]0;title") == 5
    assert "\x1b]" not in out
    assert "\x1b[31m" not in out


def test_a_pipe_gets_the_data_unchanged() -> None:
    code = f"from runner.console import CliContext; CliContext().write({ESCAPE_SEQUENCES!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{ESCAPE_SEQUENCES}\n"


@pytest.mark.parametrize(
    ("key", "answer"), [("y\n", "True"), ("n\n", "False"), ("\n", "False"), ("\x04", "False")]
)
def test_only_yes_confirms_a_question(key: str, answer: str) -> None:
    out, status = on_terminal(ASK, key)
    assert (status, f"answer {answer}" in out) == (0, True), out


def test_ctrl_c_at_a_question_exits_with_130(checkout: Path) -> None:
    cache = checkout / "volumes" / "cache" / "triton"
    cache.mkdir(parents=True)
    (cache / "kernel").write_text("x")
    code = (
        f"import os; os.chdir({str(checkout)!r})\n"
        "from runner.cli import main; main(['cache', 'clear'])"
    )
    out, status = on_terminal(code, "\x03")
    assert (status, "interrupted" in out) == (130, True), out
    assert cache.exists()
    out, status = on_terminal(code, "\x04")
    assert (status, "nothing was changed" in out) == (103, True), out


class InterruptedOutput(JobOutput):
    """Output of a job, during which signals reach the runner one after the other."""

    def __init__(self, *signals: signal.Signals) -> None:
        super().__init__()
        self.signals = list(signals)

    def state(self, is_interrupted: bool) -> str:
        if self.signals:
            os.kill(os.getpid(), self.signals.pop(0))
        return ""


class TestWaitForEnd:
    def test_sigterm_leaves_the_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        output = InterruptedOutput(signal.SIGTERM)
        stopped: list[signal.Signals] = []
        assert not CliContext(terminal=False).wait_for_end("tiny", output, stopped.append)
        assert output.has_left
        assert not stopped
        assert "the run continues. Follow it with `runner logs tiny" in capsys.readouterr().err

    def test_second_ctrl_c_leaves_a_run_that_stops(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = InterruptedOutput(signal.SIGINT, signal.SIGINT)
        stopped: list[signal.Signals] = []
        assert not CliContext(terminal=False).wait_for_end("tiny", output, stopped.append)
        assert stopped == [signal.SIGINT]
        messages = capsys.readouterr().err
        assert "press Ctrl-C again to detach" in messages
        assert "the run is still stopping" in messages

    def test_ctrl_c_is_pressed_again_only_after_ctrl_c(self) -> None:
        assert press_ctrl_c(signal.SIGINT) == "press Ctrl-C again"
        assert press_ctrl_c(signal.SIGTERM) == "press Ctrl-C"

    def test_ctrl_c_waits_for_the_end(self) -> None:
        output = InterruptedOutput(signal.SIGINT)
        assert CliContext(terminal=False).wait_for_end("tiny", output, lambda _: output.ended.set())

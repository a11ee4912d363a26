"""Output is sanitized on a terminal and unchanged in a pipe; a question has an answer for every key."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runner.conftest import ROOT

EVIL = "\x1b]0;title\x07\x1b[31mred"

SHOW = f"""
from rich.table import Table
from runner.console import CliContext
cli = CliContext()
evil = {EVIL!r}
cli.write(evil)
cli.info(evil)
cli.warn(evil)
table = Table(box=None)
table.add_column(evil)
table.add_row(evil)
cli.print_table(table, data=True)
"""

ASK = """
from runner.console import CliContext
print("answer", CliContext().ask("continue?"))
"""


def on_terminal(code: str, key: bytes = b"", after: bytes = b"[y/N]") -> tuple[str, int]:
    """Run Python code on a pseudoterminal, press ``key`` at ``after``; the output and the status."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code])
    out, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([fd], [], [], 0.2)[0]:
            continue
        try:
            piece = os.read(fd, 4096)
        except OSError:
            break
        if not piece:
            break
        out += piece
        if key and after in out:
            os.write(fd, key)
            key = b""
    return out.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_escape_sequence_of_a_value_reaches_a_terminal() -> None:
    out, status = on_terminal(SHOW)
    assert status == 0, out
    assert out.count("·]0;title") == 5
    assert "\x1b]" not in out
    assert "\x1b[31m" not in out


def test_a_pipe_gets_the_data_unchanged() -> None:
    code = f"from runner.console import CliContext; CliContext().write({EVIL!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{EVIL}\n"


@pytest.mark.parametrize(
    ("key", "answer"), [(b"y\n", "True"), (b"n\n", "False"), (b"\n", "False"), (b"\x04", "False")]
)
def test_a_question_takes_only_yes_for_yes(key: bytes, answer: str) -> None:
    out, status = on_terminal(ASK, key)
    assert (status, f"answer {answer}" in out) == (0, True), out


def test_ctrl_c_at_a_question_exits_with_130(checkout: Path) -> None:
    cache = checkout / "volumes" / "cache" / "triton"
    cache.mkdir(parents=True)
    (cache / "kernel").write_text("x")
    code = f"import os; os.chdir({str(checkout)!r}); from runner.cli import main; main(['cache', 'clear'])"
    out, status = on_terminal(code, b"\x03")
    assert (status, "interrupted" in out) == (130, True), out
    assert cache.exists()
    out, status = on_terminal(code, b"\x04")
    assert (status, "nothing was changed" in out) == (103, True), out

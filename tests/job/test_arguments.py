"""Errors of stdout and stderr do not end a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from job.paths import CHECKOUT

JOB = """
import sys
from argparse import Namespace
from job.arguments import leave, run
from job.exit_status import ExitStatus
def job(arguments):
    for number in range({lines}):
        print(number, flush={flush})
    print({last}, file=sys.stderr)
    open({path}, "w").write("done")
    return ExitStatus.DONE
leave(run(job, Namespace(debug=False)))
"""


def job(
    lines: int = 3, flush: bool = True, last: str = "at the end", path: str = "/dev/null"
) -> list[str]:
    code = JOB.format(lines=lines, flush=flush, last=ascii(last), path=ascii(path))
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("lines", "flush"), [(100_000, False), (3, True), (3, False)])
def test_broken_pipe_of_stdout_is_silent(lines: int, flush: bool) -> None:
    with subprocess.Popen(
        job(lines, flush), cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before it writes: the pipe is broken from the first line on
        assert process.stderr.read() == "at the end\n"
    assert process.returncode == 0


def test_broken_pipe_of_stderr_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with subprocess.Popen(job(path=str(path)), cwd=CHECKOUT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == 0
    assert path.read_text() == "done"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_at_the_start(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "result"
    command = ["bash", "-c", f'exec "$@" {closed}', "-", *job(path=str(path))]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True).returncode == 0
    assert path.read_text() == "done"


def test_full_disk_under_stdout_fails_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            job(path=str(path)), cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: stdout: no space left on device")
    assert path.read_text() == "done"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_encoding_that_lacks_a_character(encoding: str) -> None:
    done = subprocess.run(
        job(last="日"),
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, rb"\u65e5" + b"\n")


def test_exit_searches_no_garbage() -> None:
    """The search takes 0.4 to 0.9 s in a process with torch."""
    code = "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects())))"
    command = job()
    done = subprocess.run(
        [*command[:-1], code + command[-1]], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert (done.returncode, int(done.stdout.split()[-1])) == (0, 0)

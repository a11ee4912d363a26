"""A reader that has had enough ends nothing and is no failure."""

from __future__ import annotations

import subprocess
import sys

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
    print("to its end", file=sys.stderr)
    return ExitStatus.DONE
leave(run(job, Namespace(debug=False)))
"""


@pytest.mark.parametrize(("lines", "flush"), [(100_000, False), (3, True), (3, False)])
def test_the_job_goes_on_to_its_end_without_a_word(lines: int, flush: bool) -> None:
    code = JOB.format(lines=lines, flush=flush)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before it writes: the pipe is broken from the first line on
        assert process.stderr.read() == "to its end\n"
    assert process.returncode == 0

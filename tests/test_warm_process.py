"""A warm process behaves like a new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm_process import ONE_THREAD, WarmProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm processes need Linux")

ENVIRONMENT = {**os.environ, **ONE_THREAD}


def both(code: str, **variables: str) -> list[tuple[int | None, str, str]]:
    """Run the code in a warm and in a new process; return exit status, stdout and stderr."""
    environment = {**ENVIRONMENT, **variables}
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = []
    for process in (WarmProcess(["-c", code], environment), started):
        with process:
            out, err = process.communicate(60)
        found.append((process.returncode, out, err))
    return found


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('out'); import sys; print('err', file=sys.stderr)", 0),
        ("raise SystemExit(101)", 101),
        ("raise SystemExit('said on stderr')", 1),
        ("import os; print('unsaid'); os._exit(3)", 3),  # buffered output is lost
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import atexit; atexit.register(print, 'at its exit'); raise SystemExit(2)", 2),
        ("import threading, time; threading.Timer(0.2, print, ['of a thread']).start()", 0),
        ("import sys; print(sys.argv, __name__, repr(sys.stdin.read()), sys.stdout.isatty())", 0),
        (
            "import signal as s\n"
            "print(*map(s.getsignal, (s.SIGINT, s.SIGTERM, s.SIGCHLD, s.SIGPIPE)))",
            0,
        ),
        ("import os, torch; print(torch.get_num_threads(), os.environ['GIVEN'])", 0),
        (
            "import os; os.write(2, b'x' * 200_000); print('y' * 200_000)",
            0,
        ),  # more than a pipe's buffer
    ],
)
def test_ends_like_a_new_process(code: str, status: int) -> None:
    warm, started = both(code, GIVEN="by the test")
    assert warm == started
    assert warm[0] == status


def test_exception_ends_with_its_message() -> None:
    warm, started = both("def f():\n    raise ValueError('as asked')\nf()")
    assert warm[0] == started[0] == 1
    assert warm[2].splitlines()[-1] == started[2].splitlines()[-1] == "ValueError: as asked"


def test_job_has_only_the_variables_of_its_test() -> None:
    code = (
        "import json, os; print(sorted(os.environ), hasattr(json, 'left'))\n"
        "json.left = os.environ['LEFT'] = '1'"
    )
    for variables in ({"ONE": "1"}, {"TWO": "2"}):
        warm, started = both(code, **variables)
        assert warm == started
        assert {"ONE", "TWO"} & set(eval(warm[1].rpartition(" ")[0])) == variables.keys()


def test_module_runs_once_and_as_main(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "CHECKPOINTS_PATH": str(tmp_path)}
    process = WarmProcess(["-m", "serving.sample", "--name", "none"], environment)
    assert process.communicate(60) == (
        "",
        f"error: no run 'none' in {tmp_path} (no runs yet)\n",
    )


def test_code_without_a_seed_differs_each_time() -> None:
    code = (
        "import random, numpy, torch\n"
        "print(random.random(), numpy.random.rand(), torch.rand(()).item())"
    )
    drawn = [WarmProcess(["-c", code], ENVIRONMENT).communicate(60)[0].split() for _ in range(2)]
    assert len(drawn[0]) == 3
    assert not set(drawn[0]) & set(drawn[1])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signals_reach_only_the_process(number: signal.Signals, status: int) -> None:
    code = (
        "try: print(1, flush=True); __import__('time').sleep(60)\n"
        "except KeyboardInterrupt: raise SystemExit(130)"
    )
    with (
        WarmProcess(["-c", code], ENVIRONMENT) as other,
        WarmProcess(["-c", code], ENVIRONMENT) as process,
    ):
        assert [p.stdout.readline() for p in (process, other)] == ["1\n"] * 2
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.0)
        process.send_signal(number)
        assert process.wait(60) == process.poll() == status
        process.send_signal(number)  # no error after its end
        assert other.poll() is None
        other.kill()

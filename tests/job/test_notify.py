"""Notifications of every ending of a run, to endpoints that are up, slow or down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.notify import VARIABLE, WAIT_S, Notifier, _request_parts, is_valid_url, last_line
from job.paths import CHECKOUT
from job.run_record import RunStatus
from job.run_session import RunSession
from tests.waiting import wait_for
from tests.webhook import Endpoint, down, slow, up


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.answer.set()
    server.shutdown()
    server.server_close()


def refusing(endpoint: Endpoint) -> None:
    endpoint.status = 500


ENDINGS = [
    (RunStatus.FINISHED, "finished", "run 'warm' finished"),
    (RunStatus.FAILED, "out of memory", "run 'warm' failed: out of memory"),
    (
        RunStatus.UNFINISHED,
        "SIGTERM",
        "run 'warm' stopped: SIGTERM; it has a checkpoint to resume from",
    ),
]


@pytest.mark.parametrize("state", [up, slow, refusing, down])
@pytest.mark.parametrize(("status", "reason", "title"), ENDINGS)
def test_each_ending_sends_one_message_and_costs_less_than_a_second(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    endpoint: Endpoint,
    state: Callable[[Endpoint], None],
    status: RunStatus,
    reason: str,
    title: str,
) -> None:
    state(endpoint)
    monkeypatch.setenv(VARIABLE, endpoint.url)
    session = RunSession(tmp_path / "warm", None, "command", [])
    assert VARIABLE not in os.environ  # child processes do not inherit it
    (tmp_path / "warm" / "log.txt").write_text("first\nstep 60/60  loss 2.5\n\n")
    started = time.monotonic()
    session.end(status, reason)
    assert time.monotonic() - started < 1
    if state is not down:
        wait_for(lambda: bool(endpoint.bodies), 10)
        line = "step 60/60  loss 2.5"
        expected = {"text": f"{title}\n{line}", "title": title, "line": line}
        assert endpoint.bodies == [expected]
    err = capsys.readouterr().err
    problem = {refusing: "the endpoint answers 500", down: "Connection refused"}.get(state)
    assert err == (f"the notification was not sent: {problem}\n" if problem else "")
    files = [path.read_text() for path in (tmp_path / "warm").iterdir() if path.is_file()]
    assert not any("t0ken" in text for text in [err, *files])


def test_a_trial_of_a_sweep_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    monkeypatch.setenv(VARIABLE, endpoint.url)
    monkeypatch.setenv("RUN_LAUNCH", json.dumps({"sweep": "lr"}))
    RunSession(tmp_path / "lr-001", None, "command", []).end(RunStatus.FINISHED, "finished")
    monkeypatch.setenv(VARIABLE, endpoint.url)
    message = Notifier("one", tmp_path).send("finished")
    assert message is not None
    assert message.wait() == ""
    assert [body["title"] for body in endpoint.bodies] == ["run 'one' finished"]


RECORDS_END = (
    "import os, sys; from pathlib import Path; from job.run_session import RunSession\n"
    "session = RunSession(Path(os.environ['CHECKPOINTS_PATH']) / 'warm', None, 'command', [])\n"
)
UNREPORTED = {
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": (137, ["was killed by SIGKILL"]),
    "raise SystemExit(3)": (3, ["failed with exit status 3"]),
    "raise SystemExit(101)": (101, ["stopped before it started to train"]),
    "pass": (0, []),
    f"{RECORDS_END}os.kill(os.getpid(), 9)": (137, ["was killed by SIGKILL"]),
    f"{RECORDS_END}session.end('failed', 'full disk'); sys.exit(9)": (9, ["failed: full disk"]),
}


def reporting(tmp_path: Path, url: str | None, code: str) -> subprocess.Popen[str]:
    """Start ``code`` as a job whose end is reported."""
    environ = {**os.environ, "CHECKPOINTS_PATH": str(tmp_path), **({VARIABLE: url} if url else {})}
    command = [sys.executable, "-m", "job.notify", "warm", sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environ, cwd=CHECKOUT, text=True, **pipes)


@pytest.mark.parametrize("state", [up, slow, refusing])
@pytest.mark.parametrize(("code", "expected"), UNREPORTED.items())
def test_an_end_that_the_job_cannot_report_is_reported_once(
    tmp_path: Path,
    endpoint: Endpoint,
    state: Callable[[Endpoint], None],
    code: str,
    expected: tuple[int, list[str]],
) -> None:
    state(endpoint)
    status, titles = expected
    _, err = (process := reporting(tmp_path, endpoint.url, code)).communicate(timeout=60)
    assert process.returncode == status
    assert [body["title"] for body in endpoint.bodies] == [
        f"run 'warm' {title}" for title in titles
    ]
    assert "t0ken" not in err
    process = reporting(tmp_path, None, code)  # without a URL it becomes the command
    process.communicate(timeout=60)
    assert process.returncode == (-9 if status == 137 else status)


def test_a_job_whose_end_is_reported_gets_each_signal_once(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    code = (
        "import signal, time; n = []; signal.signal(signal.SIGTERM, lambda *_: n.append(1))\n"
        "print('ready', flush=True)\nwhile not n: time.sleep(0.01)\n"
        "time.sleep(0.3); raise SystemExit(len(n))"
    )
    with reporting(tmp_path, endpoint.url, code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
    assert process.returncode == 1


def test_each_service_gets_its_own_format(tmp_path: Path) -> None:
    def body(url: str) -> bytes:
        return _request_parts(url, "run a finished", "step 1")[1]

    text = "run a finished\nstep 1"
    assert json.loads(body("https://hooks.slack.com/services/x")) == {"text": text}
    assert json.loads(body("https://discord.com/api/webhooks/x")) == {"content": text}
    _, line, headers = _request_parts("https://ntfy.sh/mine", "run a finished", "step 1")
    assert (line, headers) == (b"step 1", {"Title": "run a finished"})
    assert not any(
        map(is_valid_url, ("", "s3cret", "ftp://a", "https://", "https://[", "https://ü"))
    )
    assert is_valid_url("https://hooks.slack.com/services/x")
    log = tmp_path / "log.txt"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 5000 + b"\nlast \x1b[31mline\xff\r\n  \n")
    assert last_line(log) == "last [31mline\ufffd"
    assert WAIT_S < 1

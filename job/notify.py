"""Messages to Slack, Discord, ntfy or any webhook that takes JSON, at the end of a run.

    python -m job.notify RUN COMMAND [WORD ...]

runs a job and sends the message if the job ends without one: it was killed, or failed before its
record started. Else the job reports its own end (job/run_session.py). Signals are passed on.

The URL is a secret: no plan, record or log contains it. An endpoint that is slow or down delays the
run by less than a second. Standard library only: on Modal the process that watches the job sends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from job.exit_status import ExitStatus
from job.files import read_tail
from job.format import url_problem
from job.paths import VolumePaths
from job.run_record import read_record

VARIABLE = "GPT_RUNNER_NOTIFY"

WAIT_S = 0.8  # of the run for the message; a thread waits longer for the endpoint's answer
ANSWER_TIMEOUT_S = 10.0
TAIL_BYTES, MAX_LINE = 4096, 300
FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


class Message:
    """A message on its way; it is sent once."""

    def __init__(self, url: str, title: str, line: str) -> None:
        self.error = ""
        self._request = _request_parts(url, title, line)
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._send, name="notify", daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """Wait less than a second until it is sent; return the error, without the URL."""
        self._thread.join(max(0.0, self._started + WAIT_S - time.monotonic()))
        return f"the notification was not sent: {self.error}" if self.error else ""

    def _send(self) -> None:
        from urllib.error import HTTPError, URLError
        from urllib.request import Request, urlopen

        url, body, headers = self._request
        try:
            request = Request(url, body, {"User-Agent": "gpt-runner", **headers})
            with urlopen(request, timeout=ANSWER_TIMEOUT_S):
                pass
        except HTTPError as error:
            self.error = f"the endpoint answers {error.code}"
        except URLError as error:  # other errors contain the URL
            reason = error.reason
            self.error = str(getattr(reason, "strerror", None) or type(reason).__name__)
        except Exception as error:
            self.error = type(error).__name__


class Notifier:
    """Sends the messages of one run; none without a URL."""

    def __init__(self, run: str, folder: Path) -> None:
        """Take the URL out of the environment, so that no child process gets it."""
        self.run, self.folder = run, folder
        self._url = os.environ.pop(VARIABLE, "")

    def send(self, event: str) -> Message | None:
        """Send ``event``, such as "finished", with the last line of the run's log."""
        if not self._url:
            return None
        return Message(self._url, f"run '{self.run}' {event}", last_line(self.folder / "log.txt"))

    def silence(self) -> None:
        """Send nothing."""
        self._url = ""


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; '' without one."""
    try:
        lines = read_tail(log, TAIL_BYTES).split("\n")
    except OSError:
        return ""
    shown = ("".join(c for c in line if c.isprintable()).strip() for line in reversed(lines))
    return next((line[:MAX_LINE] for line in shown if line), "")


def is_valid_url(url: str) -> bool:
    """Return True if ``url`` can be sent to."""
    return url.isascii() and not url_problem(url)


def _request_parts(url: str, title: str, line: str) -> tuple[str, bytes, dict[str, str]]:
    """Return the URL, the body and the headers in the service's own format."""
    host, text = urlsplit(url).hostname or "", f"{title}\n{line}".strip()
    if "ntfy" in host:
        return url, (line or title).encode(), {"Title": title.encode("ascii", "replace").decode()}
    if "discord" in host:
        tree = {"content": text}
    elif "slack" in host:
        tree = {"text": text}
    else:
        tree = {"text": text, "title": title, "line": line}
    return url, json.dumps(tree).encode(), {"Content-Type": "application/json"}


def main() -> int:
    """Run the command and return its exit status, 128 + n after signal n."""
    run, *command = sys.argv[1:]
    if VARIABLE not in os.environ:
        os.execvp(command[0], command)
    started, folder = time.time(), VolumePaths.current().run(run)
    code = _run(command)
    if code and not _has_reported(folder, started):
        message = Notifier(run, folder).send(_event(code))
        if message is not None and (problem := message.wait()):
            print(problem, file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code


def _run(command: list[str]) -> int:
    """Run the command; return its exit status, -n after signal n."""
    awaited = FORWARDED | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # until sigwait, so that none is lost
    process = os.posix_spawnp(command[0], command, os.environ, setsigmask=())
    while True:
        which = signal.sigwait(awaited)
        if which != signal.SIGCHLD:
            os.kill(process, which)
            continue
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _has_reported(folder: Path, started: float) -> bool:
    """Return True if the run's record has the end of an attempt that began after ``started``."""
    record = read_record(folder)
    newest = record.attempts[-1] if record is not None and record.attempts else None
    return newest is not None and newest.started >= started and newest.ended is not None


def _event(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code == ExitStatus.UNFINISHED:
        return "stopped before it started to train"
    return f"failed with exit status {code}"


if __name__ == "__main__":
    sys.exit(main())

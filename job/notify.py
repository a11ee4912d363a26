"""Messages to Slack, Discord, ntfy or any webhook that takes JSON, at the end of a run.

The URL is a secret: no plan, record or log contains it. An endpoint that is slow or down delays the
run by less than a second. Standard library only: on Modal the process that watches the job sends.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from job.format import url_problem

VARIABLE = "GPT_RUNNER_NOTIFY"

WAIT_S = 0.8  # of the run for the message; a thread waits longer for the endpoint's answer
ANSWER_TIMEOUT_S = 10.0
TAIL_BYTES, MAX_LINE = 4096, 300


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
        return Message(self._url, f"run {self.run} {event}", last_line(self.folder / "log.txt"))

    def silence(self) -> None:
        """Send nothing."""
        self._url = ""


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank; '' without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
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

"""The job as a process group of the container. Standard library only.

Inside the body's own process torch's launcher would take the signals that are ours, so it is one of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress


class JobProcess:
    """``command``, started in ``folder``; what it prints goes where this process prints."""

    def __init__(self, command: Sequence[str], folder: str, variables: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **variables}, start_new_session=True
        )
        self.asked = False

    def wait(self, seconds: float) -> int | None:
        """Its exit status, 128 + n for signal n; None while it runs after ``seconds``."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def ask_to_stop(self) -> None:
        """SIGTERM to its first process, once. That writes the checkpoint, and torchrun passes it on to its own:
        the compiler's workers, which would die of it and take the step with them, are left alone."""
        if not self.asked:
            self.asked = True
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

"""Trackers in their own processes: start them, report their pages and failures, end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from job.metrics import Report
from job.paths import CHECKOUT
from job.trackers import TRACKERS, TrackerInfo, read_state

# For the last data. A preempted job has 24 s in all, most of them for its checkpoint.
FINISH_TIMEOUT_S, STOP_TIMEOUT_S = 20.0, 5.0
UPLOAD_TIMEOUT_S = 3600.0  # of a checkpoint


class TrackerProcess(subprocess.Popen[bytes]):
    """One tracker's process, which ends when its stdin is closed; its output is in a file."""

    def __init__(
        self, info: TrackerInfo, folder: Path, project: str, tags: Sequence[str], upload: bool
    ) -> None:
        self.info, self.folder, self.upload = info, folder, upload
        self.log = folder / f"tracker_{info.name}.log"
        self.url, self.was_reported = "", False
        options = {"name": info.name, "folder": str(folder.absolute()), "project": project}
        python_path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        words = json.dumps({**options, "tags": [*tags], "upload": upload})
        with self.log.open("ab") as log:
            super().__init__(
                [sys.executable, "-m", "job.trackers.follow", words],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": python_path, "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C at a terminal must not end it before the job
            )

    def report_state(self, report: Report) -> None:
        """Report the page, or that the tracker failed, once."""
        state = read_state(self.folder, self.info.name)
        if state.url and state.url != self.url:
            self.url = state.url
            report(f"{self.info.label}: {state.url}")
        if self.poll() and not self.was_reported:
            self.was_reported = True
            problem = state.error or f"exit status {self.returncode}"
            report(
                f"{self.info.label} failed and is off for this attempt; the training continues: "
                f"{problem} (see {self.log})"
            )


class TrackerProcesses:
    """The trackers of one attempt."""

    def __init__(
        self,
        folder: Path,
        projects: Mapping[str, str],
        report: Report,
        tags: Sequence[str] = (),
        upload: bool = False,
    ) -> None:
        self.report = report
        self.started: list[TrackerProcess] = []
        for name, project in projects.items():
            try:
                self.started.append(TrackerProcess(TRACKERS[name], folder, project, tags, upload))
            except (OSError, KeyError) as error:
                report(f"tracker {name} does not start; the training continues: {error}")

    def urls(self) -> dict[str, str]:
        """Return the pages by tracker, reporting new ones and failures."""
        for tracker in self.started:
            tracker.report_state(self.report)
        return {tracker.info.name: tracker.url for tracker in self.started if tracker.url}

    def close(self, is_finished: bool) -> None:
        """End all of them, waiting a limited time for their last data."""
        for tracker in self.started:
            assert tracker.stdin is not None
            tracker.stdin.close()
        end = time.monotonic()
        for tracker in self.started:
            limit = FINISH_TIMEOUT_S if is_finished else STOP_TIMEOUT_S
            limit = UPLOAD_TIMEOUT_S if tracker.upload and is_finished else limit
            try:
                tracker.wait(max(0.0, end + limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                if not is_finished:
                    os.killpg(tracker.pid, signal.SIGKILL)
                self.report(
                    f"{tracker.info.label} did not finish within {limit:.0f} s; "
                    "the next attempt sends the rest"
                )

"""Whether a run in the cloud is at work, by what its folder on the volume says."""

from __future__ import annotations

import time

from job.runs import parse_record
from runner.cloud import ledger
from runner.cloud.volumes import VolumeFiles
from runner.runs.heartbeat import is_fresh


def is_at_work(files: VolumeFiles, run: str, heartbeat: float | None) -> bool:
    """``heartbeat`` is when it was touched, in seconds since the epoch; None where there is none.

    A run that ended leaves a fresh one behind: its record says so. One that was only taken from its machine goes on
    at once on another, and its ledger knows of a call that is not over.
    """
    if heartbeat is None or not is_fresh(time.time() - heartbeat):
        return False
    record = parse_record(_read(files, f"{run}/run.json"))
    if record is None or record.status == "running":
        return True
    attempts = ledger.parse(_read(files, f"{run}/{ledger.NAME}"))
    return record.status == "unfinished" and bool(attempts.attempts) and attempts.status is None


def _read(files: VolumeFiles, path: str) -> bytes:
    try:
        return files.read(path)
    except FileNotFoundError:
        return b""

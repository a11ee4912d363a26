"""Find the processes of a container by an id in their environment."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

TASK_VARIABLE = "MODAL_TASK_ID"


def of_task(task_id: str) -> list[int]:
    """Return the process ids, including children that cleared their environment."""
    needle = f"{TASK_VARIABLE}={task_id}".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found |= children
        grew = bool(children)
    return sorted(found)


def kill(task_id: str, timeout_s: float = 5.0) -> None:
    """Send SIGKILL to every process of the container until none is left.

    Blocks for at most `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = [pid for pid in of_task(task_id) if not is_zombie(pid)]
        if not alive:
            return
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def open_files(task_id: str) -> set[tuple[int, int]]:
    """Return (device, inode) of every regular file that the container's processes have open."""
    found: set[tuple[int, int]] = set()
    for pid in of_task(task_id):
        with suppress(OSError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    status = os.stat(descriptor.path)
                    found.add((status.st_dev, status.st_ino))
    return found


def is_zombie(pid: int) -> bool:
    """Return whether the process has ended, even if it was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

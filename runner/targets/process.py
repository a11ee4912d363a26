"""Processes of this machine that were started earlier, perhaps by another runner: found, signalled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from runner.project import INSTALLED
from runner.request import UserCommand
from runner.target import LaunchHandle


def this_machine() -> str:
    """The name under which processes of this machine are noted."""
    return socket.gethostname()


def identity_of(pid: int) -> str:
    """When the process began, as the system writes it; '' where there is no such process.

    A number is given to a new process sooner or later; number and start together are not.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except (OSError, IndexError):
        return ""
    return _identity_from_ps(pid)


def _identity_from_ps(pid: int) -> str:
    """On macOS, which has no /proc."""
    try:
        done = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},  # a terminal's are not cron's
            check=False,
        )
    except OSError:
        return ""
    state, _, began = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else began.strip()


def is_alive(started: LaunchHandle) -> bool:
    """Whether the process that was noted still runs on this machine."""
    # A Mac's name changes with the network that it is in; number and start are enough there.
    is_here = sys.platform == "darwin" or started.machine == this_machine()
    if not is_here or not started.id.isdigit():
        return False
    identity = identity_of(int(started.id))
    return identity != "" and identity == started.identity


def signal_group(started: LaunchHandle, which: signal.Signals) -> None:
    """Send a signal to every process of the job."""
    with suppress(ProcessLookupError):
        os.killpg(int(started.id), which)


def signal_leader(started: LaunchHandle, which: signal.Signals) -> None:
    """Send a signal to the job's first process alone; torchrun passes it on to its own."""
    with suppress(ProcessLookupError):
        os.kill(int(started.id), which)


# Set where the user has chosen an environment in this shell; its `python` is theirs then.
CHOSEN = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_VIRTUAL_ENV")


def for_command(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the process around the command: it finds our packages, which the command does not get, and
    as `python` the one that runs the runner, where no environment is active in this shell."""
    found = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(INSTALLED), environ.get("PYTHONPATH")]))
    }
    if not any(environ.get(name) for name in CHOSEN):
        bin_folder = str(Path(sys.executable).parent)
        found["PATH"] = os.pathsep.join(filter(None, [bin_folder, environ.get("PATH")]))
    return found


def occupied(command: UserCommand) -> tuple[str, ...]:
    """The paths to keep in whose place real folders with content are: they are the user's, and stay."""
    return tuple(keep.path for keep in command.keep if _has_content(command.folder / keep.path))


def _has_content(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and any(path.iterdir())

"""Processes of this machine: start, recognize and signal them; and the supervisor of detached jobs.

    python -m runner.targets.process RUN_FOLDER COMMAND [ARGUMENT ...]

runs a detached job, passes signals on to it and writes its exit status into the run's folder.
Without it, a job that died before its first record would look like one that succeeded.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from runner.runs.store import write_exit
from runner.signals import signal_handler
from runner.target import LaunchHandle


def machine_name() -> str:
    """Return the name of this machine, as launches record it."""
    return socket.gethostname()


def identity_of(pid: int) -> str:
    """Return the start time of the process, as the system writes it; '' if it has ended.

    A pid is reused, the pair of pid and start time is not. Linux counts the time in ticks since
    boot, which stays correct when the clock is set; psutil.create_time does not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # Skip the program's name, which may contain spaces.
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except (OSError, IndexError):
        return ""
    return _identity_from_ps(pid)


def _identity_from_ps(pid: int) -> str:
    """Return the start time on macOS, which has no /proc."""
    try:
        done = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            # The same from a terminal and from cron.
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            check=False,
        )
    except OSError:
        return ""
    state, _, started = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def is_alive(launch: LaunchHandle) -> bool:
    """Return True if the process of the launch still runs on this machine."""
    # A Mac's name changes with its network; pid and start time suffice there.
    if sys.platform != "darwin" and launch.location != machine_name():
        return False
    if not launch.id.isdigit():
        return False
    identity = identity_of(int(launch.id))
    return identity != "" and identity == launch.identity


def ask_to_stop(launch: LaunchHandle, signum: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to the job's first process; torchrun passes it on to its workers."""
    with suppress(ProcessLookupError):
        os.kill(int(launch.id), signum)


def kill(launch: LaunchHandle) -> None:
    """Kill every process of the job."""
    with suppress(ProcessLookupError):
        os.killpg(int(launch.id), signal.SIGKILL)


def exit_status(code: int) -> int:
    """Return the shell's exit status for a code of subprocess: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def start_detached(
    command: tuple[str, ...], folder: Path, cwd: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a job that outlives this process.

    Its output goes to ``output.txt`` in the run's folder.
    """
    # -P: the supervisor is this installation's, while the job imports the checkout, its working
    # folder.
    supervisor = [sys.executable, "-P", "-m", "runner.targets.process", str(folder)]
    package = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), package]))
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [*supervisor, *command],
            cwd=cwd,
            env={**environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def follow_process(
    environ: Mapping[str, str], command: Sequence[str], cwd: Path, until_ctrl_c: bool = False
) -> int:
    """Run a program on the terminal and return its exit status; SIGTERM is passed on.

    The program gets Ctrl-C from the terminal itself; ``until_ctrl_c`` makes that a success.
    """
    interrupted = threading.Event()
    with signal_handler(lambda *_: interrupted.set(), signal.SIGINT):
        code = _run(
            lambda: subprocess.Popen(command, cwd=cwd, env={**environ, "PWD": str(cwd)}),
            signal.SIGTERM,
        )
    return 0 if until_ctrl_c and interrupted.is_set() else code


def _run(start: Callable[[], subprocess.Popen[bytes]], *signals: signal.Signals) -> int:
    """Start a program and return its exit status; ``signals`` are passed on to it."""
    process: subprocess.Popen[bytes] | None = None
    received: list[int] = []  # before the process existed

    def pass_on(number: int, _: object) -> None:
        if process is None:
            received.append(number)
        else:
            process.send_signal(number)

    with signal_handler(pass_on, *signals):
        process = start()
        for number in received:
            process.send_signal(number)
        return exit_status(process.wait())


def main() -> int:
    """Run the command, wait for it and write its exit status into the folder."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    stops = (signal.SIGINT, signal.SIGTERM)
    with signal_handler(lambda *_: None, *stops):  # until the status is written
        code = _run(lambda: subprocess.Popen(command), *stops)
        write_exit(folder, code)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The container of an attempt: its rank, GPUs and age, its mounted volumes, and the job's process.

Standard library and modal only.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import modal
from modal import exception

from runner.runs.attempts import AttemptLog

NVIDIA_SMI_TIMEOUT_S = 30.0  # 8 GPUs of a machine that has just started answer late
MAX_UPTIME_S = 600.0


def cluster_rank(nodes: int) -> tuple[int, str]:
    """Return this container's rank and the address of the first node.

    gloo listens at the address of the host name, which is the same in all containers. It is given
    the interface of this container's address in the cluster instead.
    """
    if nodes < 2:
        return 0, ""
    cluster = modal.Cluster.from_context()
    rank, addresses = cluster.container_rank(), cluster.container_ips()
    if interface := interface_of(addresses[rank]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return rank, addresses[0]


def interface_of(address: str, table: Path = Path("/proc/net/if_inet6")) -> str:
    """Return the network interface with an IPv6 address; '' for loopback and for IPv4."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    return next((name for number, *_, name in lines if number == packed and name != "lo"), "")


def query_gpus(field: str) -> list[str]:
    """Return one field of nvidia-smi for each GPU; empty if nvidia-smi is missing or fails."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []


def gpu_name() -> str:
    """Return the name of the first GPU by nvidia-smi; '' without one."""
    return next(iter(query_gpus("name")), "")


def price_of(gpu: str, usd_per_hour: Mapping[str, float]) -> float:
    """Return the price of the GPU that Modal gave, ``gpu`` by nvidia-smi.

    If the name matches none that was asked for, the highest price counts, so that a budget holds.
    """
    plain = gpu.upper().replace(" ", "").replace("-", "")
    for name, price in usd_per_hour.items():
        model, _, memory = name.rpartition("-") if name.endswith("GB") else (name, "", "")
        model = model.rstrip("!+").replace("-", "")
        if model and re.search(rf"{model}(?!\d)", plain) and memory in plain:
            return price
    return max(usd_per_hour.values())


def uptime() -> float:
    """Return the seconds since this container's first process started, which Modal bills from."""
    try:
        ticks = int(
            Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        )
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return max(0.0, min(up - ticks / os.sysconf("SC_CLK_TCK"), MAX_UPTIME_S))
    except (OSError, ValueError, IndexError):
        return 0.0


class MountedVolumes:
    """The volumes mounted in this container, by their names on Modal."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._volumes = {name: modal.Volume.from_name(remote) for name, remote in names.items()}
        self._committing: threading.Thread | None = None
        self.slowest_commit_s = 0.0  # of the checkpoints

    def reload(self) -> None:
        """Show the commits of other containers. Modal refuses it while a file is open."""
        for name, volume in self._volumes.items():
            try:
                volume.reload()
            except Exception as error:
                print_message(f"volume {name} was not reloaded: {error}")

    def commit(self, name: str) -> None:
        """Show this container's writes to others. A failure is printed; the job continues."""
        started = time.monotonic()
        try:
            self._volumes[name].commit()
        except Exception as error:
            # Modal reloads after the commit, which open files of the running job prevent.
            if "open" not in str(error):
                print_message(f"volume {name} was not committed: {error}")
        if name == "checkpoints":
            self.slowest_commit_s = max(self.slowest_commit_s, time.monotonic() - started)

    def commit_in_background(self, *names: str) -> bool:
        """Start a commit; return False if the previous one is not done."""
        if self._committing is not None and self._committing.is_alive():
            return False
        self._committing = threading.Thread(target=lambda: [*map(self.commit, names)], daemon=True)
        self._committing.start()
        return True

    def wait(self, seconds: float) -> None:
        """Wait at most ``seconds`` for the commit in the background."""
        if self._committing is not None:
            self._committing.join(seconds)

    def read(self, name: str, path: str) -> bytes:
        """Return a small file as last committed, without a reload. Raises modal's errors."""
        return b"".join(self._volumes[name].read_file(path))


class JobProcess:
    """The job's process, in a process group of its own."""

    def __init__(self, command: Sequence[str], folder: str, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **variables}, start_new_session=True
        )
        self._stopping = False

    def wait(self, seconds: float) -> int | None:
        """Return its exit status, 128 + n for signal n; None if it still runs after ``seconds``."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def ask_to_stop(self) -> None:
        """Send SIGTERM once, to the first process alone, which writes the checkpoint.

        torchrun passes it on to its workers. The compiler's processes must not get it: they would
        die and fail the current step.
        """
        if not self._stopping:
            self._stopping = True
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def active_call(log: AttemptLog, call: str) -> str:
    """Return another call that is active on the run; '' if there is none.

    Two launches at the same moment both find the run inactive, and a volume has no lock that works
    across machines.
    """
    last = log.attempts[-1] if log.attempts else None
    if last is None or last.call == call or last.ended is not None or log.status is not None:
        return ""
    try:
        modal.FunctionCall.from_id(last.call).get(timeout=0)
    except exception.FunctionTimeoutError:  # it reached its time limit
        return ""
    except TimeoutError:
        return last.call
    except (Exception, exception.InputCancellation):  # it ended, or Modal does not answer
        return ""
    return ""


def print_message(message: str) -> None:
    """Print a message of the runner on stderr; a closed stream must not end the attempt."""
    with suppress(OSError, ValueError):
        print(f"runner: {message}", file=sys.stderr, flush=True)

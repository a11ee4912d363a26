"""The container of an attempt: its rank, GPUs and age, its mounted volumes, and the job's process.

Also the container of a server, which has no attempts. Standard library and modal only.
"""

from __future__ import annotations

import json
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
from typing import Any
from urllib.request import urlopen

import modal
from modal import exception

from job.metrics import query_gpus
from job.paths import WORKSPACE
from runner.runs.attempts import AttemptLog, CloudAttempt, read_log
from runner.targets.modal import MASTER_PORT

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


def for_node(
    command: list[str], nodes: int, rank: int, address: str
) -> tuple[list[str], dict[str, str]]:
    """Return the job's command and its variables on this machine of several.

    The command has ``{rank}`` and ``{address}``, or is a torchrun, which reads PET_*.
    """
    if nodes < 2:
        return command, {}
    argv = [word.replace("{rank}", str(rank)).replace("{address}", address) for word in command]
    values = {
        "NNODES": str(nodes),
        "NODE_RANK": str(rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(MASTER_PORT),
    }
    return argv, values | {f"PET_{name}": value for name, value in values.items()}


def interface_of(address: str, table: Path = Path("/proc/net/if_inet6")) -> str:
    """Return the network interface with an IPv6 address; '' for loopback and for IPv4."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        lines = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    return next((name for number, *_, name in lines if number == packed and name != "lo"), "")


def gpu_name() -> str:
    """Return the name of the first GPU by nvidia-smi; '' without one."""
    return next(iter(query_gpus("name")), "")


def price_of(gpu: str, usd_per_hour: Mapping[str, float]) -> float:
    """Return the price of the GPU that Modal assigned, ``gpu`` by nvidia-smi.

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
    """Return another call that is active on the run; '' without one.

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


JOB_VARIABLE = "SERVE_JOB"  # JSON: the command, and the variables that only it gets
PORT = 8000
STARTUP_TIMEOUT_S = 600
STOP_TIMEOUT_S = 10
POLL_INTERVAL_S = 0.1
RECORD_INTERVAL_S = 60.0  # less than STALE_S


class ServeJob:
    """One container. Modal starts it at the first request and ends it when none comes."""

    @modal.enter()
    def start(self) -> None:
        """Start the server and wait until it answers."""
        job = json.loads(os.environ[JOB_VARIABLE])
        threading.Thread(target=self._record, args=(job,), daemon=True).start()
        self.process = JobProcess(job["command"], WORKSPACE, job["env"])
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while time.monotonic() < deadline:
            # Not a connection alone: the port is open before the network is loaded.
            with suppress(OSError), urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1):
                return
            if (status := self.process.wait(POLL_INTERVAL_S)) is not None:
                raise RuntimeError(f"the server did not start; its exit status is {status}")
        raise RuntimeError(f"the server did not start within {STARTUP_TIMEOUT_S} s")

    @modal.exit()
    def stop(self) -> None:
        """Let the server finish the texts that it streams, then stop it."""
        self.process.ask_to_stop()
        self.process.wait(STOP_TIMEOUT_S)
        self.process.kill()

    def _record(self, job: dict[str, Any]) -> None:
        """Record this container in the server's ``cloud.json``, for its cost.

        Writes nothing at its end: `runner stop` removes the folder.
        """
        folder = Path("/vol/checkpoints") / job["run"]
        volumes = MountedVolumes({"checkpoints": job["volume"]})
        log, now, gpu = read_log(folder), time.time(), gpu_name()
        price = price_of(gpu, job["usd_per_hour"])
        container = os.environ.get("MODAL_TASK_ID", "")
        log.begin(CloudAttempt("", container, now - uptime(), now, price, gpu), "")
        while True:
            log.attempts[-1].seen = time.time()
            with suppress(OSError):  # a full volume must not end the server
                log.write(folder)
            volumes.commit("checkpoints")
            time.sleep(RECORD_INTERVAL_S)

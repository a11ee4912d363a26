"""What the body learns of its container: its place in a cluster, its GPU and that one's price, its age.

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


def place_in_cluster(nodes: int) -> tuple[int, str]:
    """This container's rank, and the address of the first.

    gloo would listen at the address of the host's name, which is the same for all containers; it gets the interface of
    this one's address in the cluster.
    """
    if nodes < 2:
        return 0, ""
    cluster = modal.Cluster.from_context()
    rank, addresses = cluster.container_rank(), cluster.container_ips()
    if interface := interface_of(addresses[rank]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return rank, addresses[0]


def interface_of(address: str, known: Path = Path("/proc/net/if_inet6")) -> str:
    """The network interface that has an IPv6 address; '' for the loopback and for one of IPv4, which clusters do not use."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, address).hex()
        found = [line.split() for line in known.read_text().splitlines()]
    except OSError:
        return ""
    return next((name for number, *_, name in found if number == packed and name != "lo"), "")


def gpu_name() -> str:
    """As nvidia-smi names the first one; '' without one."""
    return next(iter(ask_gpus("name")), "")


def price_of(gpu: str, usd_per_hour: dict[str, float]) -> float:
    """The price of what was given. Where the name tells none of those asked for, the dearest: a cap holds."""
    plain = gpu.upper().replace(" ", "").replace("-", "")
    for name, price in usd_per_hour.items():
        model, _, memory = name.rpartition("-") if name.endswith("GB") else (name, "", "")
        model = model.rstrip("!+").replace("-", "")
        if model and re.search(rf"{model}(?!\d)", plain) and memory in plain:
            return price
    return max(usd_per_hour.values())


def uptime() -> float:
    """Seconds since this container's first process began: it is paid for from then on."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, min(up - ticks / os.sysconf("SC_CLK_TCK"), 600.0))
    except (OSError, ValueError, IndexError):
        return 0.0


PATIENCE = 30.0  # seconds: 8 GPUs of a machine that has just started answer late


def ask_gpus(query: str) -> list[str]:
    """The values of one ``--query-gpu`` field, without their units, a string for each GPU in nvidia-smi's order.

    Empty where nvidia-smi is missing, fails, or takes longer than ``PATIENCE``.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []


class MountedVolumes:
    """``names``: ``data``, ``checkpoints`` and ``cache`` → the volume's name on Modal."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.volumes = {name: modal.Volume.from_name(remote) for name, remote in names.items()}
        self._committing: threading.Thread | None = None
        self.slowest = 0.0  # seconds of a commit of the checkpoints

    def reload(self) -> None:
        """See what others have committed. Only before a file is open: else it fails, and that is said."""
        for name, volume in self.volumes.items():
            try:
                volume.reload()
            except Exception as error:
                print(
                    f"runner: volume {name} was not reloaded: {error}", file=sys.stderr, flush=True
                )

    def commit(self, name: str) -> None:
        """Let others see what was written here. A failure is said: it must not end the job."""
        began = time.monotonic()
        try:
            self.volumes[name].commit()
        except Exception as error:
            # The commit is done before the reload behind it, which open files of the running job prevent.
            if "open" not in str(error):
                print(
                    f"runner: volume {name} was not committed: {error}", file=sys.stderr, flush=True
                )
        if name == "checkpoints":
            self.slowest = max(self.slowest, time.monotonic() - began)

    def commit_in_background(self, *names: str) -> bool:
        """False where the commit before is still under way."""
        if self._committing is not None and self._committing.is_alive():
            return False
        self._committing = threading.Thread(target=lambda: [*map(self.commit, names)], daemon=True)
        self._committing.start()
        return True

    def wait(self, seconds: float) -> None:
        """Until the commit in the background is done, at most so long."""
        if self._committing is not None:
            self._committing.join(seconds)

    def read(self, name: str, path: str) -> bytes:
        """A small file as it is committed now: past the mount, which would need a reload. Raises what modal
        raises where it isn't there."""
        return b"".join(self.volumes[name].read_file(path))


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


def other_call(ledger: AttemptLog, call: str) -> str:
    """The call of another launch that is at work on the run; '' where there is none.

    Two that were started in the same moment both found the run free, and a volume has no lock that another machine sees.
    """
    last = ledger.attempts[-1] if ledger.attempts else None
    if last is None or last.call == call or last.ended is not None or ledger.status is not None:
        return ""
    try:
        modal.FunctionCall.from_id(last.call).get(timeout=0)
    except exception.FunctionTimeoutError:  # its time is over
        return ""
    except TimeoutError:
        return last.call
    except (Exception, exception.InputCancellation):  # how it ended; or it can't be asked
        return ""
    return ""

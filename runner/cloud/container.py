"""What the body learns of its container: its place in a cluster, its GPU and that one's price, its age.

Standard library and modal only.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import modal

from runner.cloud.nvidia_smi import ask_gpus


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

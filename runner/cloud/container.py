"""What the body learns of its container: its place in a cluster, its GPU and that one's price, its age.

Standard library and modal only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import modal

from runner.cloud.nvidia_smi import ask_gpus


def place_in_cluster(nodes: int) -> tuple[int, str]:
    """This container's rank, and the address of the first."""
    if nodes < 2:
        return 0, ""
    cluster = modal.Cluster.from_context()
    return cluster.container_rank(), cluster.container_ips()[0]


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

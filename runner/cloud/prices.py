"""What an hour costs on Modal, in US dollars: a dated table, without any look at the network.

``GPT_RUNNER_PRICES="H100=3.50,CPU=0.04"`` overrides lines of it (CPU a core-hour, MEMORY a GiB-hour).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from runner.cloud.gpus import MOST, Gpus
from runner.errors import usage

DATE = "autumn 2026"  # modal.com/pricing

# One GPU, an hour. Modal bills an upgrade that it makes by itself (H100 → H200) at the price of what was asked.
PER_GPU = {
    "T4": 0.59,
    "L4": 0.80,
    "A10": 1.10,
    "L40S": 1.95,
    "A100": 2.10,
    "A100-40GB": 2.10,
    "A100-80GB": 2.50,
    "RTX-PRO-6000": 3.03,
    "H100": 3.95,
    "H100!": 3.95,
    "H200": 4.54,
    "B200": 6.25,
    "B200+": 6.25,
    "B300": 7.10,
}
PER_CORE = 0.0000131 * 3600  # a physical core, an hour
PER_GIB = 0.00000222 * 3600  # a GiB of memory, an hour

BROAD, NARROW = 1.15, 1.75  # factors of a chosen region: a continent (us, eu), or a part of one (us-east)


@dataclass(frozen=True)
class Machine:
    """What one container asks for."""

    gpus: Gpus
    cores: float
    memory_gib: float


def read_overrides(environ: Mapping[str, str]) -> dict[str, float]:
    """The prices in GPT_RUNNER_PRICES. Raises RunnerError, exit code 2, for a line that is none."""
    found: dict[str, float] = {}
    for part in filter(None, environ.get("GPT_RUNNER_PRICES", "").split(",")):
        name, _, price = part.partition("=")
        try:
            found[name.strip().upper()] = float(price)
        except ValueError:
            raise usage(f"GPT_RUNNER_PRICES: '{part}' is no price; write H100=3.50") from None
        if name.strip().upper() not in {*MOST, "CPU", "MEMORY"}:
            raise usage(f"GPT_RUNNER_PRICES: there is no '{name.strip()}'; use a GPU's name, CPU or MEMORY")
    return found


def per_hour(
    machine: Machine, nodes: int = 1, region: str | None = None, overrides: Mapping[str, float] | None = None
) -> dict[str, float]:
    """GPU's name → dollars an hour for all ``nodes`` with it; the key is '' for a machine without.

    The cores and the memory are those asked for: a container that uses more pays more for them.
    """
    table = {**PER_GPU, "CPU": PER_CORE, "MEMORY": PER_GIB, **(overrides or {})}
    rest = machine.cores * table["CPU"] + machine.memory_gib * table["MEMORY"]
    factor = nodes * region_factor(region)
    if not machine.gpus.names:
        return {"": rest * factor}
    return {name: (machine.gpus.count * table[name] + rest) * factor for name in machine.gpus.names}


def region_factor(region: str | None) -> float:
    """What a choice of regions multiplies the price by. Of several the dearest counts."""
    if not region:
        return 1.0
    return NARROW if any("-" in name for name in region.split(",")) else BROAD

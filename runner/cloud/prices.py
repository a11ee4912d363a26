"""What an hour costs on Modal, in US dollars: a dated table, without any look at the network.

A file of the user's replaces lines of it: runner/cloud/price_file.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.cloud.gpu_kinds import BY_NAME
from runner.cloud.gpus import Gpus

PER_CORE = 0.0000131 * 3600  # a physical core, an hour
PER_GIB = 0.00000222 * 3600  # a GiB of memory, an hour
TABLE = {**{name: kind.dollars for name, kind in BY_NAME.items()}, "CPU": PER_CORE, "MEMORY": PER_GIB}

BROAD, NARROW = 1.15, 1.75  # factors of a chosen region: a continent (us, eu), or a part of one (us-east)


@dataclass(frozen=True)
class Prices:
    """Dollars an hour by GPU, CPU (a core) and MEMORY (a GiB), and where they are from, with the date."""

    table: Mapping[str, float] = field(default_factory=lambda: TABLE)
    source: str = "Modal's prices of autumn 2026"  # modal.com/pricing


BUILT_IN = Prices()


@dataclass(frozen=True)
class RentedMachine:
    """What one container asks for."""

    gpus: Gpus
    cores: float
    memory_gib: float


def per_hour(
    machine: RentedMachine, nodes: int = 1, region: str | None = None, prices: Prices = BUILT_IN
) -> dict[str, float]:
    """GPU's name → dollars an hour for all ``nodes`` with it; the key is '' for a machine without.

    The cores and the memory are those asked for: a container that uses more pays more for them.
    """
    table = prices.table
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

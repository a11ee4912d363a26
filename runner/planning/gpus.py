"""The GPU types that Modal rents, their prices, and the parser of ``--gpu``.

A type that is added to the catalog needs its peak FLOP/s in job/machine.py, for the trainer.
"""

from __future__ import annotations

import datetime
import math
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import did_you_mean, usage

if TYPE_CHECKING:
    from job.recipe_loader import Source

NANOGPT_A100 = "nanoGPT, 124M on 8 A100: 300 B tokens in 4 days, 108k tokens/s per GPU"
NANOGPT_H100 = "nanoGPT, 124M on an H100: 380k tokens/s, reported by a user"
ASSUMED = "assumed; not measured"


@dataclass(frozen=True)
class GpuType:
    """One GPU type.

    ``memory_gb`` counts 1e9 bytes, from the datasheet. ``mfu`` is the share of the datasheet's bf16
    FLOP/s that a network as wide as GPT-2 124M (768) reaches, measured by ``mfu_source``.
    """

    memory_gb: int
    usd_per_hour: float  # autumn 2026 (modal.com/pricing); Modal's own upgrades cost the same
    mfu: float
    mfu_source: str = ASSUMED
    max_count: int = 8  # in one machine
    rdma: bool = False  # nodes exchange 3,200 Gbit/s with it, 50 without
    bf16: bool = True
    float32_share: float = 0.5  # of the bf16 FLOP/s, by TF32


GPU_TYPES = {
    # Turing has no bfloat16 and no TF32: 8.1 of 65 TFLOP/s.
    "T4": GpuType(16, 0.59, 0.30, bf16=False, float32_share=0.125),
    "L4": GpuType(24, 0.80, 0.30),
    "A10": GpuType(24, 1.10, 0.30, max_count=4),
    "L40S": GpuType(48, 1.95, 0.30),
    "A100-40GB": GpuType(40, 2.10, 0.30, NANOGPT_A100),
    "A100-80GB": GpuType(80, 2.50, 0.30, NANOGPT_A100),
    "RTX-PRO-6000": GpuType(96, 3.03, 0.25),
    "H100": GpuType(80, 3.95, 0.33, NANOGPT_H100, rdma=True),
    "H200": GpuType(141, 4.54, 0.33, NANOGPT_H100 + "; the same chip", rdma=True),
    "B200": GpuType(180, 6.25, 0.25, rdma=True),
    "B300": GpuType(270, 7.10, 0.25, rdma=True),
}

# Other names of a type, at its price. `H100!` is never upgraded to an H200, `B200+` may be a B300.
ALIASES = {"A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}

BY_NAME = {
    each: gpu_type
    for name, gpu_type in GPU_TYPES.items()
    for each in (name, *(alias for alias, of in ALIASES.items() if of == name))
}


@dataclass(frozen=True)
class GpuRequest:
    """``count`` GPUs of the first type in ``names`` that is available; no names: no GPU."""

    names: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return ",".join(self.modal_names())

    def modal_names(self) -> list[str]:
        """Return the alternatives as Modal's client takes them."""
        return [f"{name}:{self.count}" if self.count > 1 else name for name in self.names]


def parse_gpus(text: str) -> GpuRequest:
    """Parse ``--gpu``. Raises RunnerError, exit status 2, for a name or count that Modal lacks."""
    names: list[str] = []
    counts: list[int] = []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        name = name.upper()
        if COUNT.fullmatch(name) and not colon:
            raise usage(f"'{name}' is a number of GPUs without a type; write both: H100:{name}")
        if name not in BY_NAME:
            guess = _suggest_count_syntax(name) or suggest_gpu(name)
            raise usage(f"unknown GPU type '{word.strip()}'{guess}")
        if colon and not COUNT.fullmatch(number):
            raise usage(f"invalid GPU count in '{word.strip()}'; use {name}:2")
        count = int(number) if colon else 1
        most = BY_NAME[name].max_count
        if not 1 <= count <= most:
            nodes = "; for more, add --nodes" if count > most == 8 else ""
            raise usage(f"a machine has 1 to {most} {name} GPUs, not {count}{nodes}")
        if name not in names:
            names.append(name)
        counts.append(count)
    if len(set(counts)) > 1:
        raise usage(
            f"'{text}' asks for different GPU counts, but a run has one number of processes; "
            f"use {','.join(f'{name}:{counts[0]}' for name in names)}"
        )
    return GpuRequest(tuple(names), counts[0])


COUNT = re.compile(r"[0-9]{1,6}")  # str.isdigit also accepts ² and other digits


def _suggest_count_syntax(text: str) -> str:
    """Return ``; did you mean 'H100:8'?`` for H100x8, H100-8 or 8xH100; '' for other words."""
    match = re.fullmatch(
        r"(?P<name>.+?)[X*/-](?P<count>[1-8])|(?P<first>[1-8])[X*](?P<last>.+)", text
    )
    if match is None:
        return ""
    name, count = match["name"] or match["last"], match["count"] or match["first"]
    known = name in BY_NAME and int(count) <= BY_NAME[name].max_count
    return f"; did you mean '{name}:{count}'?" if known else ""


def suggest_gpu(name: str) -> str:
    """Return ``; did you mean 'H100'?``, or the list of all types."""
    plain = {known.replace("-", "").lower(): known for known in BY_NAME}
    near = did_you_mean(re.sub(r"[-_ ]", "", name), plain)
    if near:
        key = near.split("'")[1]
        return f"; did you mean '{plain[key]}'?"
    return f"; Modal has {', '.join(BY_NAME)}"


PRICE_TABLE = {
    **{name: gpu_type.usd_per_hour for name, gpu_type in BY_NAME.items()},
    "CPU": 0.0000131 * 3600,  # a physical core
    "MEMORY": 0.00000222 * 3600,  # a GiB
}

# Price factors of a chosen region: a continent (us, eu), or a part of one (us-east).
BROAD_REGION, NARROW_REGION = 1.15, 1.75


@dataclass(frozen=True)
class Prices:
    """Dollars per hour by GPU type, CPU (a core) and MEMORY (a GiB), with their dated source."""

    table: Mapping[str, float] = field(default_factory=lambda: PRICE_TABLE)
    source: str = "Modal's prices of autumn 2026"  # modal.com/pricing


BUILT_IN_PRICES = Prices()


@dataclass(frozen=True)
class RentedMachine:
    """The resources that one container asks for."""

    gpus: GpuRequest
    cores: float
    memory_gib: float


def usd_per_hour(
    machine: RentedMachine,
    nodes: int = 1,
    region: str | None = None,
    prices: Prices = BUILT_IN_PRICES,
) -> dict[str, float]:
    """Return the price of all ``nodes`` by GPU type; the key is '' for a machine without a GPU.

    Counts the cores and memory asked for: Modal bills a container that uses more for more.
    """
    table = prices.table
    rest = machine.cores * table["CPU"] + machine.memory_gib * table["MEMORY"]
    factor = nodes * region_factor(region)
    if not machine.gpus.names:
        return {"": rest * factor}
    return {name: (machine.gpus.count * table[name] + rest) * factor for name in machine.gpus.names}


def region_factor(region: str | None) -> float:
    """Return the price factor of a choice of regions: the highest of several."""
    if not region:
        return 1.0
    return NARROW_REGION if any("-" in name for name in region.split(",")) else BROAD_REGION


PRICE_FILE = "prices.yaml"
PRICE_FILE_VARIABLE = "GPT_RUNNER_PRICES"


def current_prices(
    checkout: Path, environ: Mapping[str, str], base: Prices = BUILT_IN_PRICES
) -> Prices:
    """Return ``base`` with the lines of the user's price file, if there is one.

    Raises RunnerError or RecipeError, exit status 2, naming the invalid line.
    """
    path = _find_price_file(checkout, environ)
    if path is None:
        return base
    from job.recipe_loader import read_yaml  # yaml is slow to import

    source = read_yaml(path, "expected a mapping with lines like `H100: 3.50`")
    date = source.tree.pop("date", None)
    if date is not None and not isinstance(date, datetime.date):
        raise usage(f"{source.where('date')}: date: {date!r} is not a date; write 2026-11-20")
    own = {_name(name, source): _price(name, value, source) for name, value in source.tree.items()}
    day = f" of {date}" if date is not None else ", without a date"
    rest = "" if own.keys() >= PRICE_TABLE.keys() else f", else {base.source}"
    return Prices({**base.table, **own}, f"{path}{day}{rest}")


def _find_price_file(checkout: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the user's price file, or None. Raises RunnerError if a named one is missing."""
    if named := environ.get(PRICE_FILE_VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise usage(
                f"{PRICE_FILE_VARIABLE}={named} is not a file; create it with lines like H100: 3.50"
            )
        return path
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    candidates = (checkout / PRICE_FILE, Path(config).expanduser() / "gpt-runner" / PRICE_FILE)
    return next((path for path in candidates if path.is_file()), None)


def _name(name: object, source: Source) -> str:
    text = str(name)
    if text.upper() not in PRICE_TABLE:
        raise usage(
            f"{source.where(text)}: unknown GPU type '{text}'{suggest_gpu(text)}, CPU and MEMORY"
        )
    return text.upper()


def _price(name: object, value: object, source: Source) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise usage(
            f"{source.where(str(name))}: {name}: {value!r} is not a price; write dollars per hour, "
            f"{name}: 3.50"
        )
    return float(value)


LIVE_PRICES_TIMEOUT_S = 4.0  # a plan must not wait long for prices that the table has too

# A rate further than this factor from the table is per minute, per 8 GPUs, or of another product.
MAX_RATE_FACTOR = 3.0

# Names in Modal's rates that do not follow gpu_hour_cost_<type>. Modal bills an alias as its type.
RATE_NAMES = {"CPU": "cpu_hour_cost", "MEMORY": "mem_gib_hour_cost", "A10": "gpu_hour_cost_a10g"}


def live_prices() -> Prices | None:
    """Return the table with Modal's current rates; None if Modal gives none in time."""
    rates: list[dict[str, float]] = []

    def fetch() -> None:
        with suppress(Exception):  # no token, network or permission: the table applies
            rates.append(_fetch_rates())

    # A daemon thread, so that a Modal that hangs delays neither the plan nor the exit.
    thread = threading.Thread(target=fetch, name="rates", daemon=True)
    thread.start()
    thread.join(LIVE_PRICES_TIMEOUT_S)
    return prices_from_rates(rates[0], datetime.date.today()) if rates else None


def prices_from_rates(rates: Mapping[str, float], day: datetime.date) -> Prices | None:
    """Return the table with the plausible rates; None if no rate is plausible."""
    prices = {}
    for name, listed in PRICE_TABLE.items():
        gpu_type = ALIASES.get(name, name).lower().replace("-", "_")
        rate = rates.get(RATE_NAMES.get(name) or f"gpu_hour_cost_{gpu_type}")
        if rate is None or not math.isfinite(rate):
            continue
        if listed / MAX_RATE_FACTOR <= rate <= listed * MAX_RATE_FACTOR:
            prices[name] = rate
    if not prices:
        return None
    missing = sorted(PRICE_TABLE.keys() - prices.keys())
    rest = f"; {', '.join(missing)} from {BUILT_IN_PRICES.source}" if missing else ""
    return Prices({**PRICE_TABLE, **prices}, f"Modal's rates for this account of {day}{rest}")


def _fetch_rates() -> dict[str, float]:
    from modal import Workspace

    return {name: float(rate) for name, rate in Workspace.from_context().billing.rates().items()}

"""Prices on Modal in US dollars per hour: a dated table, the user's file, live rates."""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from job.recipe_loader import Source, read_yaml
from runner.errors import usage
from runner.pricing.gpus import ALIASES, BY_NAME, GpuRequest, suggest_gpu

TABLE = {
    **{name: gpu_type.usd_per_hour for name, gpu_type in BY_NAME.items()},
    "CPU": 0.0000131 * 3600,  # a physical core
    "MEMORY": 0.00000222 * 3600,  # a GiB
}

# Price factors of a chosen region: a continent (us, eu), or a part of one (us-east).
BROAD_REGION, NARROW_REGION = 1.15, 1.75


@dataclass(frozen=True)
class Prices:
    """Dollars per hour by GPU type, CPU (a core) and MEMORY (a GiB), with their dated source."""

    table: Mapping[str, float] = field(default_factory=lambda: TABLE)
    source: str = "Modal's prices of autumn 2026"  # modal.com/pricing


BUILT_IN = Prices()


@dataclass(frozen=True)
class RentedMachine:
    """The resources that one container asks for."""

    gpus: GpuRequest
    cores: float
    memory_gib: float


def usd_per_hour(
    machine: RentedMachine, nodes: int = 1, region: str | None = None, prices: Prices = BUILT_IN
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


def current_prices(checkout: Path, environ: Mapping[str, str], base: Prices = BUILT_IN) -> Prices:
    """Return ``base`` with the lines of the user's price file, if there is one.

    Raises RunnerError or RecipeError, exit code 2, naming the invalid line.
    """
    path = find_price_file(checkout, environ)
    return base if path is None else read_price_file(path, base)


def find_price_file(checkout: Path, environ: Mapping[str, str]) -> Path | None:
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


def read_price_file(path: Path, base: Prices = BUILT_IN) -> Prices:
    """Return ``base`` with the lines of the file at ``path``."""
    source = read_yaml(path, "expected a mapping with lines like `H100: 3.50`")
    date = source.tree.pop("date", None)
    if date is not None and not isinstance(date, datetime.date):
        raise usage(f"{source.where('date')}: date: {date!r} is not a date; write 2026-11-20")
    own = {_name(name, source): _price(name, value, source) for name, value in source.tree.items()}
    day = f" of {date}" if date is not None else ", without a date"
    rest = "" if own.keys() >= TABLE.keys() else f", else {base.source}"
    return Prices({**base.table, **own}, f"{path}{day}{rest}")


def _name(name: object, source: Source) -> str:
    text = str(name)
    if text.upper() not in TABLE:
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
    found = {}
    for name, listed in TABLE.items():
        gpu_type = ALIASES.get(name, name).lower().replace("-", "_")
        rate = rates.get(RATE_NAMES.get(name) or f"gpu_hour_cost_{gpu_type}")
        if rate is None or not math.isfinite(rate):
            continue
        if listed / MAX_RATE_FACTOR <= rate <= listed * MAX_RATE_FACTOR:
            found[name] = rate
    if not found:
        return None
    missing = sorted(TABLE.keys() - found.keys())
    rest = f"; {', '.join(missing)} from {BUILT_IN.source}" if missing else ""
    return Prices({**TABLE, **found}, f"Modal's rates for this account of {day}{rest}")


def _fetch_rates() -> dict[str, float]:
    from modal import Workspace

    return {name: float(rate) for name, rate in Workspace.from_context().billing.rates().items()}

"""What an hour costs on Modal, in US dollars: a dated table, without any look at the network.

A file of the user's replaces lines of it: runner/pricing/prices.py.
"""

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
from runner.pricing.gpus import ALIASES, BY_NAME, GpuRequest, guess

PER_CORE = 0.0000131 * 3600  # a physical core, an hour

PER_GIB = 0.00000222 * 3600  # a GiB of memory, an hour

TABLE = {
    **{name: kind.dollars for name, kind in BY_NAME.items()},
    "CPU": PER_CORE,
    "MEMORY": PER_GIB,
}

BROAD, NARROW = (
    1.15,
    1.75,
)  # factors of a chosen region: a continent (us, eu), or a part of one (us-east)


@dataclass(frozen=True)
class Prices:
    """Dollars an hour by GPU, CPU (a core) and MEMORY (a GiB), and where they are from, with the date."""

    table: Mapping[str, float] = field(default_factory=lambda: TABLE)
    source: str = "Modal's prices of autumn 2026"  # modal.com/pricing


BUILT_IN = Prices()


@dataclass(frozen=True)
class RentedMachine:
    """What one container asks for."""

    gpus: GpuRequest
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


NAME = "prices.yaml"

VARIABLE = "GPT_RUNNER_PRICES"


def current_prices(checkout: Path, environ: Mapping[str, str], base: Prices = BUILT_IN) -> Prices:
    """The prices that count here; ``base`` is what the user's file replaces lines of. Raises RunnerError or
    RecipeError, exit code 2, with the line that is wrong."""
    path = find_price_file(checkout, environ)
    return base if path is None else read_price_file(path, base)


def find_price_file(checkout: Path, environ: Mapping[str, str]) -> Path | None:
    """The user's file; None where there is none. RunnerError where the variable names a file that is not there."""
    if named := environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise usage(
                f"{VARIABLE} names a file of prices, and {named} is none; write there: H100: 3.50"
            )
        return path
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    places = (checkout / NAME, Path(config).expanduser() / "gpt-runner" / NAME)
    return next((path for path in places if path.is_file()), None)


def read_price_file(path: Path, base: Prices = BUILT_IN) -> Prices:
    """``base`` with the lines of the file at ``path``."""
    source = read_yaml(path, "a file of prices is a list of lines like `H100: 3.50`")
    date = source.tree.pop("date", None)
    if date is not None and not isinstance(date, datetime.date):
        raise usage(f"{source.where('date')}: date: {date!r} is no day; write 2026-11-20")
    own = {_name(name, source): _price(name, value, source) for name, value in source.tree.items()}
    day = f" of {date}" if date is not None else ", without a date"
    kept = "" if own.keys() >= TABLE.keys() else f", else {base.source}"
    return Prices({**base.table, **own}, f"{path}{day}{kept}")


def _name(name: object, source: Source) -> str:
    text = str(name)
    if text.upper() not in TABLE:
        raise usage(f"{source.where(text)}: Modal has no '{text}'{guess(text)}, CPU and MEMORY")
    return text.upper()


def _price(name: object, value: object, source: Source) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise usage(
            f"{source.where(str(name))}: {name}: {value!r} is no price; write dollars an hour, {name}: 3.50"
        )
    return float(value)


PATIENCE = 4.0  # seconds: a plan must not wait for a price that the table has too

# A rate this many times our table's, or below it by that much, is per minute, per 8 GPUs, or of something else.
FAR = 3.0

# Names of ours that Modal's rates call otherwise. Modal bills an alias as its kind.
OTHERWISE = {"CPU": "cpu_hour_cost", "MEMORY": "mem_gib_hour_cost", "A10": "gpu_hour_cost_a10g"}


def live_prices() -> Prices | None:
    """The table with what Modal says now; None where it does not answer in time, or names none of our GPUs."""
    answer: list[dict[str, float]] = []

    def ask() -> None:
        with suppress(
            Exception
        ):  # no token, no network, no such right in this workspace: the table does
            answer.append(_ask())

    # A daemon: a Modal that hangs holds up neither the plan nor the end of the process.
    asking = threading.Thread(target=ask, name="rates", daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return from_rates(answer[0], datetime.date.today()) if answer else None


def from_rates(rates: Mapping[str, float], day: datetime.date) -> Prices | None:
    """The table with the rates that are believed; None where there is none."""
    found = {}
    for name, listed in TABLE.items():
        kind = ALIASES.get(name, name).lower().replace("-", "_")
        rate = rates.get(OTHERWISE.get(name) or f"gpu_hour_cost_{kind}")
        if rate is not None and math.isfinite(rate) and listed / FAR <= rate <= listed * FAR:
            found[name] = rate
    if not found:
        return None
    missing = sorted(TABLE.keys() - found.keys())
    rest = f"; {', '.join(missing)} by {Prices().source}" if missing else ""
    return Prices({**TABLE, **found}, f"Modal's rates for this account of {day}{rest}")


def _ask() -> dict[str, float]:
    from modal import Workspace

    return {name: float(rate) for name, rate in Workspace.from_context().billing.rates().items()}

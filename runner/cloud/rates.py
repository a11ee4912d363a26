"""What this account pays now: Modal's own rates, asked for at a launch; the table counts where it can't be asked.

``Workspace.billing.rates()`` answers with dollars an hour under names such as ``gpu_hour_cost_a100_80gb``,
``cpu_hour_cost`` (a physical core) and ``mem_gib_hour_cost``, as `modal billing rates --json` prints them.
"""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Mapping
from contextlib import suppress

from runner.cloud.gpu_kinds import ALIASES
from runner.cloud.prices import TABLE, Prices

PATIENCE = 4.0  # seconds: a plan must not wait for a price that the table has too
# A rate this many times our table's, or below it by that much, is per minute, per 8 GPUs, or of something else.
FAR = 3.0

# Names of ours that Modal's rates call otherwise. Modal bills an alias as its kind.
OTHERWISE = {"CPU": "cpu_hour_cost", "MEMORY": "mem_gib_hour_cost", "A10": "gpu_hour_cost_a10g"}


def live_prices() -> Prices | None:
    """The table with what Modal says now; None where it does not answer in time, or names none of our GPUs."""
    answer: list[dict[str, float]] = []

    def ask() -> None:
        with suppress(Exception):  # no token, no network, no such right in this workspace: the table does
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

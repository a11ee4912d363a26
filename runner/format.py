"""Durations and amounts as typed (``90m``, ``12h``, ``$25``), and values as shown."""

from __future__ import annotations

import math
import re

from job.format import sanitize
from runner.errors import usage

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_DOLLARS = 1e7


def parse_duration(text: str, option: str) -> float:
    """Return ``12h`` in seconds. Raises RunnerError, exit code 2, that names ``option``."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise usage(f"{option} {text}: expected a duration above 0, such as 90m, 12h or 3d")
    return float(match[1]) * UNITS_S[match[2]]


def parse_dollars(text: str, option: str) -> float:
    """Return ``$25`` as 25.0. Raises RunnerError, exit code 2, that names ``option``."""
    try:
        amount = float(text.strip().removeprefix("$"))
    except ValueError:
        amount = 0.0
    if not 0 < amount < MAX_DOLLARS:
        raise usage(f"{option} {text}: expected an amount of US dollars above 0, such as 25")
    return amount


def setting(value: object) -> str:
    """Return a recipe's value as YAML writes it, or – for one that is not set."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else sanitize(str(value))


def number(number: float) -> str:
    """Return 950, 12.5k, 3.2M or 1.1B, for axes and tokens."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def dollars(amount: float) -> str:
    """Return ``$25.00``, or two significant digits below a cent: ``$0.00012``."""
    if not 0 < amount < 0.01:
        return f"${amount:.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}".rstrip("0")

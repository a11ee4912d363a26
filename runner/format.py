"""Times and amounts as they are typed: ``90m``, ``12h``, ``3d``; ``25``, ``$25``."""

from __future__ import annotations

import math
import re

from runner.errors import usage

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str, option: str) -> float:
    """``12h`` in seconds. Raises RunnerError, exit code 2, that names ``option``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise usage(f"{option} {text}: write a time as 90m, 12h or 3d")
    return float(match[1]) * UNITS[match[2]]


def parse_dollars(text: str, option: str) -> float:
    """``$25`` as 25.0. Raises RunnerError, exit code 2, that names ``option``."""
    try:
        amount = float(text.strip().removeprefix("$"))
    except ValueError:
        amount = 0.0
    if not 0 < amount < 1e7:
        raise usage(f"{option} {text}: write an amount of US dollars above 0, for example 25")
    return amount


def sanitize(text: str | bytes) -> str:
    """The text with a mark for every character that is none to look at, but line feeds and tabs."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "\N{MIDDLE DOT}"
        for c in text
    )


def one_line(text: str) -> str:
    """The same on one line."""
    return " ".join(sanitize(text).split())


def setting(value: object) -> str:
    """A recipe's value as YAML writes it; – for one that is left to the default."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else sanitize(str(value))


def number(number: float) -> str:
    """950, 12.5k, 3.2M, 1.1B: for an axis, and for tokens."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def dollars(amount: float) -> str:
    """``$25.00``; below a cent as many digits as say something: ``$0.0001``."""
    if not 0 < amount < 0.01:
        return f"${amount:.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}".rstrip("0")

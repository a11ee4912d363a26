"""Times and amounts as they are typed: ``90m``, ``12h``, ``3d``; ``25``, ``$25``."""

from __future__ import annotations

import re

from runner.errors import usage

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, option: str) -> float:
    """``12h`` in seconds. Raises RunnerError, exit code 2, that names ``option``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise usage(f"{option} {text}: write a time as 90m, 12h or 3d")
    return float(match[1]) * UNITS[match[2]]


def dollars(text: str, option: str) -> float:
    """``$25`` as 25.0. Raises RunnerError, exit code 2, that names ``option``."""
    try:
        amount = float(text.strip().removeprefix("$"))
    except ValueError:
        amount = 0.0
    if not 0 < amount < 1e7:
        raise usage(f"{option} {text}: write an amount of US dollars above 0, for example 25")
    return amount


def in_words(span: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h, 2.1 d."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if span >= 1.5 * size or (unit != "d" and span >= size):
            return f"{span / size:.3g} {unit}"
    return f"{span:.3g} s"

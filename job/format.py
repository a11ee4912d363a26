"""Durations, sizes, text and JSON as they are shown and written.

json and difflib are imported where they are used: `runner --help` needs neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any
from urllib.parse import urlsplit

from job.exit_status import UsageError

MIN_SIMILARITY = 0.6  # difflib's ratio of a name that is suggested


def duration(seconds: float) -> str:
    """Return ``12s``, ``3m20s``, ``5h07m`` or ``3d04h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def byte_size(count: float) -> str:
    """Return ``950 bytes`` or ``1.1 GB``; a kilobyte is 1,000 bytes, as for Docker and GPUs."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit in ("bytes", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: int, noun: str) -> str:
    """Return ``1 file`` or ``2,000 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sanitize(text: str | bytes) -> str:
    """Return ``text`` with a dot for every control character except line feeds and tabs.

    Text of a network, a log or a pulled record could otherwise control the terminal.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(
        c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "\N{MIDDLE DOT}"
        for c in text
    )


def one_line(text: str) -> str:
    """Return the sanitized text on one line."""
    return " ".join(sanitize(text).split())


def brief(text: str, limit: int = 80) -> str:
    """Return ``text``, shortened by an ellipsis if it exceeds ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def json_text(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON, also with dataclasses; NaN and infinities become null."""
    import json

    return json.dumps(_finite(value), indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def runner_command(target: str) -> str:
    """Return ``runner TARGET`` as typed: in `runner remote BOX`, the box is a word of its own."""
    return f"runner {target.replace(':', ' ', 1)}"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = MIN_SIMILARITY) -> str:
    """Return ``; did you mean 'x'?`` for the most similar name, or an empty string."""
    import difflib

    names = {name.lstrip("-"): name for name in known}  # every option has the dashes
    word = word.lower().lstrip("-")
    close = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def either(options: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last


def url_problem(url: str) -> str:
    """Return why the URL can't be requested; '' if it can."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "only http:// and https:// addresses are supported"
        if not parts.hostname or " " in parts.hostname or parts.port == 0:
            return "it names no host"
    except ValueError as error:
        return str(error)
    return ""


UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_DOLLARS = 1e7


def parse_duration(text: str, option: str) -> float:
    """Return ``12h`` in seconds. Raises UsageError that names ``option``."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{option} {text}: expected a duration above 0, such as 90m, 12h or 3d")
    number, unit = match.groups()
    if not unit:
        raise UsageError(
            f"{option} {text}: {number} has no unit; write {number}m, {number}h or {number}d"
        )
    return float(number) * UNITS_S[unit]


def parse_dollars(text: str, option: str) -> float:
    """Return ``$25`` as 25.0. Raises UsageError that names ``option``."""
    try:
        amount = float(text.strip().removeprefix("$"))
    except ValueError:
        amount = 0.0
    if not 0 < amount < MAX_DOLLARS:
        raise UsageError(f"{option} {text}: expected an amount of US dollars above 0, such as 25")
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


def describe_result(result: Mapping[str, Any]) -> str:
    """Return an experiment's result as one line."""
    return short_result(result, 200) or (
        "its result is in run.json" if result else "train() returned nothing"
    )


def short_result(result: Mapping[str, Any], width: int = 60) -> str:
    """Return ``loss=0.1234 accuracy=0.98``: plain values, up to ``width`` characters."""
    text = ""
    for key, value in result.items():
        if isinstance(value, Mapping | list):
            continue
        part = f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        if len(text) + len(part) + 1 > width:
            return f"{text} …" if text else f"{part[: width - 1]}…"
        text = f"{text} {part}".strip()
    return text

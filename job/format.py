"""Durations, sizes, text and JSON as they are shown and written."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

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


def json_text(value: Any, indent: int | None = None) -> str:
    """Return the value as JSON; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the most similar name, or an empty string."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=MIN_SIMILARITY)
    return f"; did you mean '{close[0]}'?" if close else ""

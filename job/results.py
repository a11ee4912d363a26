"""Convert what ``train`` returned to JSON. A value that JSON lacks must not cost hours of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MAX_TEXT_CHARS = 200  # of a value that is kept as text


def as_result(returned: object, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the result for the record, warning about values that JSON lacks."""
    if returned is None:
        return {}
    if isinstance(returned, Mapping):
        return {str(key): _plain(value, str(key), say) for key, value in returned.items()}
    say(f"warning: train() returned {type(returned).__name__}, not a dict; saved as 'result'")
    return {"result": _plain(returned, "result", say)}


def _plain(value: object, key: str, say: Callable[[str], None]) -> Any:
    if hasattr(value, "item") and getattr(value, "size", None) is not None and _is_single(value):
        value = value.item()  # of torch and numpy
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no nan and no inf
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(part, f"{key}.{name}", say) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, key, say) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), key, say)
    say(f"warning: '{key}' of the result is a {type(value).__name__}, saved as text")
    return repr(value)[:MAX_TEXT_CHARS]


def _is_single(value: Any) -> bool:
    count = value.numel() if hasattr(value, "numel") else value.size
    return bool(count == 1)


def what_came(result: Mapping[str, Any]) -> str:
    """Return an experiment's result as one line."""
    return in_short(result, 200) or (
        "its result is in run.json" if result else "train() returned nothing"
    )


def in_short(result: Mapping[str, Any], width: int = 60) -> str:
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

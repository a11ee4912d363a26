"""What ``train`` returned, as JSON can hold it. Hours of work are not lost for a value that it can't."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 200  # characters of a value that is kept as text


def as_result(returned: object, say: Callable[[str], None]) -> dict[str, Any]:
    """The result for the record. What is no dict, or holds what JSON lacks, is kept as far as it goes, aloud."""
    if returned is None:
        return {}
    if isinstance(returned, Mapping):
        return {str(key): _plain(value, str(key), say) for key, value in returned.items()}
    say(f"warning: train() returned no dict but {type(returned).__name__}; it is kept as 'result'")
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
    say(
        f"warning: '{key}' of the result is of type {type(value).__name__}, which JSON lacks; kept as text"
    )
    return repr(value)[:LONGEST]


def _is_single(value: Any) -> bool:
    count = value.numel() if hasattr(value, "numel") else value.size
    return bool(count == 1)


def what_came(result: Mapping[str, Any]) -> str:
    """What an experiment gave, for a line that says that it is finished."""
    return in_short(result, 200) or (
        "its result is in run.json" if result else "train() returned nothing"
    )


def in_short(result: Mapping[str, Any], width: int = 60) -> str:
    """``loss=0.1234 accuracy=0.98``: the plain values, as many as fit into ``width`` characters."""
    text = ""
    for key, value in result.items():
        if isinstance(value, Mapping | list):
            continue
        part = f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        if len(text) + len(part) + 1 > width:
            return f"{text} …" if text else f"{part[: width - 1]}…"
        text = f"{text} {part}".strip()
    return text

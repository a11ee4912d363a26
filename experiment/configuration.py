"""The configuration that a checkpoint belongs to: what it is as JSON, and how two of them differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus, UserError


class OtherConfiguration(UserError):
    """The checkpoint was written under another configuration; the text shows the differences."""

    status = ExitStatus.JOB_FAILED


def as_plain(config: object) -> Any:
    """A dict, dataclass, pydantic model or namespace as it comes back from JSON.

    Raises TypeError for one that holds what JSON lacks: such a value could not be compared later.
    """
    return json.loads(json.dumps(_tree(config), default=_tree))


def _tree(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    if value is not None and hasattr(value, "__dict__") and not isinstance(value, type):
        return vars(value)
    raise TypeError(
        f"config and state hold numbers, texts, lists and dicts, not a {type(value).__name__} ({value!r})"
    )


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """``lr: 0.1 → 0.2`` for each value that differs, with the full key of one inside another."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for name in {**before, **after}
            for line in differences(
                before.get(name, MISSING), after.get(name, MISSING), f"{key}.{name}" if key else name
            )
        ]
    return [] if before == after else [f"{key or 'config'}: {_shown(before)} → {_shown(after)}"]


MISSING = object()


def _shown(value: object) -> str:
    return "(not there)" if value is MISSING else repr(value)

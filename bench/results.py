"""What was measured: each result is printed and written into a JSON file as soon as it is there."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from job.files import write_atomically


class Results:
    """The results of one call, and its budget of time. ``path``: a file of JSON lines that is appended to."""

    def __init__(
        self, path: Path | None = None, minutes: float | None = None, as_json: bool = False
    ) -> None:
        self.path, self.as_json = path, as_json
        self.started = time.monotonic()
        self.seconds = minutes * 60 if minutes else None
        self.all: list[dict[str, Any]] = []

    def left(self) -> float:
        """Seconds until the budget is spent; a year where there is none."""
        spent = time.monotonic() - self.started
        return 3.2e7 if self.seconds is None else self.seconds - spent

    def say(self, text: str) -> None:
        """Talk, to stderr, with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def add(self, what: str, **values: Any) -> dict[str, Any]:
        """Keep one result, on the disk and on stdout."""
        result = {"what": what, **values}
        self.all.append(result)
        if self.path is not None:
            before = self.path.read_text() if self.path.exists() else ""
            write_atomically(self.path, before + json.dumps(result) + "\n")
        print(json.dumps(result) if self.as_json else _lines(result), flush=True)
        return result


def _lines(result: dict[str, Any]) -> str:
    shown = []
    for key, value in result.items():
        if isinstance(value, dict):
            shown += [f"  {value[inner]!s:>14}  {inner}" for inner in value]
        elif key != "what" and value is not None:
            shown.append(f"  {_short(value):>14}  {key}")
    return "\n".join([result["what"], *shown])


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)

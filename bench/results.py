"""Measurements of training runs, and the log of results that every bench writes."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from job.exit_status import UserError
from job.files import write_atomically

SHOWN_OUTPUT_CHARS = 1500


class RunFailed(Exception):
    """A measured process failed. The message holds the reason and the end of its output."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason + ("\n" + output[-SHOWN_OUTPUT_CHARS:] if output else ""))
        self.out_of_memory = "out of memory" in output.lower() or "OutOfMemoryError" in output


@dataclass(frozen=True)
class Step:
    """One optimizer step: seconds since the end of the previous step, and the loss in nats."""

    number: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Measurement:
    """One training run of one trainer. ``extra`` holds what only some trainers report."""

    steps: list[Step]
    tokens_per_step: int
    wall_seconds: float  # of the whole process
    micro_batch: int
    peak_memory_bytes: int | None = None
    val_loss: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def settled_seconds(self) -> list[float]:
        """Seconds of the steps after the first fifth (at least three): after compilation."""
        return settled([step.seconds for step in self.steps])

    @property
    def median_seconds(self) -> float:
        """Median seconds of a settled step."""
        return statistics.median(self.settled_seconds)

    @property
    def compile_seconds(self) -> float:
        """Extra time of the first steps: compilation, autotuning, the allocator."""
        first = self.steps[: len(self.steps) - len(self.settled_seconds)]
        return sum(max(0.0, step.seconds - self.median_seconds) for step in first)

    @property
    def training_seconds(self) -> float:
        """Seconds of all steps: includes compilation, excludes start-up and evaluation."""
        return sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a result line."""
        ordered = sorted(self.settled_seconds)
        peak = self.peak_memory_bytes
        return {
            "steps": len(self.steps),
            "micro_batch": self.micro_batch,
            "ms_median": round(self.median_seconds * 1e3, 3),
            "ms_p10": round(ordered[round((len(ordered) - 1) / 10)] * 1e3, 3),
            "tokens_per_second": round(self.tokens_per_step / self.median_seconds),
            "compile_seconds": round(self.compile_seconds, 2),
            "peak_memory_gb": round(peak / 1e9, 3) if peak else None,
            "last_loss": self.steps[-1].loss,
            "val_loss": self.val_loss,
            "wall_seconds": round(self.wall_seconds, 1),
            **self.extra,
        }


def settled(seconds: Sequence[float]) -> list[float]:
    """Leave out the first fifth of the steps (at least three), in which they are compiled."""
    return list(seconds[max(3, len(seconds) // 5) :] or seconds[-1:])


class Results:
    """The results and the time budget of one call. ``path`` is a JSON Lines file to append to."""

    def __init__(
        self, path: Path | None = None, minutes: float | None = None, as_json: bool = False
    ) -> None:
        self.path, self.as_json = path, as_json
        self.started = time.monotonic()
        self.budget_seconds = minutes * 60 if minutes else math.inf
        self.all: list[dict[str, Any]] = []

    def seconds_left(self) -> float:
        """Return the seconds left of the budget; inf without a budget."""
        return self.budget_seconds - (time.monotonic() - self.started)

    def log(self, text: str) -> None:
        """Print a progress message to stderr, with the seconds since the start."""
        elapsed = time.monotonic() - self.started
        print(f"[{elapsed:6.1f} s] {text}", file=sys.stderr, flush=True)

    def add(self, what: str, **values: Any) -> dict[str, Any]:
        """Append one result to the file and print it to stdout."""
        result = {"what": what, **values}
        self.all.append(result)
        if self.path is not None:
            before = self.path.read_text() if self.path.exists() else ""
            write_atomically(self.path, before + json.dumps(result) + "\n")
        print(json.dumps(result) if self.as_json else _text(result), flush=True)
        return result

    @contextmanager
    def record_failure(self, **what: object) -> Iterator[None]:
        """Turn an error of the block into a `failed` result, so that the other parts still run."""
        try:
            yield
        except (RunFailed, UserError, OSError, ValueError, LookupError, RuntimeError) as error:
            self.add("failed", **what, why=f"{type(error).__name__}: {error}")

    def earlier(self) -> list[dict[str, Any]]:
        """Return the results that the file already holds."""
        if self.path is None or not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def has_trainer(self, name: str) -> bool:
        """Return True if the trainer ``name`` was measured."""
        measured = (result for result in self.all if result["what"] != "failed")
        return any(result.get("trainer") == name for result in measured)


def _text(result: dict[str, Any]) -> str:
    lines = [result["what"]]
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"  {_short(value[inner]):>14}  {key}: {inner}" for inner in value]
        elif key != "what" and value is not None:
            lines.append(f"  {_short(value):>14}  {key}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table to stderr: a column for each trainer, a line for each figure that any has."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(row["trainer"] for row in rows)):
        table.add_column(heading, justify="right" if heading else "left")
    for key in dict.fromkeys(key for row in rows for key in row if key != "trainer"):
        values = [row.get(key) for row in rows]
        if any(value is not None and not isinstance(value, list) for value in values):
            table.add_row(key, *map(_short, values))
    Console(stderr=True).print(table)

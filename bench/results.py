"""Measurements of training runs, and the log of results that every bench writes."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from job.files import write_atomically

NO_LIMIT_S = 3.2e7  # a year

COLUMNS = {
    "trainer": "",
    "micro_batch": "micro-batch",
    "ms_median": "ms/step",
    "ms_p10": "p10",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
    "mfu_roofline": "of roofline",
    "peak_memory_gb": "peak GB",
    "compile_cold_seconds": "compile s",
    "compile_warm_seconds": "warm s",
    "checkpoint_stall_ms": "stall ms",
    "stall_share_every_100_steps": "of 100 steps",
    "ours_speedup": "ours is faster",
}
PERCENT_COLUMNS = ("mfu", "mfu_roofline", "stall_share_every_100_steps")


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
        settled = self.steps[self._warmup_steps :] or self.steps[-1:]
        return [step.seconds for step in settled]

    @property
    def _warmup_steps(self) -> int:
        return max(3, len(self.steps) // 5)

    @property
    def median_seconds(self) -> float:
        """Median seconds of a settled step."""
        return statistics.median(self.settled_seconds)

    @property
    def compile_seconds(self) -> float:
        """Extra time of the first steps: compilation, autotuning, the allocator."""
        median = self.median_seconds
        return sum(max(0.0, step.seconds - median) for step in self.steps[: self._warmup_steps])

    @property
    def training_seconds(self) -> float:
        """Seconds of all steps: includes compilation, excludes start-up and evaluation."""
        return sum(step.seconds for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a result line."""
        return {
            "steps": len(self.steps),
            "micro_batch": self.micro_batch,
            "ms_median": round(self.median_seconds * 1e3, 3),
            "ms_p10": round(percentile(self.settled_seconds, 10) * 1e3, 3),
            "tokens_per_second": round(self.tokens_per_step / self.median_seconds),
            "compile_seconds": round(self.compile_seconds, 2),
            "peak_memory_gb": (
                round(self.peak_memory_bytes / 1e9, 3) if self.peak_memory_bytes else None
            ),
            "last_loss": self.steps[-1].loss,
            "val_loss": self.val_loss,
            "wall_seconds": round(self.wall_seconds, 1),
            **self.extra,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


class Results:
    """The results and the time budget of one call. ``path`` is a JSON Lines file to append to."""

    def __init__(
        self, path: Path | None = None, minutes: float | None = None, as_json: bool = False
    ) -> None:
        self.path, self.as_json = path, as_json
        self.started = time.monotonic()
        self.budget_seconds = minutes * 60 if minutes else None
        self.all: list[dict[str, Any]] = []

    def seconds_left(self) -> float:
        """Return the seconds left of the budget; a year if there is no budget."""
        spent = time.monotonic() - self.started
        return NO_LIMIT_S if self.budget_seconds is None else self.budget_seconds - spent

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

    def earlier(self) -> list[dict[str, Any]]:
        """Return the results that the file already holds."""
        if self.path is None or not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def _text(result: dict[str, Any]) -> str:
    lines = [result["what"]]
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"  {value[inner]!s:>14}  {inner}" for inner in value]
        elif key != "what" and value is not None:
            lines.append(f"  {_short(value):>14}  {key}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table to stderr, with a column for each figure that any row has."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, pad_edge=False)
    for name in names:
        align = "left" if name == "trainer" else "right"
        table.add_column(COLUMNS[name], justify=align, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(_cell(name, row.get(name)) for name in names))
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = max(console.width, 150)
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in PERCENT_COLUMNS:
        return f"{value:.2%}"
    if name == "ours_speedup":
        return f"{value:.2f}x"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)

"""What a contender's run gave: seconds and loss of each step. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One optimizer step: seconds from the end of the one before, and its loss in nats."""

    number: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Measured:
    """One run of a contender. ``more``: what only some of them tell."""

    steps: list[Step]
    tokens_per_step: int
    wall_seconds: float  # of the whole process
    micro_batch: int
    peak_memory_bytes: int | None = None
    val_loss: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> list[float]:
        """Seconds of the steps after the first fifth, at least three: behind compilation and warm-up."""
        return [step.seconds for step in self.steps[max(3, len(self.steps) // 5) :]] or [
            self.steps[-1].seconds
        ]

    @property
    def median(self) -> float:
        """Seconds of a settled step."""
        return statistics.median(self.settled)

    @property
    def compile_seconds(self) -> float:
        """What the first steps took beyond settled ones: compilation, the autotuner, the allocator."""
        first = self.steps[: max(3, len(self.steps) // 5)]
        return sum(max(0.0, step.seconds - self.median) for step in first)

    @property
    def training_seconds(self) -> float:
        """All steps, compilation included, start-up and evaluation not."""
        return sum(step.seconds for step in self.steps)

    def facts(self) -> dict[str, Any]:
        """For a result."""
        return {
            "steps": len(self.steps),
            "micro_batch": self.micro_batch,
            "ms_median": round(self.median * 1e3, 3),
            "ms_p10": round(percentile(self.settled, 10) * 1e3, 3),
            "tokens_per_second": round(self.tokens_per_step / self.median),
            "compile_seconds": round(self.compile_seconds, 2),
            "peak_memory_gb": round(self.peak_memory_bytes / 1e9, 3)
            if self.peak_memory_bytes
            else None,
            "last_loss": self.steps[-1].loss,
            "val_loss": self.val_loss,
            "wall_seconds": round(self.wall_seconds, 1),
            **self.more,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` percent are below, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share / 100 * (len(ordered) - 1)))]

"""One budget in US dollars for all trials. Pure.

What a running trial may still spend is set aside for it, as its own --max-cost, so that the sum can't exceed the
budget whatever the trials do. What one leaves over goes back to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Purse:
    """``spent`` by what has ended, ``reserved`` for what runs; ``total`` None: no limit."""

    total: float | None
    spent: float = 0.0
    reserved: float = 0.0

    @property
    def left(self) -> float:
        """What nobody has yet."""
        return float("inf") if self.total is None else max(0.0, self.total - self.spent - self.reserved)


def expected_cost(estimate: float | None, seen: Sequence[float]) -> float | None:
    """What a trial will cost: the mean of those that have finished, else the estimate; None: nobody knows."""
    return fmean(seen) if seen else estimate


def shares(purse: Purse, expected: float | None, slots: int) -> list[float]:
    """For each trial that can start now, at most ``slots``, what it may cost. Fewer start where not all can be
    paid for: one that would end at its cap in the middle is money for nothing."""
    if purse.total is None:
        return [float("inf")] * slots
    if purse.left <= 0:
        return []
    count = slots
    if expected is not None and expected > 0:
        count = min(slots, int(purse.left / expected))
    return [purse.left / count] * count if count else []

"""Start one trial: its share of the budget, of the cores and of the GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from runner.console import CliContext
from runner.plan import Plan
from runner.request import Request
from runner.system import System
from runner.target import Target

NO_LIMIT = math.inf


@dataclass(frozen=True)
class BudgetState:
    """The dollars of a sweep: ``reserved`` is for running trials; ``total`` is None without limit."""

    total: float | None
    spent: float = 0.0
    reserved: float = 0.0

    @property
    def left(self) -> float:
        """Return the dollars that are neither spent nor reserved."""
        if self.total is None:
            return NO_LIMIT
        return max(0.0, self.total - self.spent - self.reserved)


def expected_cost(estimate: float | None, finished: Sequence[float]) -> float | None:
    """Return the expected cost of a trial: the mean of the finished ones, else the estimate."""
    return fmean(finished) if finished else estimate


def allocate(budget: BudgetState, expected: float | None, slots: int) -> list[float]:
    """Return the cap of each trial that can start now, at most ``slots``.

    Fewer trials start if the budget does not cover all: one that reaches its cap midway is wasted.
    """
    if budget.total is None:
        return [NO_LIMIT] * slots
    if budget.left <= 0:
        return []
    count = slots
    if expected is not None and expected > 0:
        count = min(slots, int(budget.left / expected))
    return [budget.left / count] * count if count else []


def start_trial(
    cli: CliContext, target: Target, request: Request, cap: float | None, slot: int, slots: int
) -> None:
    """Start the trial, detached, in one of ``slots`` parallel slots.

    ``cap`` is its --max-cost in dollars. Raises RunnerError.
    """
    if cap is not None:
        options = replace(request.target_options, max_cost=round(cap, 4))
        request = replace(request, target_options=options)
    plan = target.plan(request, target.inspect(request))
    target.start(share_machine(cli, target, plan, slot, slots))


def share_machine(cli: CliContext, target: Target, plan: Plan, slot: int, slots: int) -> Plan:
    """Return the plan with the slot's share of the cores and GPUs of this machine.

    Without this, every process uses all cores: a step of 60 ms took 286 to 1,249 ms.
    """
    if target.has_remote_volumes or slots < 2:
        return plan
    variables = []
    if not cli.environ.get("OMP_NUM_THREADS"):
        variables.append(("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots))))
    gpus = len(System(cli.environ).gpus)
    if gpus > 1 and plan.process.device != "cpu" and "CUDA_VISIBLE_DEVICES" not in cli.environ:
        variables.append(("CUDA_VISIBLE_DEVICES", str(slot % gpus)))
    process = replace(plan.process, environment=(*plan.process.environment, *variables))
    return replace(plan, process=process)

"""The plan of a sweep: every trial, and what the remaining ones will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from job.format import dollars, duration
from job.machine import available_cpus
from runner.console import CliContext, new_table
from runner.plan import Plan
from runner.request import Request
from runner.sweep.record import NO_LIMIT, SweepRecord, TrialStatus
from runner.sweep.results import format_value
from runner.system import System
from runner.target import Target

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SweepPlan:
    """Everything a launch of the sweep will do; ``plans`` are those of the remaining trials."""

    record: SweepRecord
    title: str
    plans: tuple[Plan, ...]
    max_parallel: int
    smoke: str
    early_stop: str = ""

    @property
    def seconds(self) -> float | None:
        """Return the estimated time of the remaining trials, one after another."""
        return _sum([plan.estimate.seconds for plan in self.plans])

    @property
    def dollars(self) -> float | None:
        """Return the estimated cost of the remaining trials."""
        return _sum([estimated_cost(plan) for plan in self.plans])

    @property
    def price(self) -> str | None:
        """Return the price to confirm; None if the sweep is free."""
        if all(plan.estimate.usd_per_hour is None for plan in self.plans):
            return None
        estimate = self.dollars
        about = f"about {dollars(estimate)}" if estimate is not None else "an unknown amount"
        if self.record.budget is None:
            return f"The sweep will cost {about}, and no --budget limits it."
        available = self.record.available_usd
        if estimate is not None:
            about = f"about {dollars(min(estimate, available))}"
        return f"The sweep will cost {about}, at most {dollars(available)}."

    def to_json(self) -> dict[str, Any]:
        """Return the plan for --json."""
        estimates = {plan.run: (plan.estimate.seconds, estimated_cost(plan)) for plan in self.plans}
        trials = []
        for trial in self.record.trials:
            seconds, cost = estimates.get(trial.run, (None, None))
            trials.append(
                {**asdict(trial), "estimated_seconds": seconds, "estimated_dollars": cost}
            )
        return {
            "sweep": self.record.name,
            "of": self.title,
            "target": self.record.target,
            "metric": self.record.metric,
            "goal": self.record.goal,
            "budget": self.record.budget,
            "spent": round(self.record.spent, 4),
            "max_parallel": self.max_parallel,
            "smoke": self.smoke,
            "early_stop": self.early_stop,
            "estimated_seconds": self.seconds,
            "estimated_dollars": self.dollars,
            "trials": trials,
        }


def estimated_cost(plan: Plan) -> float | None:
    """Return the estimated dollars of one trial; None if unknown or free."""
    estimate = plan.estimate
    if estimate.seconds is None or estimate.usd_per_hour is None:
        return None
    return estimate.seconds * estimate.usd_per_hour / 3600


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def rows(plan: SweepPlan) -> list[tuple[str, str]]:
    """Return the rows (name, value) that describe the sweep."""
    record = plan.record
    progress = ", ".join(
        f"{count} {status}"
        for status in TrialStatus
        if status != TrialStatus.WAITING and (count := record.count(status))
    )
    fixed = record.definition.get("fixed", {})
    hours = duration(plan.seconds) if plan.seconds is not None else ""
    about = f", {dollars(plan.dollars)}" if plan.dollars is not None else ""
    prices = [p.estimate.usd_per_hour for p in plan.plans]
    price = next((price for price in prices if price is not None), None)
    spent = f", {dollars(record.spent)} spent" if record.spent else ""
    budget = "none" if price is not None else ""
    if record.budget is not None:
        budget = f"{dollars(record.budget)} for all trials{spent}; unaffordable trials do not start"
    table = [
        ("sweep", f"{record.name}: {len(record.trials)} trials of {plan.title} on {record.target}"),
        ("so far", progress),
        ("fixed", " ".join(f"{key}={value}" for key, value in fixed.items())),
        ("metric", f"{record.metric}, {'lowest' if record.goal == 'min' else 'highest'} is best"),
        ("smoke run", plan.smoke),
        ("parallel", str(plan.max_parallel) if plan.max_parallel > 1 else "one at a time"),
        ("early stop", plan.early_stop),
        ("price", f"{dollars(price)} per hour and trial" if price is not None else ""),
        ("estimate", f"about {hours} of machine time{about} in total" if hours else ""),
        ("budget", budget),
    ]
    return [(name, value) for name, value in table if value]


def trial_table(plan: SweepPlan) -> Table:
    """Return a table of every trial, in order."""
    keys = list(dict.fromkeys(key for trial in plan.record.trials for key in trial.values))
    estimates = {p.run: estimated_cost(p) for p in plan.plans}
    has_prices = any(cost is not None for cost in estimates.values())
    titles = ("trial", *keys, "status", *(["about"] if has_prices else []))
    table = new_table(*titles, left_aligned=("trial", "status"))
    for trial in plan.record.trials:
        cost = estimates.get(trial.run)
        about = [dollars(cost) if cost is not None else ""] if has_prices else []
        values = (format_value(trial, key) for key in keys)
        table.add_row(trial.run, *values, trial.status, *about)
    return table


def expected_cost(estimate: float | None, finished: Sequence[float]) -> float | None:
    """Return the expected cost of a trial: the mean of the finished ones, else the estimate."""
    return fmean(finished) if finished else estimate


def allocate(available_usd: float, expected: float | None, slots: int) -> list[float]:
    """Return the cap of each trial that can start now, at most ``slots``.

    Fewer trials start if the budget does not cover all: one that reaches its cap midway is wasted.
    """
    if available_usd in (0.0, NO_LIMIT):
        return [available_usd] * slots if available_usd else []
    count = slots
    if expected is not None and expected > 0:
        count = min(slots, int(available_usd / expected))
    return [available_usd / count] * count if count else []


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
        variables.append(("OMP_NUM_THREADS", str(max(1, available_cpus() // slots))))
    gpus = len(System(cli.environ).gpus)
    if gpus > 1 and plan.process.device != "cpu" and "CUDA_VISIBLE_DEVICES" not in cli.environ:
        variables.append(("CUDA_VISIBLE_DEVICES", str(slot % gpus)))
    process = replace(plan.process, environment=(*plan.process.environment, *variables))
    return replace(plan, process=process)

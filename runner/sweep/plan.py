"""The plan of a sweep: every trial, what it will cost, and what all of them will. Pure values, one function shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from job.format import duration
from runner.console import CliContext
from runner.format import dollars
from runner.plan import Plan
from runner.planning.show import show_rows
from runner.sweep.record import SweepRecord
from runner.sweep.results import shown


@dataclass(frozen=True)
class SweepPlan:
    """``plans`` are those of the trials that are left, in order."""

    record: SweepRecord
    title: str
    plans: tuple[Plan, ...]
    max_parallel: int
    smoke: str
    early_stop: str = ""

    @property
    def seconds(self) -> float | None:
        """Estimated, of all that is left, one after another."""
        return _sum([plan.estimate.seconds for plan in self.plans])

    @property
    def dollars(self) -> float | None:
        """Estimated, of all that is left."""
        return _sum([cost_of(plan) for plan in self.plans])

    @property
    def question(self) -> str | None:
        """Asked before it starts, where it costs money."""
        paid = [plan for plan in self.plans if plan.estimate.usd_per_hour is not None]
        if not paid:
            return None
        about = (
            f"about {dollars(self.dollars)}" if self.dollars is not None else "what its trials take"
        )
        if self.record.budget is None:
            return f"The sweep will cost {about}, and no --budget limits it. Start it?"
        left = max(0.0, self.record.budget - self.record.spent - self.record.reserved)
        if self.dollars is not None:
            about = f"about {dollars(min(self.dollars, left))}"
        return f"The sweep will cost {about}, {dollars(left)} at most. Start it?"

    def facts(self) -> dict[str, Any]:
        """The plan for --json."""
        estimates = {plan.run: (plan.estimate.seconds, cost_of(plan)) for plan in self.plans}
        rows = []
        for trial in self.record.trials:
            seconds, dollars = estimates.get(trial.run, (None, None))
            rows.append(
                {**asdict(trial), "estimated_seconds": seconds, "estimated_dollars": dollars}
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
            "trials": rows,
        }


def cost_of(plan: Plan) -> float | None:
    """Estimated dollars of one trial; None where that can't be told."""
    if plan.estimate.seconds is None or plan.estimate.usd_per_hour is None:
        return None
    return plan.estimate.seconds * plan.estimate.usd_per_hour / 3600


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def show_plan(plan: SweepPlan, cli: CliContext) -> None:
    """Two quiet tables on stderr: the sweep, and its trials."""
    show_rows(cli, rows(plan))
    cli.info("")
    cli.print_table(trial_table(plan))


def rows(plan: SweepPlan) -> list[tuple[str, str]]:
    """A name and what it is; nothing where there is nothing to say."""
    record = plan.record
    done = ", ".join(
        f"{count} {status}"
        for status in ("finished", "failed", "stopped", "unfinished", "running")
        if (count := record.count(status))
    )
    hours = duration(plan.seconds) if plan.seconds is not None else ""
    about = f", {dollars(plan.dollars)}" if plan.dollars is not None else ""
    price = next(
        (p.estimate.usd_per_hour for p in plan.plans if p.estimate.usd_per_hour is not None),
        None,
    )
    spent = f", {dollars(record.spent)} spent" if record.spent else ""
    found = [
        ("sweep", f"{record.name}: {len(record.trials)} trials of {plan.title} on {record.target}"),
        ("so far", done),
        (
            "fixed",
            " ".join(f"{key}={value}" for key, value in record.definition.get("fixed", {}).items()),
        ),
        (
            "metric",
            f"{record.metric}, the {'lowest' if record.goal == 'min' else 'highest'} is best",
        ),
        ("first", plan.smoke),
        ("at once", str(plan.max_parallel) if plan.max_parallel > 1 else "one"),
        ("early stop", plan.early_stop),
        ("price", f"{dollars(price)} an hour and trial" if price is not None else ""),
        ("estimate", f"about {hours} of machines{about} in all" if hours else ""),
        (
            "budget",
            f"{dollars(record.budget)} for all trials{spent}; one that it can't pay for is not started"
            if record.budget is not None
            else ("none" if price is not None else ""),
        ),
    ]
    return [(name, value) for name, value in found if value]


def trial_table(plan: SweepPlan) -> Any:
    """Every trial, in order."""
    from rich.table import Table

    keys = list(dict.fromkeys(key for trial in plan.record.trials for key in trial.values))
    estimates = {p.run: cost_of(p) for p in plan.plans}
    priced = any(cost is not None for cost in estimates.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("trial", no_wrap=True)
    for key in keys:
        table.add_column(key, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    if priced:
        table.add_column("about", justify="right", no_wrap=True)
    for trial in plan.record.trials:
        cost = estimates.get(trial.run)
        about = [dollars(cost) if cost is not None else ""] if priced else []
        table.add_row(trial.run, *(shown(trial, key) for key in keys), trial.status, *about)
    return table

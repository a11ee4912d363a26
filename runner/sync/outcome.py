"""How a transfer ended, in words and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from job.exit_status import ExitStatus
from job.quantities import byte_size
from runner.sync.plan import TransferPlan
from runner.sync.progress import count
from runner.sync.workers import Missing
from runner.terminal import Environment

SHOWN = 10  # names of missing files; --json has them all


@dataclass(frozen=True)
class Outcome:
    """``missing`` is what should be there and is not; ``size`` in bytes."""

    plan: TransferPlan
    missing: tuple[Missing, ...]
    seconds: float
    size: int

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is there."""
        return not self.missing and not self.plan.refused

    @property
    def status(self) -> ExitStatus:
        """The exit code."""
        return ExitStatus.DONE if self.is_complete else ExitStatus.ERROR


def say_outcome(env: Environment, outcome: Outcome, verb: str, where: str) -> None:
    """Tell what moved, what was the same and what is missing. ``verb``: pulled, pushed."""
    plan, missing = outcome.plan, (*outcome.plan.refused, *outcome.missing)
    moved = plan.count - len(outcome.missing)
    same = f"; {count(plan.same, 'file')} {'was' if plan.same == 1 else 'were'} the same" if plan.same else ""
    took = f", {byte_size(outcome.size)} in {outcome.seconds:.0f} s" if moved else ""
    env.say(f"{verb} {count(max(0, moved), 'file')} {where}{took}{same}")
    for item in missing[:SHOWN]:
        env.say(f"  missing: {ascii(item.path)[1:-1]}: {item.why}")
    if len(missing) > SHOWN:
        env.say(f"  and {len(missing) - SHOWN:,} more; --json lists them all")
    if outcome.missing:
        total = plan.count + plan.same
        env.say(
            f"error: {len(outcome.missing):,} of {count(total, 'file')} missing; `{env.line}` goes on from here"
        )
    elif plan.refused:
        env.say(f"error: {count(len(plan.refused), 'name')} refused; the rest is complete")


def outcome_json(outcome: Outcome, **more: object) -> dict[str, object]:
    """The same for a program."""
    return {
        **more,
        "complete": outcome.is_complete,
        "files": outcome.plan.rows(),
        "same": outcome.plan.same,
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
        "missing": [asdict(item) for item in (*outcome.plan.refused, *outcome.missing)],
        "notes": list(outcome.plan.notes),
    }


def show_plan(env: Environment, plan: TransferPlan, as_json: bool) -> None:
    """What --dry-run prints, on stdout."""
    if as_json:
        env.json(
            {
                "files": plan.rows(),
                "bytes": plan.size,
                "same": plan.same,
                "refused": [asdict(item) for item in plan.refused],
                "notes": list(plan.notes),
            }
        )
        return
    for row in plan.rows():
        env.write(f"{row['why']:<10} {byte_size(row['bytes']):>10}  {ascii(row['path'])[1:-1]}")
    for item in plan.refused:
        env.say(f"  refused: {ascii(item.path)[1:-1]}: {item.why}")
    for note in plan.notes:
        env.say(f"  {note}")
    env.say(
        f"would move {count(plan.count, 'file')}, {byte_size(plan.size)} at most; "
        f"{count(plan.same, 'file')} the same"
    )

"""The checks of ``runner doctor``, in the order of the report: later ones build on earlier ones."""

from __future__ import annotations

from collections.abc import Iterator

from runner.doctor import leftovers, modal, project, system
from runner.doctor.base import Check, CheckContext, Finding, Fix

__all__ = ["CHECKS", "FIXES", "CheckContext", "Finding", "examine", "repair"]

CHECKS: tuple[Check, ...] = (
    system.check_engine,
    system.check_clock,
    system.check_compose,
    system.check_gpus,
    system.check_torch,
    project.check_dotenv,
    system.check_volumes,
    project.check_dockerfile,
    project.check_recipes,
    project.check_secrets,
    leftovers.check_leftovers,
    modal.check_modal,
)

FIXES: tuple[Fix, ...] = (
    project.fix_dotenv,
    system.fix_volumes,
    leftovers.fix_leftovers,
)


def examine(context: CheckContext) -> Iterator[Finding]:
    """Run every check and yield its findings."""
    for check in CHECKS:
        yield from check(context)


def repair(context: CheckContext) -> Iterator[str]:
    """Run every fix and yield a line for each change."""
    for fix in FIXES:
        yield from fix(context)

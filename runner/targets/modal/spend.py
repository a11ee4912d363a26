"""The cost of runs on Modal since a given time: by their records, and by Modal's bill.

Modal bills whole hours, some time after they end. The records have every second, but only the
runs that are still on the volume.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Mapping
from pathlib import Path

from job.format import dollars, parse_dollars
from runner.errors import RunnerError, usage
from runner.jobs import RESUMABLE_JOBS
from runner.project import read_dotenv
from runner.request import Request
from runner.target import RunCost
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.runs import all_runs
from runner.targets.modal.volume import ModalVolumeFiles

MONTHLY_CAP = "GPT_RUNNER_MONTHLY_CAP"


def costs_since(files: ModalVolumeFiles, since: float) -> list[RunCost]:
    """Return the cost of each run since then; apps that are not runs have the name ''."""
    recorded, billed = _recorded(files, since), _billed(since)
    names = sorted(recorded.keys() | billed.keys())
    return [RunCost(name, recorded.get(name, 0.0), billed.get(name, 0.0)) for name in names]


def check_monthly_cap(
    files: ModalVolumeFiles, environ: Mapping[str, str], checkout: Path, request: Request
) -> None:
    """Raise RunnerError if a launch could exceed GPT_RUNNER_MONTHLY_CAP, in US dollars.

    A long job needs a --max-cost within what the month has left: then it stops itself in time.
    """
    text = environ.get(MONTHLY_CAP) or read_dotenv(checkout, {MONTHLY_CAP}).get(MONTHLY_CAP)
    if not text:
        return
    cap = parse_dollars(text, MONTHLY_CAP)
    spent = sum(_recorded(files, start_of_month().timestamp()).values())
    available = math.floor(100 * (cap - spent)) / 100
    state = f"{MONTHLY_CAP} is {dollars(cap)}, and the runs of this month cost {dollars(spent)}"
    if available <= 0:
        raise RunnerError(f"{state}; raise it in .env, or wait for the next month")
    max_cost = request.target_options.max_cost
    if request.job.name in RESUMABLE_JOBS and (max_cost is None or max_cost > available):
        raise usage(f"{state}; launch with --max-cost {available:.2f} or less")


def start_of_month(now: datetime.datetime | None = None) -> datetime.datetime:
    """Return the start of the month in UTC, as Modal bills it."""
    now = now or datetime.datetime.now(datetime.UTC)
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _recorded(files: ModalVolumeFiles, since: float) -> dict[str, float]:
    now = time.time()
    costs = {run.name: run.log.cost(now, since) for run in all_runs(files)}
    return {name: cost for name, cost in costs.items() if cost}


def _billed(since: float) -> dict[str, float]:
    from modal import Workspace

    start = datetime.datetime.fromtimestamp(since, datetime.UTC)
    with translate_modal_errors():
        report = Workspace.from_context().billing.report
        items = report(start=start, resolution="h", tag_names=["run"])
    billed: dict[str, float] = {}
    for item in items:
        name = item.tags.get("run", "")
        billed[name] = billed.get(name, 0.0) + float(item.cost)
    return billed

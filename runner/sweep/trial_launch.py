"""Starting one trial: its cap in dollars, its share of this machine."""

from __future__ import annotations

import os
from dataclasses import replace

from runner.console import CliContext
from runner.plan import Plan
from runner.request import Request
from runner.system import System
from runner.target import Target


def start(
    cli: CliContext, target: Target, request: Request, cap: float | None, place: tuple[int, int]
) -> None:
    """Start it detached. ``cap`` is its --max-cost, ``place`` (which, of how many) it has among those that run at
    once. Raises RunnerError."""
    if cap is not None:
        options = replace(request.target_options, max_cost=round(cap, 4))
        request = replace(request, target_options=options)
    plan = target.plan(request, target.inspect(request))
    target.start(shared(cli, target, plan, *place))


def shared(cli: CliContext, target: Target, plan: Plan, place: int, of: int) -> Plan:
    """The plan of one of ``of`` trials that share this machine: cores for each, GPUs in turn.

    Otherwise every process would use all cores: a step of 60 ms took 286 to 1,249 ms.
    """
    if target.has_remote_volumes or of < 2:
        return plan
    more = []
    if not cli.environ.get("OMP_NUM_THREADS"):
        more.append(("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // of))))
    gpus = len(System(cli.environ).gpus)
    if gpus > 1 and plan.process.device != "cpu" and "CUDA_VISIBLE_DEVICES" not in cli.environ:
        more.append(("CUDA_VISIBLE_DEVICES", str(place % gpus)))
    process = replace(plan.process, environment=(*plan.process.environment, *more))
    return replace(plan, process=process)


NO_LIMIT = float("inf")

"""The run of a few steps that comes before all trials: a mistake shows before money is spent on many."""

from __future__ import annotations

from job.exit_status import ExitStatus
from runner.errors import RunnerError
from runner.interrupts import Interrupts
from runner.requests.request import Request
from runner.runs.log import tail
from runner.sweep.budget import shares
from runner.sweep.conduct import NO_LIMIT, Conductor
from runner.sweep.starting import start

LINES = 12  # of a failed run's log that are shown


def run_smoke(conductor: Conductor, request: Request) -> None:
    """Run it to its end. Raises RunnerError: 100 where it does not end well, 104 without money, 101 stopped."""
    record, env, target = conductor.record, conductor.env, conductor.target
    share = shares(conductor.purse(), None, 1)
    if not share:
        raise RunnerError("the budget is spent; give it more: --budget", ExitStatus.OVER_BUDGET)
    env.say(f"{request.run}: a few steps, before the trials")
    with Interrupts(lambda _: conductor.stopping.set(), conductor.killing.set):
        state = target.state(request.run)
        if state is None or not state.alive:
            cap = None if share[0] == NO_LIMIT else record.smoke_cost + share[0]
            start(env, target, request, cap, (0, 1))
        while (state := target.state(request.run)) is None or state.alive:
            if conductor.stopping.wait(target.look_seconds):
                target.stop(request.run)
                raise RunnerError(
                    "stopped in the smoke run; the same line begins again", ExitStatus.UNFINISHED
                )
    record.smoke_cost = state.cost or 0.0
    trouble = conductor.at.lacks_metric(request.run, state) if state.status == "finished" else ""
    record.smoke = "passed" if state.status == "finished" and not trouble else ""
    record.write(conductor.folder)
    if record.smoke:
        return
    if trouble:
        raise RunnerError(
            f"the smoke run worked, but {trouble}: correct `metric` in the sweep's file; no trial was started",
            ExitStatus.JOB_FAILED,
        )
    log, _ = tail(target.files("checkpoints"), f"{request.run}/log.txt", LINES)
    for line in log.splitlines() or target.output(request.run, LINES):
        env.say(f"  {line}")
    raise RunnerError(
        f"the smoke run ended as {state.status}{f' ({state.reason})' if state.reason else ''}, and no trial was "
        f"started; `runner logs {request.run}` shows its log, --no-smoke leaves it out",
        ExitStatus.JOB_FAILED,
    )

"""`runner sweep FILE`: check, plan, confirm, run the trials, show the results."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.gpu_queue import GpuAccess
from job.notify import VARIABLE, Message
from job.run_record import RunStatus, read_record
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.launch.execute import confirm
from runner.launch.parse import check_run_name
from runner.plan import Plan, TargetState
from runner.project import find_checkout, require_config, secret_values
from runner.request import CommandRequest, Request, TargetOptions
from runner.runs.store import read_launch
from runner.runs.volume import tail
from runner.signals import SignalForwarder
from runner.sweep.config import Scalar, SweepConfig, load_sweep, trials
from runner.sweep.objective import Objective, find_objective
from runner.sweep.plan import SweepPlan, allocate, estimated_cost, rows, start_trial, trial_table
from runner.sweep.record import (
    NO_LIMIT,
    SweepRecord,
    Trial,
    TrialStatus,
    continue_sweep,
    read_sweep,
    sweep_lock,
)
from runner.sweep.results import show_outcome
from runner.sweep.scheduler import SweepScheduler
from runner.target import Target, open_target

LOG_LINES = 12  # of a failed smoke run that are shown


@dataclass(frozen=True)
class SweepArguments:
    """The command line of ``runner sweep``."""

    file: str
    target: str = "host"
    name: str | None = None
    max_parallel: int | None = None
    budget: float | None = None
    device: str | None = None
    smoke: bool = True
    retry_failed: bool = False
    dry_run: bool = False
    as_json: bool = False
    yes: bool = False
    trackers: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()
    target_options: TargetOptions = field(default_factory=TargetOptions)


def run_sweep(cli: CliContext, arguments: SweepArguments) -> ExitStatus:
    """Run the sweep, or show its plan. Raises RunnerError or RecipeError."""
    checkout = find_checkout(cli.cwd)
    path = require_config("sweep", arguments.file, checkout, cli.cwd)
    config = load_sweep(path)
    if arguments.trackers and config.command is not None:
        raise usage("--tracker needs a recipe or an experiment; a command logs by itself")
    target = open_target(arguments.target, cli, checkout)
    objective = replace(
        find_objective(config, path, checkout),
        trackers=arguments.trackers,
        volumes=target.files if target.is_configured() else None,
    )
    _check_options(arguments, target)
    name = arguments.name or config.name or path.stem
    common = {
        "device": arguments.device,
        "detach": True,
        "sweep": name,
        "access": GpuAccess.QUEUE,
        "tags": arguments.tags,
        "target_options": arguments.target_options,
    }
    check_run_name(f"{name}-000")
    new = _new_record(name, target, config, objective, arguments)
    requests = {
        trial.run: objective.request(trial.run, trial.values, common) for trial in new.trials
    }
    new.definition["settings"] = objective.shared_settings(next(iter(requests.values())))
    folder = target.volumes.run(name)
    old = read_sweep(folder)
    if old is None and (read_record(folder) or read_launch(folder)):
        raise usage(f"'{name}' is the name of a run; give the sweep a different --name")
    record = _continue(old, new, arguments) if old else new
    smoke = _smoke_values(objective, record, arguments)
    smoke_run = None  # checked with the trials, and by --dry-run too
    if not isinstance(smoke, str):
        smoke_run = objective.request(f"{name}-smoke", smoke, common)
    plan = SweepPlan(
        record,
        objective.title,
        _plan_trials(target, record, requests),
        arguments.max_parallel or target.default_parallel_trials,
        smoke if isinstance(smoke, str) else f"{name}-smoke, a few steps; it must succeed",
        f"median rule on {config.metric}, from step {config.grace_steps}"
        if config.early_stop
        else "",
    )
    if arguments.dry_run and arguments.as_json:
        cli.json(plan.to_json())
        return ExitStatus.DONE
    cli.print_rows(rows(plan))
    cli.info("")
    cli.print_table(trial_table(plan))
    _warn_if_edited(cli, record, new, objective)
    if arguments.dry_run:
        return ExitStatus.DONE
    target.check_configured()
    confirm(cli, plan.price, arguments.yes)
    folder.mkdir(parents=True, exist_ok=True)
    with sweep_lock(name, folder):
        # The process that held the lock until now may have changed the record.
        newest = read_sweep(folder)
        record = _continue(newest, new, arguments) if newest else record
        record.started = record.started or time.time()
        record.write(folder)
        costs = {trial_plan.run: estimated_cost(trial_plan) for trial_plan in plan.plans}
        scheduler = SweepScheduler(
            cli, target, record, folder, objective, requests, costs, plan.max_parallel
        )
        if smoke_run is not None:
            run_smoke(scheduler, smoke_run)
        status = scheduler.run()
    show_outcome(cli, record, folder, arguments.as_json)
    _notify(cli, checkout, record, status)
    _warn_if_data_changed(cli, record, objective)
    return status


def _notify(cli: CliContext, checkout: Path, record: SweepRecord, status: ExitStatus) -> None:
    """Send one message for the sweep, if a URL is set."""
    url = secret_values([VARIABLE], cli.environ, checkout)[VARIABLE]
    if url:
        states = Counter(str(trial.status) for trial in record.trials)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        message = Message(url, f"sweep {record.name} ended: {status.meaning}", f"trials: {counts}")
        if problem := message.wait():
            cli.warn(problem)


def _check_options(arguments: SweepArguments, target: Target) -> None:
    if target.bills:
        return
    if names := [*arguments.target_options.names(), *(["budget"] if arguments.budget else [])]:
        raise usage(
            f"--{names[0]} is for Modal, and {target.name} is free; add --target cloud, or remove "
            f"--{names[0]}"
        )


def _continue(old: SweepRecord, new: SweepRecord, arguments: SweepArguments) -> SweepRecord:
    """Return the recorded sweep with the changes of this command line."""
    record = continue_sweep(old, new)
    for trial in record.trials:
        if arguments.retry_failed and trial.status == TrialStatus.FAILED:
            trial.status, trial.reason = TrialStatus.WAITING, ""
    return record


def _new_record(
    name: str,
    target: Target,
    config: SweepConfig,
    objective: Objective,
    arguments: SweepArguments,
) -> SweepRecord:
    try:
        space = trials(config.space)
    except ValueError as error:
        raise config.error_at("space", str(error)) from None
    return SweepRecord(
        name,
        target.name,
        config.metric,
        config.goal,
        {"of": objective.title, "fixed": dict(config.fixed)},
        [Trial(number, f"{name}-{number:03d}", values) for number, values in enumerate(space, 1)],
        arguments.budget,
        file_sha256=objective.file_sha256,
    )


def _warn_if_edited(
    cli: CliContext, record: SweepRecord, new: SweepRecord, objective: Objective
) -> None:
    """Warn if the experiment's file has changed since the sweep started.

    Continuing is allowed: fixing the file and running failed trials again is common.
    """
    completed = record.count(TrialStatus.FINISHED, TrialStatus.STOPPED)
    if record.file_sha256 and record.file_sha256 != new.file_sha256 and completed:
        cli.warn(
            f"{objective.file.name} has changed since sweep '{record.name}' started, so results of "
            f"{completed} completed trials may be those of other code; to run every trial with "
            "this version, add --name NEW-NAME"
        )


def _warn_if_data_changed(cli: CliContext, record: SweepRecord, objective: Objective) -> None:
    """Warn if the dataset was replaced between trials, which makes their metrics incomparable."""
    runs = {trial.dataset: trial.run for trial in reversed(record.trials) if trial.dataset}
    if len(runs) > 1 and not objective.varies_data:
        cli.warn(
            f"the dataset changed during the sweep: {' and '.join(reversed(runs.values()))} used "
            "different data, so their results are not comparable; to run every trial on the "
            "present data, add --name NEW-NAME"
        )


def _smoke_values(
    objective: Objective, record: SweepRecord, arguments: SweepArguments
) -> dict[str, Scalar] | str:
    """Return the values of the smoke run, or why it is skipped."""
    if not arguments.smoke:
        return "skipped: --no-smoke"
    started = (TrialStatus.FINISHED, TrialStatus.RUNNING, TrialStatus.UNFINISHED)
    if record.smoke == "passed" or record.count(*started):
        return "skipped: passed earlier"
    values = objective.smoke(record.trials[0].values)
    if values is None:
        if objective.signature is None:
            return "skipped: smoke: {KEY: value} in the sweep's file can make the command short"
        return (
            f"skipped: {objective.file.name} has no parameter steps or max_steps, and the sweep's "
            "file no smoke: {...}"
        )
    return values


def _plan_trials(
    target: Target, record: SweepRecord, requests: dict[str, Request]
) -> tuple[Plan, ...]:
    """Return the plans of the remaining trials; inspect once for all trials with the same data."""
    states: dict[tuple[str, str | None] | None, TargetState] = {}
    plans = []
    for trial in record.trials:
        if trial.is_completed:
            continue
        request = requests[trial.run]
        recipe = request.settings
        needed = (recipe.data.dataset, recipe.train.init_from) if recipe is not None else None
        if needed not in states:
            states[needed] = target.inspect(request).for_new_run()
            if isinstance(request, CommandRequest):
                target.check_program(request)
        plans.append(target.plan(request, states[needed]))
    return tuple(plans)


def run_smoke(scheduler: SweepScheduler, request: Request) -> None:
    """Run a few steps of one trial and wait for the end.

    Raises RunnerError: 100 if it fails, 104 if the budget is used up, 101 if interrupted.
    """
    record, cli, target = scheduler.record, scheduler.cli, scheduler.target
    caps = allocate(record.available_usd, None, 1)
    if not caps:
        raise RunnerError("the budget is used up; raise it: --budget", ExitStatus.OVER_BUDGET)
    cli.info(f"{request.run}: running a few steps before the trials")
    with SignalForwarder(lambda _: scheduler.stopping.set(), scheduler.killing.set):
        state = target.state(request.run)
        if state is None or not state.alive:
            cap = None if caps[0] == NO_LIMIT else record.smoke_cost + caps[0]
            start_trial(cli, target, request, cap, slot=0, slots=1)
        while (state := target.state(request.run)) is None or state.alive:
            if scheduler.stopping.wait(target.poll_interval_s):
                target.stop(request.run)
                raise RunnerError(
                    "stopped during the smoke run; run the same command to start again",
                    ExitStatus.UNFINISHED,
                )
    record.smoke_cost = state.cost or 0.0
    finished = state.status == RunStatus.FINISHED
    problem = scheduler.monitor.missing_metric(request.run, state) if finished else ""
    record.smoke = "passed" if finished and not problem else ""
    record.write(scheduler.folder)
    if record.smoke:
        return
    if problem:
        raise RunnerError(
            f"the smoke run finished, but {problem}; no trial was started: correct `metric` in the "
            "sweep's file, or skip the smoke run: --no-smoke",
            ExitStatus.JOB_FAILED,
        )
    log, _ = tail(target.files("checkpoints"), f"{request.run}/log.txt", LOG_LINES)
    for line in log.splitlines() or target.output(request.run, LOG_LINES):
        cli.info(f"  {line}")
    reason = f" ({state.reason})" if state.reason else ""
    raise RunnerError(
        f"the smoke run ended as {state.status}{reason}; no trial was started. "
        f"`runner logs {request.run}` shows its log; --no-smoke skips it",
        ExitStatus.JOB_FAILED,
    )

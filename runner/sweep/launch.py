"""`runner sweep FILE`: from what was typed to the exit status. The decisions are in the other files of this room."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.files import alone_in
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, usage
from runner.launch.execute import confirm
from runner.launch.parse import check_run_name
from runner.plan import Plan, PriorRun
from runner.project import find_checkout
from runner.request import Request, TargetOptions
from runner.runs.logs import tail
from runner.signals import SignalForwarder
from runner.sweep.config import Scalar, SweepConfig, load_sweep, trials
from runner.sweep.objective import Objective, find_objective
from runner.sweep.plan import SweepPlan, cost_of, show_plan
from runner.sweep.record import SweepRecord, Trial, continue_sweep, now, read_sweep
from runner.sweep.results import show_outcome
from runner.sweep.scheduler import SweepScheduler, allocate
from runner.sweep.trial_launch import NO_LIMIT, start
from runner.target import Target, open_target
from runner.targets.modal.plan import ModalState

IN_CLOUD = 4  # trials at once there by default; elsewhere they share one machine


@dataclass(frozen=True)
class SweepLine:
    """What was typed behind ``runner sweep``, not yet checked."""

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
    target_options: TargetOptions = field(default_factory=TargetOptions)


def sweep(cli: CliContext, line: SweepLine) -> ExitStatus:
    """Check, plan, show, ask, conduct, and show what came of it. Raises RunnerError or RecipeError."""
    checkout = find_checkout(cli.cwd)
    path = find_file(line.file, cli.cwd, checkout)
    config = load_sweep(path)
    subject = find_objective(config, path, checkout)
    target = open_target(line.target, cli, checkout)
    _check(line, target)
    template = Request(
        run="",
        device=line.device,
        detach=True,
        target_options=line.target_options,
    )
    name = line.name or config.name or path.stem
    check_run_name(f"{name}-000")
    fresh = _new_record(name, target, config, subject, line)
    requests = {
        trial.run: subject.request(trial.run, trial.values, template) for trial in fresh.trials
    }
    where = target.volumes.run(name)
    old = read_sweep(where)
    record = _go_on(old, fresh, line) if old else fresh
    smoke = _smoke(subject, record, line)
    plan = SweepPlan(
        record,
        subject.title,
        _plans(target, record, requests),
        line.max_parallel or (target.default_parallel_trials),
        smoke
        if isinstance(smoke, str)
        else f"a run of a few steps, {name}-smoke, that must end well",
        _early_stop(config),
    )
    if line.dry_run and line.as_json:
        cli.json(plan.facts())
        return ExitStatus.DONE
    show_plan(plan, cli)
    if line.dry_run:
        return ExitStatus.DONE
    confirm(cli, plan.question, line.yes)
    where.mkdir(parents=True, exist_ok=True)
    with alone_in(where) as is_alone:
        if not is_alone:
            raise RunnerError(
                f"sweep '{name}' is conducted by another terminal now; end it there (Ctrl-C) to go on here"
            )
        # Whoever held it until now may have gone on: what is on the disk counts.
        newest = read_sweep(where)
        record = _go_on(newest, fresh, line) if newest else record
        record.started = record.started or now()
        record.write(where)
        costs = {each.run: cost_of(each) for each in plan.plans}
        scheduler = SweepScheduler(
            cli, target, record, where, subject, requests, costs, plan.max_parallel
        )
        if not isinstance(smoke, str):
            run_smoke(scheduler, subject.request(f"{name}-smoke", smoke, template))
        status = scheduler.conduct()
    show_outcome(cli, record, where, line.as_json)
    return status


def find_file(name: str, cwd: Path, checkout: Path) -> Path:
    """The sweep's file: a path, or a name in configs/. Raises RunnerError, exit code 2."""
    tried = [cwd / Path(name).expanduser(), checkout / name]
    tried += [checkout / "configs" / f"{name}{ending}" for ending in ("", ".yaml", ".yml")]
    for path in tried:
        if path.is_file():
            return path.resolve()
    known = [path.stem for path in (checkout / "configs").glob("*.yaml")]
    guess = did_you_mean(Path(name).stem, known) or "; docs/sweeps.md shows how to write one"
    raise usage(f"there is no sweep {name}{guess}")


def _check(line: SweepLine, target: Target) -> None:
    if target.bills:
        return
    given = line.target_options.given() + (["budget"] if line.budget else [])
    if given:
        raise usage(
            f"--{given[0]} belongs to the cloud; {target.name} costs nothing (--target cloud)"
        )


def _go_on(old: SweepRecord, fresh: SweepRecord, line: SweepLine) -> SweepRecord:
    """The sweep as it stands, with what this line changes."""
    record = continue_sweep(old, fresh)
    for trial in record.trials:
        if line.retry_failed and trial.status == "failed":
            trial.status, trial.reason = "waiting", ""
    return record


def _new_record(
    name: str, target: Target, config: SweepConfig, subject: Objective, line: SweepLine
) -> SweepRecord:
    try:
        rows = trials(config.space)
    except ValueError as error:
        raise config.mistake("space", str(error)) from None
    return SweepRecord(
        name,
        target.name,
        config.metric,
        config.goal,
        {"of": subject.title, "fixed": dict(config.fixed)},
        [Trial(number, f"{name}-{number:03d}", values) for number, values in enumerate(rows, 1)],
        line.budget,
    )


def _smoke(subject: Objective, record: SweepRecord, line: SweepLine) -> dict[str, Scalar] | str:
    """The values of the smoke run, or in words why there is none."""
    if not line.smoke:
        return "no smoke run: --no-smoke"
    if record.smoke == "passed" or record.count("finished", "running", "unfinished"):
        return "no smoke run: it was passed before"
    values = subject.smoke(record.trials[0].values)
    if values is None:
        return f"no smoke run: {subject.file.name} has no parameter steps or max_steps, and the file no smoke:"
    return values


def _early_stop(config: SweepConfig) -> str:
    if config.early_stop is None:
        return ""
    return f"the median rule on {config.metric}, from step {config.grace_steps} on"


def _plans(target: Target, record: SweepRecord, requests: dict[str, Request]) -> tuple[Plan, ...]:
    """Those of the trials that are left. One look at the target is enough: they differ in values alone."""
    left = [trial for trial in record.trials if not trial.is_over]
    if not left:
        return ()
    found = target.inspect(requests[left[0].run])
    facts = replace(found, run=PriorRun())
    if isinstance(facts, ModalState):
        facts = replace(facts, seconds=0.0, cost=0.0, reached=None)
    return tuple(target.plan(requests[trial.run], facts) for trial in left)


LINES = 12  # of a failed run's log that are shown


def run_smoke(scheduler: SweepScheduler, request: Request) -> None:
    """Run it to its end. Raises RunnerError: 100 where it does not end well, 104 without money, 101 stopped."""
    record, env, target = scheduler.record, scheduler.cli, scheduler.target
    share = allocate(scheduler.purse(), None, 1)
    if not share:
        raise RunnerError("the budget is spent; give it more: --budget", ExitStatus.OVER_BUDGET)
    env.info(f"{request.run}: a few steps, before the trials")
    with SignalForwarder(lambda _: scheduler.stopping.set(), scheduler.killing.set):
        state = target.state(request.run)
        if state is None or not state.alive:
            cap = None if share[0] == NO_LIMIT else record.smoke_cost + share[0]
            start(env, target, request, cap, (0, 1))
        while (state := target.state(request.run)) is None or state.alive:
            if scheduler.stopping.wait(target.poll_interval_s):
                target.stop(request.run)
                raise RunnerError(
                    "stopped in the smoke run; the same line begins again", ExitStatus.UNFINISHED
                )
    record.smoke_cost = state.cost or 0.0
    trouble = scheduler.at.lacks_metric(request.run, state) if state.status == "finished" else ""
    record.smoke = "passed" if state.status == "finished" and not trouble else ""
    record.write(scheduler.folder)
    if record.smoke:
        return
    if trouble:
        raise RunnerError(
            f"the smoke run worked, but {trouble}: correct `metric` in the sweep's file; no trial was started",
            ExitStatus.JOB_FAILED,
        )
    log, _ = tail(target.files("checkpoints"), f"{request.run}/log.txt", LINES)
    for line in log.splitlines() or target.output(request.run, LINES):
        env.info(f"  {line}")
    raise RunnerError(
        f"the smoke run ended as {state.status}{f' ({state.reason})' if state.reason else ''}, and no trial was "
        f"started; `runner logs {request.run}` shows its log, --no-smoke leaves it out",
        ExitStatus.JOB_FAILED,
    )

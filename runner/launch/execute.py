"""A launch from the command line to the exit status; the same for every target."""

from __future__ import annotations

from job.exit_status import ExitStatus
from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, usage
from runner.launch.finished import show_trained, trained
from runner.launch.parse import NO_OPTIONS, read_request
from runner.launch.parse_command import command_request
from runner.launch.parse_experiment import (
    experiment_request,
    names_experiment,
    show_finished,
)
from runner.plan import Plan
from runner.planning.show import show
from runner.project import find_checkout
from runner.request import LaunchArguments, Request, TargetOptions
from runner.runs.divergence import locate_missing_run
from runner.runs.endings import exit_message, runner_status
from runner.signals import release_signals
from runner.target import LaunchHandle, RunInfo, Target, open_target

WORD = "pipeline"  # in the place of a job


def launch(
    cli: CliContext,
    target_name: str,
    line: LaunchArguments,
    options: TargetOptions = NO_OPTIONS,
) -> ExitStatus:
    """Check, plan, show, start and follow."""
    checkout = find_checkout(cli.cwd)
    target = open_target(target_name, cli, checkout)
    files = target.files("checkpoints")
    if WORD in line.words and not line.command:
        from runner.launch.pipeline import run_pipeline  # it launches through this file

        return run_pipeline(cli, target, line, checkout, options)
    # Without a Modal account there is no run there yet, and the plan can be shown all the same.
    known = files if target.is_configured() else None
    if names_experiment(line.words):
        request = experiment_request(line, cli.cwd, known, options)
    elif line.is_command:
        request = command_request(line, cli.cwd, known, options)
    else:
        try:
            request = read_request(line, checkout, cli.cwd, known, options)
        except NoSuchRun as error:
            raise locate_missing_run(cli, checkout, target, line.words, error) from None
    return run_request(cli, target, request, line)


def run_request(
    cli: CliContext, target: Target, request: Request, line: LaunchArguments
) -> ExitStatus:
    """The part of a launch that follows once it is known what is wanted."""
    facts = target.inspect(request)
    if (
        request.experiment is not None
        and facts.record is not None
        and facts.record.status == RunStatus.FINISHED
    ):
        return show_finished(cli, facts.record, request.experiment.file, line.as_json)
    plan = target.plan(request, facts)
    record = trained(request, facts)
    if (
        record is not None and plan.question is not None and not line.dry_run
    ):  # it would be paid for
        return show_trained(cli, target.files("checkpoints"), request.run, record, line.as_json)
    if line.dry_run and line.as_json:
        cli.json(plan.facts())
        return ExitStatus.DONE
    show(plan, cli)
    if line.dry_run:
        return ExitStatus.DONE
    confirm(cli, plan.question, line.yes)
    if plan.detach:
        return _leave(cli, target.start(plan), line.as_json)
    return run_plan(cli, target, plan)


def confirm(cli: CliContext, question: str | None, yes: bool) -> None:
    """Ask a plan's question, if it has one. Raises RunnerError: 103 for a no, 2 where nobody can answer."""
    if question is None or yes:
        return
    if not cli.is_terminal:
        raise usage(f"{question} Nobody is here to answer; to say yes, type:\n  {cli.line} -y")
    if not cli.ask(question):
        raise RunnerError("not started", ExitStatus.CANCELLED)


def _leave(cli: CliContext, started: LaunchHandle, as_json: bool) -> ExitStatus:
    if as_json:
        cli.json(
            {"run": started.run, "target": started.target, "job": started.job, "id": started.id}
        )
    else:
        cli.write(started.run)
        cli.info(
            f"started; `runner logs {started.run} --follow` shows it, `runner stop {started.run}` ends it"
        )
    return ExitStatus.DONE


def run_plan(cli: CliContext, target: Target, plan: Plan) -> ExitStatus:
    """Start it and stay with it to its end."""
    started = None
    try:
        started = target.start(plan)
        code = target.follow(started)
    except KeyboardInterrupt:
        if started is not None:
            target.stop(plan.run)
        raise
    finally:
        release_signals()
    if code is None:  # it goes on, and the user knows
        return ExitStatus.INTERRUPTED
    state = _recorded(target, plan, started) if plan.writes_run and code else None
    status = runner_status(code, state.status if state else None)
    if plan.job == "command" and status == ExitStatus.USAGE:
        status = ExitStatus.JOB_FAILED  # the 2 is the command's own word
    begun = plan.writes_run and (code == 0 or target.launched(plan.run) is not None)
    if status == ExitStatus.JOB_FAILED and plan.writes_run and not begun:
        cli.info("nothing was begun: mend what it says above, and type the same again")
        return ExitStatus.ERROR
    ended = state.end_reasons[-1] if state and state.end_reasons else ""
    words = exit_message(status, code, plan.run, cli.line, resumes=begun, ended=ended)
    if words:
        cli.info(words)
    return status


def _recorded(target: Target, plan: Plan, started: LaunchHandle) -> RunInfo | None:
    """How the run's record says that it stands, if that is of this attempt."""
    state = target.state(plan.run)
    is_of_it = state is not None and state.ended is not None and state.ended >= started.started
    return state if is_of_it else None

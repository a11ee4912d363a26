"""Launch a job, from the parsed command line to the exit status. The same for every target."""

from __future__ import annotations

from pathlib import Path

from job.exit_status import ExitStatus
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, usage
from runner.launch.arguments import LaunchArguments
from runner.launch.finished import finished_record, show_finished
from runner.launch.parse import NO_OPTIONS, read_request
from runner.launch.parse_command import command_request, warn_shared_paths
from runner.launch.parse_experiment import experiment_request
from runner.plan import Plan
from runner.planning.show import show
from runner.project import find_checkout
from runner.request import CommandRequest, Request, TargetOptions
from runner.runs.divergence import locate_missing_run
from runner.runs.endings import exit_message, runner_status
from runner.signals import release_signals
from runner.target import LaunchHandle, RunInfo, Target, open_target


def launch(
    cli: CliContext,
    target_name: str,
    arguments: LaunchArguments,
    options: TargetOptions = NO_OPTIONS,
) -> ExitStatus:
    """Check, plan, show, start and follow."""
    checkout = find_checkout(cli.cwd)
    target = open_target(target_name, cli, checkout)
    request = build_request(cli, target, arguments, checkout, options)
    return run_request(cli, target, request, arguments)


def build_request(
    cli: CliContext,
    target: Target,
    arguments: LaunchArguments,
    checkout: Path,
    options: TargetOptions,
) -> Request:
    """Return the request for a job, an experiment or a command."""
    # Without an account the runs cannot be listed, but the plan can be shown.
    files = target.files("checkpoints") if target.is_configured() else None
    if arguments.job == "run":
        return experiment_request(arguments, cli.cwd, files, options)
    if arguments.job == "command":
        return command_request(arguments, cli.cwd, files, options)
    try:
        return read_request(arguments, checkout, cli.cwd, files, options)
    except NoSuchRun as error:
        raise locate_missing_run(cli, checkout, target, arguments.job, error) from None


def run_request(
    cli: CliContext, target: Target, request: Request, arguments: LaunchArguments
) -> ExitStatus:
    """Plan, show, confirm, start and follow; show a finished run instead of starting it again."""
    state = target.inspect(request)
    record = finished_record(request, state)
    if record is not None and request.experiment is not None:
        return show_finished(cli, target, request, record)
    plan = target.plan(request, state)
    if record is not None and plan.question is not None and not arguments.dry_run:
        # A free target lets the trainer show the finished run; on this one a start costs money.
        return show_finished(cli, target, request, record)
    if arguments.dry_run and arguments.as_json:
        cli.json(plan.to_json())
        return ExitStatus.DONE
    show(plan, cli)
    if arguments.dry_run:
        return ExitStatus.DONE
    if isinstance(request, CommandRequest):
        warn_shared_paths(cli, target, request)
    confirm(cli, plan.question, arguments.yes)
    if plan.detach:
        return _report_detached(cli, target.start(plan), arguments.as_json)
    return run_plan(cli, target, plan)


def confirm(cli: CliContext, question: str | None, yes: bool) -> None:
    """Ask a plan's question, if any. Raise RunnerError: 103 if declined, 2 without a terminal."""
    if question is None or yes:
        return
    if not cli.is_terminal:
        what = question.removesuffix(" Start it?")
        raise usage(f"{what} This is not a terminal; pass -y to confirm:\n  {cli.line} -y")
    if not cli.ask(question):
        raise RunnerError("not started", ExitStatus.CANCELLED)


def _report_detached(cli: CliContext, started: LaunchHandle, as_json: bool) -> ExitStatus:
    if as_json:
        cli.json(
            {"run": started.run, "target": started.target, "job": started.job, "id": started.id}
        )
    else:
        cli.write(started.run)
        cli.info(
            f"started in the background; `runner logs {started.run} --follow` shows its log, "
            f"`runner stop {started.run}` stops it"
        )
    return ExitStatus.DONE


def run_plan(cli: CliContext, target: Target, plan: Plan) -> ExitStatus:
    """Start the plan, follow it to its end and report how it ended."""
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
    if code is None:  # the user detached from it and was told how to return
        return ExitStatus.INTERRUPTED
    state = _recorded_state(target, plan, started) if plan.writes_run and code else None
    status = runner_status(code, state.status if state else None)
    if plan.job == "command" and status == ExitStatus.USAGE:
        status = ExitStatus.JOB_FAILED  # the 2 is the command's own status
    has_run = plan.writes_run and (code == 0 or target.launched(plan.run) is not None)
    if status == ExitStatus.JOB_FAILED and plan.writes_run and not has_run:
        cli.info("the run did not start; fix the error above and try again")
        return ExitStatus.ERROR
    ended = state.end_reasons[-1] if state and state.end_reasons else ""
    message = exit_message(status, code, plan.run, cli.line, resumes=has_run, ended=ended)
    if message:
        cli.info(message)
    return status


def _recorded_state(target: Target, plan: Plan, started: LaunchHandle) -> RunInfo | None:
    """Return the run's state if its record is of this attempt."""
    state = target.state(plan.run)
    belongs_to_attempt = (
        state is not None and state.ended is not None and state.ended >= started.started
    )
    return state if belongs_to_attempt else None

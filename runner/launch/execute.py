"""Launch a job, from the parsed command line to the exit status. The same for every target."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.format import describe_result, runner_command
from job.run_record import RunRecord, RunStatus, describe_end
from job.step_folders import sha256
from runner.console import CliContext
from runner.errors import NoSuchRun, RunnerError, usage
from runner.jobs import LaunchArguments
from runner.launch.parse import NO_OPTIONS, read_request
from runner.launch.parse_command import command_request, experiment_request, warn_shared_paths
from runner.plan import Plan, TargetState
from runner.project import find_checkout
from runner.request import CommandRequest, Request, TargetOptions
from runner.runs.find import locate_missing_run
from runner.runs.store import SWEEP_RECORD
from runner.runs.table import exit_message, runner_status
from runner.runs.volume import listing, record_of
from runner.signals import release_signals
from runner.target import LaunchHandle, Target, open_target


def launch(
    cli: CliContext,
    target_name: str,
    arguments: LaunchArguments,
    options: TargetOptions = NO_OPTIONS,
) -> ExitStatus:
    """Check, plan, show, start and follow."""
    checkout = find_checkout(cli.cwd)
    target = open_target(target_name, cli, checkout)
    target.connect()
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
    volumes = target.files if target.is_configured() else None
    files = volumes("checkpoints") if volumes else None
    if arguments.job == "run":
        return experiment_request(arguments, cli.cwd, files, options)
    if arguments.job == "command":
        return command_request(arguments, cli.cwd, files, options)
    try:
        return read_request(arguments, checkout, cli.cwd, volumes, options)
    except NoSuchRun as error:
        raise locate_missing_run(cli, checkout, target, arguments.job, error) from None


def run_request(
    cli: CliContext, target: Target, request: Request, arguments: LaunchArguments
) -> ExitStatus:
    """Plan, show, confirm, start and follow; show a finished run instead of starting it again."""
    request = replace(request, access=arguments.access, tags=arguments.tags)
    if request.job.writes_run and (target.volumes.run(request.run) / SWEEP_RECORD).exists():
        raise usage(f"'{request.run}' is the name of a sweep; give the run a different --name")
    state = target.inspect(request)
    record = finished_record(request, state)
    if record is not None and request.experiment is not None:
        return show_finished(cli, target, request, record)
    if isinstance(request, CommandRequest):
        target.check_program(request)
    plan = target.plan(request, state)
    if record is not None and plan.price is not None and not arguments.dry_run:
        # A free target lets the trainer show the finished run; on this one starting costs money.
        return show_finished(cli, target, request, record)
    if arguments.dry_run and arguments.as_json:
        cli.json(plan.to_json())
        return ExitStatus.DONE
    cli.print_rows(rows(plan))
    if arguments.dry_run:
        return ExitStatus.DONE
    if isinstance(request, CommandRequest):
        warn_shared_paths(cli, target, request)
    target.check_configured()
    confirm(cli, plan.price, arguments.yes)
    if plan.detach:
        return _report_detached(cli, target.start(plan), arguments.as_json)
    status = run_plan(cli, target, plan)
    if status == ExitStatus.DONE and arguments.metric and isinstance(request, CommandRequest):
        _warn_unmatched(cli, target, request)
    return status


def _warn_unmatched(cli: CliContext, target: Target, request: CommandRequest) -> None:
    """Warn if no line of the output matched a --metric."""
    record = record_of(target.files("checkpoints"), request.run)
    names = {name for name, _ in request.command.metrics} - {"step", "max_steps"}
    values = {*record.result} - {"exit_status", "best_val_loss"} if record else names
    if values <= names and (missing := sorted(names - values)):  # else metric files replace them
        cli.warn(
            f"no line of the output had a number for --metric {missing[0]}; compare its REGEX with "
            f"`runner logs {request.run}`"
        )


def confirm(cli: CliContext, price: str | None, yes: bool, question: str = " Start it?") -> None:
    """Ask whether to pay the price. Raise RunnerError: 103 if declined, 2 without a terminal."""
    if price is None or yes:
        return
    if not cli.is_terminal:
        raise usage(f"{price} This is not a terminal; pass -y to confirm:\n  {cli.line} -y")
    if not cli.ask(price + question):
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
    state = target.state(plan.run) if plan.writes_run and code else None
    is_refused = state is not None and state.alive  # a different launch is the run
    if state is not None and (state.ended or 0.0) < started.started:
        state = None  # the record is of a different attempt
    status = runner_status(code, state.status if state else None)
    if plan.job == "command" and status == ExitStatus.USAGE:
        status = ExitStatus.JOB_FAILED  # the 2 is the command's own status
    has_run = plan.writes_run and (code == 0 or target.launched(plan.run) is not None)
    if status == ExitStatus.JOB_FAILED and plan.writes_run and (is_refused or not has_run):
        cli.info("the run did not start; fix the error above and try again")
        return ExitStatus.ERROR
    ended = state.end_reasons[-1] if state and state.end_reasons else ""
    message = exit_message(status, code, plan.run, cli.line, resumes=has_run, ended=ended)
    if message:
        cli.info(message)
    return status


def finished_record(request: Request, state: TargetState) -> RunRecord | None:
    """Return the record of a run that has nothing left to do, else None."""
    record = state.run.record
    if record is None or record.status != RunStatus.FINISHED:
        return None
    if request.experiment is not None:
        return record
    if request.job.name != "train" or request.settings is None:
        return None
    return record if record.step >= request.settings.train.max_steps else None


def show_finished(
    cli: CliContext, target: Target, request: Request, record: RunRecord
) -> ExitStatus:
    """Print the newest sample or the result, or the record with --json, and how to run it again."""
    if request.experiment is not None:
        file = request.experiment.file
        cli.info(
            f"run '{record.name}' already finished with these parameters: "
            f"{describe_result(record.result)}"
        )
        if record.file.get("sha256") not in (None, sha256(file)):
            cli.warn(f"{file.name} has changed since; the result is that of the earlier file")
        args = ["run", str(file), *request.experiment.args]
    else:
        cli.info(describe_end(request.run, record))
        path = getattr(request, "recipe", None)
        recipe = record.recipe or "RECIPE"
        if path is not None and path.is_file():  # the run's own may be on the target alone
            recipe = str(path.relative_to(cli.cwd) if path.is_relative_to(cli.cwd) else path)
        args = [recipe, *request.overrides]
    if request.as_json:
        cli.json(record)
    elif request.experiment is None:
        files = target.files("checkpoints")
        entries = listing(files, f"{request.run}/samples")
        samples = sorted(entry.path for entry in entries if entry.path.endswith(".txt"))
        if samples:
            cli.info(f"its newest sample ({samples[-1]}):")
            cli.write(files.read(samples[-1]).decode(errors="replace"))
    command = shlex.join([*args, "--name", f"{record.name}-2"])
    cli.info(f"nothing was started; to train again: `{runner_command(target.name)} {command}`")
    return ExitStatus.DONE


def rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the names and values of the plan to show, without empty ones."""
    process, detached = plan.process, ", detached" if plan.detach else ""
    image = plan.image.name if plan.image else ""
    if plan.image and not plan.image.is_built:
        image += " (not built yet)"
    one_per_gpu = process.gpus > 1 and process.device != "cpu" and plan.folder is None
    table = [
        ("run", f"{plan.run or 'the newest'} ({plan.job} on {plan.target}{detached})"),
        ("actions", "; ".join(plan.steps)),
        ("recipe", plan.recipe or ""),
        ("changed", " ".join(plan.overrides)),
        ("command", shlex.join(process.command)),
        ("image", image),
        ("device", process.device or ""),
        ("processes", f"{process.gpus}, one per GPU" if one_per_gpu else ""),
        ("volumes", "\n".join(_volumes(plan))),
        ("secrets", ", ".join(process.secrets)),
        *plan.extra_rows,
    ]
    return [(name, value) for name, value in table if value]


def _volumes(plan: Plan) -> list[str]:
    lines = []
    for volume in plan.volumes:
        line = (
            f"{volume.name}: {volume.remote or volume.host_path.removeprefix(f'{plan.checkout}/')}"
        )
        if plan.image is not None:
            line += f" → {volume.container_path}{'' if volume.writable else ' (read-only)'}"
        lines.append(line)
    return lines

"""Build the request that resumes a run: the same as last time, except for what was given now."""

from __future__ import annotations

import shlex
from dataclasses import replace

from job.format import runner_command
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.jobs import COMMAND, EXPERIMENT, RESUMABLE_JOBS, LaunchArguments
from runner.launch.parse import NO_OPTIONS, common_options
from runner.launch.parse_command import command_of_run, experiment_request
from runner.launch.recipe_paths import absolute_override, find_problems
from runner.project import find_checkout
from runner.request import (
    CommandRequest,
    Request,
    TargetOptions,
    TrainRequest,
    experiment_from_record,
)
from runner.runs.attempts import LAUNCH_NAME
from runner.runs.find import ResolvedRun, refuse_if_active_elsewhere
from runner.runs.store import parse_launch
from runner.runs.volume import recipe_of, record_of
from runner.target import Target, open_target


def resume_request(
    cli: CliContext,
    resolved: ResolvedRun,
    arguments: LaunchArguments,
    target_name: str | None,
    options: TargetOptions = NO_OPTIONS,
) -> tuple[Target, Request]:
    """Return the target and the request that resume the run ``resolved``. Raises RunnerError.

    ``arguments.args`` are overrides. ``target_name`` None means the target of the last attempt.
    """
    run, job = resolved.state.run, resolved.state.job
    if target_name is None:
        resolved.check_reachable()
    if job not in RESUMABLE_JOBS:
        raise usage(f"run '{run}' is a {job} job, which can't be resumed; start it again")
    target = (
        open_target(target_name, cli, find_checkout(cli.cwd)) if target_name else resolved.target
    )
    target.check_configured()
    refuse_if_active_elsewhere(resolved, target)
    if not target.bills:
        arguments = replace(arguments, gpus=_process_count(options.gpu))
        options = replace(options, gpu=None)
        if unsupported := options.names():
            raise usage(
                f"--{unsupported[0]} is for Modal, and {target.name} is free; "
                f"remove --{unsupported[0]}"
            )
    if job == EXPERIMENT.name:
        return target, _experiment_request(cli, arguments, resolved, target, options)
    if job == COMMAND.name:
        return target, _command_request(resolved, target, arguments, options)
    overrides = tuple(absolute_override(word, cli.cwd, target.files) for word in arguments.args)
    settings = recipe_of(target.files("checkpoints"), run, overrides, section="train")
    if settings is None and (resolved.state.is_copy or target is not resolved.target):
        raise RunnerError(_not_on_target(resolved, target))
    recipe_name = resolved.state.recipe or "RECIPE"
    if settings is None and resolved.state.attempts:
        raise RunnerError(
            f"the recipe.yaml of run '{run}' is missing; restore it in the run's folder, or train "
            f"a new run: `{runner_command(target.name)} {recipe_name} --name {run}-2`"
        )
    if settings is None:
        raise RunnerError(
            f"run '{run}' ended before it recorded its recipe; start it again: "
            f"`{runner_command(target.name)} {recipe_name} --name {run}`"
        )
    arguments, options = with_previous_resources(target, run, arguments, options)
    return target, TrainRequest(
        run=run,
        recipe=target.volumes.run(run) / "recipe.yaml",
        overrides=overrides,
        settings=settings,
        gpus=arguments.gpus or 1,
        problems=find_problems(settings, (cli.cwd, find_checkout(cli.cwd)), target.files),
        **common_options(arguments, options),
    )


def _command_request(
    resolved: ResolvedRun, target: Target, arguments: LaunchArguments, options: TargetOptions
) -> Request:
    """Return the request for the recorded command, in its folder on this machine."""
    run = resolved.state.run
    if arguments.gpus:
        raise usage(
            "a command starts its own processes (torchrun); remove --gpu, and set "
            "CUDA_VISIBLE_DEVICES to choose GPUs"
        )
    if arguments.args:
        raise usage(f"run '{run}' is a command and has no settings; remove {arguments.args[0]}")
    command = command_of_run(target.files("checkpoints"), run)
    if command is None and (resolved.state.is_copy or target is not resolved.target):
        raise RunnerError(_not_on_target(resolved, target))
    if command is None:
        raise RunnerError(
            f"run '{run}' ended before it recorded its command; start it again as before"
        )
    if not command.folder.is_dir():
        raise usage(
            f"run '{run}' was started in {command.folder}, which is not on this machine; "
            f"give its folder:\n"
            f"  {runner_command(target.name)} --name {run} --dir FOLDER -- "
            f"{shlex.join(command.argv)}"
        )
    arguments, options = with_previous_resources(target, run, arguments, options)
    return CommandRequest(run=run, command=command, **common_options(arguments, options))


def _experiment_request(
    cli: CliContext,
    arguments: LaunchArguments,
    resolved: ResolvedRun,
    target: Target,
    options: TargetOptions,
) -> Request:
    """Return the request for the recorded experiment. Raise RunnerError if its file is missing."""
    run = resolved.state.run
    if arguments.gpus:
        raise usage("experiments run in one process and use every visible GPU; remove --gpu")
    if arguments.args:
        raise usage(
            f"{arguments.args[0]} would make it a different run; start it with a new --name"
        )
    files = target.files("checkpoints")
    record = record_of(files, run)
    if record is None:
        raise RunnerError(_not_on_target(resolved, target))
    launched = experiment_from_record(record.attempts[-1].launch) if record.attempts else None
    if launched is None:
        raise RunnerError(
            f"run '{run}' was not started by the runner; resume it with "
            f"`{runner_command(target.name)} run FILE --name {run}`"
        )
    file, args = launched
    if not file.is_file():
        raise RunnerError(
            f"{file}, the file of run '{run}', is not on this machine; if you moved it:\n"
            f"  {runner_command(target.name)} run {file.name} {shlex.join(args)} --name {run}"
        )
    arguments, options = with_previous_resources(target, run, arguments, options)
    trackers = record.attempts[-1].launch["experiment"].get("trackers") or {}
    arguments = replace(arguments, args=(str(file), *args), trackers=tuple(trackers.items()))
    return experiment_request(arguments, cli.cwd, files, options)


def _process_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise usage(f"--gpu {text}: expected a number of GPUs; GPU types are for --target cloud")
    return int(text)


def _not_on_target(resolved: ResolvedRun, target: Target) -> str:
    run, source = resolved.state.run, resolved.target.name
    command = "pull" if resolved.target.has_remote_volumes else "push"
    if resolved.state.is_copy and target is resolved.target:
        source, command = "this machine", "push"  # its original was deleted
    return (
        f"run '{run}' is on {source}, not on {target.name}; copy it first: "
        f"`runner {command} checkpoints {run}`"
    )


def _is_launch_damaged(target: Target, run: str) -> bool:
    """Return True if the run's ``launch.json`` cannot be read."""
    try:
        return parse_launch(target.files("checkpoints").read(f"{run}/{LAUNCH_NAME}")) is None
    except (FileNotFoundError, NotADirectoryError):
        return False


def with_previous_resources(
    target: Target, run: str, arguments: LaunchArguments, options: TargetOptions
) -> tuple[LaunchArguments, TargetOptions]:
    """Return the arguments and options with the resources of the last launch on ``target``.

    GPUs given now replace an earlier ``--device cpu``. On a target that rents GPUs, ``--device
    cpu`` replaces earlier GPUs; elsewhere it applies to the processes of the last launch.
    """
    last, gpus, device = target.launched(run), arguments.gpus, arguments.device
    if last is None and not (gpus or options.names()) and _is_launch_damaged(target, run):
        raise RunnerError(
            f"{run}/{LAUNCH_NAME} is damaged, so the GPUs and limits of the last launch are "
            "unknown; give them again, for example --gpu N, or remove the file"
        )
    if last is None or last.target != target.name:  # the folder may describe a launch elsewhere
        return arguments, options
    before = last.target_options
    if target.bills and device == "cpu":
        before = replace(before, gpu=None)
    else:
        gpus = gpus or last.gpus
    if not (arguments.gpus or options.gpu):
        device = device or last.device
    return replace(arguments, gpus=gpus, device=device), before.updated(options)

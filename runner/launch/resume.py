"""Build the request that resumes a run: the same as last time, except for what was given now."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

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
from runner.runs.store import parse_launch, recipe_of, record_of
from runner.target import Target, open_target

CPU = "cpu"


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
        if unsupported := options.given():
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
    recipe = target.volumes.run(run) / "recipe.yaml"
    resources = previous_resources(target, run, arguments.gpus, arguments.device, options)
    common = {**common_options(arguments, options), **vars(resources)}
    problems = find_problems(settings, (cli.cwd, find_checkout(cli.cwd)), target.files)
    return target, TrainRequest(
        run=run,
        recipe=recipe,
        overrides=overrides,
        settings=settings,
        problems=problems,
        **common,
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
    resources = previous_resources(target, run, arguments.gpus, arguments.device, options)
    common = common_options(arguments, resources.target_options)
    return CommandRequest(run=run, command=command, **common)


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
    resources = previous_resources(target, run, None, arguments.device, options)
    trackers = record.attempts[-1].launch["experiment"].get("trackers") or {}
    same_again = replace(
        arguments,
        trackers=tuple(trackers.items()),
        job="run",
        args=(str(file), *args),
        name=run,
        gpus=None,
        device=resources.device,
    )
    return experiment_request(same_again, cli.cwd, files, resources.target_options)


def _process_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise usage(f"--gpu {text}: expected a number of GPUs; GPU types are for --target cloud")
    return int(text)


def _not_on_target(resolved: ResolvedRun, target: Target) -> str:
    run = resolved.state.run
    if resolved.state.is_copy and target is resolved.target:
        source, command = "this machine", "push"  # its original was deleted
    else:
        source, command = (
            resolved.target.name,
            "pull" if resolved.target.has_remote_volumes else "push",
        )
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


@dataclass(frozen=True)
class PreviousResources:
    """The processes, the device and the target's own options of a resumed run."""

    gpus: int = 1
    device: str | None = None
    target_options: TargetOptions = NO_OPTIONS


def previous_resources(
    target: Target, run: str, gpus: int | None, device: str | None, options: TargetOptions
) -> PreviousResources:
    """Return the resources of the last launch on ``target``, overridden by those given.

    GPUs given now replace an earlier ``--device cpu``. On a target that rents GPUs, ``--device
    cpu`` replaces earlier GPUs; elsewhere it applies to the processes of the last launch.
    """
    last, in_cloud = target.launched(run), target.bills
    if last is None and not (gpus or options.given()) and _is_launch_damaged(target, run):
        raise RunnerError(
            f"{run}/{LAUNCH_NAME} is damaged, so the GPUs and limits of the last launch are "
            "unknown; give them again, for example --gpu N, or remove the file"
        )
    if last is None or last.target != target.name:  # the folder may describe a launch elsewhere
        return PreviousResources(gpus or 1, device, options)
    without_gpu = in_cloud and device == CPU
    before = replace(last.target_options, gpu=None) if without_gpu else last.target_options
    return PreviousResources(
        gpus=gpus or (1 if without_gpu else last.gpus),
        device=device or (None if gpus or options.gpu else last.device),
        target_options=before.updated(options),
    )

"""What a run that is taken up again is asked to do: the same as last time, unless it was said otherwise."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.jobs import COMMAND, EXPERIMENT, JOBS, RESUMABLE_JOBS
from runner.launch.parse import NO_OPTIONS
from runner.launch.parse_command import command_of_run
from runner.launch.parse_experiment import experiment_request
from runner.project import find_checkout
from runner.request import LaunchArguments, Request, TargetOptions, experiment_from_record
from runner.runs.find import ResolvedRun, find_run, refuse_if_active_elsewhere
from runner.runs.store import recipe_of, record_of
from runner.target import Target, open_target

if TYPE_CHECKING:
    from runner.target import Target


def resume_request(
    cli: CliContext,
    line: LaunchArguments,
    overrides: tuple[str, ...],
    on: str | None,
    options: TargetOptions = NO_OPTIONS,
) -> tuple[Target, Request]:
    """The target and the request that take up the run ``line.name``. Raises RunnerError."""
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise usage(f"'{wrong[0]}' is no key=value; `runner resume` takes up one run")
    run = line.name or ""
    found = find_run(cli, run)
    if on is None:
        found.check_reachable()
    if found.state.job == EXPERIMENT.name:
        return resume_experiment(cli, line, found, overrides, on, options)
    if found.state.job not in RESUMABLE_JOBS:
        raise usage(
            f"run '{run}' is a {found.state.job}, which has nothing to take up; start it again"
        )
    checkout = find_checkout(cli.cwd)
    target = open_target(on, cli, checkout) if on else found.target
    target.check_configured()
    refuse_if_active_elsewhere(found, target)
    if not target.bills:
        line = replace(line, gpu=_number(options.gpu))
        options = replace(options, gpu=None)
        refuse_options(target, options)
    if found.state.job == COMMAND.name:
        return target, _command_again(found, target, line, overrides, options)
    settings = recipe_of(target.files("checkpoints"), run, overrides, section="train")
    if settings is None and target is not found.target:
        raise RunnerError(_not_there(run, found.target, target))
    if settings is None and found.state.attempts:
        raise RunnerError(
            f"the recipe.yaml of run '{run}' is gone, which it would go on with; put it back into its folder, or train "
            f"another: `runner {target.name} RECIPE --name {run}-2`"
        )
    if settings is None:
        raise RunnerError(
            f"run '{run}' has no recipe yet: it ended before it began; start it again with "
            f"`runner {target.name} RECIPE --name {run}`"
        )
    folder = target.volumes.run(run)
    machine = previous_resources(target, run, line.gpu, line.device, options)
    return target, Request(
        JOBS["train"],
        run,
        recipe=folder / "recipe.yaml",
        overrides=overrides,
        settings=settings,
        gpus=machine.gpus,
        device=machine.device,
        detach=line.detach,
        as_json=line.as_json,
        target_options=machine.target_options,
    )


def _command_again(
    found: ResolvedRun,
    target: Target,
    line: LaunchArguments,
    overrides: tuple[str, ...],
    options: TargetOptions,
) -> Request:
    """The command of the run, as it was; in its folder, which must be here."""
    run = found.state.run
    if overrides:
        raise usage(
            f"run '{run}' is a command, and has no settings; `{overrides[0]}` can't be changed"
        )
    command = command_of_run(target.files("checkpoints"), run)
    if command is None and target is not found.target:
        raise RunnerError(_not_there(run, found.target, target))
    if command is None:
        raise RunnerError(
            f"run '{run}' ended before it began; start it again with the line that started it"
        )
    if not command.folder.is_dir():
        raise usage(
            f"run '{run}' was started in {command.folder}, which is not on this machine; name the folder:\n"
            f"  runner {target.name} --name {run} --dir FOLDER -- {shlex.join(command.words)}"
        )
    return Request(
        COMMAND,
        run,
        detach=line.detach,
        as_json=line.as_json,
        target_options=previous_resources(
            target, run, line.gpu, line.device, options
        ).target_options,
        command=command,
    )


def _number(word: str | None) -> int | None:
    if word is None:
        return None
    if not word.isdigit() or int(word) < 1:
        raise usage(
            f"--gpu {word}: here that is a number of GPUs; names are for the cloud (--on cloud)"
        )
    return int(word)


def _not_there(run: str, last: Target, target: Target) -> str:
    command = "pull" if last.has_remote_volumes else "push"
    return (
        f"run '{run}' is on {last.name}, not on {target.name}; copy it first: "
        f"`runner {command} checkpoints {run}`"
    )


CPU = "cpu"


@dataclass(frozen=True)
class PreviousResources:
    """Resources that a resumed run takes over: processes, a device and the target's options."""

    gpus: int = 1
    device: str | None = None
    target_options: TargetOptions = NO_OPTIONS


def previous_resources(
    target: Target, run: str, gpus: int | None, device: str | None, options: TargetOptions
) -> PreviousResources:
    """Return the resources of the run's last launch on ``target``, updated by what is given now.

    GPUs given now replace an earlier ``--device cpu``. In the cloud ``--device cpu`` removes earlier
    GPUs; elsewhere it applies to the same number of processes.
    """
    last, in_cloud = target.launched(run), target.bills
    if last is None or last.target != target.name:  # the folder may have that of a start elsewhere
        return PreviousResources(gpus or 1, device, options)
    without_gpu = in_cloud and device == CPU
    before = replace(last.target_options, gpu=None) if without_gpu else last.target_options
    return PreviousResources(
        gpus=gpus or (1 if without_gpu else last.gpus),
        device=device or (None if gpus or options.gpu else last.device),
        target_options=before.updated(options) if in_cloud else options,
    )


def refuse_options(target: Target, options: TargetOptions) -> None:
    """Raise RunnerError, exit code 2, for options that ``target`` does not have."""
    if given := options.given():
        raise usage(f"--{given[0]} belongs to the cloud; {target.name} costs nothing")


def resume_experiment(
    cli: CliContext,
    line: LaunchArguments,
    found: ResolvedRun,
    overrides: tuple[str, ...],
    on: str | None,
    options: TargetOptions,
) -> tuple[Target, Request]:
    """The target and the request. Raises RunnerError where the record names no file of this machine."""
    run = found.state.run
    if overrides:
        raise usage(
            f"'{overrides[0]}': with other parameters it is another run; start it under another --name"
        )
    target = open_target(on, cli, find_checkout(cli.cwd)) if on else found.target
    refuse_if_active_elsewhere(found, target)
    record = record_of(target.files("checkpoints"), run)
    if record is None:
        side = "push" if target.has_remote_volumes else "pull"
        raise RunnerError(
            f"run '{run}' is not on {target.name}; bring it first: runner {side} checkpoints {run}"
        )
    launched = experiment_from_record(record.attempts[-1].launch) if record.attempts else None
    if launched is None:
        raise RunnerError(
            f"run '{run}' was not started by the runner; type: runner {target.name} run FILE --name {run}"
        )
    file, words = launched
    if not file.is_file():
        raise RunnerError(
            f"{file}, which run '{run}' runs, is not on this machine; where it is now, type:\n"
            f"  runner {target.name} run {file.name} {' '.join(words)} --name {run}"
        )
    if not target.bills:
        refuse_options(target, options)
    machine = previous_resources(target, run, None, line.device, options)
    again = LaunchArguments(
        ("run", str(file), *words),
        run,
        device=machine.device,
        detach=line.detach,
        as_json=line.as_json,
    )
    files = target.files("checkpoints")
    return target, experiment_request(again, cli.cwd, files, machine.target_options)

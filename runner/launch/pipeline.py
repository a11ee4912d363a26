"""Run the stages of a pipeline in order: skip those that are done, stop at the first failure."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from glob import glob, has_magic
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click

from job.exit_status import ExitStatus
from job.files import exclusive_lock
from job.run_record import RunRecord, RunStatus
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, usage
from runner.jobs import LaunchArguments
from runner.launch.execute import confirm, rows, run_plan
from runner.launch.parse import NO_OPTIONS, check_run_name, split_overrides
from runner.launch.parse_command import (
    check_program,
    check_setup,
    command_of_run,
    refuse_different_command,
)
from runner.launch.pipeline_config import Pipeline, Stage, load_pipeline
from runner.plan import Plan
from runner.planning.metric_presets import read_metrics
from runner.project import find_checkout, require_config
from runner.request import CommandRequest, Request, TargetOptions, UserCommand
from runner.runs.store import prepare_folder, read_exit, write_exit
from runner.runs.volume import follow, listing, record_of, tail
from runner.system import POLL_INTERVAL_S
from runner.target import Target, VolumeFiles, open_target
from runner.targets.modal.options import parse_options
from runner.targets.process import start_detached

STATE_FOLDER = ".pipelines"  # in the cache volume: locks and output of detached pipelines
LOG_LINES = 10  # shown of a stage that was already running
UNFINISHED = {RunStatus.FAILED: "its last run failed", RunStatus.UNFINISHED: "it is unfinished"}


@dataclass(frozen=True)
class Step:
    """A stage, the request to run it, and the reason why it runs or is skipped."""

    stage: str
    reason: str
    request: Request | None = None  # None: skipped
    invalidates_later: bool = False  # finished stages after it run again


def run_pipeline(
    cli: CliContext,
    target_name: str,
    arguments: LaunchArguments,
    options: TargetOptions = NO_OPTIONS,
) -> ExitStatus:
    """Read the file, plan its stages, ask once, and run them. Raises RunnerError, RecipeError."""
    checkout = find_checkout(cli.cwd)
    target = open_target(target_name, cli, checkout)
    pipeline, requested = _read(arguments, checkout, cli.cwd)
    folder = _folder(pipeline, arguments, checkout, cli.cwd)
    name = arguments.name or pipeline.name
    runs = [f"{name}-{stage}" for stage in pipeline.stages]
    for run in runs:
        check_run_name(run)

    def plan_steps() -> list[Step]:
        steps: list[Step] = []
        plan_step = partial(_step, target, arguments, pipeline, folder, options)
        for stage in pipeline.stages:
            if not requested or stage in requested:
                changed = next((step.stage for step in steps if step.invalidates_later), "")
                steps.append(plan_step(stage, stage in requested, changed))
        return steps

    if arguments.dry_run:
        return _run_steps(cli, target, arguments, plan_steps()) or ExitStatus.DONE
    state = target.volumes.cache / STATE_FOLDER / name
    state.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(state) as has_lock:
        if has_lock:
            prepare_folder(state)
            _follow_active(cli, target, runs)  # an earlier start may have left a stage running
            status = _run_steps(cli, target, arguments, plan_steps())
            if status is not None:
                write_exit(state, status)
                return status
    if has_lock:
        return _detach(cli, name, state)
    if arguments.detach:
        cli.write(name)
        cli.info(f"pipeline {name} is already running; without --detach, this command shows it")
        return ExitStatus.DONE
    return _attach(cli, target, name, runs, state)


def _run_steps(
    cli: CliContext, target: Target, arguments: LaunchArguments, steps: Sequence[Step]
) -> ExitStatus | None:
    """Show the plans, ask once and run the stages; None if a background process should run them."""
    requests = {step.stage: step.request for step in steps if step.request is not None}
    plans = {stage: _plan(target, request) for stage, request in requests.items()}
    if arguments.dry_run and arguments.as_json:
        trees = {stage: plan.to_json() for stage, plan in plans.items()}
        cli.json([{"stage": s.stage, "why": s.reason, "plan": trees.get(s.stage)} for s in steps])
        return ExitStatus.DONE
    for step in steps:
        cli.info(f"{step.stage}: {step.reason}")
        if step.stage in plans:
            cli.print_rows(rows(plans[step.stage]))
    if arguments.dry_run or not plans:
        return ExitStatus.DONE
    target.check_configured()
    confirm(cli, _price(plans), arguments.yes, "\nStart them?")
    if arguments.detach:
        return None
    for number, (stage, request) in enumerate(requests.items()):
        cli.info(f"stage {stage}, {number + 1} of {len(requests)}")
        # Plan again: the earlier stages changed the volumes.
        status = run_plan(cli, target, _plan(target, request) if number else plans[stage])
        if status != ExitStatus.DONE:
            if remaining := list(requests)[number + 1 :]:
                cli.info(
                    f"not started: {', '.join(remaining)}; run the same command again to continue "
                    f"with {stage}"
                )
            return status
    return ExitStatus.DONE


def _detach(cli: CliContext, name: str, state: Path) -> ExitStatus:
    """Start the same command in the background, with its output in ``state``."""
    args = [word for word in click.get_current_context().meta["runner.args"] if word != "--detach"]
    command = (sys.executable, "-P", "-m", "runner", *args, "--yes")
    write_exit(state, ExitStatus.ERROR)  # the process removes it as soon as it holds the lock
    process = start_detached(command, state, cli.cwd, cli.environ)
    while read_exit(state) is not None and process.poll() is None:
        time.sleep(POLL_INTERVAL_S)
    cli.write(name)
    cli.info(
        f"started in the background; the same command shows its stages, `runner stop {name}-STAGE` "
        f"stops it, and its messages are in {state / 'output.txt'}"
    )
    return ExitStatus.DONE


def _attach(
    cli: CliContext, target: Target, name: str, runs: Sequence[str], state: Path
) -> ExitStatus:
    """Show the logs of a pipeline that another process runs; return the status of its end."""
    cli.info(f"pipeline {name} is already running; showing it (Ctrl-C leaves it running)")
    has_lock = False  # held by the process that runs the pipeline
    while not has_lock:
        _follow_active(cli, target, runs)
        time.sleep(target.poll_interval_s)
        with exclusive_lock(state) as has_lock:
            code = read_exit(state)
    if code is None or code not in [*ExitStatus]:  # killed, or its question was declined
        raise RunnerError(
            f"pipeline {name} was interrupted; run the same command again to continue"
        )
    status = ExitStatus(code)
    cli.info(f"pipeline {name} ended: {status.meaning}")
    return status


def _follow_active(cli: CliContext, target: Target, runs: Sequence[str]) -> None:
    """Print the log of each stage that is running, until it ends."""
    for run in runs if target.is_configured() else ():
        state = target.state(run)
        if state is not None and state.alive:
            cli.info(f"{run} is running")
            text, end = tail(target.files("checkpoints"), f"{run}/log.txt", LOG_LINES)
            for piece in chain([text], follow(target, run, end)):
                cli.write(piece, newline=False)


class Decision(NamedTuple):
    """The decision to run a stage or not; ``invalidates_later`` as in Step."""

    runs: bool
    reason: str
    invalidates_later: bool = False


def decide(
    record: RunRecord | None,
    same_command: bool,
    outputs: Sequence[str],
    missing_output: Sequence[str],
    requested: bool,
    changed: str = "",
) -> Decision:
    """Decide if a stage runs. ``requested``: the command line names it.

    ``changed`` is an earlier stage that will write other files than before.
    """
    if requested:
        return Decision(True, "runs: it was requested")
    if not outputs:
        return Decision(True, "runs: it declares no outputs to check")
    if missing_output:
        return Decision(True, f"runs: {missing_output[0]} is missing")
    if record is None:
        return Decision(False, "skipped: its outputs exist")
    if record.status != RunStatus.FINISHED:
        ending = UNFINISHED.get(record.status, "its process was lost")
        return Decision(True, f"runs again: {ending}", invalidates_later=True)
    if not same_command:
        return Decision(True, "runs: its command has changed", invalidates_later=True)
    if changed:
        return Decision(True, f"runs: stage {changed} runs before it")
    return Decision(False, "skipped: it finished, and its outputs exist")


def _read(arguments: LaunchArguments, checkout: Path, cwd: Path) -> tuple[Pipeline, list[str]]:
    """Return the pipeline and the stages named on the command line."""
    names, overrides = split_overrides(arguments.args)
    if not names:
        raise usage("`pipeline` needs a file, such as configs/nanogpt_shakespeare.yaml")
    path = require_config("pipeline", names[0], checkout, cwd)
    pipeline = load_pipeline(path, overrides)
    for name in names[1:]:
        if name not in pipeline.stages:
            hint = did_you_mean(name, pipeline.stages)
            stages = f"; its stages are {', '.join(pipeline.stages)}"
            raise usage(f"{path.name} has no stage '{name}'{hint or stages}")
    return pipeline, names[1:]


def _folder(pipeline: Pipeline, arguments: LaunchArguments, checkout: Path, cwd: Path) -> Path:
    name = Path(arguments.folder or pipeline.dir).expanduser()
    is_installed = not cwd.is_relative_to(checkout)  # then the checkout is the runner's home
    folder = ((cwd if arguments.folder or is_installed else checkout) / name).resolve()
    if not folder.is_dir():
        raise usage(
            f"the pipeline's folder {folder} does not exist; clone it to that path, or "
            "give another with --dir"
        )
    return folder


def _step(
    target: Target,
    arguments: LaunchArguments,
    pipeline: Pipeline,
    folder: Path,
    options: TargetOptions,
    name: str,
    requested: bool,
    changed: str,
) -> Step:
    stage = pipeline.stages[name]
    command = UserCommand(
        argv=(),
        folder=folder,
        setup=check_setup([*pipeline.setup, *stage.setup]),
        persist=pipeline.persist_options(folder),
        resume_with=stage.resume_with,
        resume_if=stage.resume_if,
    )
    stage_options = _stage_options(stage, options) if target.bills else options
    run = f"{arguments.name or pipeline.name}-{name}"
    request = CommandRequest(
        run=run,
        device=None if stage.gpu else "cpu",
        target_options=stage_options,
        command=command,
        access=arguments.access,
        tags=arguments.tags,
    )
    has_gpu = stage.gpu is not None if target.bills else bool(target.inspect(request).gpus)
    argv = stage.argv(has_gpu)
    check_program(argv, folder)
    metrics = read_metrics(stage.metrics, folder, argv)
    command = replace(command, argv=argv, metrics=metrics)
    request = replace(request, command=command)
    files = target.files("checkpoints")
    before = command_of_run(files, run)
    missing = [path for path in stage.outputs if not output_exists(target, path, command, run)]
    if before is not None:  # changed arguments are handled below
        refuse_different_command(run, replace(before, argv=command.argv), command)
    same = before is not None and before.argv == command.argv
    record = record_of(files, run)
    decision = decide(record, same, stage.outputs, missing, requested, changed)
    reason = decision.reason
    is_chosen = same or _has_resume_arguments(stage, command)
    if before is not None and record is not None and not is_chosen:
        has_checkpoint = stage.resume_if is None or output_exists(
            target, stage.resume_if, command, run
        )
        if stage.resume_with and has_checkpoint and record.status != RunStatus.FINISHED:
            raise usage(_changed_command(stage, name, record, before, command))
        if decision.runs and stage.resume_with and record.status == RunStatus.FINISHED:
            reason += (
                f"; it starts from the beginning (to resume from its checkpoint, add "
                f"{stage.resume_with} to {name}.args)"
            )
    return Step(name, reason, request if decision.runs else None, decision.invalidates_later)


def _has_resume_arguments(stage: Stage, command: UserCommand) -> bool:
    """Return True if the user typed the arguments that resume, and so chose the checkpoint."""
    return bool(stage.resume_with) and set(shlex.split(stage.resume_with)) <= {*command.argv}


def _changed_command(
    stage: Stage, name: str, record: RunRecord, before: UserCommand, command: UserCommand
) -> str:
    """Return the error for a stage whose checkpoint belongs to other arguments."""
    return (
        f"stage {name} is {record.status}, and its command has changed:\n"
        f"  {shlex.join(before.argv)}\n→ {shlex.join(command.argv)}\n"
        f"to resume the first, use its arguments (`runner resume {record.name}` has them)\n"
        f"to resume its checkpoint with the second, add {stage.resume_with} to {name}.args\n"
        f"to start the second from the beginning, give the pipeline a new name and folder: "
        f"--name NEW-NAME persist.PATH=VOLUME/NEW-FOLDER"
    )


def _stage_options(stage: Stage, options: TargetOptions) -> TargetOptions:
    """Return the stage's options, overridden by those of the command line.

    A stage without a GPU stays without one.
    """
    stage_options = parse_options(
        gpu=stage.gpu,
        timeout=stage.timeout,
        max_cost=stage.max_cost,
        cores=stage.cores,
        memory_gib=stage.memory,
    )
    return stage_options.updated(options if stage.gpu else replace(options, gpu=None))


def output_exists(target: Target, path: str, command: UserCommand, run: str) -> bool:
    """Return True if an output is on its volume, or in the folder itself on the host.

    Its names can have ``*`` and ``?``, and ``{step}``.
    """
    path = path.replace("{step}", "*")
    names = [] if target.has_remote_volumes else glob(path, root_dir=command.folder)
    if any((command.folder / name).is_file() for name in names):
        return True
    if path.startswith("$OUT_DIR/"):
        return has_match(target.files("checkpoints"), path.replace("$OUT_DIR", run, 1))
    for option in command.persist:
        if path == option.path or path.startswith(f"{option.path}/"):
            inside = f"{option.path_in_volume(run)}{path.removeprefix(option.path)}"
            return has_match(target.files(option.volume), inside)
    return False


def has_match(files: VolumeFiles, pattern: str) -> bool:
    """Return True if the volume has a file of the path, whose names can have ``*`` and ``?``."""
    paths = [""]
    for part in PurePosixPath(pattern).parts:
        if has_magic(part):
            entries = [entry.path for folder in paths for entry in listing(files, folder)]
            paths = [path for path in entries if fnmatchcase(path.rpartition("/")[2], part)]
        else:
            paths = [f"{folder}/{part}".lstrip("/") for folder in paths]
    return any(files.size(path) is not None for path in paths)


def _plan(target: Target, request: Request) -> Plan:
    return target.plan(request, target.inspect(request))


def _price(plans: Mapping[str, Plan]) -> str | None:
    """Return the prices of all stages, so that one answer lets the pipeline run unattended."""
    prices = [f"{stage}: {plan.price}" for stage, plan in plans.items() if plan.price]
    return "\n".join(prices) or None

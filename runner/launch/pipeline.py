"""Run the stages of a pipeline in order: skip those that are done, stop at the first failure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from job.exit_status import ExitStatus
from job.run_record import RunRecord, RunStatus
from runner.console import CliContext
from runner.errors import did_you_mean, usage
from runner.launch.arguments import LaunchArguments
from runner.launch.execute import confirm, run_plan
from runner.launch.parse import NO_OPTIONS, split_overrides
from runner.launch.parse_command import check_setup, command_of_run, refuse_another
from runner.launch.pipeline_config import Pipeline, Stage, load_pipeline
from runner.plan import Plan
from runner.planning.show import show
from runner.project import find_checkout
from runner.request import CommandRequest, Request, TargetOptions, UserCommand
from runner.runs.store import record_of
from runner.target import Target, open_target
from runner.targets.modal.options import parse_options


@dataclass(frozen=True)
class Step:
    """A stage, the request to run it, and the reason why it runs or is skipped."""

    stage: str
    why: str
    request: Request | None = None  # None: skipped


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
    steps = [
        _step(target, arguments, pipeline, folder, stage, options, stage in requested)
        for stage in pipeline.stages
        if not requested or stage in requested
    ]
    planned = [(step, _plan(target, step.request)) for step in steps if step.request is not None]
    plans = [plan for _, plan in planned]
    if arguments.dry_run and arguments.as_json:
        by_stage = {step.stage: plan.to_json() for step, plan in planned}
        cli.json([{"stage": s.stage, "why": s.why, "plan": by_stage.get(s.stage)} for s in steps])
        return ExitStatus.DONE
    for step in steps:
        cli.info(f"{step.stage}: {step.why}")
        for _, plan in (item for item in planned if item[0] is step):
            show(plan, cli)
    if arguments.dry_run or not plans:
        return ExitStatus.DONE
    confirm(cli, _one_question(planned), arguments.yes)
    for number, (step, plan) in enumerate(planned):
        cli.info(f"stage {step.stage}, {number + 1} of {len(planned)}")
        assert step.request is not None
        # Plan again: the earlier stages changed the volumes.
        current = plan if number == 0 else _plan(target, step.request)
        status = run_plan(cli, target, current)
        if status != ExitStatus.DONE:
            remaining = [later.stage for later, _ in planned[number + 1 :]]
            if remaining:
                cli.info(
                    f"not started: {', '.join(remaining)}; run the same command again to continue "
                    f"with {step.stage}"
                )
            return status
    return ExitStatus.DONE


def decide(
    record: RunRecord | None,
    same_command: bool,
    outputs: Sequence[str],
    missing: Sequence[str],
    requested: bool,
) -> tuple[bool, str]:
    """Return if a stage runs, and the reason. ``requested``: it was named on the command line."""
    if requested:
        return True, "requested"
    if not outputs:
        return True, "has no outputs to check"
    if missing:
        return True, f"{missing[0]} is missing"
    if record is None:
        return False, "skipped: its outputs exist"
    if record.status != RunStatus.FINISHED:
        return True, f"is {record.status}"
    if not same_command:
        return True, "its command has changed"
    return False, "skipped: it finished, and its outputs exist"


def _read(arguments: LaunchArguments, checkout: Path, cwd: Path) -> tuple[Pipeline, list[str]]:
    """Return the pipeline and the stages named on the command line."""
    names, overrides = split_overrides(arguments.words)
    if not names:
        raise usage("`pipeline` needs a file, such as configs/nanogpt_shakespeare.yaml")
    path = _find(names[0], checkout, cwd)
    pipeline = load_pipeline(path, overrides)
    for name in names[1:]:
        if name not in pipeline.stages:
            hint = did_you_mean(name, pipeline.stages)
            stages = f"; its stages are {', '.join(pipeline.stages)}"
            raise usage(f"{path.name} has no stage '{name}'{hint or stages}")
    return pipeline, names[1:]


def _find(name: str, checkout: Path, cwd: Path) -> Path:
    for path in (cwd / name, checkout / name, checkout / "configs" / f"{name}.yaml"):
        if path.is_file():
            return path
    raise usage(f"no pipeline {name}; give the path of its file")


def _folder(pipeline: Pipeline, arguments: LaunchArguments, checkout: Path, cwd: Path) -> Path:
    folder = (
        cwd / Path(arguments.folder).expanduser()
        if arguments.folder
        else checkout / Path(pipeline.dir).expanduser()
    )
    if not folder.is_dir():
        raise usage(
            f"the pipeline's folder {folder} does not exist; clone it there, or give it with --dir"
        )
    return folder.resolve()


def _step(
    target: Target,
    arguments: LaunchArguments,
    pipeline: Pipeline,
    folder: Path,
    name: str,
    options: TargetOptions,
    requested: bool,
) -> Step:
    stage = pipeline.stages[name]
    command = UserCommand(
        words=(),
        folder=folder,
        setup=check_setup([*pipeline.setup, *stage.setup]),
        persist=pipeline.keeps(folder),
        resume_with=stage.resume_with,
        resume_if=stage.resume_if,
    )
    stage_options = _stage_options(stage, options) if target.bills else options
    run = f"{arguments.name or pipeline.name}-{name}"
    request = CommandRequest(run=run, target_options=stage_options, command=command)
    has_gpu = stage.gpu is not None if target.bills else bool(target.inspect(request).gpus)
    command = replace(command, words=stage.words(has_gpu))
    request = replace(request, command=command)
    files = target.files("checkpoints")
    before = command_of_run(files, run)
    missing = [path for path in stage.outputs if not _exists(target, path, command, run)]
    if before is not None:  # changed arguments are handled below
        refuse_another(run, replace(before, words=command.words), command)
    same = before is not None and before.words == command.words
    record = record_of(files, run)
    runs, why = decide(record, same, stage.outputs, missing, requested)
    if before is not None and record is not None and not (same or _resumes_itself(stage, command)):
        has_checkpoint = stage.resume_if is None or _exists(target, stage.resume_if, command, run)
        if stage.resume_with and has_checkpoint and record.status != RunStatus.FINISHED:
            raise usage(_changed_command(stage, name, record, before, command))
        if runs and stage.resume_with and record.status == RunStatus.FINISHED:
            why += (
                f"; it starts from the beginning (to resume from its checkpoint, add "
                f"{stage.resume_with} to {name}.args)"
            )
    return Step(name, why, request if runs else None)


def _resumes_itself(stage: Stage, command: UserCommand) -> bool:
    """Return True if the user typed the arguments that resume, and so chose the checkpoint."""
    return bool(stage.resume_with) and set(shlex.split(stage.resume_with)) <= {*command.words}


def _changed_command(
    stage: Stage, name: str, record: RunRecord, before: UserCommand, command: UserCommand
) -> str:
    """Return the error for a stage whose checkpoint belongs to other arguments."""
    return (
        f"stage {name} is {record.status}, and its command has changed:\n"
        f"  {shlex.join(before.words)}\n→ {shlex.join(command.words)}\n"
        f"to resume the first, use its arguments (`runner resume {record.name}` has them)\n"
        f"to resume its checkpoint with the second, add {stage.resume_with} to {name}.args\n"
        f"to start the second from the beginning, give the pipeline another name and folder: "
        f"--name NEW-NAME keep.PATH=VOLUME/NEW-FOLDER"
    )


def _stage_options(stage: Stage, given: TargetOptions) -> TargetOptions:
    """Return the stage's options, overridden by those of the command line.

    A stage without a GPU stays without one.
    """
    own = parse_options(gpu=stage.gpu, timeout=stage.timeout, max_cost=stage.max_cost)
    return own.updated(given if stage.gpu else replace(given, gpu=None))


def _exists(target: Target, path: str, command: UserCommand, run: str) -> bool:
    """Return True if an output is on its volume, or in the folder itself on the host."""
    if not target.has_remote_volumes and (command.folder / path).is_file():
        return True
    if path.startswith("$OUT_DIR/"):
        return target.files("checkpoints").size(path.replace("$OUT_DIR", run, 1)) is not None
    for option in command.persist:
        if path == option.path or path.startswith(f"{option.path}/"):
            inside = f"{option.path_in_volume(run)}{path.removeprefix(option.path)}"
            return target.files(option.volume).size(inside) is not None
    return False


def _plan(target: Target, request: Request) -> Plan:
    return target.plan(request, target.inspect(request))


def _one_question(planned: list[tuple[Step, Plan]]) -> str | None:
    """Return one question for all stages, so that the pipeline can run unattended."""
    asked = [(step.stage, plan.question) for step, plan in planned if plan.question]
    lines = [f"{stage}: {question.removesuffix(' Start it?')}" for stage, question in asked]
    return "\n".join([*lines, "Start them?"]) if lines else None

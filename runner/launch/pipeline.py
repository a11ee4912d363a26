"""A pipeline: its stages in order, those skipped whose outputs are there, an end at the first failure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from job.exit_status import ExitStatus
from job.run_record import RunRecord, RunStatus
from runner.console import CliContext
from runner.errors import did_you_mean, usage
from runner.jobs import COMMAND
from runner.launch.execute import WORD, confirm, run_plan
from runner.launch.parse_command import command_of_run, refuse_another
from runner.plan import Plan
from runner.planning.show import show
from runner.request import LaunchArguments, Request, TargetOptions, UserCommand
from runner.runs.store import record_of
from runner.target import Target
from runner.targets.modal.options import parse_options

if TYPE_CHECKING:
    from runner.launch.pipeline_config import Pipeline, Stage


@dataclass(frozen=True)
class Step:
    """A stage that is to run, or why it is skipped."""

    stage: str
    why: str
    request: Request | None = None  # None: it is skipped


def run_pipeline(
    cli: CliContext, target: Target, line: LaunchArguments, checkout: Path, options: TargetOptions
) -> ExitStatus:
    """Read the file, plan what is to be done, ask once, and do it. Raises RunnerError and RecipeError."""
    pipeline, asked = _read(line, checkout, cli.cwd)
    folder = _folder(pipeline, line, checkout, cli.cwd)
    steps = [
        _step(target, line, pipeline, folder, stage, options, stage in asked)
        for stage in pipeline.stages
        if not asked or stage in asked
    ]
    planned = [(step, _plan(target, step.request)) for step in steps if step.request is not None]
    plans = [plan for _, plan in planned]
    if line.dry_run and line.as_json:
        by_stage = {step.stage: plan.facts() for step, plan in planned}
        cli.json([{"stage": s.stage, "why": s.why, "plan": by_stage.get(s.stage)} for s in steps])
        return ExitStatus.DONE
    for step in steps:
        cli.info(f"{step.stage}: {step.why}")
        for _, plan in (item for item in planned if item[0] is step):
            show(plan, cli)
    if line.dry_run or not plans:
        return ExitStatus.DONE
    confirm(cli, _one_question(planned), line.yes)
    for number, (step, plan) in enumerate(planned):
        cli.info(f"stage {step.stage}, {number + 1} of {len(planned)}")
        assert step.request is not None
        # Looked at again: what the stages before have done belongs into the record.
        now = plan if number == 0 else _plan(target, step.request)
        status = run_plan(cli, target, now)
        if status != ExitStatus.DONE:
            left = [later.stage for later, _ in planned[number + 1 :]]
            if left:
                cli.info(
                    f"not begun: {', '.join(left)}; type the same again to go on with {step.stage}"
                )
            return status
    return ExitStatus.DONE


def decide(
    record: RunRecord | None,
    same_command: bool,
    outputs: Sequence[str],
    missing: Sequence[str],
    asked: bool,
) -> tuple[bool, str]:
    """Whether a stage is to run, and why. ``asked``: it was named on the line."""
    if asked:
        return True, "was asked for"
    if not outputs:
        return True, "has no outputs to look for"
    if missing:
        return True, f"{missing[0]} is not there"
    if record is None:
        return False, "skipped: its outputs are there"
    if record.status != RunStatus.FINISHED:
        return True, f"is {record.status}"
    if not same_command:
        return True, "its command is another than last time"
    return False, "skipped: it finished, and its outputs are there"


def _read(line: LaunchArguments, checkout: Path, cwd: Path) -> tuple[Pipeline, list[str]]:
    """The pipeline, and the stages that were named."""
    from runner.launch.pipeline_config import load_pipeline

    if line.detach:
        raise usage("a pipeline waits for each of its stages; leave --detach away")
    _check(line)
    words = [word for word in line.words if word != WORD]
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if not names:
        raise usage("which pipeline? Name its file: configs/nanogpt_shakespeare.yaml")
    path = _find(names[0], checkout, cwd)
    pipeline = load_pipeline(path, overrides)
    for name in names[1:]:
        if name not in pipeline.stages:
            guess = (
                did_you_mean(name, pipeline.stages) or f"; there are {', '.join(pipeline.stages)}"
            )
            raise usage(f"{path.name} has no stage '{name}'{guess}")
    return pipeline, names[1:]


def _check(line: LaunchArguments) -> None:
    """Refuse what would be ignored. Raises RunnerError, exit code 2."""
    for name in ("gpu", "device", "source", "into", "choices", "params", "shards", "force"):
        if getattr(line, name):
            option = name.removesuffix("s") if name == "params" else name
            raise usage(
                f"--{option} is not for a pipeline, whose commands say themselves what they use; give words to a "
                "stage: STAGE.args='...'"
            )
    for name in ("setup", "keep", "resume_with", "resume_if"):
        if getattr(line, name):
            raise usage(
                f"--{name.replace('_', '-')} is a key of the pipeline's file; write it there"
            )


def _find(name: str, checkout: Path, cwd: Path) -> Path:
    for path in (cwd / name, checkout / name, checkout / "configs" / f"{name}.yaml"):
        if path.is_file():
            return path
    raise usage(f"there is no pipeline {name}; give the path of its file")


def _folder(pipeline: Pipeline, line: LaunchArguments, checkout: Path, cwd: Path) -> Path:
    folder = (
        cwd / Path(line.folder).expanduser()
        if line.folder
        else checkout / Path(pipeline.dir).expanduser()
    )
    if not folder.is_dir():
        raise usage(
            f"the pipeline's folder {folder} is not there; clone it there, or say where it is: --dir"
        )
    return folder.resolve()


def _step(
    target: Target,
    line: LaunchArguments,
    pipeline: Pipeline,
    folder: Path,
    name: str,
    line_options: TargetOptions,
    asked: bool,
) -> Step:
    stage = pipeline.stages[name]
    command = UserCommand(
        words=(),
        folder=folder,
        setup=(*pipeline.setup, *stage.setup),
        keep=pipeline.keeps(folder),
        resume_with=stage.resume_with,
        resume_if=stage.resume_if,
    )
    options = _options(stage, line_options) if target.bills else line_options
    run = f"{line.name or pipeline.name}-{name}"
    request = Request(COMMAND, run, target_options=options, command=command)
    has_gpu = stage.gpu is not None if target.bills else bool(target.inspect(request).gpus)
    command = replace(command, words=stage.words(has_gpu))
    request = replace(request, command=command)
    files = target.files("checkpoints")
    before = command_of_run(files, run)
    missing = [path for path in stage.outputs if not _is_there(target, path, command, run)]
    if before is not None:
        refuse_another(
            run, replace(before, words=command.words), command
        )  # other words are another matter
    same = before is not None and before.words == command.words
    record = record_of(files, run)
    runs, why = decide(record, same, stage.outputs, missing, asked)
    if before is not None and record is not None and not (same or _resumes_itself(stage, command)):
        left = stage.resume_if is None or _is_there(target, stage.resume_if, command, run)
        if stage.resume_with and left and record.status != RunStatus.FINISHED:
            raise usage(_two_commands(stage, name, record, before, command))
        if runs and stage.resume_with and record.status == RunStatus.FINISHED:
            why += f"; it begins anew (to go on from what it left, add {stage.resume_with} to {name}.args)"
    return Step(name, why, request if runs else None)


def _resumes_itself(stage: Stage, command: UserCommand) -> bool:
    """Whether the words to resume with were typed: who does that knows whose checkpoint it goes on from."""
    return bool(stage.resume_with) and set(shlex.split(stage.resume_with)) <= {*command.words}


def _two_commands(
    stage: Stage, name: str, record: RunRecord, before: UserCommand, command: UserCommand
) -> str:
    """What is said where going on would be with a checkpoint of other words, and a new start over it."""
    return (
        f"stage {name} is {record.status}, and its command is another than last time:\n"
        f"  {shlex.join(before.words)}\n→ {shlex.join(command.words)}\n"
        f"to go on with the first, give its words (`runner resume {record.name}` has them)\n"
        f"to go on from its checkpoint with the second, add {stage.resume_with} to {name}.args\n"
        f"to begin with the second, give the pipeline another name and place: "
        f"--name NEW-NAME keep.PATH=VOLUME/NEW-PLACE"
    )


def _options(stage: Stage, line: TargetOptions) -> TargetOptions:
    """Return the stage's options, those on the command line first.

    A stage without a GPU stays without.
    """
    cost = str(stage.max_cost) if stage.max_cost is not None else None
    own = parse_options(gpu=stage.gpu, timeout=stage.timeout, max_cost=cost)
    return own.updated(line if stage.gpu is not None else replace(line, gpu=None))


def _is_there(target: Target, path: str, command: UserCommand, run: str) -> bool:
    """Whether an output is on its volume, or in the folder itself where that stays what it is."""
    if target.name == "host" and (command.folder / path).is_file():
        return True
    if path.startswith("$OUT_DIR/"):
        return target.files("checkpoints").size(path.replace("$OUT_DIR", run, 1)) is not None
    for keep in command.keep:
        if path == keep.path or path.startswith(f"{keep.path}/"):
            place = f"{keep.of(run)}{path.removeprefix(keep.path)}"
            return target.files(keep.volume).size(place) is not None
    return False


def _plan(target: Target, request: Request) -> Plan:
    return target.plan(request, target.inspect(request))


def _one_question(planned: list[tuple[Step, Plan]]) -> str | None:
    """For all stages at once: one answer is enough for a night."""
    asked = [(step.stage, plan.question) for step, plan in planned if plan.question]
    lines = [f"{stage}: {question.removesuffix(' Start it?')}" for stage, question in asked]
    return "\n".join([*lines, "Start them?"]) if lines else None

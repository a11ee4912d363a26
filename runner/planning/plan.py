"""The plan of a launch, as a pure function of the request and the target's state.

It starts no process and reads no file, so a plan can be shown, compared and tested without Docker
or a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from job.compatibility import other_job, other_recipe
from job.pretrained import FINEWEB, weights_of
from job.run_record import checkpoints_gone
from runner.errors import RunnerError, not_found, usage
from runner.paths import literal_prefix, mount_point, path_in, replace_path
from runner.plan import (
    Plan,
    PlannedProcess,
    TargetState,
    Volume,
    launch_variable,
    refuse_divergence,
)
from runner.planning.command_plan import command_plan, folder_rows, planned_folder
from runner.request import (
    CommandRequest,
    EvaluateRequest,
    ExperimentRequest,
    ExportRequest,
    PrepareRequest,
    Request,
    TrainRequest,
)

# torchrun kills its workers 30 s after it passed SIGTERM on, too soon for a large checkpoint.
TORCHRUN_SHUTDOWN_S = 100  # below stop_grace_period of the compose file, 120


def make_plan(request: Request, state: TargetState) -> Plan:
    """Return the plan.

    Raises RunnerError if the launch is impossible, with the command to run instead.
    """
    _check(request, state)
    if isinstance(request, CommandRequest):
        return command_plan(request, state)
    paths = _Paths(state)
    overrides = tuple(paths.translate_override(override) for override in request.overrides)
    recipe = getattr(request, "recipe", None)
    recipe = paths.translate(str(recipe)) if recipe else None
    adjusted = request.settings.adjusted if request.settings is not None else ""
    folder = (
        planned_folder(request.run, request.command, state) if request.command is not None else None
    )
    return Plan(
        job=request.job.name,
        target=state.target,
        run=request.run,
        checkout=state.checkout,
        recipe=recipe,
        overrides=overrides,
        process=PlannedProcess(
            command=(
                *_program(request, state),
                *_arguments(request, state, paths, recipe, overrides),
            ),
            workspace=state.environment.workspace,
            environment=(
                *state.environment.variables,
                *_process_variables(request),
                ("RUN_LAUNCH", launch_variable(request, state)),
            ),
            secrets=_needed_secrets(request, state),
            gpus=request.gpus,
            device=request.device,
        ),
        volumes=(*state.environment.volumes, *paths.mounts),
        resume=state.run.step if request.job.writes_run else None,
        steps=tuple(_steps(request, state)),
        image=state.image,
        folder=folder,
        extra_rows=(("adjusted", adjusted), *(folder_rows(state, folder) if folder else ())),
        detach=request.detach,
        as_json=request.as_json,
        writes_run=request.job.writes_run,
        target_options=request.target_options,
    )


def with_rows(plan: Plan, *rows: tuple[str, str], question: str | None = None) -> Plan:
    """Return the plan with further rows, and a question if the launch must be confirmed."""
    return replace(plan, extra_rows=(*plan.extra_rows, *rows), question=question or plan.question)


def already_active(run: str, active: str) -> str:
    """Return the error for starting a run that is active; ``active`` is "running on host"."""
    return (
        f"run '{run}' is already {active}; follow it with `runner logs {run} --follow`, "
        f"stop it with `runner stop {run}`, or start another run with --name"
    )


class _Paths:
    """Paths of this machine as the job sees them.

    ``mounts`` collects the folders that it needs for them.
    """

    def __init__(self, state: TargetState) -> None:
        self.state = state
        self.mounts: list[Volume] = []

    def translate_override(self, override: str) -> str:
        path = path_in(override)
        return override if path is None else replace_path(override, self.translate(path))

    def translate(self, path: str, writable: bool = False) -> str:
        environment, here = self.state.environment, Path(path)
        if not here.is_absolute():
            return path
        for volume in environment.volumes:
            if volume.here and here.is_relative_to(volume.here):
                return str(Path(volume.inside) / here.relative_to(volume.here))
        if here.is_relative_to(self.state.checkout):
            if writable and environment.is_container:
                raise usage(
                    f"{path} is in the checkout, which is read-only in the container; "
                    "choose a folder of a volume or one outside the checkout"
                )
            return here.relative_to(self.state.checkout).as_posix()
        if not environment.is_container or any(
            here.is_relative_to(volume.inside) for volume in environment.volumes
        ):
            return path
        if not environment.can_mount:
            raise usage(
                f"{path} is on this machine, where {self.state.target} can't read it; "
                f"upload it first: `runner push data {path}`, "
                f"then use /vol/data/{here.name}"
            )
        folder = literal_prefix(here)
        inside = mount_point(folder)
        mount = Volume("given", str(folder), inside, writable)
        if mount not in self.mounts:
            self.mounts.append(mount)
        rest = here.relative_to(folder).as_posix()
        return inside if rest == "." else f"{inside}/{rest}"


def _program(request: Request, state: TargetState) -> tuple[str, ...]:
    if request.gpus > 1:
        # "--" because torchrun would take --name for an abbreviation of its own option.
        processes = f"--nproc-per-node={request.gpus}"
        module = ("-m", "--", request.job.module)
        return (*state.environment.torchrun, "--standalone", processes, *module)
    return (*state.environment.python, "-m", request.job.module)


def _arguments(
    request: Request,
    state: TargetState,
    paths: _Paths,
    recipe: str | None,
    overrides: tuple[str, ...],
) -> list[str]:
    positional: list[str] = [recipe] if recipe else []
    options: list[str] = []
    match request:
        case PrepareRequest():
            positional += [request.published] if request.published else []
            options += ["--source", paths.translate(request.source)] if request.source else []
            options += ["--shards", str(request.shards)] if request.shards else []
            options += ["--force"] if request.force else []
        case ExperimentRequest():
            positional += [_experiment_file(request, state)]
        case EvaluateRequest() if request.multiple_choice:
            options += ["--multiple-choice", paths.translate(request.multiple_choice)]
        case ExportRequest():
            output = str(request.output or _default_export_folder(request, state))
            options += ["--output", paths.translate(output, writable=True)]
        case _:
            pass
    if request.run and (request.job.reads_run or request.job.writes_run):
        options = ["--name", request.run, *options]
    if request.device and not isinstance(request, ExperimentRequest):
        options += ["--device", request.device]
    if request.as_json:
        options += ["--json"]
    return [*positional, *overrides, *options]


def _experiment_file(request: ExperimentRequest, state: TargetState) -> str:
    """Return the experiment's file as the job sees it: in its folder, or in the checkout."""
    file = request.experiment.file
    if request.command is not None and state.folder is not None:
        return f"{state.folder.inside}/{file.relative_to(request.command.folder).as_posix()}"
    return file.relative_to(state.checkout).as_posix()


def _default_export_folder(request: Request, state: TargetState) -> str:
    checkpoints = _checkpoints(state)
    return f"{checkpoints.here or checkpoints.inside}/{request.run}/huggingface"


def _checkpoints(state: TargetState) -> Volume:
    return next(volume for volume in state.environment.volumes if volume.name == "checkpoints")


def _process_variables(request: Request) -> tuple[tuple[str, str], ...]:
    if isinstance(request, ExperimentRequest) and request.device == "cpu":
        return (("CUDA_VISIBLE_DEVICES", ""),)  # train() chooses its device itself
    if request.gpus > 1:
        return (("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(TORCHRUN_SHUTDOWN_S)),)
    return ()


def _needed_secrets(request: Request, state: TargetState) -> tuple[str, ...]:
    settings, needed = request.settings, set()
    if isinstance(request, TrainRequest) and request.settings.train.wandb_project:
        needed.add("WANDB_API_KEY")
    source = settings.data.source if settings else None
    if isinstance(request, PrepareRequest):
        source = request.source or request.published or source
    on_hub = source is not None and (source == FINEWEB or "huggingface.co" in source)
    if request.job.reads_recipe and (on_hub or weights_of(settings)):
        needed.add("HF_TOKEN")  # higher rate limits, and gated datasets
    return tuple(name for name in state.secrets if name in needed)


def _check(request: Request, state: TargetState) -> None:
    job, run = request.job, state.run
    if state.missing_modules:
        raise RunnerError(
            f"{job.name} needs {', '.join(state.missing_modules)}, which this Python lacks; "
            f"install it:\n  {state.install_command}\nor run it in the container: `runner local`"
        )
    if job.writes_run and run.record and (why := other_job(run.record, job.name)):
        raise usage(why)
    if run.active:
        raise RunnerError(already_active(request.run, run.active))
    if run.other is not None:
        folder = f"{_checkpoints(state).here}/{request.run}"
        refuse_divergence(request.run, state.target, run.step, run.other, folder)
    if isinstance(request, TrainRequest) and run.recipe is not None:
        # The job would refuse it too, but on a machine that bills.
        why = other_recipe(request.run, run.recipe, request.settings, state.target, run.step or 0)
        if why:
            raise usage(why)
    if job.reads_run and run.step is None and state.is_configured:
        raise not_found(_no_checkpoint(request, state))
    _check_devices(request, state)


def _no_checkpoint(request: Request, state: TargetState) -> str:
    if state.run.is_finished:
        checkpoints = _checkpoints(state)
        recipe = "RECIPE" if checkpoints.remote else f"{checkpoints.here}/{request.run}/recipe.yaml"
        return checkpoints_gone(request.run, state.target, recipe)
    run = request.run
    return f"run '{run}' has no checkpoint yet; see its progress: `runner status {run}`"


def _check_devices(request: Request, state: TargetState) -> None:
    if request.device == "mps" and state.environment.is_container:
        raise usage(
            f"--device mps is the GPU of a Mac, which {state.target} can't use; run `runner host`"
        )
    if request.device == "mps" and request.gpus > 1:
        raise usage("--device mps is a single GPU; remove --gpu")
    if state.gpus is None or request.device == "cpu" or request.gpus <= max(state.gpus, 1):
        return
    raise usage(
        f"--gpu {request.gpus}: {state.target} has {state.gpus or 'no'} "
        f"GPU{'s' * (state.gpus != 1)}; {state.gpu_remedy or 'use fewer'}, "
        f"or add --device cpu for {request.gpus} processes on the CPU"
    )


def _steps(request: Request, state: TargetState) -> list[str]:
    """Return what the launch will do, for a person."""
    settings, step = request.settings, state.run.step
    steps = []
    if state.image is not None and not state.image.is_built:
        steps.append("builds the image first (some minutes, once)")
    match request:
        case TrainRequest():
            steps += _training_steps(request, state)
        case ExperimentRequest():
            verb = "resumes" if step is not None else "runs"
            steps.append(f"{verb} {request.experiment.describe()}")
        case PrepareRequest() if request.force:
            steps.append("replaces the existing dataset")
        case _:
            steps.append(request.job.summary + (f", step {step}" if step is not None else ""))
    wants_wandb = settings is not None and settings.train.wandb_project
    if wants_wandb and not _needed_secrets(request, state):
        steps.append(
            "does not log to Weights & Biases: WANDB_API_KEY is neither in the environment nor .env"
        )
    return steps


def _training_steps(request: TrainRequest, state: TargetState) -> list[str]:
    settings, step = request.settings, state.run.step
    last, start = settings.train.max_steps, settings.train.init_from
    steps = []
    if state.is_dataset_ready is False:
        steps.append(f"prepares the dataset {settings.data.dataset} first")
    if state.is_pretrained_cached is False and step is None:
        steps.append(f"downloads the weights {start} first")
    if step is None:
        steps.append(f"trains {last} steps" if last else f"evaluates {start} without training")
    elif step < last:
        steps.append(f"resumes from step {step} of {last}")
    else:
        steps.append(f"finished at step {step}: shows its sample; --name starts another run")
    return steps

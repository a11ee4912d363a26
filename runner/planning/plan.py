"""The plan of a launch, as a pure function of the request and the target's state.

It starts no process and reads no file, so a plan can be shown, compared and tested without Docker
or a GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from job.compatibility import job_mismatch, recipe_mismatch
from job.format import count
from job.gpu_queue import TICKET_VARIABLE, GpuAccess, busy_message
from job.notify import VARIABLE
from job.pretrained import FINEWEB, weights_of
from job.run_record import deleted_checkpoints_message
from job.trackers import TRACKERS
from runner.errors import RunnerError, not_found, usage
from runner.paths import literal_prefix, mount_point, path_in, replace_path
from runner.plan import (
    Plan,
    PlannedProcess,
    QueueState,
    TargetState,
    Volume,
    launch_variable,
    refuse_divergence,
)
from runner.planning.command_plan import (
    command_plan,
    folder_rows,
    notification_secrets,
    planned_folder,
)
from runner.request import (
    PROMPT,
    SOURCE,
    WEIGHTS,
    ChatRequest,
    CommandRequest,
    EvaluateRequest,
    ExperimentRequest,
    ExportRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    ServeRequest,
    TrainRequest,
)

RECIPE_SUFFIXES = (".yaml", ".yml")  # small enough to be sent along with the code

CONTAINER_PORT = 8000  # of a server, as in docker-compose.yml

PYTHON_PATH = "PYTHONPATH"

# torchrun kills its workers 30 s after it passed SIGTERM on, too soon for a large checkpoint.
TORCHRUN_SHUTDOWN_S = 100  # below stop_grace_period of the compose file, 120


def make_plan(request: Request, state: TargetState) -> Plan:
    """Return the plan.

    Raises RunnerError if the launch is impossible, with the command to run instead.
    """
    _refuse_impossible_launch(request, state)
    if isinstance(request, CommandRequest):
        plan = command_plan(request, state)
    else:
        plan = _plan(request, state)
    options, process = request.target_options, plan.process
    user_variables, variables = dict(options.environment), dict(process.environment)
    if PYTHON_PATH in user_variables:  # it must not hide the packages of the job
        own_path = variables.get(PYTHON_PATH, state.environment.workspace).split(os.pathsep)[0]
        user_variables[PYTHON_PATH] = os.pathsep.join((own_path, user_variables[PYTHON_PATH]))
    command = process.command
    if VARIABLE in process.secrets and not state.environment.reports_end:
        command = (*state.environment.python, "-m", "job.notify", plan.run, *command)
    process = replace(
        process,
        command=command,
        environment=tuple({**variables, **user_variables}.items()),
        secrets=tuple(dict.fromkeys((*process.secrets, *options.forwarded_env))),
    )
    plan = replace(plan, process=process)
    return _queued(plan, state.queue, state) if state.queue is not None else plan


def _queued(plan: Plan, queue: QueueState, state: TargetState) -> Plan:
    """Return the plan with the process that waits for the GPUs and then becomes the job."""
    program = (*state.environment.python, "-m", "job.gpu_queue", queue.container_path)
    ticket = (TICKET_VARIABLE, json.dumps(asdict(queue.ticket)))
    process = replace(
        plan.process,
        command=(*program, *plan.process.command),
        environment=(*plan.process.environment, ticket),
    )
    mounts = (
        (Volume("queue", queue.host_path, queue.container_path),)
        if state.environment.is_container
        else ()
    )
    steps = plan.steps
    if queue.blocker is not None and queue.ticket.access == GpuAccess.QUEUE:
        steps = (f"waits in the queue behind {queue.blocker.run}", *steps)
    return replace(plan, process=process, volumes=(*plan.volumes, *mounts), steps=steps)


def _plan(request: Request, state: TargetState) -> Plan:
    # The text of a dataset that is ready is not needed again.
    needs_text = not (isinstance(request, TrainRequest) and state.is_dataset_ready)
    paths = _Paths(state, needs_text)
    overrides = tuple(paths.translate_override(override) for override in request.overrides)
    recipe = getattr(request, "recipe", None)
    recipe = paths.translate(str(recipe)) if recipe else None
    adjusted = request.settings.adjusted if request.settings is not None else ""
    pages = state.run.record.trackers if state.run.record and request.trackers else {}
    command = request.command
    folder = planned_folder(request.run, command, state) if command is not None else None
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
            publish=f"{request.host}:{request.port}:{CONTAINER_PORT}"
            if isinstance(request, ServeRequest) and state.environment.is_container
            else "",
        ),
        volumes=(*state.environment.volumes, *paths.mounts),
        resume=state.run.step if request.job.writes_run else None,
        steps=tuple(_steps(request, state)),
        image=state.image,
        folder=folder,
        extra_rows=(
            ("adjusted", adjusted),
            *(("tracker", url) for url in pages.values()),
            *(folder_rows(state, folder) if folder else ()),
        ),
        detach=request.detach,
        as_json=request.as_json,
        writes_run=request.job.writes_run,
        target_options=request.target_options,
    )


def with_rows(plan: Plan, *rows: tuple[str, str], price: str | None = None) -> Plan:
    """Return the plan with further rows, and a price if the user must confirm it."""
    return replace(plan, extra_rows=(*plan.extra_rows, *rows), price=price or plan.price)


def already_active_message(run: str, active: str) -> str:
    """Return the error for starting a run that is active; ``active`` is "running on host"."""
    return (
        f"run '{run}' is already {active}; follow it with `runner logs {run} --follow`, "
        f"stop it with `runner stop {run}`, or start a new run with --name"
    )


class _Paths:
    """Paths of this machine as the job sees them.

    ``mounts`` collects the folders that the container must mount for these paths.
    """

    def __init__(self, state: TargetState, needs_text: bool) -> None:
        self.state, self.needs_text = state, needs_text
        self.mounts: list[Volume] = []

    def translate_override(self, override: str) -> str:
        path = path_in(override)
        if path is None:
            return override
        is_source = override.partition("=")[0].rpartition(".")[2] == "source"
        is_optional = is_source and not self.needs_text
        return replace_path(override, self.translate(path, is_optional=is_optional))

    def translate(self, path: str, writable: bool = False, is_optional: bool = False) -> str:
        environment, host_path = self.state.environment, Path(path)
        if not host_path.is_absolute():
            return path
        for volume in environment.volumes:
            if volume.host_path and host_path.is_relative_to(volume.host_path):
                return str(Path(volume.container_path) / host_path.relative_to(volume.host_path))
        if host_path.is_relative_to(self.state.checkout):
            if writable and environment.is_container:
                raise usage(
                    f"{path} is in the checkout, which is read-only in the container; "
                    "choose a folder of a volume or one outside the checkout"
                )
            return host_path.relative_to(self.state.checkout).as_posix()
        if not environment.is_container or any(
            host_path.is_relative_to(volume.container_path) for volume in environment.volumes
        ):
            return path
        if not environment.can_mount and is_optional:
            return path
        if not environment.can_mount and host_path.suffix not in RECIPE_SUFFIXES:
            raise usage(
                f"{path} is on this machine, but {self.state.target} can't read it; "
                f"upload it first: `runner push data {path}`, then use /vol/data/{host_path.name}"
            )
        folder = literal_prefix(host_path)
        container_path = mount_point(folder)
        mount = Volume("mount", str(folder), container_path, writable)
        if mount not in self.mounts:
            self.mounts.append(mount)
        rest = host_path.relative_to(folder).as_posix()
        return container_path if rest == "." else f"{container_path}/{rest}"


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
        case EvaluateRequest():
            if request.multiple_choice:
                options += ["--multiple-choice", paths.translate(request.multiple_choice)]
            options += ["--task", request.task] if request.task else []
        case ExportRequest():
            volume = _checkpoints(state)
            folder = f"{volume.host_path or volume.container_path}/{request.run}/huggingface"
            output = str(request.output or folder)
            options += ["--output", paths.translate(output, writable=True)]
            options += ["--push", request.push] if request.push else []
        case ChatRequest():
            options += ["--model", paths.translate(request.model)] if request.model else []
            if request.prompt_file:
                options += ["--prompt-file", paths.translate(request.prompt_file)]
        case ServeRequest():
            options += ["--model", paths.translate(request.model)] if request.model else []
            container = state.environment.is_container
            address = ("0.0.0.0", CONTAINER_PORT) if container else (request.host, request.port)
            options += ["--host", address[0], "--port", str(address[1])]
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
    if request.command is None or state.folder is None:
        return file.relative_to(state.checkout).as_posix()
    return f"{state.folder.container_path}/{file.relative_to(request.command.folder).as_posix()}"


def _checkpoints(state: TargetState) -> Volume:
    return next(volume for volume in state.environment.volumes if volume.name == "checkpoints")


def _process_variables(request: Request) -> tuple[tuple[str, str], ...]:
    if isinstance(request, ExperimentRequest) and request.device == "cpu":
        return (("CUDA_VISIBLE_DEVICES", ""),)  # train() chooses its device itself
    if request.gpus > 1:
        return (("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(TORCHRUN_SHUTDOWN_S)),)
    return ()


def _needed_secrets(request: Request, state: TargetState) -> tuple[str, ...]:
    settings, needed = request.settings, {*notification_secrets(request)}
    needed.update(*(TRACKERS[name].variables for name in request.trackers))
    source = settings.data.source if settings else None
    if isinstance(request, PrepareRequest):
        source = request.source or request.published or source
    on_hub = source is not None and (source == FINEWEB or "huggingface.co" in source)
    if isinstance(request, ServeRequest):
        needed.add("SERVE_TOKEN")
    if (
        (isinstance(request, ExportRequest) and request.push)
        or (isinstance(request, ChatRequest | ServeRequest) and request.model)
        or (request.job.reads_recipe and (on_hub or weights_of(settings)))
    ):
        needed.add("HF_TOKEN")  # higher rate limits, and gated datasets
    return tuple(name for name in state.secrets if name in needed)


def _refuse_impossible_launch(request: Request, state: TargetState) -> None:
    job, run = request.job, state.run
    if state.missing_modules:
        them = "them" if len(state.missing_modules) > 1 else "it"
        raise RunnerError(
            f"{job.name} needs {', '.join(state.missing_modules)}, which this Python lacks; "
            f"install {them}:\n  {state.install_command}\nor use the container: `runner local`"
        )
    if job.writes_run and run.record and (mismatch := job_mismatch(run.record, job.name)):
        raise usage(mismatch)
    if run.active:
        raise RunnerError(already_active_message(request.run, run.active))
    if run.other is not None:
        folder = f"{_checkpoints(state).host_path}/{request.run}"
        refuse_divergence(request.run, state.target, run.step, run.other, folder)
    if isinstance(request, TrainRequest) and run.recipe is not None:
        # The job would refuse it too, but on a machine that bills.
        settings, step = request.settings, run.step or 0
        if mismatch := recipe_mismatch(request.run, run.recipe, settings, state.target, step):
            raise usage(mismatch)
    _refuse_unusable_files(request, state)
    is_model = isinstance(request, ChatRequest | ServeRequest) and request.model
    if job.reads_run and run.step is None and state.is_configured and not is_model:
        raise not_found(_no_checkpoint(request.run, state))
    _check_devices(request, state)
    if state.queue is not None and request.access is None and state.queue.blocker:
        raise RunnerError(busy_message(state.queue.blocker))


def _refuse_unusable_files(request: Request, state: TargetState) -> None:
    """Raise RunnerError if the job needs a file or run that it could not use."""
    is_forced = isinstance(request, PrepareRequest) and request.force
    step, settings = state.run.step, request.settings
    is_trained = step is not None and settings is not None and step >= settings.train.max_steps
    is_needed = {
        SOURCE: state.is_dataset_ready is False or not state.is_configured or is_forced,
        WEIGHTS: step is None and isinstance(request, TrainRequest),
        # A trained run only shows its sample.
        PROMPT: isinstance(request, SampleRequest)
        or (isinstance(request, TrainRequest) and not is_trained),
    }
    for key, problem in request.problems.items():
        if is_needed[key]:
            is_remote = any(volume.remote for volume in state.environment.volumes)
            raise usage(problem.message + (problem.remote_advice if is_remote else ""))


def _no_checkpoint(run: str, state: TargetState) -> str:
    if not state.run.is_finished:
        return f"run '{run}' has no checkpoint yet; see its progress: `runner status {run}`"
    checkpoints = _checkpoints(state)
    recipe = "RECIPE" if checkpoints.remote else f"{checkpoints.host_path}/{run}/recipe.yaml"
    return deleted_checkpoints_message(run, state.target, recipe)


def _check_devices(request: Request, state: TargetState) -> None:
    if request.device == "mps" and state.environment.is_container:
        raise usage(
            f"--device mps is the GPU of a Mac, which {state.target} can't use; run `runner host`"
        )
    if request.device == "mps" and request.gpus > 1:
        raise usage("--device mps is a single GPU; remove --gpu")
    if request.device == "cuda" and state.gpus == 0:
        remedy = f"{state.gpu_remedy}, or " if state.gpu_remedy else ""
        raise usage(
            f"--device cuda: {state.target} has no GPUs; {remedy}remove --device to use the CPU"
        )
    if state.gpus is None or request.device == "cpu" or request.gpus <= max(state.gpus, 1):
        return
    remedy = state.gpu_remedy or ("use fewer" if state.gpus else "remove --gpu")
    raise usage(
        f"--gpu {request.gpus}: {state.target} has "
        f"{count(state.gpus, 'GPU') if state.gpus else 'no GPUs'}; {remedy}, "
        f"or add --device cpu for {request.gpus} processes on the CPU"
    )


def _steps(request: Request, state: TargetState) -> list[str]:
    """Return the steps of the launch, for display."""
    step = state.run.step
    steps = []
    if state.image is not None and not state.image.is_built:
        steps.append("builds the image first (some minutes, once)")
    match request:
        case TrainRequest():
            steps += _training_steps(request, state)
        case ExperimentRequest():
            verb = "resumes" if step is not None else "runs"
            steps.append(f"{verb} {request.experiment.describe()}")
        case ExportRequest() if request.push:
            steps.append(f"{request.job.summary}, and uploads it to the Hub as {request.push}")
        case ServeRequest():
            steps.append(f"{request.job.summary}, at http://{request.host}:{request.port}")
        case PrepareRequest() if request.force:
            steps.append("replaces the existing dataset")
        case _:
            steps.append(request.job.summary + (f", step {step}" if step is not None else ""))
    return [*steps, *_tracker_steps(request, state)]


def _tracker_steps(request: Request, state: TargetState) -> Iterator[str]:
    options = request.target_options
    for name, project in request.trackers.items():
        info = TRACKERS[name]
        step, variables = f"logs to {info.label}, project {project}", " or ".join(info.online)
        if info.is_online((*state.secrets, *options.forwarded_env, *dict(options.environment))):
            yield step
        elif options.modal_secrets:
            stores = ", ".join(options.modal_secrets)
            yield f"{step}, if the secret {stores} has {variables}; else to {name}/ in its folder"
        else:
            yield (
                f"{step}, offline in its folder: {variables} is neither in the environment nor .env"
            )


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
        steps.append(f"finished at step {step}: shows its sample; --name starts a new run")
    return steps

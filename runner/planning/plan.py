"""The plan: everything that a launch will do, worked out before it is done.

``make_plan`` is a pure function of what was asked (Request) and what was found (Facts): it starts no
process and reads no file, so that a plan can be shown, compared and tested without Docker or a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from job.compatibility import other_job, other_recipe
from job.pretrained import FINEWEB, weights_of
from job.run_record import checkpoints_gone
from runner.errors import RunnerError, not_found, usage
from runner.paths import mount_point, path_in, replace_path, solid_part
from runner.plan import Plan, PlannedFolder, TargetState, Volume, launch_variable, refuse_divergence
from runner.planning.command_plan import command_plan, folder_notes, planned_folder
from runner.request import Request

if TYPE_CHECKING:
    from runner.request import Experiment


def make_plan(request: Request, facts: TargetState) -> Plan:
    """Work out the launch. Raises RunnerError where it can't be done, with what to type instead."""
    _check(request, facts)
    if request.command is not None and request.experiment is None:
        return command_plan(request, request.command, facts)
    given: list[Volume] = []

    def seen(path: str, writable: bool = False) -> str:
        inside, volume = _place(path, facts, writable)
        if volume is not None and volume not in given:
            given.append(volume)
        return inside

    recipe = seen(str(request.recipe)) if request.recipe else None
    overrides = tuple(
        override if (path := path_in(override)) is None else replace_path(override, seen(path))
        for override in request.overrides
    )
    arguments: list[str] = [word for word in (recipe, request.published) if word]
    if request.experiment is not None:
        arguments += [_file(request, request.experiment, facts)]
    arguments += overrides
    if request.run and (request.job.reads_run or request.job.writes_run):
        arguments += ["--name", request.run]
    if request.source:
        arguments += ["--source", seen(request.source)]
    if request.shards:
        arguments += ["--shards", str(request.shards)]
    if request.force:
        arguments += ["--force"]
    if request.choices:
        arguments += ["--multiple-choice", seen(request.choices)]
    if request.job.name == "export":
        arguments += [
            "--output",
            seen(str(request.into or _export_folder(request, facts)), writable=True),
        ]
    if request.device and request.experiment is None:
        arguments += ["--device", request.device]
    if request.as_json:
        arguments += ["--json"]
    volumes = (*facts.volumes, *given)
    folder, notes = _folder(request, facts)
    if request.settings is not None and request.settings.adjusted:
        notes = (("adjusted", request.settings.adjusted), *notes)
    return Plan(
        job=request.job.name,
        target=facts.target,
        run=request.run,
        recipe=recipe,
        overrides=overrides,
        command=(*_program(request, facts), *arguments),
        workspace=facts.workspace,
        checkout=facts.checkout,
        image=facts.image,
        image_built=facts.image_built,
        gpus=request.gpus,
        device=request.device,
        volumes=volumes,
        environment=(
            *facts.environment,
            *_for_processes(request),
            ("RUN_LAUNCH", launch_variable(request, facts)),
        ),
        secrets=_wanted_secrets(request, facts),
        resume=facts.step if request.job.writes_run else None,
        steps=tuple(_in_words(request, facts)),
        detach=request.detach,
        as_json=request.as_json,
        target_options=request.target_options,
        notes=notes,
        writes_run=request.job.writes_run,
        folder=folder,
    )


def with_notes(plan: Plan, *notes: tuple[str, str], question: str | None = None) -> Plan:
    """The plan with further rows, and a question where it must be confirmed."""
    return replace(plan, notes=(*plan.notes, *notes), question=question or plan.question)


def _file(request: Request, experiment: Experiment, facts: TargetState) -> str:
    """The experiment's file as the job sees it: in its folder, or in the checkout."""
    if request.command is not None:
        return f"{facts.folder}/{experiment.file.relative_to(request.command.folder).as_posix()}"
    return experiment.file.relative_to(facts.checkout).as_posix()


def _folder(
    request: Request, facts: TargetState
) -> tuple[PlannedFolder | None, tuple[tuple[str, str], ...]]:
    """An experiment's folder outside the checkout, and the rows of the table about it."""
    if request.command is None:
        return None, ()
    folder = planned_folder(request.run, request.command, facts)
    return folder, folder_notes(facts, folder)


def _check(request: Request, facts: TargetState) -> None:
    if facts.missing:
        raise RunnerError(
            f"this Python lacks {', '.join(facts.missing)}, which {request.job.name} needs; "
            f"type:\n  {facts.remedy}\nor run it in the container: runner local"
        )
    if (
        request.job.writes_run
        and facts.record
        and (why := other_job(facts.record, request.job.name))
    ):
        raise usage(why)
    if facts.busy:
        raise RunnerError(at_work_already(request.run, facts.busy))
    if facts.other is not None:
        refuse_divergence(
            request.run, facts.target, facts.step, facts.other, _folder_here(request, facts)
        )
    if request.settings is not None and facts.begun_with is not None:
        why = other_recipe(
            request.run, facts.begun_with, request.settings, facts.target, facts.step or 0
        )
        if why:  # the job would refuse it too, on a machine that is paid for
            raise usage(why)
    if request.job.reads_run and facts.step is None and facts.account:
        if facts.finished:
            raise not_found(
                checkpoints_gone(request.run, facts.target, _recipe_of_run(request, facts))
            )
        raise not_found(
            f"run '{request.run}' has no checkpoint yet; `runner status {request.run}` says how far it is"
        )
    if request.device == "mps" and facts.contained:
        raise usage(
            f"--device mps is a Mac's own GPU, which {facts.target} does not see; type: runner host"
        )
    if request.gpus > 1 and request.device == "mps":
        raise usage("--device mps is one GPU; leave --gpu away")
    if facts.gpus is not None and request.device != "cpu" and request.gpus > max(facts.gpus, 1):
        raise usage(
            f"{request.gpus} GPUs are asked for and {facts.target} has {facts.gpus or 'none'}; "
            f"{facts.gpu_remedy or 'ask for fewer'}, or add --device cpu for {request.gpus} processes on the CPU"
        )


def _folder_here(request: Request, facts: TargetState) -> str:
    """The run's folder on this machine."""
    return next((f"{v.here}/{request.run}" for v in facts.volumes if v.name == "checkpoints"), "")


def at_work_already(run: str, how: str) -> str:
    """Why a run is not started a second time, and what to type."""
    return (
        f"run '{run}' is at work already ({how}); `runner logs {run} --follow` shows it, `runner stop {run}` ends it, "
        "--name starts another"
    )


def _recipe_of_run(request: Request, facts: TargetState) -> str:
    """The run's own recipe as it is typed here; of one in the cloud it is not here."""
    here = (v.here for v in facts.volumes if v.name == "checkpoints" and not v.remote)
    return next((f"{folder}/{request.run}/recipe.yaml" for folder in here), "RECIPE")


def _program(request: Request, facts: TargetState) -> tuple[str, ...]:
    if request.gpus > 1:
        # Behind "--" the words are the job's: else torchrun takes --name for a word of its own where it is the start of one.
        processes = f"--nproc-per-node={request.gpus}"
        return (*facts.torchrun, "--standalone", processes, "-m", "--", request.job.module)
    return (*facts.python, "-m", request.job.module)


def _for_processes(request: Request) -> tuple[tuple[str, str], ...]:
    """Torchrun kills its processes this many seconds after it passed SIGTERM on; 30 by default, which may be
    too short for a checkpoint. The compose file gives a container 120."""
    if request.experiment is not None and request.device == "cpu":
        return (("CUDA_VISIBLE_DEVICES", ""),)  # the file finds its device itself
    return (("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "100"),) if request.gpus > 1 else ()


def _place(path: str, facts: TargetState, writable: bool) -> tuple[str, Volume | None]:
    """How the job writes ``path``, and what must be mounted for that."""
    here = Path(path)
    if not here.is_absolute():
        return path, None
    for volume in facts.volumes:
        if volume.here and here.is_relative_to(volume.here):
            return str(Path(volume.inside) / here.relative_to(volume.here)), None
    if here.is_relative_to(facts.checkout):
        if writable and facts.contained:
            raise usage(
                f"{path} lies in the code, which is read-only in there; "
                "choose a folder of a volume or one outside the checkout"
            )
        return here.relative_to(facts.checkout).as_posix(), None
    if not facts.contained:
        return path, None
    for volume in facts.volumes:
        if here.is_relative_to(volume.inside):
            return path, None
    if not facts.mounts:
        raise usage(
            f"{path} is on this machine, and {facts.target} does not see it; "
            f"put it there first: runner push data {path}   (then it is /vol/data/{here.name})"
        )
    solid = solid_part(here)
    inside = mount_point(solid)
    rest = here.relative_to(solid).as_posix()
    return (inside if rest == "." else f"{inside}/{rest}"), Volume(
        "given", str(solid), inside, writable
    )


def _export_folder(request: Request, facts: TargetState) -> str:
    """Where an export goes by default: into the run's own folder."""
    checkpoints = next(volume for volume in facts.volumes if volume.name == "checkpoints")
    return f"{checkpoints.here or checkpoints.inside}/{request.run}/huggingface"


def _wanted_secrets(request: Request, facts: TargetState) -> tuple[str, ...]:
    settings, wanted = request.settings, set()
    if settings is not None and settings.train.wandb_project and request.job.name == "train":
        wanted.add("WANDB_API_KEY")
    source = (
        request.source or request.published or (settings.data.source if settings else None) or ""
    )
    if request.job.reads_recipe and (
        source == FINEWEB or "huggingface.co" in source or weights_of(settings)
    ):
        wanted.add(
            "HF_TOKEN"
        )  # the Hub gives more to those it knows, and some datasets to them alone
    return tuple(name for name in facts.secrets if name in wanted)


def _in_words(request: Request, facts: TargetState) -> list[str]:
    settings, words = request.settings, []
    if facts.image and not facts.image_built:
        words.append("builds the image first, which takes some minutes and is done once")
    if request.job.name == "train" and settings is not None:
        if facts.dataset_ready is False:
            words.append(f"prepares the dataset {settings.data.dataset} first; it is not there yet")
        if facts.weights_ready is False and facts.step is None:
            words.append(f"downloads the weights {settings.train.init_from} first")
        last = settings.train.max_steps
        if facts.step is None:
            words.append(
                f"trains {last} steps"
                if last
                else f"measures {settings.train.init_from}, trains nothing"
            )
        elif facts.step < last:
            words.append(f"goes on from step {facts.step} of {last}")
        else:
            words.append(
                f"finished at step {facts.step}: shows its sample; --name starts another run"
            )
    elif request.experiment is not None:
        words.append(
            f"{'goes on with' if facts.step is not None else 'runs'} {request.experiment.in_words()}"
        )
    elif request.force:
        words.append("replaces the dataset that is there")
    else:
        words.append(
            request.job.summary + (f", step {facts.step}" if facts.step is not None else "")
        )
    if (
        settings is not None
        and settings.train.wandb_project
        and not _wanted_secrets(request, facts)
    ):
        words.append("logs nothing to Weights & Biases: there is no WANDB_API_KEY here or in .env")
    return words

"""The files that a recipe names: made absolute for every target, and checked before a launch.

A path in a recipe is relative to its folder or to the user's; the job itself finds a path that is
relative to the checkout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from job.compatibility import does_not_fit
from job.exit_status import RecipeError
from job.files import MISSING, file_problem, text_problem
from job.paths import VOLUMES
from job.pretrained import refuse_different_gpt2
from job.run_record import is_run_name
from job.step_folders import STEP_FOLDER
from runner.errors import did_you_mean
from runner.paths import absolute, literal_prefix, path_in, replace_path
from runner.request import PROMPT, SOURCE, WEIGHTS, FileProblem
from runner.runs.volume import recipe_of, run_names, step_of
from runner.target import LocalVolume, VolumeFiles

if TYPE_CHECKING:
    from job.recipe import Recipe

OpenVolume = Callable[[str], VolumeFiles]  # Target.files

VOLUME_PATH = re.compile(rf"/vol/({'|'.join(VOLUMES)})(/.*)?", re.DOTALL)  # in a container

USE_VOLUME = ", or give a path on the volume data as /vol/data/PATH"
PUSH_RUN = "; copy a run of this machine first: `runner push checkpoints RUN`"


def absolute_override(override: str, cwd: Path, volumes: OpenVolume | None) -> str:
    """Return ``key=value`` with an absolute path, if the value is a path that exists.

    A run's name wins over a folder of that name, as in the job. ``volumes`` opens the target's
    volumes, None if they are unknown.
    """
    path = path_in(override)
    is_weights = override.partition("=")[0].endswith("init_from")
    if path is None or (is_weights and path in _known_runs(path, volumes)):
        return override
    return replace_path(override, absolute(path_on_this_machine(path, volumes), cwd))


def path_on_this_machine(path: str, volumes: OpenVolume | None) -> str:
    """Return ``/vol/data/PATH`` as a path in the volume's folder, if that is on this machine.

    Other paths are returned unchanged.
    """
    match = VOLUME_PATH.fullmatch(os.path.normpath(path))
    volume = volumes(match[1]) if match and volumes is not None else None
    return f"{volume.root}{match[2] or ''}" if match and isinstance(volume, LocalVolume) else path


def absolute_paths(
    settings: Recipe,
    overrides: Sequence[str],
    folders: Sequence[Path],
    volumes: OpenVolume | None,
) -> tuple[str, ...]:
    """Return overrides that make the recipe's own paths absolute, so that every target finds them.

    ``folders`` are those that a path may be relative to; the last one is the checkout, in which the
    job itself finds a path.
    """
    from job.arguments import is_overridden

    *folders, checkout = folders
    absolute_settings = []
    for key, path in _named_paths(settings).items():
        if is_overridden(key, overrides) or (key == WEIGHTS and path in _known_runs(path, volumes)):
            continue
        local = path_on_this_machine(path, volumes)
        paths = [Path(absolute(local, folder)) for folder in folders]
        existing = [p for p in paths if p.is_absolute() and literal_prefix(p).exists()]
        if existing and (Path(path).is_absolute() or existing[0] != checkout / path):
            setting = f"{key}=@{path}" if key == PROMPT else f"{key}={path}"
            absolute_settings.append(replace_path(setting, str(existing[0])))
    return tuple(absolute_settings)


def find_problems(
    settings: Recipe, folders: Sequence[Path], volumes: OpenVolume | None
) -> dict[str, FileProblem]:
    """Return the problem of each setting that names a file or run which the job could not use.

    The last of ``folders`` is the checkout. ``volumes`` opens the target's volumes, None if they
    are unknown. The plan decides which of the files the launch needs.
    """
    checks: dict[str, Callable[[str], FileProblem | str]] = {
        SOURCE: partial(_source_problem, folders=folders),
        WEIGHTS: partial(_weights_problem, settings=settings, folders=folders, volumes=volumes),
        PROMPT: partial(_prompt_problem, folders=folders),
    }
    problems = {}
    for key, path in _named_paths(settings).items():
        local = path_on_this_machine(path, volumes)
        if path.startswith("/workspace/"):
            local = str(folders[-1] / path.removeprefix("/workspace/"))
        problem: FileProblem | str | None
        problem = volume_problem(local, volumes, settings if key == WEIGHTS else None)
        if problem is None:
            problem = checks[key](local)
        if isinstance(problem, str):
            problem = FileProblem(problem)
        if problem.message:
            sign = "@" if key == PROMPT else ""
            problems[key] = replace(problem, message=f"{key}={sign}{path}: {problem.message}")
    return problems


def _named_paths(settings: Recipe) -> dict[str, str]:
    """Return the paths, also of runs, in a recipe, by key."""
    values = {
        SOURCE: settings.data.source,
        WEIGHTS: settings.train.init_from,
        PROMPT: settings.sample.prompt,
    }
    paths = {key: path_in(f"{key}={value or ''}") for key, value in values.items()}
    return {key: path for key, path in paths.items() if path is not None}


def _first_existing(path: str, folders: Sequence[Path]) -> Path:
    """Return the path from the first folder that has it, else from the first folder."""
    paths = [folder / os.path.expanduser(path) for folder in folders]
    return next((p for p in paths if file_problem(p, True) != MISSING), paths[0])


def _source_problem(source: str, folders: Sequence[Path]) -> FileProblem | str:
    path = _first_existing(source, folders)
    problem = file_problem(path, allow_folder=True)
    if problem != MISSING:
        return f"{problem}; give a readable file or folder" if problem else ""
    if any(glob(str(folder / os.path.expanduser(source)), recursive=True) for folder in folders):
        return ""
    return FileProblem("no such file, folder or glob; correct the path", USE_VOLUME)


def _prompt_problem(path: str, folders: Sequence[Path]) -> FileProblem | str:
    if not (problem := text_problem(_first_existing(path, folders))):
        return ""
    message = f"{problem}; correct the path, or give the text itself: prompt=TEXT"
    return FileProblem(message, USE_VOLUME)


def volume_problem(
    path: str, volumes: OpenVolume | None, settings: Recipe | None = None
) -> str | None:
    """Return why a job could not read ``/vol/data/PATH`` on the target's volume; '' if it can.

    None if it is a different path. ``settings`` is the recipe whose training starts from it.
    """
    match = VOLUME_PATH.fullmatch(os.path.normpath(path))
    if match is None:
        return None
    if volumes is None:
        return ""
    volume, inside = match[1], str(literal_prefix(Path(match[2] or "/"))).strip("/")
    files = volumes(volume)
    try:
        next(iter(files.entries(inside)), None)
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"no such file on the volume {volume}; correct the path (`runner ls {volume}` lists "
            f"the files), or copy it there: `runner push {volume} PATH`"
        )
    return _weights_folder_problem(files, inside, settings) if settings is not None else ""


def _weights_problem(
    source: str, settings: Recipe, folders: Sequence[Path], volumes: OpenVolume | None
) -> FileProblem | str:
    names = _known_runs(source, volumes)
    if volumes is not None and source in names:
        return _run_problem(volumes("checkpoints"), source, settings)
    path = _first_existing(source, folders)
    if not path.exists():
        if volumes is None and is_run_name(source):
            return ""
        remedy = did_you_mean(source, names) or "; `runner runs` lists the runs"
        return FileProblem(f"no run or folder of that name{remedy}", PUSH_RUN)
    return _weights_folder_problem(LocalVolume(Path("/")), str(path.resolve())[1:], settings)


def _weights_folder_problem(files: VolumeFiles, path: str, settings: Recipe) -> str:
    """Return why the folder ``path`` cannot initialize the recipe's network; '' if it can."""
    parent, _, name = path.rpartition("/")
    if files.size(config := f"{path}/config.json") is not None:
        try:
            refuse_different_gpt2(files.read(config), settings.model, f"{name}/config.json")
        except (ValueError, OSError) as error:
            return str(error)
        is_missing = files.size(f"{path}/model.safetensors") is None
        return f"model.safetensors: {MISSING}" if is_missing else ""
    folder = parent if STEP_FOLDER.match(name) else path
    if files.size(f"{folder}/recipe.yaml") is None:
        return (
            "not a run, not a checkpoint folder, and not a folder with Hugging Face's config.json "
            "and model.safetensors"
        )
    return _run_problem(files, folder, settings)


def _known_runs(name: str, volumes: OpenVolume | None) -> list[str]:
    """Return the names of all runs; none if ``name`` cannot be one, or if they are unknown."""
    if volumes is None or not is_run_name(name):
        return []
    return run_names(volumes("checkpoints"))


def _run_problem(files: VolumeFiles, path: str, settings: Recipe) -> str:
    run = path.rpartition("/")[2]
    try:
        before = recipe_of(files, path)
    except RecipeError as error:
        return str(error)
    if before is None:
        return f"run '{run}' has no recipe.yaml, so its network is unknown"
    if step_of(files, path) is None:
        return f"run '{run}' has no checkpoint; `runner resume {run}` trains it"
    return does_not_fit(run, before.model, settings.model)

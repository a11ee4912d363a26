"""The files that a recipe names: made absolute for every target, and checked before a launch.

A path in a recipe is relative to its folder or to the user's; the job itself finds a path that is
relative to the checkout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from job.compatibility import does_not_fit
from job.exit_status import RecipeError
from job.files import MISSING, file_problem, text_problem
from job.pretrained import refuse_different_gpt2
from job.run_record import is_run_name
from job.step_folders import STEP_FOLDER
from runner.errors import did_you_mean
from runner.paths import absolute, literal_prefix, path_in, replace_path
from runner.request import PROMPT, SOURCE, WEIGHTS, FileProblem
from runner.runs.store import recipe_of, run_names, step_of
from runner.target import LocalVolume, VolumeFiles

if TYPE_CHECKING:
    from job.recipe import Recipe

# A job in a container may know a path that begins with one of these: the volumes, and the code.
IN_CONTAINER = ("/vol/", "/workspace/")

USE_VOLUME = ", or give a path on the volume data as /vol/data/PATH"
PUSH_RUN = "; copy a run of this machine first: `runner push checkpoints RUN`"


def absolute_override(override: str, cwd: Path, runs: VolumeFiles | None) -> str:
    """Return ``key=value`` with an absolute path, if the value is a path that exists.

    A run's name wins over a folder of that name, as in the job.
    """
    path = path_in(override)
    is_weights = override.partition("=")[0].endswith("init_from")
    if path is None or (is_weights and path in _known_runs(path, runs)):
        return override
    return replace_path(override, absolute(path, cwd))


def absolute_paths(
    settings: Recipe,
    overrides: Sequence[str],
    folders: Sequence[Path],
    checkout: Path,
    runs: VolumeFiles | None,
) -> tuple[str, ...]:
    """Return overrides that make the recipe's own paths absolute, so that every target finds them.

    ``folders`` are those that a path may be relative to.
    """
    from job.arguments import is_overridden

    found = []
    for key, path in _named_paths(settings).items():
        if is_overridden(key, overrides) or (key == WEIGHTS and path in _known_runs(path, runs)):
            continue
        paths = [Path(absolute(path, folder)) for folder in folders]
        existing = [p for p in paths if p.is_absolute() and literal_prefix(p).exists()]
        if existing and (Path(path).is_absolute() or existing[0] != checkout / path):
            setting = f"{key}=@{path}" if key == PROMPT else f"{key}={path}"
            found.append(replace_path(setting, str(existing[0])))
    return tuple(found)


def find_problems(
    settings: Recipe, folders: Sequence[Path], runs: VolumeFiles | None
) -> dict[str, FileProblem]:
    """Return the problem of each setting that names a file or run which the job could not use.

    ``runs`` is the target's checkpoints volume, None if it is unknown. The plan decides which
    of the files the launch needs.
    """
    checks: dict[str, Callable[[str], FileProblem | str]] = {
        SOURCE: partial(_source_problem, folders=folders),
        WEIGHTS: partial(_weights_problem, settings=settings, folders=folders, runs=runs),
        PROMPT: partial(_prompt_problem, folders=folders),
    }
    problems = {}
    for key, path in _named_paths(settings).items():
        if not path.startswith(IN_CONTAINER) and (found := checks[key](path)):
            problem = FileProblem(found) if isinstance(found, str) else found
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


def _weights_problem(
    source: str, settings: Recipe, folders: Sequence[Path], runs: VolumeFiles | None
) -> FileProblem | str:
    names = _known_runs(source, runs)
    if runs is not None and source in names:
        return _run_problem(runs, source, settings)
    path = _first_existing(source, folders)
    if not path.exists():
        if runs is None and is_run_name(source):
            return ""
        return FileProblem(f"no run or folder of that name{did_you_mean(source, names)}", PUSH_RUN)
    if (config := path / "config.json").exists():
        try:
            refuse_different_gpt2(config, settings.model, str(config))
        except ValueError as error:
            return str(error)
        problem = file_problem(path / "model.safetensors")
        return problem and f"model.safetensors: {problem}"
    folder = path.parent if STEP_FOLDER.match(path.name) else path
    if not path.is_dir() or not (folder / "recipe.yaml").exists():
        return (
            "not a run, not a checkpoint folder, and not a folder with Hugging Face's config.json "
            "and model.safetensors"
        )
    return _run_problem(LocalVolume(folder.parent), folder.name, settings)


def _known_runs(name: str, runs: VolumeFiles | None) -> list[str]:
    """Return the names of all runs; none if ``name`` cannot be one, or if they are unknown."""
    return run_names(runs) if runs is not None and is_run_name(name) else []


def _run_problem(runs: VolumeFiles, run: str, settings: Recipe) -> str:
    try:
        before = recipe_of(runs, run)
    except RecipeError as error:
        return str(error)
    if before is None:
        return f"run '{run}' has no recipe.yaml, so its network is unknown"
    if step_of(runs, run) is None:
        return f"run '{run}' has no checkpoint; `runner resume {run}` trains it"
    return does_not_fit(run, before.model, settings.model)

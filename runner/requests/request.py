"""What the user wants, checked: the recipe is read and every word understood before a target is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from job.published import FINEWEB
from job.runs import RUN_NAME
from runner.checkout import is_pipeline, is_sweep, recipes
from runner.command_line.arguments import CommandLine
from runner.command_line.paths import absolute, path_in, replace_path
from runner.command_line.words import Words, sort_words
from runner.errors import NoSuchRun, did_you_mean, not_found, usage
from runner.jobs import JOBS, Job

if TYPE_CHECKING:
    from job.recipe import Recipe
    from runner.requests.command import Command
    from runner.requests.experiment import Experiment
    from runner.targets.protocol import Entry, Files

DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True)
class Request:
    """One launch as asked for. Paths are absolute. ``settings`` is the recipe with its overrides."""

    job: Job
    run: str  # '' for the newest one, where nothing can be looked up
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    settings: Recipe | None = None
    gpus: int = 1  # processes, one on each GPU
    device: str | None = None
    source: str | None = None
    published: str | None = None  # dataset that prepare downloads, in place of a recipe
    shards: int | None = None
    force: bool = False
    into: Path | None = None
    choices: str | None = None  # a file
    detach: bool = False
    as_json: bool = False
    more: tuple[tuple[str, str], ...] = ()  # options that only one target has
    experiment: Experiment | None = None  # of the user's; then there is no recipe
    command: Command | None = None  # of the user's; then there is no recipe
    hint: str = ""  # a row of the plan: why the run has not the name that it might have been expected to have


def read_request(
    line: CommandLine,
    checkout: Path,
    cwd: Path,
    files: Files | None,
    more: tuple[tuple[str, str], ...] = (),
) -> Request:
    """Check the command line and read the recipe. ``files`` is the target's checkpoints volume, None where it can't
    be looked at.

    Raises RunnerError or RecipeError, exit code 2, for a mistake; RunnerError, 102, for a run that is missing.
    """
    known = recipes(checkout)
    published = [FINEWEB] if "prepare" in line.words else []
    words = sort_words(
        line.words, [*known, *published], lambda: run_names(files) if files is not None else []
    )
    job = JOBS[words.job]
    _check_options(line, job)
    overrides = tuple(_from_here(override, cwd) for override in words.overrides)
    if line.name is not None:
        check_run_name(line.name)
    if words.recipe in published and words.recipe not in known:
        return _download(line, job, FINEWEB, overrides, more)
    if job.reads_recipe:
        return _with_recipe(line, job, overrides, find_recipe(words, known, checkout, cwd), cwd, more)
    if job.measures:
        return _measurement(line, job, words, more)
    name = line.name or _run_of(words, known, checkout, cwd)
    run = find_run(name, files) if files is not None else name or ""
    return Request(
        job,
        run,
        overrides=overrides,
        settings=settings_of_run(files, run, overrides) if files is not None else None,
        device=line.device,
        into=(cwd / Path(line.into).expanduser()).absolute() if line.into else None,
        choices=_file_of(line.choices, cwd) if line.choices else None,
        detach=line.detach,
        as_json=line.as_json,
        more=more,
    )


def check_run_name(name: str) -> None:
    """RunnerError, exit code 2, for a name that could not be a folder everywhere."""
    if not RUN_NAME.match(name):
        raise usage(
            f"'{name}' can't be the name of a run; use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def find_recipe(words: Words, known: Mapping[str, Path], checkout: Path, cwd: Path) -> Path:
    """The file of the recipe that was named: by a path here or in the checkout, or by its name in configs/."""
    name = words.recipe or DEFAULT_RECIPE
    if name in known:
        return known[name]
    if any(is_sweep(folder / Path(name).expanduser()) for folder in (cwd, checkout)):
        raise usage(f"{name} is a sweep; type: runner sweep {name}")
    if any(is_pipeline(folder / Path(name).expanduser()) for folder in (cwd, checkout)):
        raise usage(f"{name} is a pipeline; type: runner host pipeline {name}   (or local, or cloud)")
    for folder in (cwd, checkout):
        path = folder / Path(name).expanduser()
        if path.is_file():
            return path.resolve()
    guess = did_you_mean(Path(name).stem, known) or "; `ls configs` shows the recipes"
    raise usage(f"there is no recipe {name}{guess}")


def find_run(name: str | None, files: Files) -> str:
    """``name`` if there is such a run, the newest that has a recipe for None. Raises RunnerError, exit code 102."""
    names = run_names(files, with_recipe=name is None)
    if name is None and not names:
        raise not_found(
            "there is no run of a recipe yet; `runner host` or `runner local` trains the first one"
        )
    if name is not None and name not in names:
        guess = did_you_mean(name, names) or "; `runner runs` lists them"
        raise NoSuchRun(name, f"there is no run '{name}'{guess}")
    return name or names[0]


def run_names(files: Files, with_recipe: bool = False) -> list[str]:
    """The runs in a checkpoints volume that have a record, newest first; those of commands and experiments have
    no recipe."""
    found = []
    for folder in listing(files):
        inside = {e.path: e.modified for e in listing(files, folder.path)} if folder.is_folder else {}
        began = inside.get(f"{folder.path}/run.json")
        if began is not None and (not with_recipe or f"{folder.path}/recipe.yaml" in inside):
            found.append((began, folder.path))
    return [name for _, name in sorted(found, reverse=True)]


def listing(files: Files, path: str = "") -> list[Entry]:
    """What a folder of a volume holds; nothing where it isn't there."""
    try:
        return list(files.entries(path))
    except FileNotFoundError:
        return []


def settings_of_run(
    files: Files, run: str, overrides: tuple[str, ...] = (), section: str = "sample"
) -> Recipe | None:
    """The recipe that the run wrote down, with ``overrides`` by the job that reads them (``section``: job/recipe.py); None
    where it wrote none yet."""
    from job.recipe import RecipeError, load

    name = f"{run}/recipe.yaml"
    if files.size(name) is None:
        return None
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "recipe.yaml"
        copy.write_bytes(files.read(name))
        try:
            return load(copy, overrides, section)
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(copy), name)) from None


def settings_begun_with(files: Files, request: Request) -> Recipe | None:
    """What the run that a training would go on with was begun with; None where none was begun."""
    if request.job.name != "train" or request.settings is None:
        return None
    return settings_of_run(files, request.run)


def _measurement(line: CommandLine, job: Job, words: Words, more: tuple[tuple[str, str], ...]) -> Request:
    for word in (words.recipe, *words.overrides):
        if word is not None:
            raise usage(f"{job.name} measures the device and takes no recipe; leave {word} away")
    name = line.name or job.name
    check_run_name(name)
    return Request(job, name, device=line.device, detach=line.detach, as_json=line.as_json, more=more)


def _download(
    line: CommandLine, job: Job, dataset: str, overrides: tuple[str, ...], more: tuple[tuple[str, str], ...]
) -> Request:
    if wrong := [*overrides, *([f"--source {line.source}"] if line.source else [])]:
        raise usage(
            f"{dataset} is downloaded as it is and takes --shards and --force alone; leave {wrong[0]} away"
        )
    run = line.name or f"{job.name}-{dataset}"
    check_run_name(run)
    return Request(
        job,
        run,
        published=dataset,
        shards=line.shards,
        force=line.force,
        detach=line.detach,
        as_json=line.as_json,
        more=more,
    )


def _with_recipe(
    line: CommandLine,
    job: Job,
    overrides: tuple[str, ...],
    path: Path,
    cwd: Path,
    more: tuple[tuple[str, str], ...],
) -> Request:
    from job.recipe import load

    settings = load(path, overrides)
    run = line.name or (settings.name if job.has_run else f"{job.name}-{settings.data.dataset}")
    check_run_name(run)
    return Request(
        job,
        run,
        recipe=path,
        overrides=overrides,
        settings=settings,
        gpus=line.gpu or 1,
        device=line.device,
        source=absolute(line.source, cwd) if line.source else None,
        shards=line.shards,
        force=line.force,
        detach=line.detach,
        as_json=line.as_json,
        more=more,
    )


def _check_options(line: CommandLine, job: Job) -> None:
    if line.source and job.name != "prepare":
        raise usage(f"--source belongs to prepare; for {job.name} write data.source={line.source}")
    if line.shards and job.name != "prepare":
        raise usage(f"--shards belongs to prepare; for {job.name} write data.shards={line.shards}")
    if line.force and job.name != "prepare":
        raise usage(f"--force belongs to prepare, and replaces a dataset; {job.name} replaces nothing")
    if line.into and job.name != "export":
        raise usage(f"--into belongs to export, not to {job.name}")
    if line.choices and job.name != "evaluate":
        raise usage(f"--choices belongs to evaluate, not to {job.name}")
    if line.device and not job.takes_device:
        raise usage(f"{job.name} needs no device; leave --device away")
    if (line.gpu or 1) > 1 and not job.in_processes:
        raise usage(f"{job.name} runs in one process; leave --gpu away")


def _file_of(choices: str, cwd: Path) -> str:
    path = absolute(choices, cwd)
    if not path.startswith("/vol/") and not Path(path).is_file():  # what was pushed is there alone
        raise usage(f"--choices {choices}: there is no such file; docs/recipes.md says what is in one")
    return path


def _from_here(override: str, cwd: Path) -> str:
    path = path_in(override)
    return override if path is None else replace_path(override, absolute(path, cwd))


def _run_of(words: Words, known: Mapping[str, Path], checkout: Path, cwd: Path) -> str | None:
    """The run that a recipe's name stands for, in a job that reads a run."""
    if words.recipe is None:
        return None
    from job.recipe import load

    return load(find_recipe(words, known, checkout, cwd)).name

"""Read the arguments of a job that has a recipe or reads a run, and return its request."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.compatibility import refuse_changed_network
from job.files import text_problem
from job.pretrained import FINEWEB, GPT2, HUB, REPOSITORY, invalid_repository
from job.run_record import invalid_run_name, is_run_name
from runner.errors import NoSuchRun, did_you_mean, not_found, usage
from runner.jobs import JOBS, LaunchArguments
from runner.launch.recipe_paths import (
    OpenVolume,
    absolute_override,
    absolute_paths,
    find_problems,
    path_on_this_machine,
    volume_problem,
)
from runner.paths import absolute, is_path
from runner.project import explain_config, recipes, require_config, unknown_config
from runner.request import (
    PROMPT,
    BenchmarkRequest,
    ChatRequest,
    EvaluateRequest,
    ExportRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    ServeRequest,
    TargetOptions,
    TrainRequest,
)
from runner.runs.store import NO_RUNS
from runner.runs.volume import recipe_of, run_names
from runner.target import VolumeFiles

if TYPE_CHECKING:
    from job.recipe import Recipe

DEFAULT_RECIPE = "quickstart"

NO_OPTIONS = TargetOptions()


def read_request(
    arguments: LaunchArguments,
    checkout: Path,
    cwd: Path,
    volumes: OpenVolume | None,
    options: TargetOptions = NO_OPTIONS,
) -> Request:
    """Check the arguments and read the recipe.

    ``volumes`` opens the target's volumes, None if they can't be read. Raises RunnerError or
    RecipeError, exit status 2, for a mistake; NoSuchRun, 102, for a run that is missing.
    """
    job, common = JOBS[arguments.job], common_options(arguments, options)
    files = volumes("checkpoints") if volumes else None
    if job.takes_model:
        return _model_request(arguments, cwd, volumes, common)
    known = recipes(checkout, cwd)
    published = [FINEWEB] if job.name == "prepare" else []

    def explain(word: str) -> str:
        if files is not None and word in run_names(files):
            return f"'{word}' is a run, not a job or a recipe; use --name {word}"
        return explain_config(word, checkout, cwd)

    recipe, typed_overrides = classify_args(arguments.args, [*known, *published], explain)
    overrides = tuple(absolute_override(override, cwd, volumes) for override in typed_overrides)
    if arguments.name is not None:
        check_run_name(arguments.name)
    if recipe in published and recipe not in known:
        return _download_request(arguments, overrides, common)
    if job.reads_recipe:
        path = find_recipe(recipe, known, checkout, cwd)
        overrides += tuple(f"train.{name}_project={word}" for name, word in arguments.trackers)
        return _recipe_request(arguments, overrides, path, checkout, cwd, volumes, common)
    name = arguments.name
    if not job.reads_run:  # a benchmark
        for word in arguments.args:
            raise usage(f"{job.name} measures the device and takes no recipe; remove {word}")
        return BenchmarkRequest(run=name or job.name, **common)
    if name is None and recipe is not None:
        from job.recipe import load

        name = load(find_recipe(recipe, known, checkout, cwd)).name
    run = find_run_name(name, files)
    settings = _settings_of(files, run, overrides)
    common |= {"run": run, "overrides": overrides, "settings": settings}
    output, questions = arguments.output, arguments.multiple_choice
    match job.name:
        case "evaluate":
            file = None
            if questions:
                advice = "docs/recipes.md describes its format"
                file = _text_file("--multiple-choice", questions, cwd, volumes, advice)
            if questions and arguments.task:
                raise usage("--task and --multiple-choice are two evaluations; remove one of them")
            return EvaluateRequest(**common, multiple_choice=file, task=arguments.task)
        case "export":
            folder = None
            if arguments.push is not None and not REPOSITORY.fullmatch(arguments.push):
                raise usage(invalid_repository(arguments.push))
            if output:
                output = path_on_this_machine(output, volumes)
                folder = (cwd / Path(output).expanduser()).absolute()
            return ExportRequest(**common, output=folder, push=arguments.push)
        case _:
            from job.arguments import is_overridden

            if settings is not None and is_overridden(PROMPT, overrides):
                common["problems"] = find_problems(settings, (cwd, checkout), volumes)
            return SampleRequest(**common)


def common_options(arguments: LaunchArguments, options: TargetOptions) -> dict[str, Any]:
    """Return the fields that the requests of all jobs have."""
    return {
        "device": arguments.device,
        "detach": arguments.detach,
        "as_json": arguments.as_json,
        "target_options": options,
    }


def _model_request(
    arguments: LaunchArguments, cwd: Path, volumes: OpenVolume | None, common: dict[str, Any]
) -> Request:
    """Return the request of a job whose positional argument is a run, a folder or a Hub model."""
    names, typed_overrides = split_overrides(arguments.args)
    overrides, files = tuple(typed_overrides), volumes("checkpoints") if volumes else None
    if len(models := [*names, *([arguments.name] if arguments.name else [])]) > 1:
        raise usage(f"two models, '{models[0]}' and '{models[1]}'; remove one")
    name, model = models[0] if models else None, None
    known = run_names(files) if files is not None else [name]
    if name is not None and name not in known and not arguments.name:
        folder = (cwd / Path(name).expanduser()).absolute()
        is_folder = (folder / "config.json").is_file()
        if is_folder or name in GPT2 or name.startswith(HUB):
            name, model = None, str(folder) if is_folder else name
    run = find_run_name(name, files) if model is None else ""
    settings = _settings_of(files, run, overrides) if run else None
    common |= {"run": run, "model": model, "overrides": overrides, "settings": settings}
    if arguments.job == "chat":
        file = None
        if arguments.prompt_file:
            option, advice = "--prompt-file", "correct the path"
            file = _text_file(option, arguments.prompt_file, cwd, volumes, advice)
        return ChatRequest(**common, prompt_file=file)
    return ServeRequest(**common, host=arguments.host, port=arguments.port)


def _settings_of(files: VolumeFiles | None, run: str, overrides: tuple[str, ...]) -> Recipe | None:
    """Return the recipe of a run with ``overrides``; RecipeError if they change its network."""
    if files is None:
        return None
    settings = recipe_of(files, run, overrides)
    if settings is not None and overrides and (trained := recipe_of(files, run)) is not None:
        refuse_changed_network(run, trained, settings)  # before a machine is paid for it
    return settings


def check_run_name(name: str) -> None:
    """Raise RunnerError, exit status 2, for a name that can't be a folder on every target."""
    if not is_run_name(name):
        raise usage(invalid_run_name(name))


def load_recipe(args: Sequence[str], checkout: Path, cwd: Path) -> Recipe:
    """Return the recipe that ``args`` name, with its overrides, for a command that takes no job.

    Raises RunnerError or RecipeError, exit status 2.
    """
    from job.recipe import load

    known = recipes(checkout, cwd)
    recipe, overrides = classify_args(
        args, known, lambda word: explain_config(word, checkout, cwd), takes_job=False
    )
    return load(find_recipe(recipe, known, checkout, cwd), overrides)


def find_recipe(name: str | None, known: Mapping[str, Path], checkout: Path, cwd: Path) -> Path:
    """Return the file of a recipe: one of the ``known``, or a path; by default DEFAULT_RECIPE."""
    name = name or DEFAULT_RECIPE
    return known.get(name) or require_config("recipe", name, checkout, cwd)


def find_run_name(name: str | None, files: VolumeFiles | None) -> str:
    """Return ``name`` if that run exists, or the newest run with a recipe for None.

    Without ``files``, the volume of checkpoints, return ``name`` or ''. Raises RunnerError, exit
    status 102.
    """
    if files is None:
        return name or ""
    names = run_names(files, with_recipe=name is None)
    if name is None and not names:
        raise not_found("no trained run yet; `runner host` or `runner local` trains the first one")
    if name is not None and name not in names:
        hint = did_you_mean(name, names) or "; `runner runs` lists the runs"
        raise NoSuchRun(name, f"no run '{name}'{hint if names else f' ({NO_RUNS})'}")
    return name or names[0]


def _download_request(
    arguments: LaunchArguments, overrides: tuple[str, ...], common: dict[str, Any]
) -> Request:
    source = [f"--source {arguments.source}"] if arguments.source else []
    for word in (*overrides, *source):
        raise usage(
            f"{FINEWEB} is a published dataset and takes only --shards and --force; remove {word}"
        )
    return PrepareRequest(
        run=arguments.name or f"prepare-{FINEWEB}",
        published=FINEWEB,
        shards=arguments.shards,
        force=arguments.force,
        **common,
    )


def _recipe_request(
    arguments: LaunchArguments,
    overrides: tuple[str, ...],
    path: Path,
    checkout: Path,
    cwd: Path,
    volumes: OpenVolume | None,
    common: dict[str, Any],
) -> Request:
    from job.recipe import load, source_problem

    job, folders = JOBS[arguments.job], (path.parent, cwd, checkout)
    settings = load(path, overrides)
    if problem := source_problem(arguments.source or ""):
        raise usage(f"--source: {problem}")
    overrides += absolute_paths(settings, overrides, folders, volumes)
    default = settings.name if job.writes_run else f"{job.name}-{settings.data.dataset}"
    run = arguments.name or default
    check_run_name(run)
    common |= {"run": run, "recipe": path, "overrides": overrides, "settings": settings}
    if arguments.source:
        data = settings.data.model_copy(update={"source": arguments.source})
        settings = settings.model_copy(update={"data": data})
    common["problems"] = find_problems(settings, folders, volumes)
    if job.name == "train":
        return TrainRequest(**common, gpus=arguments.gpus or 1)
    source = arguments.source
    if source:
        source = absolute(path_on_this_machine(source, volumes), cwd)
    return PrepareRequest(**common, source=source, shards=arguments.shards, force=arguments.force)


def _text_file(option: str, name: str, cwd: Path, volumes: OpenVolume | None, advice: str) -> str:
    path = absolute(path_on_this_machine(name, volumes), cwd)
    problem = volume_problem(path, volumes)
    if problem is None and (file_problem := text_problem(cwd / path)):
        problem = f"{file_problem}; {advice}"
    if problem:
        raise usage(f"{option} {name}: {problem}")
    return path


def classify_args(
    args: Sequence[str],
    recipes: Collection[str],
    explain: Callable[[str], str],
    takes_job: bool = True,
) -> tuple[str | None, tuple[str, ...]]:
    """Return the recipe, a path or a name in configs/ as typed, and the overrides.

    A word with ``=`` is an override; a path or one of the names in ``recipes`` is the recipe.
    ``explain`` returns the error for a word that names something else, or ''. Raises RunnerError,
    exit status 2, for any other word and for a second recipe.
    """
    if spaced := spaced_setting(args):
        raise usage(f"'{spaced[0]}' has spaces around the =; write {spaced[1]}")
    names, overrides = split_overrides(args)
    for word in names:
        if word in JOBS:
            raise usage(f"'{word}' is a second job; start one job after the other")
        if word.endswith(".py"):
            raise usage(f"{word} is an experiment, not a recipe; use `runner host run {word}`")
        if word not in recipes and not is_path(word):
            before = args[max(0, args.index(word) - 1)]
            if before.endswith("="):
                raise usage(f"'{before} {word}' has spaces around the =; write {before}{word}")
            raise usage(explain(word) or _unknown_word(word, recipes, takes_job))
    if len(names) > 1:
        raise usage(f"two recipes, '{names[0]}' and '{names[1]}'; remove one")
    return names[0] if names else None, tuple(overrides)


def split_overrides(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and the ``key=value`` overrides."""
    overrides = [word for word in args if "=" in word]
    return [word for word in args if word not in overrides], overrides


def spaced_setting(args: Sequence[str]) -> tuple[str, str] | None:
    """Return ``("lr = 1e-3", "lr=1e-3")`` for a setting typed with spaces around its =."""
    for at, word in enumerate(args):
        if word.startswith("=") and at:
            parts = args[at - 1 : at + (2 if word == "=" else 1)]
            return " ".join(parts), "".join(parts)
    return None


def _unknown_word(argument: str, recipes: Collection[str], takes_job: bool) -> str:
    from job.recipe import known_keys  # only after a mistake: it loads pydantic

    if argument in {name for key in known_keys() for name in (key, key.rpartition(".")[2])}:
        return f"'{argument}' is a setting of the recipe; give it a value: {argument}=VALUE"
    if not takes_job:
        return unknown_config("recipe", argument, recipes)
    if hint := did_you_mean(argument, [*JOBS, "run", *recipes]):
        return f"'{argument}' is not a job or a recipe{hint}"
    if shutil.which(argument):
        return f"'{argument}' is not a job or a recipe; write a program after --: -- {argument} ..."
    names = ", ".join(sorted(recipes)) or "none"
    return (
        f"'{argument}' is not a job ({', '.join(JOBS)}) or a recipe in configs/ ({names}); "
        "an override has the form key=value"
    )

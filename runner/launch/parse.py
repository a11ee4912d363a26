"""Read the arguments of a job that has a recipe or reads a run, and return its request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.pretrained import FINEWEB
from job.run_record import RUN_NAME
from runner.errors import NoSuchRun, did_you_mean, not_found, usage
from runner.jobs import JOBS, Job
from runner.launch.arguments import LaunchArguments
from runner.paths import absolute, path_in, replace_path
from runner.project import is_pipeline, is_sweep, recipes
from runner.request import (
    BenchmarkRequest,
    EvaluateRequest,
    ExportRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    TargetOptions,
    TrainRequest,
)
from runner.runs.store import recipe_of, run_names
from runner.target import VolumeFiles

DEFAULT_RECIPE = "quickstart"

NO_OPTIONS = TargetOptions()


def read_request(
    arguments: LaunchArguments,
    checkout: Path,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> Request:
    """Check the arguments and read the recipe.

    ``files`` is the target's checkpoints volume, None if it can't be read. Raises RunnerError or
    RecipeError, exit code 2, for a mistake; NoSuchRun, 102, for a run that is missing.
    """
    known = recipes(checkout)
    job = JOBS[arguments.job]
    published = [FINEWEB] if job.name == "prepare" else []
    parsed = classify_args(
        arguments.words, [*known, *published], lambda: run_names(files) if files is not None else []
    )
    overrides = tuple(_with_absolute_path(override, cwd) for override in parsed.overrides)
    if arguments.name is not None:
        check_run_name(arguments.name)
    if parsed.recipe in published and parsed.recipe not in known:
        return _download_request(arguments, job, FINEWEB, overrides, options)
    if job.reads_recipe:
        path = find_recipe(parsed.recipe, known, checkout, cwd)
        return _recipe_request(arguments, job, overrides, path, cwd, options)
    if job.is_benchmark:
        return _benchmark_request(arguments, job, parsed, options)
    name = arguments.name
    if name is None and parsed.recipe is not None:
        from job.recipe import load

        name = load(find_recipe(parsed.recipe, known, checkout, cwd)).name
    run = find_run_name(name, files) if files is not None else name or ""
    common: dict[str, Any] = {
        "run": run,
        "overrides": overrides,
        "settings": recipe_of(files, run, overrides) if files is not None else None,
        "device": arguments.device,
        "detach": arguments.detach,
        "as_json": arguments.as_json,
        "target_options": options,
    }
    output, questions = arguments.output, arguments.multiple_choice
    match job.name:
        case "evaluate":
            file = _questions_file(questions, cwd) if questions else None
            return EvaluateRequest(**common, multiple_choice=file)
        case "export":
            folder = (cwd / Path(output).expanduser()).absolute() if output else None
            return ExportRequest(**common, output=folder)
        case _:
            return SampleRequest(**common)


def check_run_name(name: str) -> None:
    """Raise RunnerError, exit code 2, for a name that can't be a folder on every target."""
    if not RUN_NAME.fullmatch(name):
        raise usage(
            f"{name!r} is not a valid run name; use up to 100 letters, digits, '.', '_' and '-', "
            "starting with a letter or a digit"
        )


def find_recipe(name: str | None, known: Mapping[str, Path], checkout: Path, cwd: Path) -> Path:
    """Return the file of a recipe given by its name in configs/ or by a path.

    A path is relative to ``cwd`` or to the checkout. None means the default recipe.
    """
    name = name or DEFAULT_RECIPE
    if name in known:
        return known[name]
    paths = [folder / Path(name).expanduser() for folder in (cwd, checkout)]
    if any(map(is_sweep, paths)):
        raise usage(f"{name} is a sweep; run `runner sweep {name}`")
    if any(map(is_pipeline, paths)):
        raise usage(f"{name} is a pipeline; run `runner host pipeline {name}`, `local` or `cloud`")
    for path in paths:
        if path.is_file():
            return path.resolve()
    hint = did_you_mean(Path(name).stem, known) or "; `ls configs` shows the recipes"
    raise usage(f"no recipe {name}{hint}")


def find_run_name(name: str | None, files: VolumeFiles) -> str:
    """Return ``name`` if that run exists, or the newest run with a recipe for None.

    Raises RunnerError, exit code 102.
    """
    names = run_names(files, with_recipe=name is None)
    if name is None and not names:
        raise not_found("no trained run yet; `runner host` or `runner local` trains the first one")
    if name is not None and name not in names:
        hint = did_you_mean(name, names) or "; `runner runs` lists the runs"
        raise NoSuchRun(name, f"no run '{name}'{hint}")
    return name or names[0]


def _benchmark_request(
    arguments: LaunchArguments, job: Job, parsed: ParsedArgs, options: TargetOptions
) -> Request:
    for word in (parsed.recipe, *parsed.overrides):
        if word is not None:
            raise usage(f"{job.name} measures the device and takes no recipe; remove {word}")
    name = arguments.name or job.name
    check_run_name(name)
    return BenchmarkRequest(
        run=name,
        device=arguments.device,
        detach=arguments.detach,
        as_json=arguments.as_json,
        target_options=options,
    )


def _download_request(
    arguments: LaunchArguments,
    job: Job,
    dataset: str,
    overrides: tuple[str, ...],
    options: TargetOptions,
) -> Request:
    source = [f"--source {arguments.source}"] if arguments.source else []
    if wrong := [*overrides, *source]:
        raise usage(
            f"{dataset} is a published dataset and takes only --shards and --force; "
            f"remove {wrong[0]}"
        )
    run = arguments.name or f"{job.name}-{dataset}"
    check_run_name(run)
    return PrepareRequest(
        run=run,
        published=dataset,
        shards=arguments.shards,
        force=arguments.force,
        detach=arguments.detach,
        as_json=arguments.as_json,
        target_options=options,
    )


def _recipe_request(
    arguments: LaunchArguments,
    job: Job,
    overrides: tuple[str, ...],
    path: Path,
    cwd: Path,
    options: TargetOptions,
) -> Request:
    from job.recipe import load

    settings = load(path, overrides)
    default = settings.name if job.writes_run else f"{job.name}-{settings.data.dataset}"
    run = arguments.name or default
    check_run_name(run)
    common: dict[str, Any] = {
        "run": run,
        "recipe": path,
        "overrides": overrides,
        "settings": settings,
        "detach": arguments.detach,
        "as_json": arguments.as_json,
        "target_options": options,
    }
    if job.name == "train":
        return TrainRequest(**common, gpus=arguments.gpu or 1, device=arguments.device)
    source = absolute(arguments.source, cwd) if arguments.source else None
    return PrepareRequest(**common, source=source, shards=arguments.shards, force=arguments.force)


def _questions_file(questions: str, cwd: Path) -> str:
    path = absolute(questions, cwd)
    # A path on a volume may exist only on the target.
    if not path.startswith("/vol/") and not Path(path).is_file():
        raise usage(
            f"--multiple-choice {questions}: no such file; docs/recipes.md describes its format"
        )
    return path


def _with_absolute_path(override: str, cwd: Path) -> str:
    path = path_in(override)
    return override if path is None else replace_path(override, absolute(path, cwd))


@dataclass(frozen=True)
class ParsedArgs:
    """The positional arguments by kind; ``recipe`` is a path or a name in configs/, as typed."""

    recipe: str | None = None
    overrides: tuple[str, ...] = ()


def classify_args(
    words: Sequence[str], recipes: Collection[str], runs: Callable[[], Collection[str]] = tuple
) -> ParsedArgs:
    """Tell the recipe from the overrides, in any order.

    A word with ``=`` is an override; a path or one of the names in ``recipes`` is the recipe.
    ``runs`` returns the names of the runs, for a hint. Raises RunnerError, exit code 2, for any
    other word and for a second recipe.
    """
    if spaced := spaced_setting(words):
        raise usage(f"'{spaced[0]}' has spaces around the =; write {spaced[1]}")
    names, overrides = split_overrides(words)
    for word in names:
        if word in JOBS:
            raise usage(f"'{word}' is a second job; start one job after the other")
        if word.endswith(".py"):
            raise usage(f"{word} is an experiment, not a recipe; use `run {word}`")
        if word not in recipes and not looks_like_path(word):
            before = words[max(0, words.index(word) - 1)]
            if before.endswith("="):
                raise usage(f"'{before} {word}' has spaces around the =; write {before}{word}")
            raise usage(_unknown_word(word, recipes, runs()))
    if len(names) > 1:
        raise usage(f"two recipes, '{names[0]}' and '{names[1]}'; a run has one")
    return ParsedArgs(names[0] if names else None, tuple(overrides))


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names and the ``key=value`` overrides."""
    overrides = [word for word in words if "=" in word]
    return [word for word in words if word not in overrides], overrides


def spaced_setting(words: Sequence[str]) -> tuple[str, str] | None:
    """Return ``("lr = 1e-3", "lr=1e-3")`` for a setting typed with spaces around its =."""
    for at, word in enumerate(words):
        if word.startswith("=") and at:
            parts = words[at - 1 : at + (2 if word == "=" else 1)]
            return " ".join(parts), "".join(parts)
    return None


def looks_like_path(word: str) -> bool:
    """Return True if the word can only be a file: it names a folder or ends in .yaml or .yml."""
    return "/" in word or "\\" in word or word.endswith((".yaml", ".yml"))


def _unknown_word(word: str, recipes: Collection[str], runs: Collection[str]) -> str:
    if word in runs:
        return f"'{word}' is a run, not a job or a recipe; use --name {word}"
    if hint := did_you_mean(word, [*JOBS, "run", *recipes]):
        return f"'{word}' is not a job or a recipe{hint}"
    names = ", ".join(sorted(recipes)) or "none"
    return (
        f"'{word}' is not a job ({', '.join(JOBS)}) or a recipe in configs/ ({names}); "
        "an override has the form key=value"
    )

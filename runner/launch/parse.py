"""``[JOB] [RECIPE] [key=value ...]`` in any order: what each word is, told by its form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.pretrained import FINEWEB
from job.run_record import RUN_NAME
from runner.errors import NoSuchRun, did_you_mean, not_found, usage
from runner.jobs import JOBS, Job
from runner.paths import absolute, path_in, replace_path
from runner.project import is_pipeline, is_sweep, recipes
from runner.request import LaunchArguments, Request, TargetOptions
from runner.runs.store import recipe_of, run_names
from runner.target import VolumeFiles

DEFAULT_RECIPE = "quickstart"

NO_OPTIONS = TargetOptions()


def read_request(
    line: LaunchArguments,
    checkout: Path,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> Request:
    """Check the command line and read the recipe. ``files`` is the target's checkpoints volume, None where it can't
    be looked at.

    Raises RunnerError or RecipeError, exit code 2, for a mistake; RunnerError, 102, for a run that is missing.
    """
    known = recipes(checkout)
    published = [FINEWEB] if "prepare" in line.words else []
    words = classify_args(
        line.words, [*known, *published], lambda: run_names(files) if files is not None else []
    )
    job = JOBS[words.job]
    _check_options(line, job)
    overrides = tuple(_from_here(override, cwd) for override in words.overrides)
    if line.name is not None:
        check_run_name(line.name)
    if words.recipe in published and words.recipe not in known:
        return _download(line, job, FINEWEB, overrides, options)
    if job.reads_recipe:
        return _with_recipe(
            line, job, overrides, find_recipe(words, known, checkout, cwd), cwd, options
        )
    if job.is_benchmark:
        return _measurement(line, job, words, options)
    name = line.name or _run_of(words, known, checkout, cwd)
    run = find_run(name, files) if files is not None else name or ""
    return Request(
        job,
        run,
        overrides=overrides,
        settings=recipe_of(files, run, overrides) if files is not None else None,
        device=line.device,
        into=(cwd / Path(line.into).expanduser()).absolute() if line.into else None,
        choices=_file_of(line.choices, cwd) if line.choices else None,
        detach=line.detach,
        as_json=line.as_json,
        target_options=options,
    )


def check_run_name(name: str) -> None:
    """RunnerError, exit code 2, for a name that could not be a folder everywhere."""
    if not RUN_NAME.match(name):
        raise usage(
            f"'{name}' can't be the name of a run; use up to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def find_recipe(words: ParsedArgs, known: Mapping[str, Path], checkout: Path, cwd: Path) -> Path:
    """The file of the recipe that was named: by a path here or in the checkout, or by its name in configs/."""
    name = words.recipe or DEFAULT_RECIPE
    if name in known:
        return known[name]
    if any(is_sweep(folder / Path(name).expanduser()) for folder in (cwd, checkout)):
        raise usage(f"{name} is a sweep; type: runner sweep {name}")
    if any(is_pipeline(folder / Path(name).expanduser()) for folder in (cwd, checkout)):
        raise usage(
            f"{name} is a pipeline; type: runner host pipeline {name}   (or local, or cloud)"
        )
    for folder in (cwd, checkout):
        path = folder / Path(name).expanduser()
        if path.is_file():
            return path.resolve()
    guess = did_you_mean(Path(name).stem, known) or "; `ls configs` shows the recipes"
    raise usage(f"there is no recipe {name}{guess}")


def find_run(name: str | None, files: VolumeFiles) -> str:
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


def _measurement(
    line: LaunchArguments, job: Job, words: ParsedArgs, options: TargetOptions
) -> Request:
    for word in (words.recipe, *words.overrides):
        if word is not None:
            raise usage(f"{job.name} measures the device and takes no recipe; leave {word} away")
    name = line.name or job.name
    check_run_name(name)
    return Request(
        job,
        name,
        device=line.device,
        detach=line.detach,
        as_json=line.as_json,
        target_options=options,
    )


def _download(
    line: LaunchArguments,
    job: Job,
    dataset: str,
    overrides: tuple[str, ...],
    options: TargetOptions,
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
        target_options=options,
    )


def _with_recipe(
    line: LaunchArguments,
    job: Job,
    overrides: tuple[str, ...],
    path: Path,
    cwd: Path,
    options: TargetOptions,
) -> Request:
    from job.recipe import load

    settings = load(path, overrides)
    run = line.name or (settings.name if job.writes_run else f"{job.name}-{settings.data.dataset}")
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
        target_options=options,
    )


def _check_options(line: LaunchArguments, job: Job) -> None:
    if line.source and job.name != "prepare":
        raise usage(f"--source belongs to prepare; for {job.name} write data.source={line.source}")
    if line.shards and job.name != "prepare":
        raise usage(f"--shards belongs to prepare; for {job.name} write data.shards={line.shards}")
    if line.force and job.name != "prepare":
        raise usage(
            f"--force belongs to prepare, and replaces a dataset; {job.name} replaces nothing"
        )
    if line.into and job.name != "export":
        raise usage(f"--into belongs to export, not to {job.name}")
    if line.choices and job.name != "evaluate":
        raise usage(f"--choices belongs to evaluate, not to {job.name}")
    if line.device and not job.takes_device:
        raise usage(f"{job.name} needs no device; leave --device away")
    if (line.gpu or 1) > 1 and not job.multi_gpu:
        raise usage(f"{job.name} runs in one process; leave --gpu away")


def _file_of(choices: str, cwd: Path) -> str:
    path = absolute(choices, cwd)
    if not path.startswith("/vol/") and not Path(path).is_file():  # what was pushed is there alone
        raise usage(
            f"--choices {choices}: there is no such file; docs/recipes.md says what is in one"
        )
    return path


def _from_here(override: str, cwd: Path) -> str:
    path = path_in(override)
    return override if path is None else replace_path(override, absolute(path, cwd))


def _run_of(words: ParsedArgs, known: Mapping[str, Path], checkout: Path, cwd: Path) -> str | None:
    """The run that a recipe's name stands for, in a job that reads a run."""
    if words.recipe is None:
        return None
    from job.recipe import load

    return load(find_recipe(words, known, checkout, cwd)).name


@dataclass(frozen=True)
class ParsedArgs:
    """The sorted arguments. ``recipe`` is a path or the name of a file in configs/, as typed."""

    job: str = "train"
    recipe: str | None = None
    overrides: tuple[str, ...] = ()


def classify_args(
    words: Sequence[str], recipes: Collection[str], runs: Callable[[], Collection[str]] = tuple
) -> ParsedArgs:
    """Sort ``words``; ``recipes`` are the known names, ``runs`` gives those of the runs for a hint.

    What contains ``=`` is an override, a job's name the job, a path or a known name the recipe.
    Raises RunnerError (exit code 2) for a word that is none of them and for a second job or recipe.
    """
    if blanks := with_blanks(words):
        raise usage(f"'{blanks[0]}': a setting is one word; write {blanks[1]}")
    if any(word in JOBS and JOBS[word].is_benchmark for word in words):
        words = [word for word in words if word != "bench"]  # `bench roofline` says what it is
    jobs = [word for word in words if word in JOBS]
    overrides = [word for word in words if word not in JOBS and "=" in word]
    rest = [word for word in words if word not in JOBS and "=" not in word]
    for word in rest:
        if word.endswith(".py"):
            raise usage(
                f"{word} is no recipe; an experiment is started by the word run: run {word}"
            )
        if word not in recipes and not looks_like_path(word):
            before = words[max(0, words.index(word) - 1)]
            if before.endswith("="):
                raise usage(f"'{before} {word}': a setting is one word; write {before}{word}")
            raise usage(_unknown(word, recipes, runs()))
    if len(jobs) > 1:
        raise usage(f"two jobs, '{jobs[0]}' and '{jobs[1]}'; start them one after the other")
    if len(rest) > 1:
        raise usage(f"two recipes, '{rest[0]}' and '{rest[1]}'; a run has one")
    return ParsedArgs(jobs[0] if jobs else "train", rest[0] if rest else None, tuple(overrides))


def with_blanks(words: Sequence[str]) -> tuple[str, str] | None:
    """``("lr = 1e-3", "lr=1e-3")`` for a setting that was typed with blanks around its =; None where none was."""
    for at, word in enumerate(words):
        if word.startswith("=") and at:
            parts = words[at - 1 : at + (2 if word == "=" else 1)]
            return " ".join(parts), "".join(parts)
    return None


def looks_like_path(word: str) -> bool:
    """Whether the word can only be a file: it names a folder or ends as YAML does."""
    return "/" in word or "\\" in word or word.endswith((".yaml", ".yml"))


def _unknown(word: str, recipes: Collection[str], runs: Collection[str]) -> str:
    if word in runs:
        return f"'{word}' is a run, not a job or a recipe; write --name {word}"
    guess = did_you_mean(word, [*JOBS, "run", *recipes])
    if guess:
        return f"'{word}' is neither a job nor a recipe{guess}"
    names = ", ".join(sorted(recipes)) or "none"
    return (
        f"'{word}' is neither a job ({', '.join(JOBS)}) nor a recipe of configs/ ({names}); "
        "an override is key=value"
    )

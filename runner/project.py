"""The checkout that the runner acts on: its recipes, volumes, commit, .env and Compose settings.

Also the commands that install the project's optional packages.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click

from job.files import read_file, write_atomically
from job.notify import VARIABLE as NOTIFY_VARIABLE
from job.paths import VOLUMES, VolumePaths
from job.trackers import VARIABLES as TRACKER_VARIABLES
from runner.errors import RunnerError, did_you_mean, usage
from runner.git import find_repository
from runner.home import MARKER as COPY_MARKER
from runner.home import installed_project
from runner.paths import is_path
from runner.system import System

COMPOSE_FILE = "docker-compose.yml"
GPU_COMPOSE_FILE = "docker-compose.gpu.yml"
OVERRIDE_COMPOSE_FILE = "docker-compose.override.yml"

MAX_DOTENV_BYTES = 1_000_000

COMPOSE_SETTINGS = ("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "HOST_UID", "HOST_GID")
GENERATED_NAME = re.compile(r"^[a-z0-9_-]+-[0-9a-f]{8}$")  # of a Compose project

MARKER = "job/paths.py"  # with the compose file, it identifies a checkout

INSTALLED = Path(__file__).resolve().parent.parent


# Passed to jobs that need them. HF_TOKEN is among the variables of trackers.
KNOWN_SECRETS = (*TRACKER_VARIABLES, NOTIFY_VARIABLE, "SERVE_TOKEN")


def find_checkout(cwd: Path) -> Path:
    """Return the nearest checkout at or above ``cwd``, else the one that the runner was installed
    from, else the copy in the user's data folder.

    Raises RunnerError if none of them exists.
    """
    cwd = cwd.resolve()
    for folder in (cwd, *cwd.parents, INSTALLED):
        if is_checkout(folder):
            return folder
    project = installed_project(os.environ, lambda text: click.echo(text, err=True))
    if project is None:
        raise RunnerError(
            f"{cwd} is not in a checkout of gpt-runner, which contains {COMPOSE_FILE} and "
            f"{MARKER}; change to your checkout, or install the runner: `uv tool install .`"
        )
    return project


def is_checkout(folder: Path) -> bool:
    """Return True if the folder contains the compose file and the code of the jobs."""
    return (folder / COMPOSE_FILE).is_file() and (folder / MARKER).is_file()


def recipes(checkout: Path, cwd: Path | None = None) -> dict[str, Path]:
    """Return the recipes of ``configs/`` by name, those of the user's folder ``cwd`` first."""
    known: dict[str, Path] = {}
    for folder in (checkout / "configs", cwd / "configs" if cwd else None):
        files = [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder else []
        is_own = folder is not None and folder.parent == checkout
        known |= {path.stem: path for path in sorted(files) if is_recipe(path, is_own)}
    return known


def is_recipe(path: Path, is_own: bool = True) -> bool:
    """Return True if the file is neither a pipeline nor a sweep.

    Other programs keep YAML in ``configs/`` too: a file that is not the project's ``own`` must
    have the section ``train`` or ``data``.
    """
    keys = _keys(path)
    return not keys & {"stages", "space"} and (is_own or bool(keys & {"train", "data"}))


def find_config(name: str, checkout: Path, cwd: Path) -> Path | None:
    """Return the file of a recipe, sweep or pipeline: a path, or a name in ``configs/``.

    Both are relative to the user's folder ``cwd`` or to the checkout.
    """
    names = [f"configs/{name}{ending}" for ending in ("", ".yaml", ".yml")]
    for path in (os.path.expanduser(name), *names):
        for folder in (cwd, checkout):
            if os.path.isfile(folder / path):  # False, not an error, for an impossible name
                return (folder / path).resolve()
    return None


def explain_config(name: str, checkout: Path, cwd: Path, kind: str = "recipe") -> str:
    """Return the error for a file of another kind in place of a ``kind``; '' for any other name."""
    path = find_config(name, checkout, cwd)
    if path is not None and kind != "sweep" and is_sweep(path):
        return f"{name} is a sweep; run `runner sweep {name}`"
    if path is not None and kind != "pipeline" and is_pipeline(path):
        return f"{name} is a pipeline; run `runner host pipeline {name}`, `local` or `cloud`"
    if path is not None and kind != "recipe" and is_recipe(path, is_own=False):
        return f"{name} is a recipe, not a {kind}; run `runner host {name}`"
    return ""


def require_config(kind: str, name: str, checkout: Path, cwd: Path) -> Path:
    """Return the file of a recipe, a sweep or a pipeline, by its name in ``configs/`` or its path.

    Raises RunnerError, exit status 2, if it does not exist or is of another kind.
    """
    known = recipes(checkout, cwd) if kind == "recipe" else {}
    if name in known:
        return known[name]
    if mistake := explain_config(name, checkout, cwd, kind):
        raise usage(mistake)
    if path := find_config(name, checkout, cwd):
        return path
    if kind != "recipe":
        files = [*(checkout / "configs").glob("*.yaml"), *(cwd / "configs").glob("*.yaml")]
        is_kind = is_sweep if kind == "sweep" else is_pipeline
        known = {file.stem: file for file in files if is_kind(file)}
    page = "; docs/commands.md describes the file" if kind == "pipeline" else ""
    raise usage(unknown_config(kind, name, known) + page)


def unknown_config(kind: str, name: str, known: Collection[str]) -> str:
    """Return the error for a recipe or sweep that does not exist; ``known`` are those that do."""
    what = f"{kind} file {name} does not exist" if is_path(name) else f"unknown {kind} '{name}'"
    names = f"; the {kind}s in configs/ are {', '.join(sorted(known))}" if known else ""
    return what + (did_you_mean(Path(name).stem, known) or names)


def is_pipeline(path: Path) -> bool:
    """Return True if the file is a pipeline: it has stages."""
    return "stages" in _keys(path)


def is_sweep(path: Path) -> bool:
    """Return True if the file is a sweep: it has a space."""
    return "space" in _keys(path)


def _keys(path: Path) -> set[str]:
    """Return the keys at the top level of a YAML file; none if it is unreadable."""
    try:
        lines = read_file(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {line.partition(":")[0] for line in lines if ":" in line}


def state_folder(project: Path) -> Path:
    """Return the folder of ``volumes/`` and ``.env``: the checkout, or the home of a copy."""
    return project.parent if (project / COPY_MARKER).is_file() else project


def volumes(checkout: Path, environ: Mapping[str, str]) -> VolumePaths:
    """Return the volumes of this machine: the variables, else the checkout's ``volumes/``."""
    paths = VolumePaths.current(environ, state_folder(checkout) / "volumes")
    return VolumePaths(*(getattr(paths, name).absolute() for name in VOLUMES))


def git_state(checkout: Path) -> dict[str, object] | None:
    """Return ``{"commit": ..., "dirty": ...}``; None outside a repository and before a commit.

    Dirty means that a tracked file was changed; untracked files are mostly the user's notes.
    """
    repository = find_repository(checkout)
    commit = repository.commit() if repository is not None else None
    if repository is None or commit is None:
        return None
    return {"commit": commit, "dirty": repository.is_dirty()}


class DotenvLine(NamedTuple):
    """One assignment, comment or blank of ``.env``; a quoted value may span several lines."""

    number: int
    text: str
    name: str | None
    value: str | None
    problem: str  # why its value can't be used; '' if it can


def read_dotenv(checkout: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the variables of ``.env`` as Compose reads them; only ``names``, if given.

    Raises RunnerError, exit status 2, for a line that Compose refuses or would read differently.
    """
    values = {}
    for line in _dotenv_lines(checkout):
        is_wanted = names is None or line.name is None or line.name in names
        if line.problem and is_wanted:
            raise usage(f".env:{line.number}: {line.problem}")
        if line.name is not None and line.value is not None and is_wanted:
            values[line.name] = line.value
    return values


def dotenv_problems(checkout: Path) -> list[tuple[int, str]]:
    """Return the line numbers and problems of ``.env``."""
    return [(line.number, line.problem) for line in _dotenv_lines(checkout) if line.problem]


def update_dotenv(checkout: Path, values: Mapping[str, str]) -> bool:
    """Set ``values`` in ``.env`` and keep every other line as it is. Returns True if the file
    changed.

    The file is replaced atomically; a new one is readable by the user alone, because it will
    contain keys.
    """
    path = (state_folder(checkout) / ".env").resolve()
    before = _dotenv_text(path)
    remaining = dict(values)
    text = ""
    for line in _dotenv_lines(checkout):
        if line.name not in values:
            text += line.text
        elif line.name in remaining:
            text += f"{line.name}={remaining.pop(line.name)}\n"
    if text and not text.endswith("\n"):
        text += "\n"
    text += "".join(f"{name}={value}\n" for name, value in remaining.items())
    if text == before:
        return False
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    write_atomically(path, text.encode(errors="surrogateescape"), mode)
    return True


def needed_settings(system: System, checkout: Path) -> dict[str, str]:
    """Return the settings that ``.env`` should have on this machine.

    Compose files of the user stay, also docker-compose.override.yml, which Compose reads on its own
    only while COMPOSE_FILE is not set.
    """
    present = read_dotenv(checkout, COMPOSE_SETTINGS)
    names = present.get("COMPOSE_FILE", "").split(os.pathsep)
    files = [name for name in names if name and name != GPU_COMPOSE_FILE]
    if COMPOSE_FILE not in files:
        files.insert(0, COMPOSE_FILE)
    if "COMPOSE_FILE" not in present and (checkout / OVERRIDE_COMPOSE_FILE).is_file():
        files.append(OVERRIDE_COMPOSE_FILE)
    if system.engine_gives_gpus and (checkout / GPU_COMPOSE_FILE).is_file():
        files.insert(files.index(COMPOSE_FILE) + 1, GPU_COMPOSE_FILE)
    return {
        "COMPOSE_FILE": os.pathsep.join(files),
        "COMPOSE_PROJECT_NAME": project_name(
            state_folder(checkout), present.get("COMPOSE_PROJECT_NAME", "")
        ),
        "HOST_UID": str(os.getuid()),
        "HOST_GID": str(os.getgid()),
    }


def project_name(checkout: Path, current: str = "") -> str:
    """Return the checkout's own project name, or ``current`` if the user chose it.

    Compose's default is the folder's name, so that two checkouts of one name would replace each
    other's containers. A name that a copied ``.env`` brought from another folder is not the user's.
    """
    if current and not GENERATED_NAME.match(current):
        return current
    stem = re.sub(r"[^a-z0-9_-]+", "-", checkout.name.lower()).strip("-_") or "checkout"
    return f"{stem}-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:8]}"


def wrong_settings(system: System, checkout: Path) -> list[str]:
    """Return the names of the settings that ``.env`` lacks or has with a different value."""
    present = read_dotenv(checkout, COMPOSE_SETTINGS)
    needed = needed_settings(system, checkout)
    return [name for name, value in needed.items() if present.get(name) != value]


def write_settings(system: System, checkout: Path, only_missing: bool = False) -> list[str]:
    """Set the settings in ``.env`` and report them.

    ``only_missing`` leaves wrong ones to `runner doctor`.
    """
    present = read_dotenv(checkout, COMPOSE_SETTINGS) if only_missing else {}
    needed = needed_settings(system, checkout)
    values = {name: value for name, value in needed.items() if name not in present}
    if not values or not update_dotenv(checkout, values):
        return []
    return [f"wrote .env: {' '.join(f'{name}={value}' for name, value in values.items())}"]


def secret_values(
    names: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> dict[str, str]:
    """Return the values, only for the job's environment; the environment overrides ``.env``.

    A variable that is set in neither has the value ''.
    """
    names = tuple(names)
    dotenv = read_dotenv(checkout, names)
    return {name: environ.get(name) or dotenv.get(name, "") for name in names}


def secret_names(environ: Mapping[str, str], checkout: Path) -> tuple[str, ...]:
    """Return the known secrets that are set in the environment or in ``.env``."""
    values = secret_values(KNOWN_SECRETS, environ, checkout)
    return tuple(name for name, value in values.items() if value)


def with_folder_secrets(environ: Mapping[str, str], cwd: Path) -> Mapping[str, str]:
    """Return the variables with the known secrets of ``.env`` in the user's folder ``cwd``."""
    if is_checkout(cwd):  # its own .env is read when needed
        return environ
    secrets = {name: value for name, value in read_dotenv(cwd, KNOWN_SECRETS).items() if value}
    return {**secrets, **environ} if secrets else environ


def check_forwarded_env(names: Iterable[str], environ: Mapping[str, str], checkout: Path) -> None:
    """Raise RunnerError, exit status 2, for a variable missing in the environment and .env."""
    for name, value in secret_values(names, environ, checkout).items():
        if not value:
            raise usage(
                f"--env {name}: {name} is set neither in the environment nor in .env; "
                f"write --env {name}=VALUE"
            )


def _dotenv_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_DOTENV_BYTES:
            raise usage(f"{path} is larger than 1 MB; expected lines of NAME=value")
        # A byte that is not UTF-8, in a comment, is written again as it was read.
        text = read_file(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        return text.replace("\r\n", "\n")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise usage(f"{path} can't be read: {error.strerror}; fix or remove it") from None


def _dotenv_lines(checkout: Path) -> Iterator[DotenvLine]:
    from dotenv.parser import parse_stream  # takes 25 ms to import

    for line in parse_stream(io.StringIO(_dotenv_text(state_folder(checkout) / ".env"))):
        text = line.original.string
        yield DotenvLine(
            # A line's text begins with the blank lines before it.
            line.original.line + len(text) - len(text.lstrip("\n")),
            text,
            line.key,
            line.value,
            "expected NAME=value; correct or remove the line"
            if line.error
            else _ambiguity(line.key, text, line.value),
        )


def _ambiguity(name: str | None, text: str, value: str | None) -> str:
    """Return why Compose and the runner may read the value differently; '' if they agree."""
    if name is None or value is None:
        return ""
    if any("\udc80" <= letter <= "\udcff" for letter in value):
        return f"the value of {name} is not UTF-8; save the file as UTF-8"
    is_single_quoted = text.partition("=")[2].lstrip().startswith("'")
    if is_single_quoted and "\\" in text:
        return f"{name}: Compose reads a backslash in single quotes differently; use double quotes"
    if "$" in value and not is_single_quoted:
        return f"{name}: Compose would expand the $; put the value in single quotes"
    return ""


PROJECT = "gpt-runner"

EXTRA_MARKER = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*["']([\w-]+)["']""")


def install_line(*extras: str) -> str:
    """Return ``/path/to/python -m pip install 'jinja2>=3.1' 'matplotlib>=3.9'`` for extras."""
    return pip_install(*(line for extra in extras for line in requirements(extra)))


def pip_install(*packages: str) -> str:
    """Return the command that installs packages into the Python that runs the runner."""
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # an environment that uv created
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *packages])


def own_requirement(package: str) -> str:
    """Return the package with the versions that the runner supports.

    Its name if the runner is not installed.
    """
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return package
    return next((line for line in known if re.match(rf"{package}\b(?!.*extra)", line)), package)


def requirements(extra: str) -> list[str]:
    """Return the extra's packages with their versions.

    The whole extra if the runner is not installed.
    """
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return [f".[{extra}]"]
    lines = [line for line in known if (m := EXTRA_MARKER.search(line)) and m[1] == extra]
    return [EXTRA_MARKER.sub("", line).strip().rstrip(";") for line in lines]

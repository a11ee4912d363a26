"""The checkout that the runner acts on: its recipes, volumes, commit and .env.

And optional packages.
"""

from __future__ import annotations

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

from job.paths import VolumePaths
from runner.errors import RunnerError, usage
from runner.git import find_repository

COMPOSE_FILE = "docker-compose.yml"
GPU_COMPOSE_FILE = "docker-compose.gpu.yml"
OVERRIDE_COMPOSE_FILE = "docker-compose.override.yml"

MARKER = "job/paths.py"  # with the compose file, it identifies a checkout

INSTALLED = Path(__file__).resolve().parent.parent


KNOWN_SECRETS = ("WANDB_API_KEY", "HF_TOKEN")  # keys that jobs use if the recipe needs them


def find_checkout(cwd: Path) -> Path:
    """Return the nearest checkout at or above ``cwd``, else the one that the runner was installed
    from.

    Raises RunnerError if there is neither.
    """
    cwd = cwd.resolve()
    for folder in (cwd, *cwd.parents, INSTALLED):
        if is_checkout(folder):
            return folder
    raise RunnerError(
        f"{cwd} is not in a checkout of gpt-runner, which contains {COMPOSE_FILE} and {MARKER}; "
        "change to your checkout and run the command again"
    )


def is_checkout(folder: Path) -> bool:
    """Return True if the folder contains the compose file and the code of the jobs."""
    return (folder / COMPOSE_FILE).is_file() and (folder / MARKER).is_file()


def recipes(checkout: Path) -> dict[str, Path]:
    """Return the recipes of ``configs/`` by name."""
    folder = checkout / "configs"
    found = [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
    return {path.stem: path for path in sorted(found) if is_recipe(path)}


def is_recipe(path: Path) -> bool:
    """Return True if the file is neither a pipeline nor a sweep."""
    return not (is_pipeline(path) or is_sweep(path))


def is_pipeline(path: Path) -> bool:
    """Return True if the file is a pipeline: it has stages."""
    return _has_key(path, "stages")


def is_sweep(path: Path) -> bool:
    """Return True if the file is a sweep: it has a space."""
    return _has_key(path, "space")


def _has_key(path: Path, key: str) -> bool:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith(f"{key}:") for line in lines)


def volumes(checkout: Path, environ: Mapping[str, str]) -> VolumePaths:
    """Return the volumes of this machine: the variables, else the checkout's ``volumes/``."""
    default = VolumePaths.under(checkout / "volumes")
    return VolumePaths(
        data=Path(environ.get("DATA_PATH") or default.data).absolute(),
        checkpoints=Path(environ.get("CHECKPOINTS_PATH") or default.checkpoints).absolute(),
        cache=Path(environ.get("CACHE_PATH") or default.cache).absolute(),
    )


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

    Raises RunnerError, exit code 2, for a line that Compose refuses or would read differently.
    """
    found = {}
    for line in _dotenv_lines(checkout):
        is_wanted = names is None or line.name is None or line.name in names
        if line.problem and is_wanted:
            raise usage(f".env:{line.number}: {line.problem}")
        if line.name is not None and line.value is not None and is_wanted:
            found[line.name] = line.value
    return found


def dotenv_problems(checkout: Path) -> list[tuple[int, str]]:
    """Return the line numbers and problems of ``.env``."""
    return [(line.number, line.problem) for line in _dotenv_lines(checkout) if line.problem]


def update_dotenv(checkout: Path, values: Mapping[str, str]) -> bool:
    """Set ``values`` in ``.env`` and keep every other line as it is. Returns True if the file
    changed.

    The file is replaced atomically; a new one is readable by the user alone, because it will
    contain keys.
    """
    path = (checkout / ".env").resolve()
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
    _replace(path, text)
    return True


def secret_names(environ: Mapping[str, str], checkout: Path) -> tuple[str, ...]:
    """Return the known secrets that are set in the environment or in ``.env``."""
    dotenv = read_dotenv(checkout, KNOWN_SECRETS)
    return tuple(name for name in KNOWN_SECRETS if environ.get(name) or dotenv.get(name))


def secret_values(
    names: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> dict[str, str]:
    """Return the values, only for the job's environment; the environment overrides ``.env``."""
    names = tuple(names)
    dotenv = read_dotenv(checkout, names)
    return {name: environ.get(name) or dotenv.get(name, "") for name in names}


def _dotenv_text(path: Path) -> str:
    try:  # a byte that is not UTF-8, in a comment, is written again as it was read
        return path.read_text(encoding="utf-8", errors="surrogateescape").removeprefix("\ufeff")
    except OSError:
        return ""


def _dotenv_lines(checkout: Path) -> Iterator[DotenvLine]:
    from dotenv.parser import parse_stream  # takes 25 ms to import

    for line in parse_stream(io.StringIO(_dotenv_text(checkout / ".env"))):
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


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".env.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


PROJECT = "gpt-runner"

EXTRA_MARKER = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*["']([\w-]+)["']""")


def install_line(extra: str) -> str:
    """Return ``/path/to/python -m pip install 'Jinja2>=3.1' 'matplotlib>=3.9'`` for an extra."""
    return pip_install(*requirements(extra))


def pip_install(*words: str) -> str:
    """Return the command that installs packages into the Python that runs the runner."""
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # an environment that uv made
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *words])


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
    found = [line for line in known if (m := EXTRA_MARKER.search(line)) and m[1] == extra]
    return [EXTRA_MARKER.sub("", line).strip().rstrip(";") for line in found]

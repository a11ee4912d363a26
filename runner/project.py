"""The checkout that the runner acts on: where it is, its recipes, its volumes and its commit."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from job.paths import VolumePaths
from runner.errors import RunnerError

COMPOSE_FILE = "docker-compose.yml"

GPU_COMPOSE_FILE = "docker-compose.gpu.yml"

OUR_CODE = "job/paths.py"

OVERRIDE_COMPOSE_FILE = "docker-compose.override.yml"

INSTALLED = Path(__file__).resolve().parent.parent


def find_checkout(cwd: Path) -> Path:
    """The nearest folder at or above ``cwd`` that is a checkout, else the one the runner was installed from.

    Raises RunnerError where there is neither.
    """
    cwd = cwd.resolve()
    for folder in (cwd, *cwd.parents, INSTALLED):
        if is_checkout(folder):
            return folder
    raise RunnerError(
        f"{cwd} is in no checkout of the project ({COMPOSE_FILE} and {OUR_CODE} mark one); "
        "`cd` into yours and type the same again"
    )


def is_checkout(folder: Path) -> bool:
    """Whether the folder holds the compose file and the code that runs inside: a model/ have others too."""
    return (folder / COMPOSE_FILE).is_file() and (folder / OUR_CODE).is_file()


def recipes(checkout: Path) -> dict[str, Path]:
    """The recipes of ``configs/`` by name."""
    folder = checkout / "configs"
    found = [*folder.glob("*.yaml"), *folder.glob("*.yml")] if folder.is_dir() else []
    return {path.stem: path for path in sorted(found) if is_recipe(path)}


def is_recipe(path: Path) -> bool:
    """Whether the file is neither a pipeline nor a sweep, which lie beside the recipes."""
    return not (is_pipeline(path) or is_sweep(path))


def is_pipeline(path: Path) -> bool:
    """Whether the file is a pipeline: it has stages."""
    return _has_key(path, "stages")


def is_sweep(path: Path) -> bool:
    """Whether the file is a sweep: it has a space."""
    return _has_key(path, "space")


def _has_key(path: Path, key: str) -> bool:
    try:
        return any(
            line.startswith(f"{key}:") for line in path.read_text(encoding="utf-8").splitlines()
        )
    except (OSError, UnicodeDecodeError):
        return False


def volumes(checkout: Path, environ: Mapping[str, str]) -> VolumePaths:
    """The three volumes on this machine: the variables if set, else the checkout's ``volumes/``."""
    default = VolumePaths.under(checkout / "volumes")
    return VolumePaths(
        data=Path(environ.get("DATA_PATH") or default.data).absolute(),
        checkpoints=Path(environ.get("CHECKPOINTS_PATH") or default.checkpoints).absolute(),
        cache=Path(environ.get("CACHE_PATH") or default.cache).absolute(),
    )


def git_state(checkout: Path) -> dict[str, object] | None:
    """``{"commit": ..., "dirty": ...}``; None without git or outside a repository.

    Dirty means that a tracked file was changed: what git does not know is mostly the user's notes.
    """
    commit = _git(checkout, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


LINE = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$")

QUOTED = re.compile(r"""(['"])(.*?)\1(?:\s+#.*|\s*)$""")  # perhaps with a comment behind it

AS_IT_IS = (
    "surrogateescape"  # a letter that is no UTF-8, in a comment, is written again as it was read
)

# Keys that jobs can use where the recipe asks for it.
KNOWN_SECRETS = ("WANDB_API_KEY", "HF_TOKEN")


def read_dotenv(checkout: Path) -> dict[str, str]:
    """The variables of ``.env``; empty where there is none."""
    try:
        text = (checkout / ".env").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = (LINE.match(line) for line in text.splitlines())
    return {match[1]: _unquoted(match[2]) for match in found if match}


def update_dotenv(checkout: Path, values: Mapping[str, str]) -> bool:
    """Set ``values`` and keep every other line as it is. True where the file changed.

    The new file is whole or not there at all, and nobody but the user may read it where it is new: keys
    are kept in it.
    """
    path = (checkout / ".env").resolve()
    before = path.read_text(encoding="utf-8", errors=AS_IT_IS) if path.exists() else ""
    left = dict(values)
    lines = []
    for line in before.splitlines():
        match = LINE.match(line)
        if match and match[1] in values:
            if match[1] in left:
                lines.append(f"{match[1]}={left.pop(match[1])}")
        else:
            lines.append(line)
    lines += [f"{name}={value}" for name, value in left.items()]
    after = "\n".join(lines) + "\n"
    if after == before:
        return False
    _replace(path, after)
    return True


def secret_names(environ: Mapping[str, str], checkout: Path) -> tuple[str, ...]:
    """Which of the known keys are at hand, in the environment or in ``.env``."""
    kept = read_dotenv(checkout)
    return tuple(name for name in KNOWN_SECRETS if environ.get(name) or kept.get(name))


def secret_values(
    names: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> dict[str, str]:
    """The values, for the job's environment and nothing else; the environment goes before ``.env``."""
    kept = read_dotenv(checkout)
    return {name: environ.get(name) or kept.get(name, "") for name in names}


def _unquoted(value: str) -> str:
    quoted = QUOTED.match(value)
    if quoted:
        return quoted[2]
    return value.split(" #")[0].rstrip()


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".env.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors=AS_IT_IS) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


PROJECT = "gpt-runner"

EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*["']([\w-]+)["']""")


def install_line(extra: str) -> str:
    """``/path/to/python -m pip install 'Jinja2>=3.1' 'matplotlib>=3.9'`` for the extra ``report``."""
    return pip_install(*requirements(extra))


def pip_install(*words: str) -> str:
    """The line that installs packages, with their versions or pip's options, into this very Python."""
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # an environment that uv made
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, *words])


def own_requirement(package: str) -> str:
    """The package in the versions that the runner works with; just the name where the runner is not installed."""
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return package
    return next((line for line in known if re.match(rf"{package}\b(?!.*extra)", line)), package)


def requirements(extra: str) -> list[str]:
    """The extra's packages with their versions; the whole extra where the runner is not installed."""
    try:
        known = requires(PROJECT) or []
    except PackageNotFoundError:
        return [f".[{extra}]"]
    found = [line for line in known if (which := EXTRA.search(line)) and which[1] == extra]
    return [EXTRA.sub("", line).strip().rstrip(";") for line in found]

"""Check the files of the checkout: .env, Dockerfile, recipes and the keys that recipes need.

For an installed runner, also the code of earlier versions.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from job.exit_status import RecipeError
from job.recipe import load
from runner.doctor import CheckContext, Finding, Severity, failure, note, ok, warning
from runner.home import copies
from runner.project import (
    dotenv_problems,
    recipes,
    secret_names,
    state_folder,
    volumes,
    write_settings,
    wrong_settings,
)
from runner.runs.store import is_active_locally
from runner.targets.modal.image import dockerfile_problems, parse_dockerfile

DOCKERFILE = "Dockerfile"


def check_dotenv(context: CheckContext) -> Iterator[Finding]:
    """Check that ``.env`` names the compose files and the user.

    Without it, files in volumes/ would belong to a different user, and containers would lack GPUs.
    """
    path = context.checkout / ".env"
    if not path.is_file():
        severity = Severity.NOTE if context.machine.engine.problem else Severity.WARNING
        remedy = "runner doctor --fix (`runner local` creates it too)"
        yield Finding(severity, ".env does not exist yet", remedy, ".env")
        return
    problems = dotenv_problems(context.checkout)
    for number, problem in problems:
        yield failure(problem, "correct or delete the line", ".env", number)
    if problems:
        return
    names = wrong_settings(context.machine, context.checkout)
    if names:
        yield failure(
            f".env has values of a different machine or user: {', '.join(names)}",
            "runner doctor --fix",
            ".env",
        )
    else:
        yield ok(".env names the compose files and your user")


def fix_dotenv(context: CheckContext) -> Iterator[str]:
    """Write the variables, and keep every other line."""
    yield from write_settings(context.machine, context.checkout)


def check_dockerfile(context: CheckContext) -> Iterator[Finding]:
    """Find instructions that ``runner cloud`` would refuse; Docker accepts more than Modal."""
    path = context.checkout / DOCKERFILE
    if not path.is_file():
        yield failure(f"{DOCKERFILE} is missing", f"git checkout -- {DOCKERFILE}", DOCKERFILE)
        return
    parsed = parse_dockerfile(path.read_text(encoding="utf-8", errors="replace"))
    problems = list(dockerfile_problems(context.checkout, parsed))
    for number, problem, remedy in problems:
        message = f"Modal cannot build this instruction: {problem}"
        yield warning(message, remedy, DOCKERFILE, number)
    if not problems:
        yield ok(f"{DOCKERFILE}: Modal can build all {len(parsed)} instructions")


def check_recipes(context: CheckContext) -> Iterator[Finding]:
    """Load every recipe of configs/ as a job would."""
    valid = []
    for name, path in recipes(context.checkout).items():
        try:
            load(path)
            valid.append(name)
        except RecipeError as error:
            for line in str(error).splitlines():
                yield _recipe_finding(line.replace(f"{context.checkout}/", ""))
    if valid:
        yield ok(f"recipes: {', '.join(valid)}")
    elif not recipes(context.checkout):
        yield failure("configs/ has no recipe", "git checkout -- configs", "configs")


def _recipe_finding(message: str) -> Finding:
    where = re.match(r"([^:]+\.ya?ml)(?::(\d+))?: ", message)
    if where is None:
        return failure(message)
    number = int(where[2]) if where[2] else None
    return failure(message[where.end() :], f"correct {where[1]}", where[1], number)


def check_secrets(context: CheckContext) -> Iterator[Finding]:
    """Find recipes that log to Weights & Biases if its key is missing. Never show a key's value."""
    if dotenv_problems(context.checkout):  # check_dotenv reports them
        return
    if "WANDB_API_KEY" in secret_names(context.environ, context.checkout):
        return
    for path in recipes(context.checkout).values():
        name = path.relative_to(context.checkout).as_posix()
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            match = re.match(r"\s*wandb_project:\s*([^\s#]+)", line)
            if match is not None and match[1] not in ("null", "~", '""', "''"):
                yield warning(
                    "wandb_project needs WANDB_API_KEY, which is neither in the environment nor "
                    "in .env",
                    "add the line WANDB_API_KEY=... to .env",
                    name,
                    number,
                )


def check_home(context: CheckContext) -> Iterator[Finding]:
    """Name the project folder and the folder of its volumes."""
    home = state_folder(context.checkout)
    where = "checkout" if home == context.checkout else "installed project"
    yield ok(f"{where} {context.checkout}; volumes in {volumes(context.checkout, {}).data.parent}")
    for copy in _earlier_copies(context):
        message = f"{copy} is the code of an earlier version"
        yield note(message, "runner doctor --fix deletes it if no run is active")


def fix_home(context: CheckContext) -> Iterator[str]:
    """Delete the code of earlier versions, unless an active run may use it."""
    runs = context.volumes.checkpoints.glob("*")
    if any(is_active_locally(run) for run in runs):
        return
    for copy in _earlier_copies(context):
        shutil.rmtree(copy)
        yield f"deleted {copy}"


def _earlier_copies(context: CheckContext) -> list[Path]:
    home = state_folder(context.checkout)
    return [c for c in sorted(copies(home)) if c != context.checkout and home != context.checkout]

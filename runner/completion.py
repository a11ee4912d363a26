"""What the shell offers behind TAB; reads names of files alone, so that it answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.jobs import JOBS

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def words(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Jobs and recipes."""
    return [*_those(JOBS, typed), *recipes(ctx, parameter, typed)]


def recipes(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The recipes of configs/."""
    from runner.errors import RunnerError
    from runner.project import find_checkout, recipes

    try:
        return _those(recipes(find_checkout(Path.cwd())), typed)
    except RunnerError:
        return []


def runs(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Runs whose folder is on this machine."""
    import os

    from runner.errors import RunnerError
    from runner.project import find_checkout, volumes

    try:
        folder = volumes(find_checkout(Path.cwd()), os.environ).checkpoints
        return sorted(path.name for path in folder.iterdir() if path.name.startswith(typed))
    except (RunnerError, OSError):
        return []


def volumes(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The three volumes."""
    from job.paths import VOLUMES

    return _those(VOLUMES, typed)


def gpus(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Modal's names of GPUs; behind a comma the next alternative, behind a colon the number."""
    from runner.pricing.gpus import BY_NAME

    before, comma, last = typed.rpartition(",")
    name, colon, _ = last.upper().partition(":")
    if colon:
        most = BY_NAME[name].max_count if name in BY_NAME else 0
        known = [f"{name}:{number}" for number in (1, 2, 4, 8) if number <= most]
    else:
        known = list(BY_NAME)
    return [f"{before}{comma}{word}" for word in _those(known, last.upper())]


def targets(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Where a job can run."""
    return _those(("host", "local", "cloud"), typed)


def paths(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Behind the volume `checkpoints` a run of this machine; else a path of it."""
    from click.shell_completion import CompletionItem

    if ctx.params.get("volume") == "checkpoints":
        return [CompletionItem(run) for run in runs(ctx, parameter, typed)]
    return files(ctx, parameter, typed)


def files(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """A path, which the shell itself completes."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed, type="file")]


def folders(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """A folder, which the shell itself completes."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(typed, type="dir")]


def _those(known: Iterable[str], typed: str) -> list[str]:
    return [word for word in known if word.startswith(typed)]

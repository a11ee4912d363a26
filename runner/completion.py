"""Shell completion. It reads only the names of files, so that TAB answers at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.jobs import JOBS

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

GPU_COUNTS = (1, 2, 4, 8)


def words(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a job or a recipe."""
    return [
        *_matching((*JOBS, "run", "pipeline"), incomplete),
        *recipes(ctx, parameter, incomplete),
    ]


def recipes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a recipe in configs/."""
    from runner.errors import RunnerError
    from runner.project import find_checkout, recipes

    try:
        return _matching(recipes(find_checkout(Path.cwd()), Path.cwd()), incomplete)
    except RunnerError:
        return []


def runs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a run that has a folder on this machine."""
    import os

    from runner.errors import RunnerError
    from runner.project import find_checkout, volumes

    try:
        folder = volumes(find_checkout(Path.cwd()), os.environ).checkpoints
        return sorted(path.name for path in folder.iterdir() if path.name.startswith(incomplete))
    except (RunnerError, OSError):
        return []


def volumes(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a volume."""
    from job.paths import VOLUMES

    return _matching(VOLUMES, incomplete)


def gpus(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a GPU on Modal: the next alternative after a comma, the count after a colon."""
    from runner.pricing.gpus import BY_NAME

    before, comma, last = incomplete.rpartition(",")
    name, colon, _ = last.upper().partition(":")
    if colon:
        most = BY_NAME[name].max_count if name in BY_NAME else 0
        known = [f"{name}:{count}" for count in GPU_COUNTS if count <= most]
    else:
        known = list(BY_NAME)
    return [f"{before}{comma}{word}" for word in _matching(known, last.upper())]


def targets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a target."""
    from runner.errors import RunnerError
    from runner.project import find_checkout
    from runner.target import target_names

    try:
        return _matching(target_names(find_checkout(Path.cwd())), incomplete)
    except RunnerError:
        return []


def paths(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a run after the volume `checkpoints`, else a path."""
    from click.shell_completion import CompletionItem

    if ctx.params.get("volume") == "checkpoints":
        return [CompletionItem(run) for run in runs(ctx, parameter, incomplete)]
    return files(ctx, parameter, incomplete)


def files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def folders(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete a folder."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in names if word.startswith(incomplete)]

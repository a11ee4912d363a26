"""What the shell offers behind TAB; reads names of files alone, so that it answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.jobs import JOBS

if TYPE_CHECKING:
    import click


def words(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Jobs and recipes."""
    from runner.checkout import find_checkout, recipes
    from runner.errors import RunnerError

    try:
        known = [*JOBS, *recipes(find_checkout(Path.cwd()))]
    except RunnerError:
        known = [*JOBS]
    return [word for word in known if word.startswith(typed)]


def runs(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Runs whose folder is on this machine."""
    import os

    from runner.checkout import find_checkout, volumes
    from runner.errors import RunnerError

    try:
        folder = volumes(find_checkout(Path.cwd()), os.environ).checkpoints
        return sorted(path.name for path in folder.iterdir() if path.name.startswith(typed))
    except (RunnerError, OSError):
        return []


def volumes(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """The three volumes."""
    from model.locations import VOLUMES

    return [name for name in VOLUMES if name.startswith(typed)]

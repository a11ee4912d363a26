"""Shell completion. It reads only the names of files, so that TAB answers at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.paths import VOLUMES
from runner.jobs import JOBS

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

GPU_COUNTS = (1, 2, 4, 8)


def _completer(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Return the completion of one of ``names()``; nothing outside of a checkout."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from runner.errors import RunnerError

        try:
            return [name for name in names() if name.startswith(incomplete)]
        except (RunnerError, OSError):
            return []

    return complete


def _recipes() -> Iterable[str]:
    from runner.project import find_checkout, recipes

    return recipes(find_checkout(Path.cwd()), Path.cwd())


def _runs() -> list[str]:
    from runner.project import find_checkout, volumes

    return sorted(os.listdir(volumes(find_checkout(Path.cwd()), os.environ).checkpoints))


def _targets() -> list[str]:
    from runner.project import find_checkout
    from runner.target import target_names

    return target_names(find_checkout(Path.cwd()))


recipes, runs, targets = _completer(_recipes), _completer(_runs), _completer(_targets)
volumes = _completer(lambda: VOLUMES)
jobs = _completer(lambda: (*JOBS, "run", "pipeline"))


def words(*arguments: Any) -> list[str]:
    """Complete a job or a recipe."""
    return jobs(*arguments) + recipes(*arguments)


def gpus(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete a GPU on Modal: the next alternative after a comma, the count after a colon."""
    from runner.planning.gpus import BY_NAME

    before, comma, last = incomplete.rpartition(",")
    name, colon, _ = last.upper().partition(":")
    known = list(BY_NAME)
    if colon:
        most = BY_NAME[name].max_count if name in BY_NAME else 0
        known = [f"{name}:{count}" for count in GPU_COUNTS if count <= most]
    return [f"{before}{comma}{word}" for word in known if word.startswith(last.upper())]


def _shell_path(kind: str) -> Callable[..., list[CompletionItem]]:
    """Return the completion of a path, which the shell itself completes."""

    def complete(
        ctx: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=kind)]

    return complete


files, folders = _shell_path("file"), _shell_path("dir")


def paths(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Complete a run after the volume `checkpoints`, else a path."""
    complete = runs if ctx.params.get("volume") == "checkpoints" else files
    return complete(ctx, parameter, incomplete)

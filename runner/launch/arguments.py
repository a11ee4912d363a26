"""The arguments of a launch as click parsed them, before the recipe and the files are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchArguments:
    """The job, its positional arguments and the options that every target has."""

    job: str = "train"  # a name in JOBS, or "run", "pipeline", "command"
    words: tuple[str, ...] = ()  # [RECIPE] [key=value ...], or FILE and parameters
    command: tuple[str, ...] = ()  # the words after --
    name: str | None = None
    gpu: int | None = None  # processes; targets that rent GPUs have an option of their own
    device: str | None = None
    source: str | None = None
    shards: int | None = None
    force: bool = False
    output: str | None = None
    multiple_choice: str | None = None
    params: tuple[str, ...] = ()
    folder: str | None = None
    setup: tuple[str, ...] = ()
    persist: tuple[str, ...] = ()
    resume_with: str | None = None
    resume_if: str | None = None
    dry_run: bool = False
    detach: bool = False
    as_json: bool = False
    yes: bool = False

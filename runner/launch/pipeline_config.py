"""The file of a pipeline: commands that run in one folder, each with its own resources.

A mistake is a RecipeError with file, line and, for a near miss, a suggestion, as in a recipe.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError, model_validator

from job.exit_status import RecipeError
from job.recipe import Section, impossible
from job.recipe_loader import FOLDER_NAME, Source, apply_override, describe, read_yaml
from runner.errors import RunnerError
from runner.request import PersistOption, read_persist_options

STAGE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


class Stage(Section):
    """One command of a pipeline."""

    command: str = Field(min_length=1, description="command to run in the folder")
    cpu_command: str = Field("", description="command to run without a GPU instead")
    args: str = Field("", description="arguments to append, for train.args=--max_iters=100")
    on_cpu: str = Field("", description="arguments to append without a GPU")
    gpu: str | None = Field(None, description="cloud: H100, H100:8, ...; null: no GPU")
    cores: float | None = Field(None, gt=0.0, description="cloud: physical CPU cores")
    memory: float | None = Field(None, gt=0.0, description="cloud: memory in GiB")
    timeout: str | None = Field(None, description="cloud: maximum time over all attempts: 90m, 12h")
    max_cost: float | None = Field(None, gt=0.0, description="cloud: maximum cost in US dollars")
    setup: list[str] = Field(default_factory=list, description="shell lines to add to the image")
    outputs: list[str] = Field(
        default_factory=list,
        description="files in persisted paths; if all exist, the stage is skipped",
    )
    resume_with: str = Field("", description="arguments to append on resume")
    resume_if: str | None = Field(None, description="file that must exist for resume_with")
    metrics: list[str] = Field(default_factory=list, description="NAME=REGEX, like --metric")

    @model_validator(mode="after")
    def _possible(self) -> Stage:
        for key in ("command", "cpu_command", "args", "on_cpu", "resume_with"):
            try:
                shlex.split(getattr(self, key))
            except ValueError as error:
                raise impossible(key, f"invalid shell syntax in {key}: {error}") from None
        if self.resume_if and not self.resume_with:
            raise impossible(
                "resume_if", "resume_if needs resume_with, the arguments for a resumed command"
            )
        return self

    def argv(self, has_gpu: bool) -> tuple[str, ...]:
        """Return the command as a list of arguments."""
        command = self.command if has_gpu or not self.cpu_command else self.cpu_command
        extra = "" if has_gpu else self.on_cpu
        return tuple(word for text in (command, extra, self.args) for word in shlex.split(text))


class Pipeline(Section):
    """The whole file."""

    name: str = Field(
        pattern=FOLDER_NAME, max_length=61, description="the runs are called NAME-STAGE"
    )
    dir: str = Field(
        description="folder, relative to the checkout, outside of it to the current one"
    )
    persist: dict[str, str] = Field(
        default_factory=dict, description="path in the folder -> volume"
    )
    setup: list[str] = Field(
        default_factory=list, description="shell lines to add to the image of every stage"
    )
    stages: dict[str, Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Pipeline:
        for name, stage in self.stages.items():
            if not STAGE_NAME.match(name):
                raise impossible(
                    "stages", f"'{name}' is not a valid stage name; use letters, digits, - and _"
                )
            for output in stage.outputs:
                if not any(PurePosixPath(output).is_relative_to(path) for path in self.persist):
                    raise impossible(
                        f"stages.{name}.outputs",
                        f"{output} is not in a persisted path and would be lost; add it to persist",
                    )
        return self

    def persist_options(self, folder: Path) -> tuple[PersistOption, ...]:
        """Return the persisted paths, checked as on the command line. Raises RunnerError."""
        return read_persist_options(
            [f"{path}={place}" for path, place in self.persist.items()], folder
        )


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read the file, with overrides such as ``train.args=--lr=1e-3``. Raises RecipeError."""
    source = read_yaml(path, "a pipeline file needs the keys `name`, `dir` and `stages`")
    known = _known(source)
    for argument in overrides:
        stage = argument.partition(".")[0]
        prefix = "stages." if stage in _stages(source) else ""
        apply_override(source, f"{prefix}{argument}", known)
    try:
        pipeline = Pipeline.model_validate(source.tree)
    except ValidationError as error:
        raise RecipeError("\n".join(describe(error.errors(), source, known, "pipeline"))) from None
    try:
        pipeline.persist_options(Path(pipeline.dir))
    except RunnerError as error:
        raise RecipeError(f"{source.where('persist')}: {error.message}") from None
    return pipeline


def _stages(source: Source) -> list[str]:
    stages = source.tree.get("stages")
    return [str(name) for name in stages] if isinstance(stages, dict) else []


def _known(source: Source) -> list[str]:
    persisted = source.tree.get("persist")
    paths = [f"persist.{path}" for path in persisted] if isinstance(persisted, dict) else []
    keys = [f"stages.{stage}.{key}" for stage in _stages(source) for key in Stage.model_fields]
    return [*Pipeline.model_fields, *paths, *keys]

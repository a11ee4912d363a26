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
from job.recipe_loader import Source, apply_override, describe, read_yaml
from runner.errors import RunnerError
from runner.request import PersistOption, read_persist_options

STAGE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")


class Stage(Section):
    """One command of a pipeline."""

    command: str = Field(min_length=1, description="command to run in the folder")
    args: str = Field("", description="arguments to append, for train.args=--max_iters=100")
    on_cpu: str = Field("", description="arguments to append without a GPU")
    gpu: str | None = Field(None, description="cloud: H100, H100:8, ...; null: no GPU")
    timeout: str | None = Field(None, description="cloud: maximum time over all attempts: 90m, 12h")
    max_cost: float | None = Field(None, gt=0.0, description="cloud: maximum cost in US dollars")
    setup: list[str] = Field(default_factory=list, description="shell lines to add to the image")
    outputs: list[str] = Field(
        default_factory=list,
        description="files in persisted paths; if all exist, the stage is skipped",
    )
    resume_with: str = Field("", description="arguments to append on resume")
    resume_if: str | None = Field(None, description="file that must exist for resume_with")

    @model_validator(mode="after")
    def _possible(self) -> Stage:
        for key in ("command", "args", "on_cpu", "resume_with"):
            try:
                shlex.split(getattr(self, key))
            except ValueError as error:
                raise impossible(key, f"invalid shell syntax in {key}: {error}") from None
        if self.resume_if and not self.resume_with:
            raise impossible(
                "resume_if", "resume_if needs resume_with, the arguments for a resumed command"
            )
        return self

    def words(self, has_gpu: bool) -> tuple[str, ...]:
        """Return the command as a list of arguments."""
        extra = "" if has_gpu else self.on_cpu
        return tuple(
            word for text in (self.command, extra, self.args) for word in shlex.split(text)
        )


class Pipeline(Section):
    """The whole file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$", description="the runs are called NAME-STAGE"
    )
    dir: str = Field(description="folder, relative to the checkout")
    keep: dict[str, str] = Field(default_factory=dict, description="path in the folder -> volume")
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
                if not any(PurePosixPath(output).is_relative_to(path) for path in self.keep):
                    raise impossible(
                        f"stages.{name}.outputs",
                        f"{output} is not in a persisted path and would be lost; add it to keep",
                    )
        return self

    def keeps(self, folder: Path) -> tuple[PersistOption, ...]:
        """Return the persisted paths, checked as on the command line. Raises RunnerError."""
        return read_persist_options(
            [f"{path}={place}" for path, place in self.keep.items()], folder
        )


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read the file, with overrides such as ``train.args=--lr=1e-3``. Raises RecipeError."""
    source = read_yaml(path, "a pipeline is a mapping with name, dir and stages")
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
        pipeline.keeps(Path(pipeline.dir))
    except RunnerError as error:
        raise RecipeError(f"{source.where('keep')}: {error.message}") from None
    return pipeline


def _stages(source: Source) -> list[str]:
    stages = source.tree.get("stages")
    return [str(name) for name in stages] if isinstance(stages, dict) else []


def _known(source: Source) -> list[str]:
    kept = source.tree.get("keep")
    paths = [f"keep.{path}" for path in kept] if isinstance(kept, dict) else []
    keys = [f"stages.{stage}.{key}" for stage in _stages(source) for key in Stage.model_fields]
    return [*Pipeline.model_fields, *paths, *keys]

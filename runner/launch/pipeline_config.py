"""A pipeline's file: commands of one folder that follow each other, each with resources of its own.

Every mistake becomes a RecipeError with file, line and, where a name is close, a did-you-mean, as in a recipe.
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

    command: str = Field(
        min_length=1, description="what runs in the folder, as it would be typed there"
    )
    args: str = Field("", description="further words, for the line: train.args=--max_iters=100")
    on_cpu: str = Field("", description="further words where the stage has no GPU")
    gpu: str | None = Field(
        None, description="cloud: H100, H100:8, ...; null: a machine without a GPU"
    )
    timeout: str | None = Field(
        None, description="cloud: longest time, over all attempts: 90m, 12h"
    )
    max_cost: float | None = Field(
        None, gt=0.0, description="cloud: most that it may cost, in US dollars"
    )
    setup: list[str] = Field(
        default_factory=list, description="lines that add to the image, as pip install"
    )
    outputs: list[str] = Field(
        default_factory=list,
        description="files in kept paths; where all are there, the stage is skipped",
    )
    resume_with: str = Field("", description="words added in later attempts")
    resume_if: str | None = Field(None, description="... if there is such a file")

    @model_validator(mode="after")
    def _possible(self) -> Stage:
        for key in ("command", "args", "on_cpu", "resume_with"):
            try:
                shlex.split(getattr(self, key))
            except ValueError as error:
                raise impossible(
                    key, f"{key} can't be taken apart as a shell does: {error}"
                ) from None
        if self.resume_if and not self.resume_with:
            raise impossible(
                "resume_if", "resume_if needs resume_with: the words that a later attempt gets"
            )
        return self

    def words(self, has_gpu: bool) -> tuple[str, ...]:
        """The command as a list of words."""
        more = "" if has_gpu else self.on_cpu
        return tuple(word for text in (self.command, more, self.args) for word in shlex.split(text))


class Pipeline(Section):
    """The file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,60}$", description="the runs are NAME-STAGE"
    )
    dir: str = Field(description="the folder, seen from the checkout")
    keep: dict[str, str] = Field(default_factory=dict, description="path in the folder → volume")
    setup: list[str] = Field(
        default_factory=list, description="lines that add to the image of every stage"
    )
    stages: dict[str, Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Pipeline:
        for name, stage in self.stages.items():
            if not STAGE_NAME.match(name):
                raise impossible(
                    "stages", f"'{name}' can't be the name of a stage; use letters, digits, - and _"
                )
            for output in stage.outputs:
                if not any(PurePosixPath(output).is_relative_to(path) for path in self.keep):
                    raise impossible(
                        f"stages.{name}.outputs",
                        f"{output} lies in no kept path, and would be gone after the stage; add it to keep",
                    )
        return self

    def keeps(self, folder: Path) -> tuple[PersistOption, ...]:
        """Checked as those of the command line. Raises RunnerError."""
        return read_persist_options(
            [f"{path}={place}" for path, place in self.keep.items()], folder
        )


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The file with overrides as ``train.args=--lr=1e-3`` or ``dir=../elsewhere``. Raises RecipeError."""
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

"""The YAML file of a sweep, typed and checked before anything starts.

recipe: quickstart            # or experiment: my_experiment.py, relative to this file
                              # or command: python train.py --lr={lr}, with dir: ../nanoGPT
fixed: {max_steps: 300}       # the same in every trial
space:
  grid: {lr: [1e-3, 3e-3], n_layer: [2, 4]}
metric: val_loss
goal: min
"""

from __future__ import annotations

import math
import random
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from job.exit_status import RecipeError
from job.recipe import Section, impossible
from job.recipe_loader import Source, describe, read_yaml

Scalar = bool | int | float | str | None
Values = dict[str, Scalar]  # of one trial

EXPECTED = (
    "a sweep file needs the keys `recipe` (or `experiment` or `command`), `space` and `metric`"
)

MAX_TRIALS = 1000  # each is a run with its own folder

SIGNIFICANT_DIGITS = 6  # of a drawn number: a learning rate with 17 digits is unreadable

MAX_DRAWS_PER_TRIAL = 50  # after so many duplicates a small space is exhausted


class Distribution(Section):
    """The distribution of one value of random trials; exactly one field is set."""

    uniform: list[float] | None = Field(None, description="from, to")
    loguniform: list[float] | None = Field(None, description="from, to; above 0")
    ints: list[int] | None = Field(None, description="from, to, both included")
    choice: list[Scalar] | None = None

    @model_validator(mode="after")
    def _check(self) -> Distribution:
        fields = self.model_dump(exclude_none=True)
        if len(fields) != 1:
            raise impossible("", "give one of uniform, loguniform, ints, choice")
        if self.choice == []:
            raise impossible("choice", "choice has no values")
        for name in ("uniform", "loguniform", "ints"):
            bounds = fields.get(name)
            if bounds is None:
                continue
            if len(bounds) != 2:
                raise impossible(name, f"{name} must be [from, to], two numbers")
            if bounds[0] > bounds[1]:
                raise impossible(
                    name, f"{name} must be [from, to]: {bounds[0]} is above {bounds[1]}"
                )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise impossible("loguniform", "loguniform must begin above 0")
        return self


class Space(Section):
    """The trials of the sweep: a grid, random draws or a list."""

    grid: dict[str, list[Scalar]] | None = Field(None, description="every combination")
    random: dict[str, Distribution] | None = Field(None, description="drawn for each trial")
    rows: list[dict[str, Scalar]] | None = Field(None, alias="list", description="exactly these")
    trials: int | None = Field(None, ge=1, le=MAX_TRIALS, description="number of random trials")
    seed: int = Field(0, description="of random trials: the same seed draws the same trials")

    @model_validator(mode="after")
    def _check(self) -> Space:
        if sum(map(bool, (self.grid, self.random, self.rows))) != 1:
            raise impossible("", "give one of grid, random and list, with at least one key in it")
        if (self.random is not None) != (self.trials is not None):
            raise impossible(
                "trials", "trials is the number of random draws; random requires it, others don't"
            )
        empty = [name for name, values in (self.grid or {}).items() if not values]
        if empty:
            raise impossible(f"grid.{empty[0]}", f"{empty[0]} has no values")
        return self


class SweepConfig(Section):
    """The whole file."""

    name: str = Field("", description="runs are NAME-001, NAME-002, …; default: the file's name")
    recipe: str | None = Field(
        None, description="a name in configs/, or a path relative to this file"
    )
    experiment: str | None = Field(
        None, description="a Python file with train(), relative to this file"
    )
    command: str | None = Field(
        None,
        description="a program and its arguments; {KEY} is a value of the trial, {run} its run",
    )
    dir: str = Field(".", description="the command's folder, relative to this file")
    setup: list[str] = Field([], description="shell lines to add to the command's image")
    persist: list[str] = Field([], description="PATH=VOLUME, like --persist")
    metrics: list[str] = Field([], description="NAME=REGEX, like --metric")
    resume_with: str = Field("", description="arguments to append when a trial resumes")
    resume_if: str | None = Field(None, description="file that must exist for resume_with")
    fixed: dict[str, Scalar] = Field({}, description="the same in every trial")
    space: Space
    metric: str = Field(
        description="val_loss, best_val_loss, train_loss; or a key of an experiment's result, "
        "a metric of a command"
    )
    goal: Literal["min", "max"] = "min"
    early_stop: Literal["median"] | None = Field(
        None,
        description="median: stop a trial that is worse than half of the others at the same step",
    )
    grace_steps: int = Field(100, ge=0, description="no trial is stopped before this step")
    smoke: dict[str, Scalar] | None = Field(
        None, description="settings of the smoke run; null: max_steps or steps = 3"
    )

    _source: Source | None = None

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if sum(map(bool, (self.recipe, self.experiment, self.command))) != 1:
            raise impossible("recipe", "give one of recipe, experiment and command")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the varied keys, in the order of the file."""
        space = self.space
        keys = [
            *(space.grid or {}),
            *(space.random or {}),
            *(key for row in space.rows or [] for key in row),
        ]
        return tuple(dict.fromkeys(keys))

    def error_at(self, key: str, message: str) -> RecipeError:
        """Return an error about ``key``, with its line in the file."""
        return RecipeError(f"{self._source.where(key) if self._source else key}: {message}")

    def path_of(self, setting: str) -> str:
        """Return the full key, in this file, of a varied or fixed setting."""
        if setting in self.fixed:
            return f"fixed.{setting}"
        if self.smoke and setting in self.smoke:
            return f"smoke.{setting}"
        for number, row in enumerate(self.space.rows or []):
            if setting in row:
                return f"space.list.{number}.{setting}"
        return f"space.{'grid' if self.space.grid else 'random'}.{setting}"


def load_sweep(path: Path) -> SweepConfig:
    """Read and check the file. Raises RecipeError with a complete message."""
    source = read_yaml(path, EXPECTED)
    try:
        config = SweepConfig.model_validate(source.tree)
    except ValidationError as error:
        messages = describe(_merge_union_errors(error.errors()), source, _known(source), "sweep")
        raise RecipeError("\n".join(messages)) from None
    config._source = source
    return config


def _merge_union_errors(errors: list[Any]) -> list[Any]:
    """Merge the errors of one `Scalar`: pydantic reports one for each type of the union."""
    merged: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        path = tuple(part for part in error["loc"] if part not in ("bool", "int", "float", "str"))
        if path != error["loc"]:
            message = f"expected a number, text, true, false or null, got {error['input']!r}"
            error = {**error, "loc": path, "type": "scalar", "msg": message}
        merged.setdefault(path, error)
    return list(merged.values())


def _known(source: Source) -> set[str]:
    """Return every key that the file may have, for suggestions."""
    known = {name for name in SweepConfig.model_fields if name != "space"}
    known |= {f"space.{field.alias or name}" for name, field in Space.model_fields.items()}
    drawn = [key for key in source.lines if key.startswith("space.random.") and key.count(".") == 2]
    return known | {f"{key}.{name}" for key in drawn for name in Distribution.model_fields}


def trials(space: Space) -> list[Values]:
    """Return the values of each trial; raising `trials` of a space keeps the first ones.

    Raises ValueError if a grid has more than MAX_TRIALS points.
    """
    if space.grid is not None:
        count = math.prod(len(values) for values in space.grid.values())
        if count > MAX_TRIALS:
            raise ValueError(f"the grid has {count} points, more than the limit of {MAX_TRIALS}")
        return [
            dict(zip(space.grid, point, strict=True)) for point in product(*space.grid.values())
        ]
    if space.rows is not None:
        return [dict(row) for row in space.rows]
    return _draw_trials(space.random or {}, space.trials or 0, space.seed)


def _draw_trials(space: dict[str, Distribution], count: int, seed: int) -> list[Values]:
    """Return ``count`` different trials, or fewer if the space has no more."""
    drawn: list[Values] = []
    number = 0
    while len(drawn) < count and number < count * MAX_DRAWS_PER_TRIAL:
        # One generator for each value: adding a key to the file leaves the other values unchanged.
        values = {
            key: draw(distribution, random.Random(f"{seed}/{number}/{key}"))
            for key, distribution in space.items()
        }
        number += 1
        if values not in drawn:
            drawn.append(values)
    return drawn


def draw(distribution: Distribution, generator: random.Random) -> Scalar:
    """Draw one value."""
    if distribution.uniform is not None:
        low, high = distribution.uniform
        return float(f"{generator.uniform(low, high):.{SIGNIFICANT_DIGITS}g}")
    if distribution.loguniform is not None:
        low, high = (math.log(bound) for bound in distribution.loguniform)
        return float(f"{math.exp(generator.uniform(low, high)):.{SIGNIFICANT_DIGITS}g}")
    if distribution.ints is not None:
        return generator.randint(*distribution.ints)
    return generator.choice(distribution.choice or [None])

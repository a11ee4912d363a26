"""The file of a sweep: typed, checked before anything starts; each mistake with its line.

recipe: quickstart            # or experiment: my_experiment.py, seen from this file
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

EXPECTED = "a sweep is a mapping with recipe (or experiment), space and metric"

MOST_TRIALS = 1000  # each is a run with a folder of its own


class Distribution(Section):
    """What a random trial draws one value from. One of these."""

    uniform: list[float] | None = Field(None, description="from, to")
    loguniform: list[float] | None = Field(None, description="from, to; above 0")
    ints: list[int] | None = Field(None, description="from, to, both included")
    choice: list[Scalar] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Distribution:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise impossible("", "give one of uniform, loguniform, ints, choice")
        if self.choice == []:
            raise impossible("choice", "choice has no values")
        for name in ("uniform", "loguniform", "ints"):
            if name in given and len(given[name]) != 2:
                raise impossible(name, f"{name} is [from, to], two numbers")
            if name in given and given[name][0] > given[name][1]:
                raise impossible(
                    name, f"{name} is [from, to]: {given[name][0]} is above {given[name][1]}"
                )
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise impossible("loguniform", "loguniform begins above 0")
        return self


class Space(Section):
    """Which trials there are. One of grid, random and list."""

    grid: dict[str, list[Scalar]] | None = Field(None, description="every combination")
    random: dict[str, Distribution] | None = Field(None, description="drawn anew for each trial")
    rows: list[dict[str, Scalar]] | None = Field(None, alias="list", description="exactly these")
    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="how many, of random ones")
    seed: int = Field(0, description="of random ones: the same seed draws the same trials")

    @model_validator(mode="after")
    def _possible(self) -> Space:
        given = [name for name in ("grid", "random", "rows") if getattr(self, name)]
        if len(given) != 1:
            raise impossible("", "give one of grid, random and list, with at least one key in it")
        if (self.random is not None) != (self.trials is not None):
            raise impossible(
                "trials", "trials says how many random ones to draw; random needs it, others don't"
            )
        empty = [name for name, values in (self.grid or {}).items() if not values]
        if empty:
            raise impossible(f"grid.{empty[0]}", f"{empty[0]} has no values")
        return self


class SweepConfig(Section):
    """A whole sweep."""

    name: str = Field("", description="the runs are NAME-001 and so on; the file's name by default")
    recipe: str | None = Field(
        None, description="a name of configs/, or a path seen from this file"
    )
    experiment: str | None = Field(
        None, description="a Python file with train(), seen from this file"
    )
    fixed: dict[str, Scalar] = Field({}, description="the same in every trial")
    space: Space
    metric: str = Field(
        description="of a recipe: val_loss, best_val_loss, train_loss; else a key of the result"
    )
    goal: Literal["min", "max"] = "min"
    early_stop: Literal["median"] | None = Field(
        None,
        description="median: stop a trial that is worse than half of the others were at the same step",
    )
    grace_steps: int = Field(100, ge=0, description="no trial is stopped before this step")
    smoke: dict[str, Scalar] | None = Field(
        None, description="settings of the short run that comes first; null: max_steps or steps = 3"
    )

    _source: Source | None = None

    @model_validator(mode="after")
    def _possible(self) -> SweepConfig:
        if (self.recipe is None) == (self.experiment is None):
            raise impossible("recipe", "give one of recipe and experiment")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """What is varied, in the order of the file."""
        space = self.space
        rows = [
            *(space.grid or {}),
            *(space.random or {}),
            *(key for row in space.rows or [] for key in row),
        ]
        return tuple(dict.fromkeys(rows))

    def mistake(self, key: str, message: str) -> RecipeError:
        """An error about ``key`` that shows only later, at its line."""
        return RecipeError(f"{self._source.where(key) if self._source else key}: {message}")

    def where_of(self, key: str) -> str:
        """The full key in this file of a varied or fixed setting."""
        if key in self.fixed:
            return f"fixed.{key}"
        if self.smoke and key in self.smoke:
            return f"smoke.{key}"
        for number, row in enumerate(self.space.rows or []):
            if key in row:
                return f"space.list.{number}.{key}"
        return f"space.{'grid' if self.space.grid else 'random'}.{key}"


def load_sweep(path: Path) -> SweepConfig:
    """Read and check the file. Raises RecipeError, whose text is complete."""
    source = read_yaml(path, EXPECTED)
    if "train" in source.tree and "space" not in source.tree:
        raise RecipeError(f"{path}: is a recipe, not a sweep; {EXPECTED}")
    try:
        config = SweepConfig.model_validate(source.tree)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(describe(_plain(error.errors()), source, _known(source), "sweep"))
        ) from None
    config._source = source
    return config


def _plain(errors: list[Any]) -> list[Any]:
    """A value that is one of several types reports an error for each, behind the type's name: one will do."""
    found: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        path = tuple(part for part in error["loc"] if part not in ("bool", "int", "float", "str"))
        if path != error["loc"]:
            said = f"{error['input']!r} is no single value: a number, a text, true, false or null"
            error = {**error, "loc": path, "type": "scalar", "msg": said}
        found.setdefault(path, error)
    return list(found.values())


def _known(source: Source) -> set[str]:
    """Every key that the file may have, for a did-you-mean."""
    known = {name for name in SweepConfig.model_fields if name != "space"}
    known |= {f"space.{field.alias or name}" for name, field in Space.model_fields.items()}
    drawn = [key for key in source.lines if key.startswith("space.random.") and key.count(".") == 2]
    return known | {f"{key}.{name}" for key in drawn for name in Distribution.model_fields}


Values = dict[str, Scalar]

DIGITS = 6  # of a drawn number: a learning rate with 17 digits can't be read

DRAWS = 50  # for each trial: after so many repetitions a small space is used up


def trials(space: Space) -> list[Values]:
    """The values of each trial, in order. A longer list of the same space begins with the shorter one.

    Raises ValueError where a grid has more than MOST_TRIALS points.
    """
    if space.grid is not None:
        count = math.prod(len(values) for values in space.grid.values())
        if count > MOST_TRIALS:
            raise ValueError(f"the grid has {count} points; at most {MOST_TRIALS} are run")
        return [
            dict(zip(space.grid, point, strict=True)) for point in product(*space.grid.values())
        ]
    if space.rows is not None:
        return [dict(row) for row in space.rows]
    return _drawn(space.random or {}, space.trials or 0, space.seed)


def _drawn(space: dict[str, Distribution], count: int, seed: int) -> list[Values]:
    """``count`` trials that differ, or fewer where the space has no more."""
    found: list[Values] = []
    number = 0
    while len(found) < count and number < count * DRAWS:
        # A generator for each value: another key in the file leaves the values of the others as they are.
        values = {
            key: draw(distribution, random.Random(f"{seed}/{number}/{key}"))
            for key, distribution in space.items()
        }
        number += 1
        if values not in found:
            found.append(values)
    return found


def draw(distribution: Distribution, generator: random.Random) -> Scalar:
    """One value."""
    if distribution.uniform is not None:
        low, high = distribution.uniform
        return float(f"{generator.uniform(low, high):.{DIGITS}g}")
    if distribution.loguniform is not None:
        low, high = (math.log(bound) for bound in distribution.loguniform)
        return float(f"{math.exp(generator.uniform(low, high)):.{DIGITS}g}")
    if distribution.ints is not None:
        return generator.randint(*distribution.ints)
    return generator.choice(distribution.choice or [None])

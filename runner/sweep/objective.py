"""What a sweep varies: a recipe or an experiment. Its trials as requests, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from job.compatibility import other_experiment
from job.exit_status import RecipeError
from job.recipe import Recipe, known_keys, load
from job.recipe_loader import full_key
from job.run_record import RunRecord
from job.signature import ExperimentError, Signature, read_signature
from runner.errors import did_you_mean
from runner.launch.arguments import LaunchArguments
from runner.launch.parse_experiment import folder_of
from runner.paths import absolute, path_in, replace_path
from runner.project import recipes
from runner.request import (
    Experiment,
    ExperimentRequest,
    Request,
    TrainRequest,
    UserCommand,
    smoke_overrides,
)
from runner.sweep.config import Scalar, SweepConfig

METRICS = ("val_loss", "best_val_loss", "train_loss")

SMOKE_STEPS = 3


@dataclass(frozen=True)
class Objective:
    """``file`` is the recipe's or the experiment's; ``signature`` only an experiment has."""

    file: Path
    config: SweepConfig
    signature: Signature | None = None
    folder: UserCommand | None = None  # of an experiment outside the checkout

    @property
    def title(self) -> str:
        """``recipe quickstart``."""
        return f"experiment {self.file.name}" if self.signature else f"recipe {self.file.stem}"

    def request(self, run: str, values: Mapping[str, Scalar], template: Request) -> Request:
        """The run of one trial; ``template`` has the options of the line. Raises RecipeError for values that
        can't be, at their line."""
        settings = {**self.config.fixed, **values}
        words = tuple(f"{key}={as_word(value)}" for key, value in settings.items())
        if self.signature is not None:
            return self._experiment(run, settings, words, template)
        words = tuple(
            word
            if (path := path_in(word)) is None
            else replace_path(word, absolute(path, self.file.parent))
            for word in words
        )
        return TrainRequest(
            run=run,
            recipe=self.file,
            overrides=words,
            settings=self._load(words),
            **_common(template),
        )

    def smoke(self, first: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
        """The values of the short run that comes first; None where the experiment has no number of steps."""
        if self.config.smoke is not None:
            return {**first, **self.config.smoke}
        if self.signature is not None:
            names = {parameter.name for parameter in self.signature.parameters}
            steps = next((name for name in ("max_steps", "steps") if name in names), None)
            return {**first, steps: SMOKE_STEPS} if steps else None
        plain = {
            full_key(key, key, known_keys(), "train"): value
            for key, value in {**self.config.fixed, **first}.items()
        }
        return {**plain, **smoke_overrides(SMOKE_STEPS), "sample.max_new_tokens": 1}

    def metric_of(self, record: RunRecord | None) -> float | None:
        """The value that the sweep is about, from a run's record; None where it has none."""
        if record is None:
            return None
        value: Any = (
            getattr(record, self.config.metric, None) if self.signature is None else record.result
        )
        if self.signature is not None:
            for part in self.config.metric.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        return (
            float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        )

    def is_trial(self, record: RunRecord, request: Request, values: Mapping[str, Scalar]) -> bool:
        """Whether the run with this record is the trial, and not another run that has its name."""
        if request.experiment is not None:
            arguments = dict(request.experiment.arguments)
            return not other_experiment(record, request.experiment.file.name, arguments)
        words = [word for word in request.overrides if word.partition("=")[0] in values]
        return record.job == "train" and all(
            any(_is_same(word, noted) for noted in record.overrides) for word in words
        )

    def _load(self, words: tuple[str, ...]) -> Recipe:
        try:
            return load(self.file, words)
        except RecipeError as error:
            text = str(error)
            for key in (*self.config.keys, *self.config.fixed, *(self.config.smoke or {})):
                if f"argument '{key}=" in text:
                    raise self.config.mistake(self.config.where_of(key), text) from None
            raise self.config.mistake("space", text) from None

    def _experiment(
        self, run: str, settings: Mapping[str, Scalar], words: tuple[str, ...], template: Request
    ) -> Request:
        assert self.signature is not None
        for key, value in settings.items():
            wrong = self.signature.check_type(key, value)
            if wrong:
                raise self.config.mistake(self.config.where_of(key), wrong)
        try:
            arguments = self.signature.complete(self.signature.values(words))
        except ExperimentError as error:
            raise self.config.mistake("space", str(error)) from None
        return ExperimentRequest(
            run=run,
            overrides=words,
            experiment=Experiment(self.file, words, tuple(arguments.items())),
            command=self.folder,
            **_common(template),
        )


def _common(template: Request) -> dict[str, Any]:
    """Return the options of the command line, which all trials share."""
    return {
        "device": template.device,
        "detach": template.detach,
        "target_options": template.target_options,
    }


def find_objective(config: SweepConfig, path: Path, checkout: Path) -> Objective:
    """The recipe or the file that the sweep names. Raises RecipeError, at its line."""
    if config.experiment is not None:
        file = (path.parent / Path(config.experiment).expanduser()).resolve()
        if not file.is_file():
            near = did_you_mean(file.name, [p.name for p in file.parent.glob("*.py")])
            raise config.mistake("experiment", f"there is no file {file}{near}")
        try:
            return Objective(
                file, config, read_signature(file), folder_of(file, LaunchArguments(), checkout)
            )
        except ExperimentError as error:
            raise config.mistake("experiment", str(error)) from None
    name, known = str(config.recipe), recipes(checkout)
    file = known.get(name) or (path.parent / Path(name).expanduser()).resolve()
    if not file.is_file():
        raise config.mistake(
            "recipe", f"there is no recipe {name}{did_you_mean(Path(name).stem, known)}"
        )
    if config.metric not in METRICS:
        guess = did_you_mean(config.metric, METRICS)
        raise config.mistake(
            "metric",
            f"metric: a recipe's run has {', '.join(METRICS)}, not '{config.metric}'{guess}",
        )
    for key in (*config.keys, *config.fixed, *(config.smoke or {})):
        try:
            full_key(key, key, known_keys(), "train")
        except RecipeError as error:
            said = str(error).partition(": ")[2]
            raise config.mistake(config.where_of(key), said) from None
    return Objective(file, config)


def _is_same(word: str, noted: str) -> bool:
    """Whether a word of a request is that of a record, where a path is written as the job saw it: relative to the
    checkout, or below /vol."""
    here, there = path_in(word), path_in(noted)
    if here is None or there is None or replace_path(word, "") != replace_path(noted, ""):
        return word == noted
    tail = there.removeprefix("/vol/given").removeprefix("/vol").lstrip("/")
    return here == there or here.endswith(f"/{tail}")


def as_word(value: Scalar) -> str:
    """A value as it is typed behind ``key=``, read again as what it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and yaml.safe_load(value or "''") != value:
        return yaml.safe_dump(value, default_style='"').strip()
    return str(value)

"""The objective of a sweep: its trials as requests, and their metric."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from job.compatibility import experiment_mismatch
from job.exit_status import RecipeError
from job.recipe import Recipe, changes, known_keys, load
from job.recipe_loader import full_key
from job.run_record import RunRecord
from job.signature import ExperimentError, Signature, read_signature
from runner.errors import RunnerError, did_you_mean
from runner.jobs import LaunchArguments
from runner.launch.parse_command import check_program, check_setup, folder_of
from runner.launch.recipe_paths import (
    OpenVolume,
    absolute_override,
    absolute_paths,
    find_problems,
)
from runner.paths import PATH_KEYS, path_in, replace_path
from runner.planning.metric_presets import read_metrics
from runner.project import recipes, unknown_config
from runner.request import (
    CommandRequest,
    Experiment,
    ExperimentRequest,
    Request,
    TrainRequest,
    UserCommand,
    read_persist_options,
    smoke_overrides,
)
from runner.sweep.config import Scalar, SweepConfig

METRICS = ("val_loss", "best_val_loss", "train_loss")

SMOKE_STEPS = 3

PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.-]*)\}")  # in a command

NON_FINITE = ("nan", "inf", "-inf")  # as the result of an experiment records them

# They may change when a run is resumed, but a metric with other values of them is not comparable.
EVALUATION_KEYS = ("train.eval_every", "train.eval_tokens")


@dataclass(frozen=True)
class Objective:
    """The recipe or experiment in ``file``; only an experiment has a ``signature``.

    For a command, ``file`` is that of the sweep.
    """

    file: Path
    config: SweepConfig
    signature: Signature | None = None
    folder: UserCommand | None = None  # of a command, or of an experiment outside the checkout
    trackers: tuple[tuple[str, str], ...] = ()  # and the project to log to in each
    folders: tuple[Path, ...] = ()  # of the sweep's file, the recipe and the checkout: for paths
    volumes: OpenVolume | None = None  # opens the target's; None if they are unknown

    @property
    def title(self) -> str:
        """Return ``recipe quickstart``, ``experiment mine.py`` or ``python train.py --lr={lr}``."""
        if self.config.command is not None:
            return self.config.command
        return f"experiment {self.file.name}" if self.signature else f"recipe {self.file.stem}"

    @property
    def varies_data(self) -> bool:
        """Return True if trials of the recipe may have different datasets."""
        if not self._is_recipe:
            return False
        keys = (full_key(key, key, known_keys(), "train") for key in self.config.keys)
        return any(key.startswith("data.") for key in keys)

    @property
    def _is_recipe(self) -> bool:
        return self.config.recipe is not None

    @property
    def file_sha256(self) -> str:
        """Return the SHA-256 of an experiment's file; '' for a recipe."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest() if self.signature else ""

    def request(self, run: str, values: Mapping[str, Scalar], common: Mapping[str, Any]) -> Request:
        """Return the request of one trial; ``common`` are the fields that all trials share.

        Raises RecipeError, with its line in the sweep's file, for invalid values.
        """
        settings = {**self.config.fixed, **values}
        if self.config.command is not None:
            assert self.folder is not None
            command = replace(self.folder, argv=fill(self.folder.argv, {"run": run, **settings}))
            return CommandRequest(run=run, command=command, **common)
        args = tuple(f"{key}={as_word(value)}" for key, value in settings.items())
        if self.signature is not None:
            return self._experiment(run, settings, args, common)
        args += tuple(f"train.{name}_project={project}" for name, project in self.trackers)
        for folder in self.folders[:-1]:
            args = tuple(absolute_override(word, folder, self.volumes) for word in args)
        recipe = self._load(args)
        args += absolute_paths(recipe, args, self.folders, self.volumes)
        return TrainRequest(
            run=run,
            recipe=self.file,
            overrides=args,
            settings=recipe,
            problems=find_problems(recipe, self.folders, self.volumes),
            **common,
        )

    def shared_settings(self, request: Request) -> dict[str, Any]:
        """Return the settings that all trials share, from the request of one trial.

        Settings that may change when a run is resumed are not among them.
        """
        if self.folder is not None and self.config.command is not None:
            return {"dir": str(self.folder.folder)}
        if request.experiment is not None:
            arguments = dict(request.experiment.arguments)
            return {key: arguments[key] for key in arguments if key not in self.config.keys}
        assert request.settings is not None
        varied = {full_key(key, key, known_keys(), "train") for key in self.config.keys}
        tree = request.settings.model_dump(mode="json")
        return {
            key: reduce(getitem, key.split("."), tree)
            for key, is_free in known_keys().items()
            if key not in varied and (not is_free or key in EVALUATION_KEYS)
        }

    def smoke(self, first: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
        """Return the values of the smoke run; None if nothing tells how to make a trial short."""
        if self.config.smoke is not None:
            return {**first, **self.config.smoke}
        if self.signature is not None:
            names = {parameter.name for parameter in self.signature.parameters}
            steps = next((name for name in ("max_steps", "steps") if name in names), None)
            return {**first, steps: SMOKE_STEPS} if steps else None
        if not self._is_recipe:
            return None
        full = {
            full_key(key, key, known_keys(), "train"): value
            for key, value in {**self.config.fixed, **first}.items()
        }
        return {**full, **smoke_overrides(SMOKE_STEPS), "sample.max_new_tokens": 1}

    def metric_of(self, record: RunRecord | None) -> float | None:
        """Return the metric in a run's record; None without it. It may be NaN."""
        if record is None:
            return None
        value: Any = record.result
        of_record = self.config.command is not None and self.config.metric in METRICS
        if self._is_recipe or of_record:
            value = getattr(record, self.config.metric, None)
        else:
            for part in self.config.metric.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if value in NON_FINITE:
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return float(value)
        except OverflowError:
            return None

    def is_trial(
        self,
        record: RunRecord,
        recipe: Recipe | None,
        request: Request,
        values: Mapping[str, Scalar],
    ) -> bool:
        """Return True if the run with this record and recipe is the trial, not a different run."""
        if request.experiment is not None:
            arguments = dict(request.experiment.arguments)
            return not experiment_mismatch(record, request.experiment.file.name, arguments)
        if request.command is not None:
            return record.command == list(request.command.argv)
        if record.job != "train":
            return False
        if recipe is not None and request.settings is not None:
            # Paths are written as the job sees them, so the overrides are compared below.
            different = changes(recipe, request.settings)
            if any(key.rpartition(".")[2] not in PATH_KEYS for key in different):
                return False
        args = [word for word in request.overrides if word.partition("=")[0] in values]
        return all(any(_is_same(word, other) for other in record.overrides) for word in args)

    def _load(self, overrides: tuple[str, ...]) -> Recipe:
        try:
            return load(self.file, overrides)
        except RecipeError as error:
            text = str(error)
            for key in (*self.config.keys, *self.config.fixed, *(self.config.smoke or {})):
                if f"argument '{key}=" in text:
                    raise self.config.error_at(self.config.path_of(key), text) from None
            raise self.config.error_at("space", text) from None

    def _experiment(
        self,
        run: str,
        settings: Mapping[str, Scalar],
        args: tuple[str, ...],
        common: Mapping[str, Any],
    ) -> Request:
        assert self.signature is not None
        for key, value in settings.items():
            if problem := self.signature.check_type(key, value):
                raise self.config.error_at(self.config.path_of(key), problem)
        try:
            arguments = self.signature.complete(self.signature.values(args))
        except ExperimentError as error:
            raise self.config.error_at("space", str(error)) from None
        return ExperimentRequest(
            run=run,
            overrides=args,
            experiment=Experiment(
                self.file, args, tuple(arguments.items()), trackers=self.trackers
            ),
            command=self.folder,
            **common,
        )


def find_objective(config: SweepConfig, path: Path, checkout: Path) -> Objective:
    """Return the recipe, experiment or command that the sweep in ``path`` names.

    Raises RecipeError, with its line, if it does not exist or lacks a setting or the metric.
    """
    if config.command is not None:
        return Objective(path, config, folder=_find_command(config, config.command, path))
    if config.experiment is not None:
        return _find_experiment(config, config.experiment, path, checkout)
    name, known = str(config.recipe), recipes(checkout, path.parent.parent)
    file = known.get(name) or (path.parent / Path(name).expanduser()).resolve()
    if not file.is_file():
        raise config.error_at("recipe", unknown_config("recipe", name, known))
    if config.metric not in METRICS:
        hint = did_you_mean(config.metric, METRICS)
        raise config.error_at(
            "metric",
            f"metric: expected {', '.join(METRICS)} for a recipe, got '{config.metric}'{hint}",
        )
    for key in (*config.keys, *config.fixed, *(config.smoke or {})):
        try:
            full_key(key, key, known_keys(), "train")
        except RecipeError as error:
            message = str(error).partition(": ")[2]
            raise config.error_at(config.path_of(key), message) from None
    return Objective(file, config, folders=(path.parent, file.parent, checkout))


def _find_command(config: SweepConfig, text: str, path: Path) -> UserCommand:
    """Return the command with its placeholders."""
    folder = (path.parent / Path(config.dir).expanduser()).resolve()
    if not folder.is_dir():
        raise config.error_at("dir", f"folder {folder} does not exist")
    try:
        args = tuple(shlex.split(text))
    except ValueError as error:
        raise config.error_at("command", f"invalid shell syntax: {error}") from None
    placeholders = set(PLACEHOLDER.findall(text))
    known = {*config.keys, *config.fixed, *(config.smoke or {})}
    for key in known - placeholders:
        raise config.error_at(config.path_of(key), f"the command has no {{{key}}}")
    for name in placeholders - {*config.keys, *config.fixed} - {"run"}:
        hint = did_you_mean(name, known)
        raise config.error_at("command", f"{{{name}}} is not a key of space or fixed{hint}")
    try:
        check_program(args, folder)
        return UserCommand(
            argv=args,
            folder=folder,
            setup=check_setup(config.setup),
            persist=read_persist_options(config.persist, folder),
            resume_with=config.resume_with,
            resume_if=config.resume_if,
            metrics=read_metrics(config.metrics, folder, args),
        )
    except RunnerError as error:
        raise config.error_at("command", error.message) from None


def fill(argv: Sequence[str], values: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Return ``argv`` with the values in place of their ``{KEY}``."""
    return tuple(
        PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), word) for word in argv
    )


def _find_experiment(config: SweepConfig, name: str, path: Path, checkout: Path) -> Objective:
    file = (path.parent / Path(name).expanduser()).resolve()
    if not file.is_file():
        hint = did_you_mean(file.name, [p.name for p in file.parent.glob("*.py")])
        raise config.error_at("experiment", f"{file} does not exist{hint}")
    try:
        folder = folder_of(file, LaunchArguments(), checkout)
        return Objective(file, config, read_signature(file), folder)
    except ExperimentError as error:
        raise config.error_at("experiment", str(error)) from None


def _is_same(argument: str, recorded: str) -> bool:
    """Return True if a word of a request is the recorded one.

    A record has paths as the job saw them: relative to the checkout, or below /vol.
    """
    requested_path, recorded_path = path_in(argument), path_in(recorded)
    if (
        requested_path is None
        or recorded_path is None
        or replace_path(argument, "") != replace_path(recorded, "")
    ):
        return argument == recorded
    tail = recorded_path.removeprefix("/vol/given").removeprefix("/vol").lstrip("/")
    return requested_path == recorded_path or requested_path.endswith(f"/{tail}")


def as_word(value: Scalar) -> str:
    """Return the value as the user would type it after ``key=``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and yaml.safe_load(value or "''") != value:
        return yaml.safe_dump(value, default_style='"').strip()
    return str(value)

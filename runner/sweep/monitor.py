"""Read the runs of a sweep's trials: their state, result and curve; and the median rule."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from job.exit_status import RecipeError
from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import RunnerError, TargetUnavailable
from runner.request import Request
from runner.runs.history import TailReader
from runner.runs.volume import recipe_of, record_of
from runner.sweep.objective import Objective
from runner.sweep.record import Trial, TrialStatus, cost_of_metric
from runner.target import RunInfo, Target

Curve = Sequence[tuple[int, float]]  # (step, value), steps rising; NaN after a divergence

MIN_OTHERS = 3  # the median of fewer trials is too uncertain to stop one


@dataclass(frozen=True)
class TrialMonitor:
    """Read trials on their target; it changes nothing there."""

    cli: CliContext
    target: Target
    objective: Objective
    curves: dict[str, tuple[TailReader, list[tuple[int, float]]]] = field(default_factory=dict)

    def state(self, run: str) -> RunInfo | None:
        """Return the state of the run; None without one, or if the target is unreachable now."""
        try:
            return self.target.state(run)
        except RunnerError as error:
            self.cli.warn(f"{self.target.name} does not answer ({error.message}); trying again")
        except TargetUnavailable as error:
            self.cli.warn(f"{self.target.name} does not answer ({error}); trying again")
        return None

    def is_foreign(self, trial: Trial, request: Request) -> bool:
        """Return True if a run with other settings has the trial's name."""
        files = self.target.files("checkpoints")
        record = record_of(files, trial.run)
        if record is None:
            return False
        recipe = None
        if request.settings is not None:
            try:
                recipe = recipe_of(files, trial.run)
            except RecipeError as error:
                self.cli.warn(f"{error}; the settings of {trial.run} are not compared")
        return not self.objective.is_trial(record, recipe, request, trial.values)

    def conclude(self, trial: Trial, state: RunInfo) -> None:
        """Update ``trial`` after its run ended."""
        trial.step, trial.cost, trial.cap = state.step, state.cost, None
        trial.started, trial.ended = trial.started or state.started, state.ended or time.time()
        record = record_of(self.target.files("checkpoints"), trial.run)
        metric = self.objective.metric_of(record)
        trial.metric = metric if metric is not None and math.isfinite(metric) else None
        trial.dataset = str(record.dataset.get("fingerprint") or "") if record else ""
        trial.reason = state.reason or ""
        if state.status == RunStatus.FINISHED:
            trial.reason = self.missing_metric(trial.run, state)
            trial.status = TrialStatus.FAILED if trial.reason else TrialStatus.FINISHED
        elif state.status == RunStatus.FAILED:
            trial.status = TrialStatus.FAILED
        else:
            trial.status = TrialStatus.UNFINISHED

    def missing_metric(self, run: str, state: RunInfo) -> str:
        """Return why a finished run has no usable metric; '' if it has one."""
        record, metric = (
            record_of(self.target.files("checkpoints"), run),
            self.objective.config.metric,
        )
        value = self.objective.metric_of(record)
        if value is not None and math.isfinite(value):
            return ""
        curve = self.curve(run)
        if value is None and curve and not math.isfinite(curve[-1][1]):
            value = curve[-1][1]  # the record has null instead
        if value is not None:
            return f"{metric} is {value}: the run diverged"
        available = f"; the result has {', '.join(state.result)}" if state.result else ""
        return f"the result has no number '{metric}'{available}"

    def curve(self, run: str) -> Curve:
        """Return the metric over the steps so far; each call reads only new lines."""
        if run not in self.curves:
            files = self.target.files("checkpoints")
            self.curves[run] = TailReader(files, f"{run}/metrics.jsonl"), []
        file, values = self.curves[run]
        is_complete = False
        while not is_complete:
            piece = file.poll()
            if piece.restarted:
                values.clear()
            values += parse_curve(piece.lines, self.objective.config.metric)
            is_complete = piece.is_complete
        return values

    def last_value(self, run: str) -> float | None:
        """Return the newest finite value of the run's curve; None without one."""
        finite = (value for _, value in reversed(self.curve(run)) if math.isfinite(value))
        return next(finite, None)


def parse_curve(lines: Iterable[str | bytes], metric: str) -> list[tuple[int, float]]:
    """Return the values of ``metric`` in lines of metrics.jsonl.

    ``val_loss`` is the key ``loss`` of lines of kind ``val``. A null is the NaN of a divergence.
    """
    values = []
    for line in lines:
        try:
            row = json.loads(line)
            step, kind = int(row["step"]), row["kind"]
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue
        for key, value in row.items():
            names = (key, f"{kind}_{key}", f"{kind}/{key}", f"best_{kind}_{key}")
            if metric not in names or key in ("step", "kind"):
                continue
            if value is None or isinstance(value, int | float):
                values.append((step, math.nan if value is None else float(value)))
    return values


def should_stop_early(
    trial: Curve, others: Mapping[str, Curve], goal: str, grace_steps: int
) -> str:
    """Return why the median rule stops the trial; '' if it continues.

    It is stopped if its best value is worse than the median of the other trials' averages up to
    the same step. ``others`` maps run to curve. A trial that diverged counts as the worst.
    """
    if not trial or trial[-1][0] < grace_steps:
        return ""
    step = trial[-1][0]
    averages = [
        cost_of_metric(fmean(_values_until(curve, step)), goal)
        for curve in others.values()
        if curve and curve[-1][0] >= step  # a shorter curve says nothing about this step
    ]
    if len(averages) < MIN_OTHERS:
        return ""
    best = min(cost_of_metric(value, goal) for _, value in trial)
    limit = median(averages)
    if best <= limit:
        return ""
    shown = [_format_metric(cost, goal) for cost in (best, limit)]
    return f"median rule at step {step}: best {shown[0]}, median {shown[1]}"


def _values_until(curve: Curve, step: int) -> list[float]:
    return [value for at, value in curve if at <= step or at == curve[0][0]]


def _format_metric(cost: float, goal: str) -> str:
    """Return a sort key of `cost_of_metric` as the metric it came from."""
    if math.isinf(cost) and cost > 0:
        return "nan"
    return f"{cost if goal == 'min' else -cost:.4g}"

"""Looking at a trial's run on its target: how it stands, what it reached, whether it is the trial at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from runner.console import CliContext
from runner.errors import RunnerError
from runner.request import Request
from runner.runs.store import record_of
from runner.runs.tail_reader import TailReader
from runner.sweep.objective import Objective
from runner.sweep.record import Trial, now
from runner.target import RunInfo, Target


@dataclass(frozen=True)
class TrialMonitor:
    """Reads alone; nothing on the target is changed."""

    cli: CliContext
    target: Target
    subject: Objective
    curves: dict[str, tuple[TailReader, list[tuple[int, float]]]] = field(default_factory=dict)

    def state(self, run: str) -> RunInfo | None:
        """None where there is none, and where the target can't be asked now: a laptop that slept asks again."""
        try:
            return self.target.state(run)
        except RunnerError as error:
            self.cli.warn(f"{self.target.name} does not answer ({error.message}); asking again")
        except Exception as error:
            if not is_unavailable(error):
                raise
            self.cli.warn(f"Modal does not answer ({error}); asking again")
        return None

    def is_foreign(self, trial: Trial, request: Request) -> bool:
        """Whether the run is another one that happens to have the trial's name."""
        record = record_of(self.target.files("checkpoints"), trial.run)
        return record is not None and not self.subject.is_trial(record, request, trial.values)

    def conclude(self, trial: Trial, state: RunInfo) -> None:
        """Note in ``trial`` how its run ended."""
        trial.step, trial.cost, trial.cap = state.step, state.cost, None
        trial.started, trial.ended = trial.started or state.started, state.ended or now()
        trial.metric = self.subject.metric_of(
            record_of(self.target.files("checkpoints"), trial.run)
        )
        trial.reason = state.reason or ""
        if state.status == "finished" and trial.metric is None:
            trial.status, trial.reason = "failed", self.lacks_metric(trial.run, state)
        elif state.status == "finished":
            trial.status, trial.reason = "finished", ""
        else:
            trial.status = "failed" if state.status == "failed" else "unfinished"

    def lacks_metric(self, run: str, state: RunInfo) -> str:
        """What is wrong with the result of a finished run; '' where it holds the metric."""
        if self.subject.metric_of(record_of(self.target.files("checkpoints"), run)) is not None:
            return ""
        has = f"; it has {', '.join(state.result)}" if state.result else ""
        return f"its result holds no number {self.subject.config.metric}{has}"

    def curve(self, run: str) -> Curve:
        """The metric over the steps so far; each call reads what is new."""
        if run not in self.curves:
            files = self.target.files("checkpoints")
            self.curves[run] = TailReader(files, f"{run}/metrics.jsonl"), []
        file, values = self.curves[run]
        is_all = False
        while not is_all:
            piece = file.poll()
            if piece.restarted:
                values.clear()
            values += curve(piece.lines, self.subject.config.metric)
            is_all = piece.is_complete
        return values


def is_unavailable(error: Exception) -> bool:
    """Whether Modal could not be reached. By name: nothing of the cloud is loaded here."""
    return type(error).__name__ == "Unavailable"


Curve = Sequence[tuple[int, float]]  # (step, value), steps rising

OTHERS = 3  # fewer say too little


def curve(lines: Iterable[str | bytes], metric: str) -> list[tuple[int, float]]:
    """The values of ``metric`` in the lines of a metrics.jsonl: ``val_loss`` is the loss of its lines ``val``."""
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            step, kind = int(row["step"]), row["kind"]
        except (ValueError, LookupError, TypeError):
            continue
        for key, value in row.items():
            names = (key, f"{kind}_{key}", f"{kind}/{key}", f"best_{kind}_{key}")
            if metric in names and key not in ("step", "kind") and isinstance(value, int | float):
                found.append((step, float(value)))
    return found


def should_prune(trial: Curve, others: Mapping[str, Curve], goal: str, grace_steps: int) -> str:
    """Why to stop the trial with this curve; '' where it may go on. ``others``: run → curve."""
    if not trial or trial[-1][0] < grace_steps:
        return ""
    step = trial[-1][0]
    sign = 1.0 if goal == "min" else -1.0
    averages = []
    for values in others.values():
        if (
            values and values[-1][0] >= step
        ):  # one that has not come so far says nothing of this step
            averages.append(
                fmean(sign * value for at, value in values if at <= step or at == values[0][0])
            )
    if len(averages) < OTHERS:
        return ""
    best = min((sign * value for _, value in trial if not math.isnan(value)), default=math.inf)
    limit = median(averages)
    if best <= limit:
        return ""
    return f"median rule at step {step}: {sign * best:.4g} at best, half of the others {sign * limit:.4g}"

"""Looking at a trial's run on its target: how it stands, what it reached, whether it is the trial at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from runner.errors import RunnerError
from runner.history.growing import GrowingFile
from runner.requests.request import Request
from runner.runs.on_volumes import record_of
from runner.sweep.median import Curve, curve
from runner.sweep.record import Trial, now
from runner.sweep.subject import Subject
from runner.targets.protocol import RunState, Target
from runner.terminal import Environment


@dataclass(frozen=True)
class Look:
    """Reads alone; nothing on the target is changed."""

    env: Environment
    target: Target
    subject: Subject
    curves: dict[str, tuple[GrowingFile, list[tuple[int, float]]]] = field(default_factory=dict)

    def state(self, run: str) -> RunState | None:
        """None where there is none, and where the target can't be asked now: a laptop that slept asks again."""
        try:
            return self.target.state(run)
        except RunnerError as error:
            self.env.warn(f"{self.target.name} does not answer ({error.message}); asking again")
        except Exception as error:
            if not is_unavailable(error):
                raise
            self.env.warn(f"Modal does not answer ({error}); asking again")
        return None

    def is_foreign(self, trial: Trial, request: Request) -> bool:
        """Whether the run is another one that happens to have the trial's name."""
        record = record_of(self.target.files("checkpoints"), trial.run)
        return record is not None and not self.subject.is_trial(record, request, trial.values)

    def conclude(self, trial: Trial, state: RunState) -> None:
        """Note in ``trial`` how its run ended."""
        trial.step, trial.cost, trial.cap = state.step, state.cost, None
        trial.started, trial.ended = trial.started or state.started, state.ended or now()
        trial.metric = self.subject.metric_of(record_of(self.target.files("checkpoints"), trial.run))
        trial.reason = state.reason or ""
        if state.status == "finished" and trial.metric is None:
            trial.status, trial.reason = "failed", self.lacks_metric(trial.run, state)
        elif state.status == "finished":
            trial.status, trial.reason = "finished", ""
        else:
            trial.status = "failed" if state.status == "failed" else "unfinished"

    def lacks_metric(self, run: str, state: RunState) -> str:
        """What is wrong with the result of a finished run; '' where it holds the metric."""
        if self.subject.metric_of(record_of(self.target.files("checkpoints"), run)) is not None:
            return ""
        has = f"; it has {', '.join(state.result)}" if state.result else ""
        return f"its result holds no number {self.subject.config.metric}{has}"

    def curve(self, run: str) -> Curve:
        """The metric over the steps so far; each call reads what is new."""
        if run not in self.curves:
            files = self.target.files("checkpoints")
            self.curves[run] = GrowingFile(files, f"{run}/metrics.jsonl"), []
        file, values = self.curves[run]
        is_all = False
        while not is_all:
            piece = file.look()
            if piece.anew:
                values.clear()
            values += curve(piece.lines, self.subject.config.metric)
            is_all = piece.is_all
        return values


def is_unavailable(error: Exception) -> bool:
    """Whether Modal could not be reached. By name: nothing of the cloud is loaded here."""
    return type(error).__name__ == "Unavailable"

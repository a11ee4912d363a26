"""Conducting a sweep: start what fits, look at what runs, write down what ended. The decisions are elsewhere.

Every trial is started detached: it does not depend on this process, which may be killed at any moment. Begun again,
it finds in the records what is finished, and what still runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from signal import SIGINT, Signals
from statistics import fmean

from job.exit_status import ExitStatus
from runner.console import CliContext
from runner.errors import RunnerError
from runner.format import dollars
from runner.request import Request
from runner.signals import SignalForwarder
from runner.sweep.monitor import Curve, TrialMonitor, is_unavailable, should_prune
from runner.sweep.objective import Objective
from runner.sweep.record import SweepRecord, Trial, now
from runner.sweep.results import best_so_far, in_words
from runner.sweep.trial_launch import NO_LIMIT, start
from runner.target import RunInfo, Target

STOPPERS = 8  # trials that are stopped at the same time


@dataclass
class SweepScheduler:
    """One sweep on one target. ``requests``: run → what is asked of the target; ``costs``: run → estimated dollars."""

    cli: CliContext
    target: Target
    record: SweepRecord
    folder: Path
    subject: Objective
    requests: Mapping[str, Request]
    costs: Mapping[str, float | None]
    max_parallel: int = 1
    stopping: threading.Event = field(default_factory=threading.Event)
    killing: threading.Event = field(default_factory=threading.Event)
    begun: dict[str, int] = field(default_factory=dict)  # run that was started now → its place
    leaving: bool = False  # the trials go on without this process
    unpaid: bool = False  # the budget can't pay for a further trial
    curves: dict[str, Curve] = field(default_factory=dict)

    def conduct(self) -> ExitStatus:
        """Run what is left. 0: done; 101: interrupted; 104: the budget is used up; 100: no trial succeeded."""
        with SignalForwarder(self._asked, self.killing.set):
            self._find_again()
            while not self.stopping.is_set():
                self._look()
                self._fill()
                if not self.running:
                    break
                self._stop_hopeless()
                self.stopping.wait(self.target.poll_interval_s)
            if self.stopping.is_set() and not self.leaving:
                self._stop_all()
        if self.leaving:
            return ExitStatus.INTERRUPTED
        left = self.record.count("unfinished", "waiting")
        if self.unpaid and left:
            return ExitStatus.OVER_BUDGET
        if self.stopping.is_set() or left:
            return ExitStatus.UNFINISHED
        return ExitStatus.DONE if self.record.count("finished") else ExitStatus.JOB_FAILED

    @cached_property
    def at(self) -> TrialMonitor:
        """How the runs stand."""
        return TrialMonitor(self.cli, self.target, self.subject)

    @property
    def running(self) -> list[Trial]:
        """The trials at work."""
        return [trial for trial in self.record.trials if trial.status == "running"]

    def purse(self) -> BudgetState:
        """The money as it stands."""
        return BudgetState(self.record.budget, self.record.spent, self.record.reserved)

    # --- looking --------------------------------------------------------------------------------

    def _find_again(self) -> None:
        """What is known of trials that were begun earlier, by whomever."""
        for trial in self.record.trials:
            if trial.is_over:
                continue
            state = self.at.state(trial.run)
            if state is None:
                trial.status = "waiting"
            elif self.at.is_foreign(trial, self.requests[trial.run]):
                trial.status = "failed"
                trial.reason = (
                    "a run of its name is there, with other settings; give the sweep another --name"
                )
                self._tell(trial)
            elif state.alive:
                trial.status = "running"
                self.cli.info(f"{trial.run} is at work since earlier; it is followed")
            elif state.status != "failed" or trial.status == "running":
                self.at.conclude(trial, state)
        self._save()

    def _look(self) -> None:
        for trial in self.running:
            state = self.at.state(trial.run)
            if state is None:
                continue
            trial.step, trial.cost = state.step, state.cost
            if not state.alive:
                self.at.conclude(trial, state)
                self._tell(trial)
                self._save()

    # --- starting -------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start what there is room and money for. What ended unfinished is left to the next time."""
        waiting = [
            trial
            for trial in self.record.trials
            if trial.status in ("waiting", "unfinished") and trial.run not in self.begun
        ]
        room = min(self.max_parallel - len(self.running), len(waiting))
        if room <= 0:
            return
        seen = [t.cost for t in self.record.trials if t.status == "finished" and t.cost]
        expected = expected_cost(self.costs.get(waiting[0].run), seen)
        paid = allocate(self.purse(), expected, room)
        if not paid and not self.running:
            about = f", and a trial takes about {dollars(expected)}" if expected else ""
            self.cli.info(
                f"{dollars(self.purse().left)} of the budget is left{about}: no further trial is started"
            )
            self.unpaid = True
        for trial, share in zip(waiting, paid, strict=False):
            if not self.stopping.is_set():
                self._begin(trial, share)

    def _begin(self, trial: Trial, share: float) -> None:
        taken = {self.begun.get(other.run) for other in self.running}
        place = next(number for number in range(self.max_parallel + 1) if number not in taken)
        self.begun[trial.run] = place
        trial.cap = None if share == NO_LIMIT else (trial.cost or 0.0) + share
        before = trial.status
        trial.status, trial.reason, trial.started = "running", "", now()
        self._save()  # before the start: what runs and is not known would be run twice
        try:
            start(
                self.cli,
                self.target,
                self.requests[trial.run],
                trial.cap,
                (place, self.max_parallel),
            )
        except Exception as error:
            if not isinstance(error, RunnerError | OSError) and not is_unavailable(error):
                raise
            # No fault of the trial's: it is left for the next time.
            said = error.message if isinstance(error, RunnerError) else str(error)
            trial.status, trial.reason, trial.cap = before, said, None
            self.cli.warn(f"{trial.run} could not be started: {said}")
            self._save()
            return
        self.cli.info(
            f"{trial.run} {'goes on' if before == 'unfinished' else 'started'}: {in_words(trial)}"
        )

    # --- stopping -------------------------------------------------------------------------------

    def _stop_hopeless(self) -> None:
        """The median rule."""
        config = self.subject.config
        if config.early_stop is None:
            return
        for trial in self.record.trials:
            if trial.status == "running" or (
                trial.metric is not None and trial.run not in self.curves
            ):
                self.curves[trial.run] = self.at.curve(trial.run)
        bad: list[Trial] = []
        for trial in self.running:
            others = {run: values for run, values in self.curves.items() if run != trial.run}
            why = should_prune(self.curves[trial.run], others, config.goal, config.grace_steps)
            if why and trial.run not in {t.run for t in bad}:
                trial.reason = why
                bad.append(trial)
        for trial, state in self._stop(bad):
            why = trial.reason
            self.at.conclude(trial, state)
            if trial.status == "unfinished":
                trial.status, trial.reason = "stopped", why
                values = [value for _, value in self.at.curve(trial.run)]
                if trial.metric is None and values:
                    trial.metric = values[-1]
            self._tell(trial)
        if bad:
            self._save()

    def _stop_all(self) -> None:
        for trial, state in self._stop(self.running):
            self.at.conclude(trial, state)
            self._tell(trial)
        self._save()

    def _stop(self, trials: list[Trial]) -> list[tuple[Trial, RunInfo]]:
        """Have them write their checkpoints and end, all at once; how each stands then."""
        if not trials:
            return []
        pool = ThreadPoolExecutor(STOPPERS)
        asked = {trial.run: pool.submit(self.target.stop, trial.run) for trial in trials}
        while not all(future.done() for future in asked.values()):
            if self.killing.wait(self.target.poll_interval_s):
                self.cli.info("killing them")
                for trial in trials:
                    self.target.stop(trial.run, force=True)
                break
        for run, future in asked.items():
            if future.done() and future.exception() is not None:
                self.cli.warn(f"{run}: {future.exception()}")
        pool.shutdown(wait=not self.killing.is_set(), cancel_futures=True)
        found = []
        for trial in trials:
            state = self.at.state(trial.run)
            if state is not None and not state.alive:
                found.append((trial, state))
        return found

    def _asked(self, which: Signals) -> None:
        if self.target.bills and which != SIGINT:
            # As a run in the cloud does: a closed terminal is no reason to stop what is paid for elsewhere.
            self.leaving = True
            self.cli.info("left; the trials at work go on, and the same line follows them")
            self.stopping.set()
            return
        self.cli.info(
            "stopping: the trials at work write their checkpoints; Ctrl-C again kills them"
        )
        self.stopping.set()

    # --- telling --------------------------------------------------------------------------------

    def _tell(self, trial: Trial) -> None:
        record = self.record
        metric = f", {record.metric} {trial.metric:.4g}" if trial.metric is not None else ""
        reason = f" ({trial.reason.splitlines()[0]})" if trial.reason else ""
        done = sum(t.is_over for t in record.trials)
        money = f"; {dollars(record.spent)}" if record.spent else ""
        self.cli.info(
            f"{trial.run} {trial.status}{metric}{reason}   [{done} of {len(record.trials)}{best_so_far(record)}{money}]"
        )

    def _save(self) -> None:
        self.record.write(self.folder)


@dataclass(frozen=True)
class BudgetState:
    """``spent`` by what has ended, ``reserved`` for what runs; ``total`` None: no limit."""

    total: float | None
    spent: float = 0.0
    reserved: float = 0.0

    @property
    def left(self) -> float:
        """What nobody has yet."""
        return (
            float("inf")
            if self.total is None
            else max(0.0, self.total - self.spent - self.reserved)
        )


def expected_cost(estimate: float | None, seen: Sequence[float]) -> float | None:
    """What a trial will cost: the mean of those that have finished, else the estimate; None: nobody knows."""
    return fmean(seen) if seen else estimate


def allocate(purse: BudgetState, expected: float | None, slots: int) -> list[float]:
    """For each trial that can start now, at most ``slots``, what it may cost. Fewer start where not all can be
    paid for: one that would end at its cap in the middle is money for nothing."""
    if purse.total is None:
        return [float("inf")] * slots
    if purse.left <= 0:
        return []
    count = slots
    if expected is not None and expected > 0:
        count = min(slots, int(purse.left / expected))
    return [purse.left / count] * count if count else []

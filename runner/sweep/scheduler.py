"""Run the trials of a sweep: start them, poll them, record the results.

Trials start detached, so they survive this process. The next scheduler process reads from the
records which trials have finished and which are still running.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from signal import SIGINT, Signals

from job.exit_status import ExitStatus
from job.format import dollars, one_line
from job.run_record import RunStatus
from runner.console import CliContext
from runner.errors import RunnerError
from runner.request import Request
from runner.signals import SignalForwarder, press_ctrl_c
from runner.sweep.monitor import Curve, TrialMonitor, should_stop_early
from runner.sweep.objective import Objective
from runner.sweep.plan import allocate, expected_cost, start_trial
from runner.sweep.record import NO_LIMIT, SweepRecord, Trial, TrialStatus
from runner.sweep.results import best_so_far, format_values
from runner.target import RunInfo, Target

STOP_THREADS = 8  # trials that are stopped at the same time


@dataclass
class SweepScheduler:
    """One sweep on one target.

    ``requests`` maps each run to its request, ``costs`` to its estimated dollars.
    """

    cli: CliContext
    target: Target
    record: SweepRecord
    folder: Path
    objective: Objective
    requests: Mapping[str, Request]
    costs: Mapping[str, float | None]
    max_parallel: int = 1
    stopping: threading.Event = field(default_factory=threading.Event)
    killing: threading.Event = field(default_factory=threading.Event)
    slots: dict[str, int] = field(default_factory=dict)  # run that this process started → its slot
    detached: bool = False  # leave the trials running
    out_of_budget: bool = False
    curves: dict[str, Curve] = field(default_factory=dict)

    def run(self) -> ExitStatus:
        """Run the remaining trials.

        Returns 0 when done, 101 if interrupted, 104 if the budget is used up, 100 if no trial
        succeeded.
        """
        with SignalForwarder(self._on_signal, self.killing.set):
            self._find_earlier_trials()
            while not self.stopping.is_set():
                self._poll()
                self._start_trials()
                if not self.running:
                    break
                self._stop_early()
                self.stopping.wait(self.target.poll_interval_s)
            if self.stopping.is_set() and not self.detached:
                self._stop_all()
        if self.detached:
            return ExitStatus.INTERRUPTED
        num_remaining = self.record.count(TrialStatus.UNFINISHED, TrialStatus.WAITING)
        if self.out_of_budget and num_remaining:
            return ExitStatus.OVER_BUDGET
        if self.stopping.is_set() or num_remaining:
            return ExitStatus.UNFINISHED
        return ExitStatus.DONE if self.record.count(TrialStatus.FINISHED) else ExitStatus.JOB_FAILED

    @cached_property
    def monitor(self) -> TrialMonitor:
        """Return the reader of the trials' runs."""
        return TrialMonitor(self.cli, self.target, self.objective)

    @property
    def running(self) -> list[Trial]:
        """Return the running trials."""
        return [trial for trial in self.record.trials if trial.status == TrialStatus.RUNNING]

    # --- poll -----------------------------------------------------------------------------------

    def _find_earlier_trials(self) -> None:
        """Update the trials that an earlier process, or the user, started."""
        for trial in self.record.trials:
            if trial.is_completed:
                continue
            state = self.monitor.state(trial.run)
            if state is None:
                trial.status = TrialStatus.WAITING
            elif self.monitor.is_foreign(trial, self.requests[trial.run]):
                trial.status = TrialStatus.FAILED
                trial.reason = (
                    "a run with this name has other settings; rename the sweep with --name NEW-NAME"
                )
                self._report(trial)
            elif state.alive:
                trial.status = TrialStatus.RUNNING
                self.cli.info(f"{trial.run} is already running; following it")
            elif state.status != RunStatus.FAILED or trial.status == TrialStatus.RUNNING:
                self.monitor.conclude(trial, state)
        self._save()

    def _poll(self) -> None:
        for trial in self.running:
            state = self.monitor.state(trial.run)
            if state is None:
                continue
            trial.step, trial.cost = state.step, state.cost
            if not state.alive:
                self.monitor.conclude(trial, state)
                # The curve was read while the trial was running, so it may lack the last lines:
                # `_stop_early` reads it again.
                self.curves.pop(trial.run, None)
                self._report(trial)
                self._save()

    # --- start ----------------------------------------------------------------------------------

    def _start_trials(self) -> None:
        """Fill the free slots, as far as the budget allows.

        A trial that this process started and that ended unfinished waits for the next process.
        """
        waiting = [
            trial
            for trial in self.record.trials
            if trial.status in (TrialStatus.WAITING, TrialStatus.UNFINISHED)
            and trial.run not in self.slots
        ]
        free = min(self.max_parallel - len(self.running), len(waiting))
        if free <= 0:
            return
        finished = [
            trial.cost
            for trial in self.record.trials
            if trial.status == TrialStatus.FINISHED and trial.cost
        ]
        expected = expected_cost(self.costs.get(waiting[0].run), finished)
        caps = allocate(self.record.available_usd, expected, free)
        if not caps and not self.running:
            about = f" and a trial costs about {dollars(expected)}" if expected else ""
            available = dollars(self.record.available_usd)
            self.cli.info(
                f"not starting another trial: only {available} of the budget is left{about}; "
                "to continue, run the same command with a higher --budget"
            )
            self.out_of_budget = True
        for trial, cap in zip(waiting, caps, strict=False):
            if not self.stopping.is_set():
                self._start(trial, cap)

    def _start(self, trial: Trial, cap: float) -> None:
        occupied = {self.slots.get(other.run) for other in self.running}
        slot = next(number for number in range(self.max_parallel + 1) if number not in occupied)
        self.slots[trial.run] = slot
        trial.cap = None if cap == NO_LIMIT else (trial.cost or 0.0) + cap
        before = trial.status
        trial.status, trial.reason, trial.started = TrialStatus.RUNNING, "", time.time()
        self._save()  # before the start: an unrecorded trial would be started twice
        request = self.requests[trial.run]
        try:
            start_trial(self.cli, self.target, request, trial.cap, slot, self.max_parallel)
        except (RunnerError, OSError) as error:
            # Not the trial's fault: the next process tries again.
            message = error.message if isinstance(error, RunnerError) else str(error)
            trial.status, trial.reason, trial.cap = before, message, None
            self.cli.warn(f"{trial.run} could not be started: {message}")
            self._save()
            return
        verb = "resumed" if before == TrialStatus.UNFINISHED else "started"
        self.cli.info(f"{trial.run} {verb}: {format_values(trial)}")

    # --- stop -----------------------------------------------------------------------------------

    def _stop_early(self) -> None:
        """Stop the running trials that the median rule rejects."""
        config = self.objective.config
        if config.early_stop is None:
            return
        for trial in self.record.trials:
            is_unread = trial.is_completed and trial.run not in self.curves
            if trial.status == TrialStatus.RUNNING or is_unread:
                self.curves[trial.run] = self.monitor.curve(trial.run)
        rejected: list[Trial] = []
        for trial in self.running:
            others = {run: values for run, values in self.curves.items() if run != trial.run}
            reason = should_stop_early(
                self.curves[trial.run], others, config.goal, config.grace_steps
            )
            if reason:
                trial.reason = reason
                rejected.append(trial)
        for trial, state in self._stop(rejected):
            reason = trial.reason
            self.monitor.conclude(trial, state)
            if trial.status == TrialStatus.UNFINISHED:
                trial.status, trial.reason = TrialStatus.STOPPED, reason
                if trial.metric is None:
                    trial.metric = self.monitor.last_value(trial.run)
            self._report(trial)
        if rejected:
            self._save()

    def _stop_all(self) -> None:
        for trial, state in self._stop(self.running):
            self.monitor.conclude(trial, state)
            self._report(trial)
        self._save()

    def _stop(self, trials: list[Trial]) -> list[tuple[Trial, RunInfo]]:
        """Stop the trials at the same time; return those that ended, each with its state."""
        if not trials:
            return []
        pool = ThreadPoolExecutor(STOP_THREADS)
        stops = {trial.run: pool.submit(self.target.stop, trial.run) for trial in trials}
        while not all(future.done() for future in stops.values()):
            if self.killing.wait(self.target.poll_interval_s):
                self.cli.info("killing the trials")
                for trial in trials:
                    self.target.stop(trial.run, force=True)
                break
        for run, future in stops.items():
            if future.done() and future.exception() is not None:
                self.cli.warn(f"{run}: {future.exception()}")
        pool.shutdown(wait=not self.killing.is_set(), cancel_futures=True)
        ended = []
        for trial in trials:
            state = self.monitor.state(trial.run)
            if state is not None and not state.alive:
                ended.append((trial, state))
        return ended

    def _on_signal(self, received: Signals) -> None:
        if self.target.bills and received != SIGINT:
            # A closed terminal must not stop trials that are running on Modal.
            self.detached = True
            self.cli.info("detached; the trials continue; run the same command to follow them")
        else:
            self.cli.info(
                "stopping: the trials write their checkpoints; "
                f"{press_ctrl_c(received)} to kill them"
            )
        self.stopping.set()

    # --- report ---------------------------------------------------------------------------------

    def _report(self, trial: Trial) -> None:
        record = self.record
        metric = f", {record.metric} {trial.metric:.4g}" if trial.metric is not None else ""
        reason = f" ({one_line(trial.reason.splitlines()[0])})" if trial.reason else ""
        done = sum(trial.is_completed for trial in record.trials)
        money = f"; {dollars(record.spent)}" if record.spent else ""
        progress = f"{done} of {len(record.trials)}{best_so_far(record)}{money}"
        self.cli.info(f"{trial.run} {trial.status}{metric}{reason}   [{progress}]")

    def _save(self) -> None:
        self.record.write(self.folder)

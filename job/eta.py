"""Estimate the duration of the whole run from its first steps.

    eta = EtaEstimator(config, first_step=0, eval_tokens=65536)
    eta.steps(10, last=60, seconds=1.2); eta.evaluation(0.8); eta.checkpoint(0.05)
    eta.left(step=60)      # seconds to the last step; None before 50 steps are measured

The first steps are skipped: they compile, fill caches, and choose kernels. The unit is seconds per
token, not per step: a batch_schedule makes later steps longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median

from job.display import Display
from job.format import duration
from job.recipe import TrainConfig
from job.run_session import RunSession
from job.schedules import tokens_before

WARM_UP = 5  # first steps of an attempt, not measured

MEASURED_FROM = 50  # steps of an attempt before the first estimate

# Speed of an evaluation relative to training, until one is measured: it has no backward pass, which
# costs twice the forward pass, and no optimizer step.
EVALUATION_SPEEDUP = 3.0


@dataclass
class EtaEstimator:
    """Durations of one attempt's steps, evaluations and checkpoints, in seconds."""

    config: TrainConfig
    first_step: int
    eval_tokens: int
    measured: int = 0  # tokens
    seconds: float = 0.0  # of them
    evaluations: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)

    def reads_at(self, step: int) -> bool:
        """Return True if the clock must be read after ``step``.

        After the warm-up, and for the estimate.
        """
        return step - self.first_step in (WARM_UP, MEASURED_FROM)

    def steps(self, count: int, last: int, seconds: float) -> None:
        """Add ``count`` steps, the last of them ``last``, that took ``seconds``."""
        if last - count >= self.first_step + WARM_UP:
            self.measured += tokens_before(self.config, last) - tokens_before(
                self.config, last - count
            )
            self.seconds += seconds

    def evaluation(self, seconds: float) -> None:
        """Add an evaluation."""
        self.evaluations.append(seconds)

    def checkpoint(self, seconds: float) -> None:
        """Add the seconds that a checkpoint blocked the training."""
        self.checkpoints.append(seconds)

    def sample(self, seconds: float) -> None:
        """Add a sample."""
        self.samples.append(seconds)

    def left(self, step: int) -> float | None:
        """Return the seconds from ``step`` to the end of the run.

        None if it is too early to tell.
        """
        if step - self.first_step < MEASURED_FROM or not self.measured:
            return None
        config, each = self.config, self.seconds / self.measured
        tokens = tokens_before(config, config.max_steps) - tokens_before(config, step)
        evaluations = _times(step, config.max_steps, config.eval_every)
        checkpoints = _times(step, config.max_steps, config.checkpoint_every)
        every = config.sample_every
        samples = (
            (config.max_steps - 1) // every - step // every
            if every and step < config.max_steps
            else 0
        )
        return (
            tokens * each
            + evaluations * self._evaluation_seconds(each)
            + checkpoints * (fmean(self.checkpoints) if self.checkpoints else 0.0)
            + samples * (fmean(self.samples) if self.samples else 0.0)
        )

    def _evaluation_seconds(self, per_token: float) -> float:
        if len(self.evaluations) > 1:  # the first compiles
            return median(self.evaluations[1:])
        if self.evaluations:
            return self.evaluations[0]
        return self.eval_tokens * per_token / EVALUATION_SPEEDUP


def announce(session: RunSession, display: Display, step: int, seconds: float, left: float) -> None:
    """Record the run's expected duration; print it the first time. ``seconds`` have passed."""
    whole = seconds + left
    session.progress(expected_seconds_now=round(whole, 1))
    if session.record.expected_seconds is None:
        session.progress(expected_seconds=round(whole, 1))
        planned = (session.attempt.launch.get("estimate") or {}).get("seconds")
        said = f"; the plan said {duration(planned)}" if planned else ""
        display.say(
            f"estimated duration: {duration(whole)} with evaluations and checkpoints, from the "
            "first "
            f"{step} steps; {duration(left)} left{said}"
        )


def _times(step: int, last: int, every: int) -> int:
    """Return how often an event, every ``every`` steps and at the last, follows ``step``."""
    if step >= last:
        return 0
    return last // every - step // every + (last % every != 0)

"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean, median

from job.display import Display
from job.format import duration
from job.recipe import TrainConfig
from job.run_session import RunSession
from job.schedules import tokens_before

WARM_UP = 5  # steps of an attempt that are not measured

MEASURED_FROM = 50  # steps of an attempt after which the estimate stands

# An evaluation that was not seen yet is put at this many times the speed of training: it has no backward pass,
# which costs twice the forward one, and no optimizer.
EVALUATION_SPEEDUP = 3.0


@dataclass
class EtaEstimator:
    """Seconds of one attempt's steps, evaluations and checkpoints. ``eval_tokens``: of one evaluation."""

    config: TrainConfig
    first_step: int
    eval_tokens: int
    measured: int = 0  # tokens
    seconds: float = 0.0  # of them
    evaluations: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)

    def reads_at(self, step: int) -> bool:
        """Whether the clock must be read behind this step: where the warm-up ends, and where the estimate is due."""
        return step - self.first_step in (WARM_UP, MEASURED_FROM)

    def steps(self, count: int, last: int, seconds: float) -> None:
        """``count`` steps, the newest of them ``last``, took ``seconds``."""
        if last - count >= self.first_step + WARM_UP:
            self.measured += tokens_before(self.config, last) - tokens_before(
                self.config, last - count
            )
            self.seconds += seconds

    def evaluation(self, seconds: float) -> None:
        """An evaluation took ``seconds``."""
        self.evaluations.append(seconds)

    def checkpoint(self, seconds: float) -> None:
        """A checkpoint stopped the training for ``seconds``."""
        self.checkpoints.append(seconds)

    def sample(self, seconds: float) -> None:
        """A sample on the way took ``seconds``."""
        self.samples.append(seconds)

    def left(self, step: int) -> float | None:
        """Seconds from ``step`` to the end, evaluations and checkpoints included; None while it is too early."""
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
        if len(self.evaluations) > 1:  # the first one compiles
            return median(self.evaluations[1:])
        if self.evaluations:
            return self.evaluations[0]
        return self.eval_tokens * per_token / EVALUATION_SPEEDUP


def announce(session: RunSession, display: Display, step: int, seconds: float, left: float) -> None:
    """Note what the whole run takes, ``seconds`` of it being over at ``step``; say it when it is known first."""
    whole = seconds + left
    session.progress(expected_seconds_now=round(whole, 1))
    if session.record.expected_seconds is None:
        session.progress(expected_seconds=round(whole, 1))
        planned = (session.attempt.launch.get("estimate") or {}).get("seconds")
        said = f"; the plan said {duration(planned)}" if planned else ""
        display.say(
            f"about {duration(whole)} in all by its first {step} steps, evaluations and checkpoints included, "
            f"{duration(left)} of them to come{said}"
        )


def _times(step: int, last: int, every: int) -> int:
    """How often something that happens every ``every`` steps and at the last one is still to come after ``step``."""
    if step >= last:
        return 0
    return last // every - step // every + (last % every != 0)

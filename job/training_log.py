"""The reports of a training run: metrics, display, record, estimated duration. Imports no torch.

log = TrainingLog(recipe, folder, display, session, ceilings=[989e12, None])
log.start(eval_tokens=65536)
log.progress.step += 1
log.record_steps([2.5], [0.7], [1e-3], log.lap(), flops_per_token=9e8)
log.record_evaluation(2.4, tokens=65536); log.close()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

from job.display import Display
from job.exit_status import NonFiniteLoss
from job.format import duration
from job.metrics import Metrics
from job.recipe import Recipe, TrainConfig
from job.run_session import RunSession
from job.schedules import tokens_before
from job.step_folders import step_folder

WARM_UP = 5  # first steps of an attempt, not measured

MEASURED_FROM = 50  # steps of an attempt before the first estimate

# Speed of an evaluation relative to training, until one is measured: it has no backward pass, which
# costs twice the forward pass, and no optimizer step.
EVALUATION_SPEEDUP = 3.0


@dataclass
class EtaEstimator:
    """Durations of one attempt's steps, evaluations and checkpoints, in seconds.

        eta = EtaEstimator(config, first_step=0, eval_tokens=65536)
        eta.add_steps(10, last=60, seconds=1.2); eta.evaluations.append(0.8)
        eta.remaining_s(step=60)  # seconds to the last step; None before 50 steps are measured

    The first steps are skipped: they compile, fill caches, and choose kernels. The unit is seconds
    per token, not per step: a batch_schedule makes later steps longer.
    """

    config: TrainConfig
    first_step: int
    eval_tokens: int
    measured: int = 0  # tokens
    seconds: float = 0.0  # of them
    evaluations: list[float] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)  # in which they blocked the training
    samples: list[float] = field(default_factory=list)

    def reads_at(self, step: int) -> bool:
        """Return True if the estimate needs the clock after ``step``, as after the warm-up."""
        return step - self.first_step in (WARM_UP, MEASURED_FROM)

    def add_steps(self, count: int, last: int, seconds: float) -> None:
        """Add ``count`` steps, the last of them ``last``, that took ``seconds``."""
        if last - count >= self.first_step + WARM_UP:
            self.measured += tokens_before(self.config, last) - tokens_before(
                self.config, last - count
            )
            self.seconds += seconds

    def remaining_s(self, step: int) -> float | None:
        """Return the seconds from ``step`` to the run's end; None if it is too early to tell."""
        if step - self.first_step < MEASURED_FROM or not self.measured:
            return None
        config, each = self.config, self.seconds / self.measured
        tokens = tokens_before(config, config.max_steps) - tokens_before(config, step)
        evaluations = _times(step, config.max_steps, config.eval_every)
        checkpoints = _times(step, config.max_steps, config.checkpoint_every)
        every = config.sample_every
        samples = max(0, _times(step, config.max_steps, every) - 1) if every else 0  # not the last
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


def _times(step: int, last: int, every: int) -> int:
    """Return how often an event, every ``every`` steps and at the last, follows ``step``."""
    if step >= last:
        return 0
    return last // every - step // every + (last % every != 0)


@dataclass
class Progress:
    """The loop's state other than weights and optimizer; checkpoints contain it."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None

    @classmethod
    def restored(cls, values: dict[str, Any]) -> Progress:
        """Return the progress in a checkpoint; a newer release may have written more."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


class TrainingLog:
    """Reports a training run; only the main process, which has a ``session``, writes to ``folder``.

    ``ceilings``: the FLOP/s of all devices, from the datasheet and as measured by `bench roofline`.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        display: Display,
        session: RunSession | None,
        ceilings: Sequence[float | None],
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.train, folder
        self.display, self.session, self.ceilings = display, session, ceilings
        self.progress = Progress()
        self.saved_step: int | None = None
        self.has_warned_of_nan = False

    def start(self, eval_tokens: int) -> None:
        """Open the metrics, drop those after the checkpoint, and start the clock."""
        folder = self.folder if self.session is not None else None
        # Without a checkpoint step 0 is measured again.
        logged = self.progress.step if self.saved_step is not None else -1
        self.metrics = Metrics(folder, logged, self.display.report)
        if self.session is not None:
            self.display.recall(self.folder / "metrics.jsonl")
            config, report = self.config, self.display.report
            tags, upload = config.tracker_tags, config.tracker_checkpoint
            self.session.start_trackers(config.projects(), report, tags, upload)
        self.pace = EtaEstimator(self.config, self.progress.step, eval_tokens)
        self.clock = time.perf_counter()
        # Includes the import of torch and the reading of the data, which are billed too.
        startup = time.time() - self.session.attempt.started if self.session is not None else 0.0
        self.started = self.clock - startup - self.progress.seconds

    def change(self, recipe: Recipe) -> None:
        """Use the new settings of a live run."""
        self.recipe, self.config = recipe, recipe.train
        self.pace.config, self.display.max_steps = recipe.train, recipe.train.max_steps

    def lap(self) -> float:
        """Return the seconds since the previous call, or since the start."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def record_steps(
        self,
        losses: Sequence[float],
        norms: Sequence[float],
        rates: Sequence[float],
        seconds: float,
        flops_per_token: float,
        **common: Any,
    ) -> None:
        """Report the newest steps, which took ``seconds``; ``common`` is logged with each."""
        config, progress = self.config, self.progress
        step, first = progress.step, progress.step - len(losses)
        progress.train_loss = losses[-1]
        progress.train_seconds += seconds
        self.pace.add_steps(len(losses), step, seconds)
        speed = (progress.tokens - tokens_before(config, first)) / seconds
        flops = speed * flops_per_token
        mfu, mfu_roofline = (ceiling and flops / ceiling for ceiling in self.ceilings)
        common |= {"tokens_per_second": round(speed, 1), "mfu": mfu, "mfu_roofline": mfu_roofline}
        numbers = range(first + 1, step + 1)
        for n, loss, norm, rate in zip(numbers, losses, norms, rates, strict=True):
            own = {"loss": loss, "lr": rate, "grad_norm": norm}
            self.metrics.log("train", n, tokens=tokens_before(config, n), **own, **common)
            self.display.train.append((n, loss))
        remaining_s = self.pace.remaining_s(step)
        if remaining_s is None:
            remaining_s = (tokens_before(config, config.max_steps) - progress.tokens) / speed
        elif self.session is not None:
            self._record_duration(self.session, remaining_s)
        self.display.show_step(step, losses[-1], rates[-1], speed, mfu, remaining_s)
        self.record()

    def _record_duration(self, session: RunSession, remaining_s: float) -> None:
        """Record the run's expected duration; print it the first time."""
        whole = time.perf_counter() - self.started + remaining_s
        session.progress(expected_seconds_now=round(whole, 1))
        if session.record.expected_seconds is None:
            session.progress(expected_seconds=round(whole, 1))
            planned = (session.attempt.launch.get("estimate") or {}).get("seconds")
            planned_text = f"; the plan said {duration(planned)}" if planned else ""
            self.display.report(
                f"estimated duration: {duration(whole)} with evaluations and checkpoints, from the "
                f"first {self.progress.step} steps; {duration(remaining_s)} left{planned_text}"
            )

    def record_evaluation(self, loss: float, tokens: int) -> None:
        """Report the validation loss over ``tokens``."""
        progress = self.progress
        progress.val_loss = loss
        best = math.inf if progress.best_val_loss is None else progress.best_val_loss
        if loss < best:  # NaN never compares less
            progress.best_val_loss, progress.best_step = loss, progress.step
        self.metrics.log("val", progress.step, loss=loss, eval_tokens=tokens)
        self.metrics.flush()
        self.display.show_evaluation(progress.step, loss)
        self.record()
        self.pace.evaluations.append(self.lap())

    def record_task_scores(self, scores: dict[str, float]) -> None:
        """Report the score of each task."""
        self.metrics.log("task", self.progress.step, **scores)
        shown = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
        self.display.report(f"step {self.progress.step}/{self.config.max_steps}  {shown}")

    def record_sample(self) -> None:
        """Report a sample."""
        self.pace.samples.append(self.lap())

    def record_save_start(self) -> None:
        """Make the metrics durable, because the next checkpoint counts on them."""
        self.saved_step = self.progress.step
        self.progress.seconds = time.perf_counter() - self.started
        self.metrics.flush(durable=True)

    def record_save(self, started: float) -> None:
        """Report a checkpoint, which has blocked the training since ``started``."""
        stall = time.perf_counter() - started
        self.metrics.log("checkpoint", self.progress.step, stall_seconds=round(stall, 4))
        self.metrics.flush()
        self.lap()
        self.pace.checkpoints.append(stall)

    def record(self, **values: Any) -> None:
        """Write the progress into the run's record; at once if there are other ``values``."""
        if self.session is None:
            return
        if not values:
            self.progress.seconds = time.perf_counter() - self.started
        known = asdict(self.progress) | values
        del known["best_step"]  # the record does not have it
        self.session.progress(force=bool(values), **known)

    def check_losses(
        self, losses: Sequence[float], norms: Sequence[float], format_windows: Callable[[int], str]
    ) -> None:
        """Raise NonFiniteLoss if one of the newest steps diverged."""
        first = self.progress.step - len(losses)
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._on_nan(
                    f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; its batch "
                    f"starts at tokens {format_windows(step)} of {self.recipe.data.dataset}. No "
                    "checkpoint was written after it"
                )

    def check_weights(self, are_finite: bool) -> bool:
        """Return ``are_finite``; if they are not, raise NonFiniteLoss or warn."""
        if not are_finite:
            self._on_nan(f"the weights after step {self.progress.step} are NaN or infinite")
        return are_finite

    def check_last_loss(self) -> None:
        """Raise NonFiniteLoss if the finished training has diverged."""
        if not math.isfinite(loss := self.progress.train_loss or 0.0):
            raise NonFiniteLoss(
                f"the last loss is {loss}: the training diverged{self._last_good()}"
            )

    def _last_good(self) -> str:
        """Return the advice to start from the newest checkpoint; '' without one."""
        if self.saved_step is None:
            return ""
        folder = step_folder(self.folder, self.saved_step)
        return f"; {folder.name} is intact: train.init_from={folder} starts from its weights"

    def _on_nan(self, problem: str) -> None:
        """Raise NonFiniteLoss; with ``stop_on_nan: false`` warn once."""
        text = (
            f"{problem}{self._last_good()}. Use a lower lr (now {self.config.lr:g}) or more "
            "warmup_steps, with a new --name"
        )
        if self.config.stop_on_nan:
            raise NonFiniteLoss(text)
        if not self.has_warned_of_nan:
            self.has_warned_of_nan = True
            self.display.report(
                f"{text}. stop_on_nan is false: training continues, but checkpoints of such "
                "weights are not written"
            )

    def close(self) -> None:
        """Close the metrics."""
        self.metrics.close()

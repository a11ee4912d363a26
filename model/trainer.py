"""The training loop: run steps, log them, evaluate, and write checkpoints.

A step depends only on the recipe and its number: its windows (BatchOrder), its learning rate, its
random numbers. So a run that was stopped anywhere resumes exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from corpus.dataset import TokenStream
from job.display import Display
from job.eta import EtaEstimator, announce
from job.metrics import Metrics
from job.paths import VolumePaths
from job.recipe import Recipe
from job.run_session import RunSession
from job.schedules import tokens_before
from job.speed import remembered
from job.step_folders import point_latest, prune, step_folder
from job.training_errors import NonFiniteLoss, last_good, nonfinite_loss, nonfinite_weights
from model import checkpoint
from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.distributed import StopSignal, World
from model.gpt import GPT
from model.step import StepResult, StepRunner


@dataclass
class Progress:
    """The loop's state besides weights and optimizer; checkpoints contain it."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None


class Trainer:
    """Trains ``network`` on ``train`` as ``recipe`` says; the main process writes to ``folder``."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        network: GPT,
        train: TokenStream,
        val: TokenStream,
        world: World,
        device: torch.device,
        display: Display,
        session: RunSession | None,
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.train, folder
        self.world, self.device, self.display, self.session = world, device, display, session
        self.steps = StepRunner(recipe, network, train, world, device, display)
        self.val_batches = TokenBatches(val, recipe.model.block_size, device)
        self.progress = Progress()
        self.saved_step: int | None = None
        # Steps whose results are still on the device: read late, so that no step waits.
        self.pending: list[StepResult] = []
        self.has_warned_of_nan = False
        # Set on the main process. Arguments: network, step, and a stream to write to as well.
        self.write_sample: Callable[[GPT, int, TextIO | None], None] | None = None
        # Called after each step with its number; tests slow down or hold the trainer with it.
        self.after_step: Callable[[int, StopSignal], None] | None = None
        self.writer = checkpoint.CheckpointWriter(folder, self._on_written)
        number_format = devices.number_format(self.config.dtype, device)
        name = devices.device_name(device)
        # Peak FLOP/s of a device, from the datasheet and as measured by `bench roofline`.
        ceilings = (
            devices.peak_flops(device),
            remembered(name, number_format, VolumePaths.current()),
        )
        self.ceilings = [ceiling and ceiling * world.size for ceiling in ceilings]

    def resume(self) -> bool:
        """Restore the run's newest intact checkpoint; return False if there is none."""
        saved = checkpoint.newest(self.folder, self.display.say)
        if saved is None:
            return False
        self.steps.restore(saved)
        known = {field.name for field in fields(Progress)}  # a newer release may write more
        values = saved.state["progress"].items()
        self.progress = Progress(**{key: value for key, value in values if key in known})
        self.saved_step = saved.step
        if self.world.is_main:
            point_latest(self.folder, saved.step)
        return True

    def train(self, stop: StopSignal) -> bool:
        """Train to the last step; return False if told to stop. Both end with a checkpoint."""
        # Without a checkpoint step 0 is measured again.
        logged = self.progress.step if self.saved_step is not None else -1
        folder = self.folder if self.world.is_main else None
        self.metrics = Metrics(folder, logged, self.config.wandb_project, self.display.say)
        if folder is not None:
            self.display.recall(folder / "metrics.jsonl")
        self.clock = time.perf_counter()
        val_tokens = len(self.val_batches.stream)
        eval_tokens = min(val_tokens, self.config.eval_tokens or val_tokens)
        self.pace = EtaEstimator(self.config, self.progress.step, eval_tokens)
        # Includes the import of torch and the reading of the data, which are billed too.
        startup = time.time() - self.session.attempt.started if self.session is not None else 0.0
        self.started = self.clock - startup - self.progress.seconds
        try:
            if self.saved_step is None and self.config.init_from is not None:
                self._evaluate()  # the initial weights are the best until a later step is better
                self._save()
            finished = self._run_steps(stop)
            if not finished:
                self._read_pending()
                self._save()
            elif not math.isfinite(self.progress.train_loss or 0.0):
                loss = self.progress.train_loss
                raise NonFiniteLoss(
                    f"the last loss is {loss}: the training diverged{self._last_good()}"
                )
        finally:
            self.writer.wait()
            self.metrics.close()
        return finished

    def _run_steps(self, stop: StopSignal) -> bool:
        """Run the steps with evaluations, samples and checkpoints; False if told to stop."""
        config, progress, first = self.config, self.progress, self.progress.step
        while progress.step < config.max_steps:
            if stop.is_set():
                return False
            self.pending.append(self.steps.run(progress.step))
            if progress.step == first and self.world.is_main:
                self.writer.prepare(self.steps.state())
            progress.step += 1
            if self.after_step is not None:
                self.after_step(progress.step, stop)
            progress.tokens = tokens_before(config, progress.step)
            step, is_last = progress.step, progress.step == config.max_steps
            save = is_last or step % config.checkpoint_every == 0
            evaluate = is_last or step % config.eval_every == 0
            every = config.sample_every
            sample = every is not None and step % every == 0 and not is_last
            is_logged = step % config.log_every == 0 or self.pace.reads_at(step)
            if save or evaluate or sample or is_logged:
                self._read_pending()
            if evaluate:
                self._evaluate()
                save |= config.keep_best and progress.best_step == step
            if save:
                self._save()
            if sample:
                self._sample()
        return True

    def _read_pending(self) -> None:
        """Fetch the results since the last call and log them; stop at a NaN."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses = self.world.mean(torch.stack([result.loss for result in pending])).tolist()
        norms = torch.stack([result.norm for result in pending]).tolist()
        seconds = time.perf_counter() - self.clock
        self.clock += seconds
        config, step = self.config, self.progress.step
        self.progress.train_seconds += seconds
        self.pace.steps(len(losses), step, seconds)
        first = step - len(losses)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                windows = np.array2string(self.steps.windows(first + i), threshold=8)
                good = self._last_good()
                self._on_nan(nonfinite_loss(first + i + 1, loss, norm, windows, self.recipe, good))
        self.progress.train_loss = losses[-1]
        speed = (self.progress.tokens - tokens_before(config, first)) / seconds
        flops = speed * self.steps.flops_per_token(step - 1)
        mfu, mfu_roofline = (ceiling and flops / ceiling for ceiling in self.ceilings)
        common = {
            "tokens_per_second": round(speed, 1),
            "mfu": mfu,
            "mfu_roofline": mfu_roofline,
            "memory_bytes": devices.memory_bytes(self.device),
            "gpu_use": devices.gpu_use(self.device, int(self.clock)),
        }
        numbers = range(first + 1, step + 1)
        for n, result, loss, norm in zip(numbers, pending, losses, norms, strict=True):
            own = {"loss": loss, "lr": result.rate, "grad_norm": norm}
            self.metrics.log("train", n, tokens=tokens_before(config, n), **own, **common)
            self.display.train.append((n, loss))
        left = self.pace.left(step)
        if left is None:
            left = (tokens_before(config, config.max_steps) - self.progress.tokens) / speed
        elif self.session is not None:
            elapsed = time.perf_counter() - self.started
            announce(self.session, self.display, step, elapsed, left)
        self.display.step(step, losses[-1], pending[-1].rate, speed, mfu, left)
        self.record()

    def _on_nan(self, text: str) -> None:
        """Raise NonFiniteLoss; with ``stop_on_nan: false`` warn once."""
        if self.config.stop_on_nan:
            raise NonFiniteLoss(text)
        if not self.has_warned_of_nan:
            self.has_warned_of_nan = True
            self.display.say(
                f"{text}. stop_on_nan is false: training continues, but checkpoints of such "
                "weights are not written"
            )

    def _last_good(self) -> str:
        step = self.saved_step
        return last_good(step_folder(self.folder, step) if step is not None else None)

    def _evaluate(self) -> None:
        config, steps, progress = self.config, self.steps, self.progress
        started = time.perf_counter()
        with devices.autocast(config.dtype, self.device):
            forward, limit, size = steps.eval_forward, config.eval_tokens, steps.micro_batch
            loss, tokens = validation_loss(forward, self.val_batches, limit, size, self.world)
        progress.val_loss = loss
        best = math.inf if progress.best_val_loss is None else progress.best_val_loss
        if loss < best:  # NaN never compares less
            progress.best_val_loss, progress.best_step = loss, progress.step
        self.metrics.log("val", progress.step, loss=loss, eval_tokens=tokens)
        self.metrics.flush()
        self.display.evaluated(progress.step, loss)
        self.record()
        self.clock = time.perf_counter()
        self.pace.evaluation(self.clock - started)

    def _sample(self) -> None:
        started = time.perf_counter()
        network = self.steps.full_network()
        if self.write_sample is not None:
            self.write_sample(network, self.progress.step, None)
        self.clock = time.perf_counter()
        self.pace.sample(self.clock - started)

    def _save(self) -> None:
        step, takes_part = self.progress.step, self.world.is_main or self.steps.sharded
        if step == self.saved_step or not takes_part:
            return
        started = time.perf_counter()
        if not self.steps.weights_are_finite():
            self._on_nan(nonfinite_weights(step, self.recipe, self._last_good()))
            return
        self.progress.seconds = started - self.started
        self.saved_step = step
        state = {"progress": asdict(self.progress), "world_size": self.world.size}
        self.metrics.flush(durable=True)  # the checkpoint counts on the lines before it
        self.writer.submit(step, self.steps.state(), state, write=self.world.is_main)
        stall = time.perf_counter() - started
        self.metrics.log("checkpoint", step, stall_seconds=round(stall, 4))
        self.metrics.flush()
        self.clock = time.perf_counter()
        self.pace.checkpoint(self.clock - started)

    def _on_written(self, step: int) -> None:
        """Remove old checkpoints: that of ``step`` is on the disk."""
        best = self.progress.best_step
        keep = {best} if self.config.keep_best and best is not None else set()
        prune(self.folder, self.config.keep_last, keep)
        self.display.log_only(f"checkpoint of step {step} written")

    def record(self, **values: Any) -> None:
        """Write the progress into the run's record; at once if there are other ``values``."""
        if self.session is None:
            return
        if not values:
            self.progress.seconds = time.perf_counter() - self.started
        fields = asdict(self.progress) | values
        del fields["best_step"]  # the record does not have it
        self.session.progress(force=bool(values), **fields)

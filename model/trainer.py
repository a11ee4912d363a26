"""The training loop: run steps, log them, evaluate, and write checkpoints.

A step depends only on the recipe and its number: its windows (BatchOrder), its learning rate, its
random numbers. So a run that was stopped anywhere resumes exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

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
        self.steps = StepRunner(
            recipe, network, train, world, device, display.say, display.log_only
        )
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
        self.metrics: Metrics | None = None
        self.writer = checkpoint.CheckpointWriter(folder, self._on_written)
        self.peak_flops = devices.peak_flops(device)
        number_format = devices.number_format(self.config.dtype, device)
        name = devices.device_name(device)
        self.roofline_flops = remembered(name, number_format, VolumePaths.current())

    # --- resume -----------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Restore the run's newest intact checkpoint; return False if there is none."""
        saved = checkpoint.newest(self.folder, self.display.say)
        if saved is None:
            return False
        self.steps.restore(saved)
        self.progress = Progress(**saved.state["progress"])
        self.saved_step = saved.step
        if self.world.is_main:
            point_latest(self.folder, saved.step)
        return True

    # --- the loop ---------------------------------------------------------------------------------

    def train(self, stop: StopSignal) -> bool:
        """Train to the last step; return False if told to stop. Both end with a checkpoint."""
        if self.world.is_main:
            # Without a checkpoint step 0 is measured again.
            logged = self.progress.step if self.saved_step is not None else -1
            self.metrics = Metrics(self.folder, logged, self.config.wandb_project, self.display.say)
            self.display.recall(self.folder / "metrics.jsonl")
        self.clock = time.perf_counter()
        val_tokens = len(self.val_batches.stream)
        eval_tokens = min(val_tokens, self.config.eval_tokens or val_tokens)
        self.pace = EtaEstimator(self.config, self.progress.step, eval_tokens)
        # The time to import torch and to read the data counts: it is paid for.
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
                raise NonFiniteLoss(
                    f"the last loss is {self.progress.train_loss}: nothing was learned"
                    f"{self._last_good()}"
                )
        finally:
            self.writer.wait()
            if self.metrics is not None:
                self.metrics.close()
        return finished

    def _run_steps(self, stop: StopSignal) -> bool:
        """Run the steps with evaluations, samples and checkpoints; False if told to stop."""
        config, first = self.config, self.progress.step
        while self.progress.step < config.max_steps:
            if stop.is_set():
                return False
            self.pending.append(self.steps.run(self.progress.step))
            if self.progress.step == first and self.world.is_main:
                self.writer.prepare(self.steps.state())
            self.progress.step += 1
            if self.after_step is not None:
                self.after_step(self.progress.step, stop)
            self.progress.tokens = tokens_before(config, self.progress.step)
            step, is_last = self.progress.step, self.progress.step == config.max_steps
            save = is_last or step % config.checkpoint_every == 0
            evaluate = is_last or step % config.eval_every == 0
            if save or evaluate or step % config.log_every == 0 or self.pace.reads_at(step):
                self._read_pending()
            if evaluate:
                self._evaluate()
                save |= config.keep_best and self.progress.best_step == step
            if save:
                self._save()
            if config.sample_every and step % config.sample_every == 0 and not is_last:
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
        self.progress.train_seconds += seconds
        self.pace.steps(len(losses), self.progress.step, seconds)
        first = self.progress.step - len(losses)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._on_nan(self._describe_nan(first + i, loss, norm))
        self.progress.train_loss = losses[-1]
        speed = (self.progress.tokens - tokens_before(self.config, first)) / seconds
        flops = speed * self.steps.flops_per_token(self.progress.step - 1)
        mfu, mfu_roofline = (
            flops / (ceiling * self.world.size) if ceiling is not None else None
            for ceiling in (self.peak_flops, self.roofline_flops)
        )
        if self.metrics is not None:
            common = {
                "tokens_per_second": round(speed, 1),
                "mfu": mfu,
                "mfu_roofline": mfu_roofline,
                "memory_bytes": devices.memory_bytes(self.device),
                "gpu_use": devices.gpu_use(self.device, int(self.clock)),
            }
            for step, result, loss, norm in zip(
                range(first + 1, self.progress.step + 1), pending, losses, norms, strict=True
            ):
                tokens, rate = tokens_before(self.config, step), result.rate
                self.metrics.log(
                    "train", step, tokens=tokens, loss=loss, lr=rate, grad_norm=norm, **common
                )
                self.display.train.append((step, loss))
        left = self.pace.left(self.progress.step)
        if left is None:
            total = tokens_before(self.config, self.config.max_steps)
            left = (total - self.progress.tokens) / speed
        elif self.session is not None:
            elapsed = time.perf_counter() - self.started
            announce(self.session, self.display, self.progress.step, elapsed, left)
        self.display.step(self.progress.step, losses[-1], pending[-1].rate, speed, mfu, left)
        self._record_progress()

    def _on_nan(self, text: str) -> None:
        """Raise Diverged; with ``stop_on_nan: false`` warn once."""
        if self.config.stop_on_nan:
            raise NonFiniteLoss(text)
        if not self.has_warned_of_nan:
            self.has_warned_of_nan = True
            self.display.say(
                f"{text}. stop_on_nan is false: training continues, but checkpoints of such "
                f"weights are not written"
            )

    def _describe_nan(self, step: int, loss: float, norm: float) -> str:
        windows = np.array2string(self.steps.windows(step), threshold=8)
        return nonfinite_loss(step + 1, loss, norm, windows, self.recipe, self._last_good())

    def _last_good(self) -> str:
        step = self.saved_step
        return last_good(step_folder(self.folder, step) if step is not None else None)

    def _evaluate(self) -> None:
        config, steps, started = self.config, self.steps, time.perf_counter()
        with devices.autocast(config.dtype, self.device):
            forward, size = steps.eval_forward, steps.micro_batch
            loss, tokens = validation_loss(
                forward, self.val_batches, config.eval_tokens, size, self.world
            )
        step = self.progress.step
        self.progress.val_loss = loss
        best = self.progress.best_val_loss
        if loss < (math.inf if best is None else best):  # NaN never compares less
            self.progress.best_val_loss, self.progress.best_step = loss, step
        if self.metrics is not None:
            self.metrics.log("val", step, loss=loss, eval_tokens=tokens)
            self.metrics.flush()
        self.display.evaluated(step, loss)
        self._record_progress()
        self.clock = time.perf_counter()
        self.pace.evaluation(self.clock - started)

    def _sample(self) -> None:
        started = time.perf_counter()
        network = self.steps.full_network()
        if self.write_sample is not None:
            self.write_sample(network, self.progress.step, None)
        self.clock = time.perf_counter()
        self.pace.sample(self.clock - started)

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self) -> None:
        has_part = self.world.is_main or self.steps.sharded
        if self.progress.step == self.saved_step or not has_part:
            return
        started = time.perf_counter()
        if not self.steps.weights_are_finite():
            self._on_nan(nonfinite_weights(self.progress.step, self.recipe, self._last_good()))
            return
        self.progress.seconds = started - self.started
        self.saved_step = self.progress.step
        state = {"progress": vars(self.progress).copy(), "world_size": self.world.size}
        self.writer.submit(self.progress.step, self.steps.state(), state, write=self.world.is_main)
        stall = time.perf_counter() - started
        if self.metrics is not None:
            self.metrics.log("checkpoint", self.progress.step, stall_seconds=round(stall, 4))
            self.metrics.flush()
        self.clock = time.perf_counter()
        self.pace.checkpoint(self.clock - started)

    def _on_written(self, step: int) -> None:
        """Remove old checkpoints: that of ``step`` is on the disk."""
        best = self.progress.best_step
        keep = {best} if self.config.keep_best and best is not None else set()
        prune(self.folder, self.config.keep_last, keep)
        self.display.log_only(f"checkpoint of step {step} written")

    def _record_progress(self) -> None:
        if self.session is None:
            return
        self.progress.seconds = time.perf_counter() - self.started
        fields = vars(self.progress).copy()
        del fields["best_step"]  # the record does not have it
        self.session.progress(**fields)

"""The training loop: one optimizer step after another, measured, evaluated, checkpointed.

What a step computes depends on the recipe and the step's number alone: its windows (BatchOrder),
its learning rate, its random numbers. So a run that was stopped anywhere goes on exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from corpus.shards import TokenStream
from job.batch_schedule import tokens_before
from job.display import Display
from job.faults import Diverged, last_good, no_number, no_weights
from job.locations import Locations
from job.metrics import Metrics
from job.pace import Pace, announce
from job.recipe import Recipe
from job.roofline import remembered
from job.session import Session
from job.step_folders import point_latest, prune, step_folder
from model import checkpoint
from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.distributed import StopSignal, World
from model.gpt import GPT
from model.step import Steps, Taken


@dataclass
class Progress:
    """What the loop knows besides weights and optimizer; a checkpoint holds it."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None


class Trainer:
    """Trains ``network`` on ``train`` by ``recipe``; on the main process writes into ``folder``."""

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
        session: Session | None,
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.train, folder
        self.world, self.device, self.display, self.session = world, device, display, session
        self.steps = Steps(recipe, network, train, world, device, display.say, display.log_only)
        self.val_batches = TokenBatches(val, recipe.model.block_size, device)
        self.progress = Progress()
        self.saved_step: int | None = None
        # Steps whose numbers are still on the device: read late, so that a step waits for nothing.
        self.pending: list[Taken] = []
        self.said_nan = False
        # On the main process: of a network, for a step; onto a stream as well.
        self.write_sample: Callable[[GPT, int, TextIO | None], None] | None = None
        self.metrics: Metrics | None = None
        self.writer = checkpoint.BackgroundWriter(folder, self._written)
        self.peak_flops = devices.peak_flops(device)
        number_format = devices.number_format(self.config.dtype, device)
        self.roofline_flops = remembered(devices.device_name(device), number_format, Locations.current())

    # --- resume -------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Go on from the newest sound checkpoint of the run, if it has one."""
        found = checkpoint.newest(self.folder, self.display.say)
        if found is None:
            return False
        self.steps.restore(found)
        self.progress = Progress(**found.state["progress"])
        self.saved_step = found.step
        if self.world.is_main:
            point_latest(self.folder, found.step)
        return True

    # --- the loop -----------------------------------------------------------------------------

    def train(self, stop: StopSignal) -> bool:
        """Train to the last step; True when done, False when told to stop. A checkpoint is there either way."""
        if self.world.is_main:
            known = self.progress.step if self.saved_step is not None else -1  # step 0 is measured anew
            self.metrics = Metrics(self.folder, known, self.config.wandb_project, self.display.say)
            self.display.recall(self.folder / "metrics.jsonl")
        self.clock = time.perf_counter()
        tokens = min(len(self.val_batches.stream), self.config.eval_tokens or len(self.val_batches.stream))
        self.pace = Pace(self.config, self.progress.step, tokens)
        # Importing torch and reading the data count: they are paid for.
        since = time.time() - self.session.attempt.started if self.session is not None else 0.0
        self.began = self.clock - since - self.progress.seconds
        first, stopped = self.progress.step, False
        try:
            if self.saved_step is None and self.config.init_from is not None:
                self._evaluate()  # what there was to begin with, kept as the best until it is bettered
                self._save()
            while self.progress.step < self.config.max_steps:
                if stop.asked():
                    stopped = True
                    break
                self.pending.append(self.steps.take(self.progress.step))
                if self.progress.step == first and self.world.is_main:
                    self.writer.prepare(self.steps.state())
                self.progress.step += 1
                self.progress.tokens = tokens_before(self.config, self.progress.step)
                step, last = self.progress.step, self.progress.step == self.config.max_steps
                due = last or step % self.config.checkpoint_every == 0
                evaluate = last or step % self.config.eval_every == 0
                if due or evaluate or step % self.config.log_every == 0 or self.pace.reads_at(step):
                    self._read_pending()
                if evaluate:
                    self._evaluate()
                    due |= self.config.keep_best and self.progress.best_step == step
                if due:
                    self._save()
                if self.config.sample_every and step % self.config.sample_every == 0 and not last:
                    self._sample()
            if stopped:
                self._read_pending()
                self._save()
            elif not math.isfinite(self.progress.train_loss or 0.0):
                raise Diverged(
                    f"the last loss is {self.progress.train_loss}: nothing was learnt{self._last_good()}"
                )
        finally:
            self.writer.wait()
            if self.metrics is not None:
                self.metrics.close()
        return not stopped

    def _read_pending(self) -> None:
        """Fetch the numbers of the steps since the last time, log them, and stop on one that is none."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        losses = self.world.mean(torch.stack([taken.loss for taken in pending])).tolist()
        norms = torch.stack([taken.norm for taken in pending]).tolist()
        seconds = time.perf_counter() - self.clock
        self.clock += seconds
        self.progress.train_seconds += seconds
        self.pace.steps(len(losses), self.progress.step, seconds)
        first = self.progress.step - len(losses)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._on_nan(self._diverged(first + i, loss, norm))
        self.progress.train_loss = losses[-1]
        speed = (self.progress.tokens - tokens_before(self.config, first)) / seconds
        flops = speed * self.steps.flops_per_token(self.progress.step - 1)
        mfu, mfu_roofline = (
            flops / (ceiling * self.world.size) if ceiling is not None else None
            for ceiling in (self.peak_flops, self.roofline_flops)
        )
        if self.metrics is not None:
            memory, use = devices.memory_bytes(self.device), devices.gpu_use(self.device, int(self.clock))
            for i, (loss, norm, taken) in enumerate(zip(losses, norms, pending, strict=True)):
                self.metrics.log(
                    "train",
                    first + i + 1,
                    tokens=tokens_before(self.config, first + i + 1),
                    loss=loss,
                    lr=taken.rate,
                    grad_norm=norm,
                    tokens_per_second=round(speed, 1),
                    mfu=mfu,
                    mfu_roofline=mfu_roofline,
                    memory_bytes=memory,
                    gpu_use=use,
                )
                self.display.train.append((first + i + 1, loss))
        left = self.pace.left(self.progress.step)
        if left is None:
            left = (tokens_before(self.config, self.config.max_steps) - self.progress.tokens) / speed
        elif self.session is not None:
            announce(self.session, self.display, self.progress.step, time.perf_counter() - self.began, left)
        self.display.step(self.progress.step, losses[-1], pending[-1].rate, speed, mfu, left)
        self._note()

    def _on_nan(self, text: str) -> None:
        """End the run; with stop_on_nan false, say it once and go on."""
        if self.config.stop_on_nan:
            raise Diverged(text)
        if not self.said_nan:
            self.said_nan = True
            self.display.say(
                f"{text}. stop_on_nan is false: it goes on, and writes no checkpoint of such weights"
            )

    def _diverged(self, step: int, loss: float, norm: float) -> str:
        windows = np.array2string(self.steps.windows(step), threshold=8)
        return no_number(step + 1, loss, norm, windows, self.recipe, self._last_good())

    def _last_good(self) -> str:
        step = self.saved_step
        return last_good(step_folder(self.folder, step) if step is not None else None)

    def _evaluate(self) -> None:
        config, started = self.config, time.perf_counter()
        with devices.autocast(config.dtype, self.device):
            loss, tokens = validation_loss(
                self.steps.eval_forward,
                self.val_batches,
                config.eval_tokens,
                self.steps.micro_batch,
                self.world,
            )
        step = self.progress.step
        self.progress.val_loss = loss
        best = self.progress.best_val_loss
        if loss < (math.inf if best is None else best):  # nothing is below what is no number
            self.progress.best_val_loss, self.progress.best_step = loss, step
        if self.metrics is not None:
            self.metrics.log("val", step, loss=loss, eval_tokens=tokens)
            self.metrics.flush()
        self.display.evaluated(step, loss)
        self._note()
        self.clock = time.perf_counter()
        self.pace.evaluation(self.clock - started)

    def _sample(self) -> None:
        started = time.perf_counter()
        network = self.steps.whole_network()
        if self.write_sample is not None:
            self.write_sample(network, self.progress.step, None)
        self.clock = time.perf_counter()
        self.pace.sample(self.clock - started)

    # --- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        if self.progress.step == self.saved_step or not (self.world.is_main or self.steps.sharded):
            return
        started = time.perf_counter()
        if not self.steps.weights_are_numbers():
            self._on_nan(no_weights(self.progress.step, self.recipe, self._last_good()))
            return
        self.progress.seconds = started - self.began
        self.saved_step = self.progress.step
        state: dict[str, Any] = {
            "progress": vars(self.progress).copy(),
            "world_size": self.world.size,
        }
        self.writer.submit(self.progress.step, self.steps.state(), state, write=self.world.is_main)
        stall = time.perf_counter() - started
        if self.metrics is not None:
            self.metrics.log("checkpoint", self.progress.step, stall_seconds=round(stall, 4))
            self.metrics.flush()
        self.clock = time.perf_counter()
        self.pace.checkpoint(self.clock - started)

    def _written(self, step: int) -> None:
        """A checkpoint is on the disk: old ones may go."""
        best = self.progress.best_step
        keep = {best} if self.config.keep_best and best is not None else set()
        prune(self.folder, self.config.keep_last, keep)
        self.display.log_only(f"checkpoint of step {step} written")

    def _note(self) -> None:
        if self.session is not None:
            self.progress.seconds = time.perf_counter() - self.began
            known = vars(self.progress)
            names = ("step", "seconds", "tokens", "train_seconds", "train_loss", "val_loss", "best_val_loss")
            self.session.progress(**{name: known[name] for name in names})

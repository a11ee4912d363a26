"""The training loop: run steps, evaluate, sample, and write checkpoints.

A step depends only on the recipe and its number: its windows (BatchOrder), its learning rate, its
random numbers. So a run that was stopped anywhere resumes exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

import numpy as np
import torch

from corpus.verify import TrainingData
from job.live_request import RequestInbox
from job.memory import flops_per_token
from job.recipe import Recipe
from job.schedules import events_after, tokens_before, window_at
from job.step_folders import point_latest, prune
from job.training_log import Progress, TrainingLog
from model import checkpoint
from model import device as devices
from model.batches import TokenBatches, validation_loss
from model.distributed import StopSignal, World
from model.gpt import GPT
from model.step import StepResult, StepRunner


class Trainer:
    """Trains ``network`` on ``data`` according to ``recipe``; writes to the folder of ``log``."""

    def __init__(
        self, recipe: Recipe, network: GPT, data: TrainingData, world: World, log: TrainingLog
    ) -> None:
        self.recipe, self.config, self.world = recipe, recipe.train, world
        self.log, self.folder = log, log.folder
        self.steps = StepRunner(recipe, network, data.train, world, log.display)
        self.dataset = data.identity
        self.val_batches = TokenBatches(data.val, recipe.model.block_size, world.device)
        # Steps whose results are still on the device: read late, so that no step waits.
        self.pending: list[StepResult] = []
        # Set on the main process. Arguments: network, step, and an optional second stream.
        self.write_sample: Callable[[GPT, int, TextIO | None], None] | None = None
        self.evaluate_tasks: Callable[[GPT], None] | None = None  # set on the main process too
        # Called after each step with its number; tests slow down or hold the trainer with it.
        self.after_step: Callable[[int, StopSignal], None] | None = None
        self.writer = checkpoint.CheckpointWriter(self.folder, self._on_written)

    @property
    def progress(self) -> Progress:
        """The loop's state."""
        return self.log.progress

    def resume(self) -> bool:
        """Restore the run's newest intact checkpoint; return False without one."""
        saved = checkpoint.newest(self.folder, self.log.display.report)
        if saved is None:
            return False
        self.steps.restore(saved)
        self.log.progress = Progress.restored(saved.state["progress"])
        self.log.saved_step = saved.step
        if self.world.is_main:
            point_latest(self.folder, saved.step)
            # A kill after the last write can leave old checkpoints, and no later write removes
            # them.
            self._prune()
        return True

    def train(self, stop: StopSignal) -> bool:
        """Train to the last step; return False if told to stop. Both end with a checkpoint."""
        val_tokens = len(self.val_batches.stream)
        eval_tokens = min(val_tokens, self.config.eval_tokens or val_tokens)
        self.log.start(eval_tokens)
        self.inbox = None if self.log.session is None else RequestInbox(self.log.session)
        if self.inbox is not None:
            stop.has_request = self.inbox.has_request
        try:
            if self.log.saved_step is None and self.config.init_from is not None:
                self._evaluate()  # the initial weights are the best until a later step is better
                self._save()
            finished = self._run_steps(stop)
            if not finished:
                self._read_pending()
                self._save()
            else:
                self.log.check_last_loss()
        finally:
            self.writer.wait()
            self.log.metrics.flush()
        return finished

    def _answer_request(self) -> None:
        """Apply the settings that `runner set` asks for, and write a checkpoint if it asks."""
        self._read_pending()
        answer = self.recipe, False
        if self.inbox is not None:
            answer = self.inbox.answer(self.recipe, self.progress.step)
        recipe, save = self.world.from_main(answer)
        self.recipe = self.steps.recipe = recipe
        self.config = self.steps.config = recipe.train
        self.log.change(recipe)
        if save:
            self._save()

    def _run_steps(self, stop: StopSignal) -> bool:
        """Run the steps with evaluations, samples and checkpoints; False if told to stop."""
        progress, first = self.progress, self.progress.step
        while progress.step < self.config.max_steps:
            if stop.is_set():
                return False
            if stop.is_requested:
                self._answer_request()
            self.pending.append(self.steps.run(progress.step))
            if progress.step == first and self.world.is_main:
                self.writer.prepare(self.steps.state())
            progress.step += 1
            if self.after_step is not None:
                self.after_step(progress.step, stop)
            config = self.config
            progress.tokens = tokens_before(config, progress.step)
            step = progress.step
            due = events_after(step, config)
            if any(due) or self.log.pace.reads_at(step):
                self._read_pending()
            if due.evaluate:
                self._evaluate()
            if due.save or (due.evaluate and config.keep_best and progress.best_step == step):
                self._save()
            if due.sample:
                network = self.steps.full_network()
                if self.write_sample is not None:
                    self.write_sample(network, step, None)
                self.log.record_sample()
        return True

    def _read_pending(self) -> None:
        """Fetch the results since the last call and log them; stop at a NaN."""
        pending, self.pending = self.pending, []
        if not pending:
            return
        sums = self.world.sum(torch.stack([result.loss for result in pending]))
        losses = sums.div_(self.world.size).tolist()
        norms = torch.stack([result.norm for result in pending]).tolist()
        seconds, step = self.log.lap(), self.progress.step
        format_windows = lambda n: np.array2string(self.steps.windows(n), threshold=8)  # noqa: E731
        self.log.check_losses(losses, norms, format_windows)
        rates, window = [result.rate for result in pending], window_at(self.recipe, step - 1)
        flops = flops_per_token(self.recipe, self.steps.network.vocab_size, window)
        use = devices.usage(self.world.device, int(time.perf_counter()))
        self.log.record_steps(losses, norms, rates, seconds, flops, **use)

    def _evaluate(self) -> None:
        with devices.autocast(self.config.dtype, self.world.device):
            forward, size = self.steps.eval_forward, self.steps.micro_batch
            limit = self.config.eval_tokens
            loss, tokens = validation_loss(forward, self.val_batches, limit, size, self.world)
        if self.config.eval_tasks:
            network = self.steps.full_network()
            if self.evaluate_tasks is not None:
                self.evaluate_tasks(network)
        self.log.record_evaluation(loss, tokens)

    def _save(self) -> None:
        step, takes_part = self.progress.step, self.world.is_main or self.steps.sharded
        if step == self.log.saved_step or not takes_part:
            return
        started = time.perf_counter()
        if not self.log.check_weights(self.steps.weights_are_finite()):
            return
        self.log.record_save_start()
        state = {"progress": asdict(self.progress), "world_size": self.world.size}
        state |= {"threads": torch.get_num_threads(), "dataset": self.dataset}
        self.writer.submit(step, self.steps.state(), state, write=self.world.is_main)
        self.log.record_save(started)

    def _on_written(self, step: int) -> None:
        """Remove old checkpoints, now that the checkpoint of ``step`` is on the disk."""
        self._prune()
        self.log.display.log_only(f"checkpoint of step {step} written")

    def _prune(self) -> None:
        best = self.progress.best_step
        keep = {best} if self.config.keep_best and best is not None else set()
        prune(self.folder, self.config.keep_last, keep)

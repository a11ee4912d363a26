"""The training loop: one optimizer step after another, measured, evaluated, checkpointed.

What a step computes depends on the recipe and the step's number alone: its windows (BatchOrder),
its learning rate, its random numbers. So a run that was stopped anywhere goes on exactly.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import checkpoint
from model import device as devices
from model.batches import TokenBatches, micro_batch_size, training_windows, validation_loss
from model.data.order import BatchOrder
from model.data.shards import TokenStream
from model.display import Display
from model.distributed import StopSignal, World
from model.exit_status import ExitStatus, UserError
from model.gpt import GPT
from model.metrics import Metrics
from model.optim import learning_rate, make_optimizer
from model.recipe import Recipe
from model.session import Session


class Diverged(UserError):
    """The loss or the gradient is no longer a number."""

    status = ExitStatus.JOB_FAILED


@dataclass
class Progress:
    """What the loop knows besides weights and optimizer; a checkpoint holds it."""

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    train_loss: float | None = None


@dataclass
class Pending:
    """Steps whose numbers are still on the device: read late, so that a step waits for nothing."""

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


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
        block = recipe.model.block_size
        self.order = BatchOrder(len(train), block, recipe.sequences_per_step, self.config.seed)
        self.train_batches = TokenBatches(train, block, device)
        self.val_batches = TokenBatches(val, block, device)
        share = recipe.sequences_per_step // world.size
        self.micro_batch = micro_batch_size(share, self.config.micro_batch)
        self.grad_accum_steps = share // self.micro_batch
        self.network = network.to(device)
        self.names: dict[Tensor, str] = {p: n for n, p in self.network.named_parameters()}
        self.optimizer = make_optimizer(self.network, self.config, device)
        self.progress = Progress()
        self.saved_step: int | None = None
        self.pending = Pending()
        self.metrics: Metrics | None = None
        self.writer = checkpoint.BackgroundWriter(folder, self._written)
        self.flops_per_token = network.flops_per_token()
        self.peak_flops = devices.peak_flops(device)
        self.forward = self._prepare_forward()

    def _prepare_forward(self) -> nn.Module:
        flops = self.flops_per_token * self.config.global_batch_tokens * self.config.max_steps
        compiled, reason = devices.should_compile(self.recipe, self.device, flops)
        self.display.log_only(f"torch.compile: {'yes' if compiled else 'no'}, {reason}")
        forward: nn.Module = self.network
        if compiled:
            forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
        self.eval_forward = forward
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True)
        return forward

    # --- resume -------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Go on from the newest sound checkpoint of the run, if it has one."""
        say = self.display.say
        found = checkpoint.newest(self.folder, say)
        if found is None:
            return False
        tokens = found.state.get("dataset_tokens")
        if tokens != len(self.train_batches.stream):
            raise UserError(
                f"the dataset {self.recipe.data.dataset} has {len(self.train_batches.stream)} training tokens; "
                f"run {self.folder.name} was begun with {tokens}. Start another run with --name NEW-NAME, "
                f"or put the dataset back"
            )
        self.network.load_state_dict(found.model)
        checkpoint.restore_optimizer(self.optimizer, self.names, found.optimizer)
        self.progress = Progress(**found.state["progress"])
        self.saved_step = found.step
        return True

    # --- the loop -----------------------------------------------------------------------------

    def train(self, stop: StopSignal) -> bool:
        """Train to the last step; True when done, False when told to stop. A checkpoint is there either way."""
        if self.world.is_main:
            self.metrics = Metrics(
                self.folder, self.progress.step, self.config.wandb_project, self.display.say
            )
            self._recall_curves()
        self.clock = time.perf_counter()
        stopped = False
        try:
            while self.progress.step < self.config.max_steps:
                if stop.asked():
                    stopped = True
                    break
                self._optimizer_step()
                step, last = self.progress.step, self.progress.step == self.config.max_steps
                due = last or step % self.config.checkpoint_every == 0
                evaluate = last or step % self.config.eval_every == 0
                if due or evaluate or step % self.config.log_every == 0:
                    self._read_pending()
                if evaluate:
                    self._evaluate()
                    due |= self.config.keep_best and self.progress.best_step == step
                if due:
                    self._save()
            if stopped:
                self._read_pending()
                self._save()
        finally:
            self.writer.wait()
            if self.metrics is not None:
                self.metrics.close()
        return not stopped

    def _optimizer_step(self) -> None:
        step = self.progress.step
        rate = learning_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.recipe.model.dropout > 0:
            # Random numbers are a function of seed, step and rank: a resumed run draws the same ones.
            torch.manual_seed((self.config.seed * 1_000_003 + step) * 4096 + self.world.rank)
        micro_batches = training_windows(self.order, step, self.world, self.micro_batch)
        total = torch.zeros((), device=self.device)
        for i, starts in enumerate(micro_batches):
            ids_BT, targets_BT = self.train_batches.take(starts)
            last = i == len(micro_batches) - 1
            # DDP exchanges gradients once a step, behind the last micro-batch.
            quiet = isinstance(self.forward, DistributedDataParallel) and not last
            with self.forward.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                with devices.autocast(self.config.dtype, self.device):
                    loss = self.forward(ids_BT, targets_BT) / len(micro_batches)
                loss.backward()
            total += loss.detach()
        limit = self.config.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending.losses.append(total)
        self.pending.norms.append(norm)
        self.pending.rates.append(rate)
        self.progress.step += 1
        self.progress.tokens += self.config.global_batch_tokens

    def _read_pending(self) -> None:
        """Fetch the numbers of the steps since the last time, log them, and stop on one that is none."""
        pending, self.pending = self.pending, Pending()
        if not pending.losses:
            return
        losses = self.world.mean(torch.stack(pending.losses)).tolist()
        norms = torch.stack(pending.norms).tolist()
        seconds = time.perf_counter() - self.clock
        self.clock += seconds
        self.progress.train_seconds += seconds
        first = self.progress.step - len(losses)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(self._diverged(first + i, loss, norm))
        self.progress.train_loss = losses[-1]
        speed = len(losses) * self.config.global_batch_tokens / seconds
        mfu = None
        if self.peak_flops is not None:
            mfu = speed * self.flops_per_token / (self.peak_flops * self.world.size)
        if self.metrics is not None:
            memory = devices.memory_bytes(self.device)
            for i, (loss, norm, rate) in enumerate(zip(losses, norms, pending.rates, strict=True)):
                self.metrics.log(
                    "train",
                    first + i + 1,
                    tokens=(first + i + 1) * self.config.global_batch_tokens,
                    loss=loss,
                    lr=rate,
                    grad_norm=norm,
                    tokens_per_second=round(speed, 1),
                    mfu=mfu,
                    memory_bytes=memory,
                )
                self.display.train.append((first + i + 1, loss))
        left = (self.config.max_steps - self.progress.step) * seconds / len(losses)
        self.display.step(self.progress.step, losses[-1], pending.rates[-1], speed, mfu, left)
        self._note()

    def _diverged(self, step: int, loss: float, norm: float) -> str:
        windows = np.array2string(self.order.windows(step), threshold=8)
        return (
            f"the loss is {loss} and the gradient's norm {norm} in step {step + 1}, "
            f"whose batch begins at tokens {windows} of {self.recipe.data.dataset}. "
            f"No checkpoint was written after it. Lower lr (now {self.config.lr:g}), "
            f"or lengthen warmup_steps, under a new --name"
        )

    def _evaluate(self) -> None:
        config = self.config
        with devices.autocast(config.dtype, self.device):
            loss, tokens = validation_loss(
                self.eval_forward, self.val_batches, config.eval_tokens, self.micro_batch, self.world
            )
        step = self.progress.step
        self.progress.val_loss = loss
        if self.progress.best_val_loss is None or loss < self.progress.best_val_loss:
            self.progress.best_val_loss, self.progress.best_step = loss, step
        if self.metrics is not None:
            self.metrics.log("val", step, loss=loss, eval_tokens=tokens)
            self.metrics.flush()
        self.display.evaluated(step, loss)
        self._note()
        self.clock = time.perf_counter()

    # --- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.world.is_main or self.progress.step == self.saved_step:
            return
        self.saved_step = self.progress.step
        started = time.perf_counter()
        state: dict[str, Any] = {
            "progress": vars(self.progress).copy(),
            "dataset_tokens": len(self.train_batches.stream),
            "world_size": self.world.size,
        }
        tensors = (
            {name: parameter for parameter, name in self.names.items()},
            checkpoint.flatten_optimizer(self.optimizer, self.names),
        )
        self.writer.submit(self.progress.step, tensors, state)
        stall = time.perf_counter() - started
        if self.metrics is not None:
            self.metrics.log("checkpoint", self.progress.step, stall_seconds=round(stall, 4))
            self.metrics.flush()
        self.clock = time.perf_counter()

    def _written(self, step: int) -> None:
        """A checkpoint is on the disk: old ones may go."""
        best = self.progress.best_step
        keep = {best} if self.config.keep_best and best is not None else set()
        checkpoint.prune(self.folder, self.config.keep_last, keep)
        self.display.log_only(f"checkpoint of step {step} written")

    def _note(self) -> None:
        if self.session is not None:
            known = vars(self.progress)
            names = ("step", "tokens", "train_seconds", "train_loss", "val_loss", "best_val_loss")
            self.session.progress(**{name: known[name] for name in names})

    def _recall_curves(self) -> None:
        """The curves of earlier attempts, for the plot."""
        from model.metrics import read_metrics

        for line in read_metrics(self.folder / "metrics.jsonl"):
            if line["kind"] in ("train", "val"):
                getattr(self.display, line["kind"]).append((line["step"], line["loss"]))

"""One optimizer step: the gradients of its micro-batches, over all processes, and the update.

A step is a function of its number: its windows, its learning rate, its random numbers. The size of
a micro-batch and the number of processes change only rounding.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corpus.dataset import BatchOrder, TokenStream, micro_batches
from job.display import Display
from job.exit_status import OutOfMemory
from job.machine import should_compile
from job.memory import micro_batch_size, out_of_memory_message, smaller_micro_batch_message
from job.recipe import Recipe
from job.schedules import (
    common_sequences,
    learning_rate,
    muon_momentum,
    tokens_at,
    tokens_before,
    window_at,
)
from model import checkpoint
from model import device as devices
from model.attention import block_mask
from model.batches import TokenBatches
from model.distributed import World, full_tensor, replicate, set_gradient_exchange, shard
from model.fp8 import Linear
from model.gpt import GPT, Attention
from model.loss import pick_loss
from model.optim import make_optimizers


class StepResult(NamedTuple):
    """This process's mean loss and the gradient's norm, both still on the device; the rate."""

    loss: Tensor
    norm: Tensor
    rate: float


class StepRunner:
    """Runs optimizer steps on ``network``."""

    def __init__(
        self, recipe: Recipe, network: GPT, train: TokenStream, world: World, display: Display
    ) -> None:
        self.recipe, self.config, self.world, self.display = recipe, recipe.train, world, display
        self.device = device = world.device
        block = recipe.model.block_size
        self.order = BatchOrder(len(train), block, recipe.sequences_per_step, self.config.seed)
        self.batches = TokenBatches(train, block, device)
        share = common_sequences(recipe) // world.size
        fitting = devices.fitting_micro_batch(recipe, device, world.size)
        self.micro_batch = micro_batch_size(share, fitting)
        self.grad_accum_steps = recipe.sequences_per_step // world.size // self.micro_batch
        self.network = network.to(device)
        network.loss_chunk = self.config.loss_chunk
        network.chunk_loss = pick_loss(device, network.softcap)
        network.activation_checkpointing = self.config.activation_checkpointing
        network.fp8_head = self.config.fp8 != "none"
        for module in network.modules():
            if isinstance(module, Attention):
                module.kernel = self.config.attention
            elif isinstance(module, Linear):
                module.fp8 = self.config.fp8 == "all"
        self.sharded = self.config.shard and world.size > 1
        # A sharded network is not probed: its forward pass is an exchange.
        self.memory_probes = 2 if world.size > 1 and not self.sharded else 0
        compiled, reason = should_compile(recipe, device.type)
        self.compiled = compiled
        display.log_only(f"torch.compile: {'yes' if compiled else 'no'}, {reason}")
        is_gpu = device.type == "cuda"
        # flex_attention has no dropout, and it needs the compiler.
        self.flex = compiled and is_gpu and recipe.model.dropout == 0 and any(network.short)
        self._set_window(recipe.model.window_size)
        self.eval_forward, self.forward = self._prepare(compiled)
        self.names: dict[Tensor, str] = {p: n for n, p in network.named_parameters()}
        self.optimizers = make_optimizers(
            network, self.config, world, compiled and is_gpu and not self.sharded
        )

    def _prepare(self, compiled: bool) -> tuple[nn.Module, nn.Module]:
        """Return the network for evaluation and for training, compiled and distributed."""
        forward: nn.Module = self.network
        if compiled and (self.sharded or self.device.type == "cpu"):
            # One graph for all blocks takes two thirds of the time of compiling the whole network.
            for block in self.network.h:
                block.compile(dynamic=False)
        elif compiled:
            forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
        if self.sharded:
            shard(self.network, self.network.h, self.world)
        elif self.world.size > 1:
            return forward, replicate(forward, self.device)
        return forward, forward

    def eager(self) -> AbstractContextManager[Any]:
        """Return a context for generation, which would compile each position.

        torch's limit is eight. Without compiled blocks torch's compiler is not even imported.
        """
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def run(self, step: int) -> StepResult:
        """Run step number ``step``, counted from 0."""
        rate = learning_rate(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
                group["momentum"] = muon_momentum(step, self.config)  # AdamW ignores it
        self._set_window(window_at(self.recipe, step))
        if self.memory_probes > 0:
            self._probe_memory(step)
        loss = self._compute_gradients(step)
        self._set_window(self.recipe.model.window_size)
        limit = self.config.grad_clip or math.inf
        norm = full_tensor(nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        for optimizer in self.optimizers:
            optimizer.step()
        self.network.zero_grad(set_to_none=True)
        return StepResult(loss, norm, rate)

    def _set_window(self, window: int | None) -> None:
        """Set the attention window. Only one of the full context makes the network recompile."""
        length = self.recipe.model.block_size
        mask = None
        if self.flex and window and window < length:
            mask = block_mask(length, window, self.device)
        self.network.set_attention_window(window, mask)

    def _compute_gradients(self, step: int) -> Tensor:
        """Compute the step's gradients and return its mean loss.

        If memory runs out, halve the micro-batch and start over: only gradients have changed.
        """
        while isinstance(loss := self._try_to_accumulate(step), str):
            # With several processes the others wait in an exchange that this one will not join.
            self._halve_micro_batch(loss, possible=self.world.size == 1)
        return loss

    def _probe_memory(self, step: int) -> None:
        """Run a micro-batch without an exchange, and halve it everywhere if one process fails.

        Two steps are probed, because the first has no optimizer state yet; each attempt costs two
        micro-batches.
        """
        self.memory_probes -= 1
        while True:
            loss = self._try_to_accumulate(step, is_probe=True)
            self.network.zero_grad(set_to_none=True)
            why = loss if isinstance(loss, str) else ""
            if self.world.sum(torch.tensor(len(why) > 0, dtype=torch.float32)).item() == 0:
                return
            self._halve_micro_batch(why or "another process ran out of memory")

    def _halve_micro_batch(self, why: str, possible: bool = True) -> None:
        """Halve the micro-batch and keep the batch; raise OutOfMemory if that is impossible."""
        self.network.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        batch = self.micro_batch * self.grad_accum_steps
        smaller = micro_batch_size(batch, max(1, self.micro_batch // 2))
        if self.micro_batch == 1 or not possible:
            name = devices.device_name(self.device)
            raise OutOfMemory(out_of_memory_message(name, self.micro_batch, smaller, why))
        self.grad_accum_steps = batch // smaller
        self.display.report(
            smaller_micro_batch_message(smaller, self.micro_batch, self.grad_accum_steps)
        )
        self.micro_batch = smaller

    def windows(self, step: int) -> NDArray[np.int64]:
        """Return the starts of the windows that all processes read in ``step``."""
        block = self.recipe.model.block_size
        first = tokens_before(self.config, step) // block
        return self.order.span(first, tokens_at(self.config, step) // block)

    def _try_to_accumulate(self, step: int, is_probe: bool = False) -> Tensor | str:
        """Return the loss, or why memory ran out; the traceback would hold the step's tensors."""
        try:
            return self._accumulate(step, is_probe)
        except torch.OutOfMemoryError as error:
            return str(error).partition("\n")[0]

    def _accumulate(self, step: int, is_probe: bool) -> Tensor:
        if self.recipe.model.dropout > 0:
            # Random numbers depend on seed, step and rank: a resumed run draws the same ones.
            seed = (self.config.seed * 1_000_003 + step) * 4096 + self.world.rank
            torch.manual_seed(seed % 2**63)
        world = self.world
        parts = micro_batches(self.windows(step), world.rank, world.size, self.micro_batch)
        total = torch.zeros((), device=self.device)
        for i, starts in enumerate(parts):
            ids_BT, targets_BT = self.batches.take(starts)
            is_last = i == len(parts) - 1
            set_gradient_exchange(self.forward, enabled=is_last and not is_probe)
            with devices.autocast(self.config.dtype, self.device):
                loss = self.forward(ids_BT, targets_BT) / len(parts)
            loss.backward()
            total += loss.detach()
            if is_probe:
                break
        return total

    def state(self) -> tuple[checkpoint.Tensors, checkpoint.Tensors]:
        """Return weights and optimizer state by name, as this process holds them."""
        state: checkpoint.Tensors = {}
        for optimizer in self.optimizers:
            state |= checkpoint.flatten_optimizer(optimizer, self.names)
        return {name: parameter for parameter, name in self.names.items()}, state

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Restore a checkpoint's weights and optimizer state."""
        checkpoint.restore_model(self.names, saved.model)
        for optimizer in self.optimizers:
            checkpoint.restore_optimizer(optimizer, self.names, saved.optimizer)

    def full_network(self) -> GPT:
        """Return the network for one process; every process of a sharded run must call this."""
        if not self.sharded:
            return self.network
        weights = {name: full_tensor(parameter.detach()) for parameter, name in self.names.items()}
        network = GPT(self.recipe.model, self.network.vocab_size).to(self.device)
        network.load_state_dict(weights)
        return network

    def weights_are_finite(self) -> bool:
        """Return False if a weight is NaN or infinite: every later checkpoint would have it."""
        with torch.no_grad():
            norms = [full_tensor(norm) for norm in torch._foreach_norm(list(self.names))]
        return bool(torch.stack(norms).isfinite().all())

"""One optimizer step: the gradients of its micro-batches, over one process or many, and the update.

A step is a function of its number alone: its windows, its learning rate, its random numbers. The micro-batch, and
how many processes share the work, change nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corpus.order import BatchOrder, micro_batches
from corpus.shards import TokenStream
from job.attention_windows import window_at
from job.batch_schedule import common_sequences, tokens_at, tokens_before
from job.compiling import should_compile
from job.faults import OutOfMemory, too_small
from job.learning_rate import learning_rate
from job.memory import micro_batch_size
from job.recipe import Recipe
from model import checkpoint
from model import device as devices
from model.batches import TokenBatches
from model.distributed import World
from model.gpt import GPT, Attention, block_mask
from model.optim import make_optimizers
from model.parallel import exchange_gradients, replicate, shard, whole


class Taken(NamedTuple):
    """What a step gave: this process's mean loss and the gradient's norm, both still on the device; its rate."""

    loss: Tensor
    norm: Tensor
    rate: float


class Steps:
    """Takes steps on ``network``. ``say`` tells the user, ``note`` the log alone."""

    def __init__(
        self,
        recipe: Recipe,
        network: GPT,
        train: TokenStream,
        world: World,
        device: torch.device,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.recipe, self.config, self.world, self.device = recipe, recipe.train, world, device
        self.say = say
        block = recipe.model.block_size
        self.order = BatchOrder(len(train), block, recipe.sequences_per_step, self.config.seed)
        self.batches = TokenBatches(train, block, device)
        share = common_sequences(recipe) // world.size
        self.micro_batch = micro_batch_size(share, devices.fitting_micro_batch(recipe, device, world.size))
        self.grad_accum_steps = recipe.sequences_per_step // world.size // self.micro_batch
        self.network = network.to(device)
        network.loss_chunk = self.config.loss_chunk
        network.activation_checkpointing = self.config.activation_checkpointing
        for module in network.modules():
            if isinstance(module, Attention):
                module.kernel = self.config.attention
        self.sharded = self.config.shard and world.size > 1
        # Sharded there are none: a forward pass is an exchange.
        self.rehearsals = 2 if world.size > 1 and not self.sharded else 0
        compiled, reason = should_compile(recipe, device.type)
        note(f"torch.compile: {'yes' if compiled else 'no'}, {reason}")
        # flex_attention has no dropout, and without the compiler no kernel.
        self.flex = compiled and device.type == "cuda" and recipe.model.dropout == 0 and any(network.short)
        self._see(recipe.model.window_size)
        self.eval_forward, self.forward = self._prepare(compiled)
        self.names: dict[Tensor, str] = {p: n for n, p in network.named_parameters()}
        self.optimizers = make_optimizers(network, self.config, device, world)

    def _prepare(self, compiled: bool) -> tuple[nn.Module, nn.Module]:
        """The network as it is evaluated and as it is trained."""
        forward: nn.Module = self.network
        if compiled and (self.sharded or self.device.type == "cpu"):
            # One graph for all blocks: two thirds of the time that compiling the whole network takes.
            for block in self.network.h:
                block.compile(dynamic=False)
        elif compiled:
            forward = torch.compile(forward, dynamic=False)  # type: ignore[assignment]
        if self.sharded:
            shard(self.network, self.network.h, self.world, self.device)
        elif self.world.size > 1:
            return forward, replicate(forward, self.device)
        return forward, forward

    def take(self, step: int) -> Taken:
        """Step number ``step``, from 0."""
        rate = learning_rate(step, self.config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
        self._see(window_at(self.recipe, step))
        if self.rehearsals > 0:
            self._rehearse(step)
        total = self._gradients(step)
        self._see(self.recipe.model.window_size)
        limit = self.config.grad_clip or math.inf
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return Taken(total, norm, rate)

    def _see(self, window: int | None) -> None:
        """Give the short blocks their window. The network compiles again only for one that is the whole context."""
        length = self.recipe.model.block_size
        flex = block_mask(length, window, self.device) if self.flex and window and window < length else None
        self.network.see(window, flex)

    def flops_per_token(self, step: int) -> float:
        """Of one token in step number ``step``, from 0."""
        return self.network.flops_per_token(window_at(self.recipe, step))

    def _gradients(self, step: int) -> Tensor:
        """Leave the step's gradients in the network; the mean loss. Where memory runs out, with half the micro-batch:
        nothing but the gradients has changed by then, so the step is as if it had begun so."""
        while True:
            try:
                return self._accumulate(step)
            except torch.OutOfMemoryError as error:
                why = str(error).partition("\n")[0]
            # Outside the except block, whose traceback holds the step's tensors. With several processes the others
            # wait in an exchange that this one will not join.
            self._halve_micro_batch(why, possible=self.world.size == 1)

    def _rehearse(self, step: int) -> None:
        """A micro-batch without its exchange, so that all learn of the process whose memory is too small, and all halve.
        The first step has no optimizer's state yet, so it takes two: 2 micro-batches an attempt, thrown away."""
        self.rehearsals -= 1
        while True:
            why = ""
            try:
                self._accumulate(step, rehearsal=True)
            except torch.OutOfMemoryError as error:
                why = str(error).partition("\n")[0]
            self.network.zero_grad(set_to_none=True)
            if self.world.sum(torch.tensor(len(why) > 0, dtype=torch.float32)).item() == 0:
                return
            self._halve_micro_batch(why or "another process's memory")

    def _halve_micro_batch(self, why: str, possible: bool = True) -> None:
        """Go on with half the sequences at once, and the same batch; JOB_FAILED where that can't be."""
        self.network.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = micro_batch_size(self.micro_batch * self.grad_accum_steps, max(1, self.micro_batch // 2))
        if self.micro_batch == 1 or not possible:
            raise OutOfMemory(too_small(devices.device_name(self.device), self.micro_batch, smaller, why))
        self.grad_accum_steps = self.grad_accum_steps * self.micro_batch // smaller
        self.say(
            f"out of memory with micro_batch {self.micro_batch}: going on with {smaller}, accumulated "
            f"{self.grad_accum_steps} times; the batch stays the same. Write micro_batch: {smaller} into the recipe"
        )
        self.micro_batch = smaller

    def windows(self, step: int) -> NDArray[np.int64]:
        """Where the windows that all processes read in ``step`` begin."""
        block = self.recipe.model.block_size
        return self.order.span(
            tokens_before(self.config, step) // block, tokens_at(self.config, step) // block
        )

    def _accumulate(self, step: int, rehearsal: bool = False) -> Tensor:
        if self.recipe.model.dropout > 0:
            # Random numbers are a function of seed, step and rank: a resumed run draws the same ones.
            torch.manual_seed((self.config.seed * 1_000_003 + step) * 4096 + self.world.rank)
        parts = micro_batches(self.windows(step), self.world.rank, self.world.size, self.micro_batch)
        total = torch.zeros((), device=self.device)
        for i, starts in enumerate(parts):
            ids_BT, targets_BT = self.batches.take(starts)
            exchange_gradients(self.forward, now=i == len(parts) - 1 and not rehearsal)
            with devices.autocast(self.config.dtype, self.device):
                loss = self.forward(ids_BT, targets_BT) / len(parts)
            loss.backward()
            total += loss.detach()
            if rehearsal:
                break
        return total

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and the optimizers' state by name, as this process holds them."""
        state: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            state |= checkpoint.flatten_optimizer(optimizer, self.names)
        return {name: parameter for parameter, name in self.names.items()}, state

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Put a checkpoint's weights and optimizers' state back."""
        checkpoint.restore_model(self.names, found.model)
        for optimizer in self.optimizers:
            checkpoint.restore_optimizer(optimizer, self.names, found.optimizer)

    def whole_network(self) -> GPT:
        """The network for one process alone; every process of a sharded run must ask."""
        if not self.sharded:
            return self.network
        weights = {name: whole(parameter.detach()) for parameter, name in self.names.items()}
        network = GPT(self.recipe.model, self.network.vocab_size).to(self.device)
        network.load_state_dict(weights)
        return network

    def weights_are_numbers(self) -> bool:
        """Whether all weights are finite: one that is not would be in every checkpoint from then on."""
        with torch.no_grad():
            norms = [whole(norm) for norm in torch._foreach_norm(list(self.names))]
        return bool(torch.stack(norms).isfinite().all())

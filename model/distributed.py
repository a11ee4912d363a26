"""One process or many: joining torchrun's processes, sharing a network, and stopping together.

A network is replicated (DDP: each process has all of it) or sharded (FSDP2: each has a part). The
functions that shard import torch.distributed.fsdp and .tensor themselves, because that import is a
quarter of a trainer's start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from job.exit_status import ExitStatus, UserError
from job.run_end import StopRequest

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

CPU = torch.device("cpu")
# Rank 0 may prepare a large dataset while the other processes wait.
EXCHANGE_TIMEOUT = timedelta(hours=4)


class ProcessLost(UserError):
    """Another process of the run ended, so an exchange with it failed."""

    status = ExitStatus.JOB_FAILED


@dataclass(frozen=True)
class World:
    """This process: number ``rank`` among ``size`` processes, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_main(self, value: T) -> T:
        """Return the main process's ``value`` in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; without torchrun, yield a World of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo exchanges tensors on the CPU, nccl those on GPUs.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=EXCHANGE_TIMEOUT)
    try:
        yield World(dist.get_rank(), size, device)
    except RuntimeError as error:
        # gloo raises a plain RuntimeError that names its source file
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        why = "another process of this run ended; the same command resumes"
        raise ProcessLost(f"{why} ({str(error).splitlines()[0]})") from None
    # Not after an error: NCCL's shutdown waits for every process, and the others wait in an
    # exchange with the process that failed.
    dist.destroy_process_group()


class StopSignal(StopRequest):
    """A StopRequest that all processes answer in the same way.

    With several processes, each read starts an exchange and returns the result of the previous
    one. So no read waits, and all processes get the same answer, one step late.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        # Set on the main process; the other processes learn its answer with the flag.
        self.has_request: Callable[[], bool] = lambda: False
        self.is_requested = False
        self._exchange: tuple[Tensor, dist.Work] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        with super().listening():
            yield
            if self._exchange is not None:  # gloo aborts a process that exits during an exchange
                self._exchange[1].wait()

    def is_set(self) -> bool:
        """Return True if the trainer must stop before the next step, the same in every process."""
        local = [self.received is not None, self.has_request()]
        if self.world.size == 1:
            is_set, self.is_requested = local
            return is_set
        answer = [False, False]
        if self._exchange is not None:
            previous, work = self._exchange
            work.wait()
            answer = previous.bool().tolist()
        flags = torch.tensor(local, dtype=torch.int32)
        if (work := dist.all_reduce(flags, async_op=True)) is not None:
            self._exchange = (flags, work)
        is_set, self.is_requested = answer
        return is_set


def shard(network: nn.Module, blocks: nn.ModuleList, world: World) -> None:
    """Split every parameter over all processes, in place (FSDP2).

    A block's parameters are gathered when the pass reaches it and freed after it. Gradients and
    optimizer state are split too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(forward: nn.Module, device: torch.device) -> nn.Module:
    """Wrap ``forward`` in DDP, which averages gradients while the backward pass runs."""
    return DistributedDataParallel(
        forward,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # The rotary tables never change. A process that repeats its first pass would be the only
        # one to send them.
        broadcast_buffers=False,
    )


def set_gradient_exchange(forward: nn.Module, enabled: bool) -> None:
    """Choose whether the next backward pass exchanges gradients.

    With DDP, the last micro-batch of a step does. With FSDP2 every one does: postponed gradients
    would be kept unsharded, and there is memory for a part of them only.
    """
    if isinstance(forward, DistributedDataParallel):
        forward.require_backward_grad_sync = enabled


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return True if each process has a part of the tensor, without importing DTensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, for which every process must call this; return others unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a full ``tensor``, split in the way that ``like`` is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

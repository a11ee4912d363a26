"""How many processes share a network: DDP, where each holds all of it, or FSDP2, where each holds a part.

The functions that cut a network import torch.distributed.fsdp and .tensor themselves: a quarter of a trainer's start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.distributed import World

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(network: nn.Module, blocks: nn.ModuleList, world: World, device: torch.device) -> None:
    """Cut every parameter into ``world.size`` parts, in place (FSDP2). A block's parameters are gathered when
    the pass reaches it and let go behind it; gradients and the optimizer's state are parts too."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(forward: nn.Module, device: torch.device) -> nn.Module:
    """DDP: gradients are averaged while the backward pass is still at work."""
    ids = [device.index] if device.type == "cuda" else None
    # broadcast_buffers: the rotary tables never change, and a process that repeats its first pass would send them alone.
    return DistributedDataParallel(
        forward, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def exchange_gradients(forward: nn.Module, now: bool) -> None:
    """Whether the next backward pass exchanges gradients: with DDP only the last of a step's micro-batches does. With
    FSDP2 each does: what is put off is kept in whole, and a part of it is all that there is room for."""
    if isinstance(forward, DistributedDataParallel):
        forward.require_backward_grad_sync = now


def is_part(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process holds a part of it; without importing the class if there can be none."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; every process must ask. Others as they are."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of ``tensor``, which every process has in whole, that this process holds of ``like``."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

"""How many processes share a network: DDP, where each holds all of it, or FSDP2, where each holds a part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model.distributed import World


def shard(network: nn.Module, blocks: nn.ModuleList, world: World, device: torch.device) -> None:
    """Cut every parameter into ``world.size`` parts, in place (FSDP2). A block's parameters are gathered when
    the pass reaches it and let go behind it; gradients and the optimizer's state are parts too."""
    mesh = init_device_mesh(device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(forward: nn.Module, device: torch.device) -> nn.Module:
    """DDP: gradients are averaged while the backward pass is still at work."""
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True)


def exchange_gradients(forward: nn.Module, network: nn.Module, now: bool) -> None:
    """Whether the next backward pass exchanges gradients: only the last of a step's micro-batches does."""
    if isinstance(forward, DistributedDataParallel):
        forward.require_backward_grad_sync = now
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part; every process must ask. Others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of ``tensor``, which every process has in whole, that this process holds of ``like``."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

"""Cross-entropy in chunks of tokens, so that the logits of one chunk are in memory at a time.

At 124M and a micro-batch of 64 x 1024 the logits are 65,536 x 50,304 numbers: 13 GB in float32,
more than the rest of the step. The gradient of the loss is known as soon as the logits are, so the
forward pass computes both and nothing is computed twice. torch's linear_cross_entropy does the
same, but has no softcap.

The loss of a chunk has three forms: the exact one; one in torch for GPUs; and a Triton kernel in
model/loss_kernel.py. Shape suffixes as in model/gpt.py, and n for the tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # a target that does not count in the loss

# The loss of a chunk: (logits, targets, count, wants_grad, cap) → the sum of the losses, and the
# gradient of the mean over ``count`` targets in the dtype of the logits.
ChunkLoss = Callable[[Tensor, Tensor, Tensor, bool, Any], tuple[Tensor, Tensor | None]]


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap · tanh(logits / cap) in float32; with None the logits in float32."""
    logits = logits.float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None) -> Tensor:
    """Return the mean loss in nats over the targets that count, in one chunk."""
    logits_NV = softcap(F.linear(x_ND, weight_VD), cap)
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE_INDEX)


class ChunkedCrossEntropy(torch.autograd.Function):
    """``cross_entropy`` with the logits of ``chunk`` tokens in memory at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        cap: float | None,
        chunk: int,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        wants_grad = x_ND.requires_grad  # not in an evaluation
        count = (targets_N != IGNORE_INDEX).sum().clamp_min(1)
        kind, dtype = x_ND.device.type, x_ND.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        weight = weight_VD.to(dtype)
        total = x_ND.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x_ND)
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(x_ND), chunk):
            x = x_ND[start : start + chunk].to(dtype)
            if start and torch.compiler.is_compiling():
                # Adds 0. It makes each chunk depend on the previous one; otherwise Inductor keeps
                # the logits of all chunks at once (8.6 GB instead of 4.0).
                before = total + grad_weight[0, 0] + grad_x[start - 1, 0] if wants_grad else total
                x = x + before.clamp(0, 0).to(dtype)
            targets_n = targets_N[start : start + chunk]
            loss, grad_nV = chunk_loss(x @ weight.mT, targets_n, count, wants_grad, cap)
            total += loss
            if grad_nV is not None:
                grad_x[start : start + chunk] = grad_nV @ weight
                grad_weight += grad_nV.mT @ x
        ctx.save_for_backward(grad_x, grad_weight.to(weight_VD.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None, None, None, None


def exact_loss(
    logits_nV: Tensor, targets_n: Tensor, count: Tensor, wants_grad: bool, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient as ``cross_entropy`` does."""
    targets_n1 = targets_n[:, None]
    is_kept_n1 = targets_n1 != IGNORE_INDEX
    capped_nV = softcap(logits_nV, cap)
    log_p_nV = torch.log_softmax(capped_nV, dim=-1)
    loss = -(log_p_nV.gather(1, targets_n1.clamp_min(0)) * is_kept_n1).sum()
    if not wants_grad:
        return loss, None
    # A comparison instead of a scatter: Inductor then reads and writes each logit once.
    grad_nV = log_p_nV.exp_().add_(_one_hot(logits_nV, targets_n1), alpha=-1)
    grad_nV *= is_kept_n1 / count
    if cap is not None:
        grad_nV *= 1 - (capped_nV / cap).square()  # the derivative of tanh
    return loss, grad_nV.to(logits_nV.dtype)


def sigmoid_loss(
    logits_nV: Tensor, targets_n: Tensor, count: Tensor, wants_grad: bool, cap: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the softcapped loss for a GPU: 67 instructions per logit instead of 135.

    tanh is written as a sigmoid, because Inductor's tanh has a branch. No capped logit exceeds
    ``cap``, so the sum of exponentials needs no maximum.
    """
    targets_n1 = targets_n[:, None]
    is_kept_n1 = targets_n1 != IGNORE_INDEX
    sigmoid_nV = torch.sigmoid(logits_nV.float() * (2 / cap))
    capped_nV = 2 * cap * sigmoid_nV - cap
    log_sum_n1 = capped_nV.exp().sum(-1, keepdim=True).log()
    loss = ((log_sum_n1 - capped_nV.gather(1, targets_n1.clamp_min(0))) * is_kept_n1).sum()
    if not wants_grad:
        return loss, None
    grad_nV = (capped_nV - log_sum_n1).exp().add(_one_hot(logits_nV, targets_n1), alpha=-1)
    grad_nV = grad_nV * (4 * sigmoid_nV * (1 - sigmoid_nV)) * (is_kept_n1 / count)
    return loss, grad_nV.to(logits_nV.dtype)


def _one_hot(logits_nV: Tensor, targets_n1: Tensor) -> Tensor:
    return torch.arange(logits_nV.size(1), device=logits_nV.device) == targets_n1


def pick_loss(device: torch.device, cap: float | None) -> ChunkLoss:
    """Return the fastest form for ``device``; a CPU and uncapped logits get the exact one."""
    if cap is None or device.type != "cuda":
        return exact_loss
    is_nvidia = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    if is_nvidia and find_spec("triton") is not None:
        from model.loss_kernel import kernel_loss  # imports Triton

        return kernel_loss
    return sigmoid_loss


def chunked_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    cap: float | None,
    chunk: int,
    chunk_loss: ChunkLoss = exact_loss,
) -> Tensor:
    """Return ``cross_entropy`` with the logits of ``chunk`` tokens in memory at a time."""
    loss: Tensor = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x_ND, weight_VD, targets_N, cap, chunk, chunk_loss
    )
    return loss

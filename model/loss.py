"""Cross-entropy in chunks of tokens, so that the logits of one chunk are in memory at a time.

At 124M and a micro-batch of 64 x 1024 the logits are 65,536 x 50,304 numbers: 13 GB in float32,
more than the rest of the step. The gradient of the loss is known as soon as the logits are, so the
forward pass computes both and nothing is computed twice. torch's linear_cross_entropy does the
same, but has no softcap.

The loss of a chunk has two forms: one in torch, and a Triton kernel in model/loss_kernel.py. Shape
suffixes as in model/gpt.py, and n for the tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.fp8 import E5M2, GRADIENT_SCALE, Scaled, quantize

IGNORE_INDEX = -100  # a target that does not count in the loss

# The loss of a chunk: (logits, targets, count, dtype of the gradient, cap) → the sum of the losses,
# and the gradient of the mean over ``count`` targets, in float8 times GRADIENT_SCALE · count.
ChunkLoss = Callable[[Tensor, Tensor, Tensor, torch.dtype | None, Any], tuple[Tensor, Any]]


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
        chunk_loss: ChunkLoss | None = None,
        fp8: bool = False,
    ) -> Tensor:
        wants_grad = x_ND.requires_grad  # not in an evaluation
        count = (targets_N != IGNORE_INDEX).sum().clamp_min(1)
        kind, dtype = x_ND.device.type, x_ND.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        grad_dtype = None if not wants_grad else E5M2 if fp8 else dtype
        rounded: Callable[[Tensor], Any] = quantize if fp8 else lambda tensor: tensor
        weight = rounded(weight_VD.to(dtype))
        total = x_ND.new_zeros((), dtype=torch.float32)
        grads_x: list[Tensor] = []
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(x_ND), chunk):
            part = slice(start, start + chunk)
            x, targets_n = rounded(x_ND[part].to(dtype)), targets_N[part]
            if start and torch.compiler.is_compiling():
                # Adds 0. It makes each chunk depend on the previous one; otherwise Inductor keeps
                # the logits of all chunks at once (8.6 GB instead of 4.0).
                before = total + grad_weight[0, 0] if wants_grad else total
                targets_n = targets_n + (before < -math.inf)
            logits_nV = x.matmul(weight.mT)  # the compiler does not know @ of float8
            loss, grad = (chunk_loss or exact_loss)(logits_nV, targets_n, count, grad_dtype, cap)
            total += loss
            if grad is not None:
                grad = Scaled(grad, 1 / (count * GRADIENT_SCALE)) if fp8 else grad
                grads_x.append(grad.matmul(weight))
                grad_weight += grad.mT.matmul(x)
        if wants_grad:
            # Inductor lets each product write its part of the result.
            grad_x = torch.cat(grads_x).to(x_ND.dtype)
            ctx.save_for_backward(grad_x, grad_weight.to(weight_VD.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None, None, None, None, None


def exact_loss(
    logits_nV: Tensor, targets_n: Tensor, count: Tensor, grad_dtype: torch.dtype | None, cap: Any
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient as ``cross_entropy`` does."""
    targets_n1 = targets_n[:, None]
    is_kept_n1 = targets_n1 != IGNORE_INDEX
    capped_nV = softcap(logits_nV, cap)
    log_p_nV = torch.log_softmax(capped_nV, dim=-1)
    loss = -(log_p_nV.gather(1, targets_n1.clamp_min(0)) * is_kept_n1).sum()
    if grad_dtype is None:
        return loss, None
    # A comparison instead of a scatter: Inductor then reads and writes each logit once.
    is_target_nV = torch.arange(logits_nV.size(1), device=logits_nV.device) == targets_n1
    grad_nV = log_p_nV.exp_().add_(is_target_nV, alpha=-1)
    grad_nV *= is_kept_n1 * GRADIENT_SCALE if grad_dtype == E5M2 else is_kept_n1 / count
    if cap is not None:
        grad_nV *= 1 - (capped_nV / cap).square()  # the derivative of tanh
    return loss, grad_nV.to(grad_dtype)


def pick_loss(device: torch.device, cap: float | None) -> ChunkLoss:
    """Return the kernel for capped logits on an NVIDIA GPU; otherwise the form in torch."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if cap is None or not is_nvidia or torch.cuda.get_device_capability(device) < (8, 0):
        return exact_loss
    if find_spec("triton") is None:
        return exact_loss
    from model.loss_kernel import kernel_loss  # imports Triton

    return kernel_loss


# The mean loss as from ``cross_entropy``; arguments as of ChunkedCrossEntropy.forward.
chunked_cross_entropy: Callable[..., Tensor] = ChunkedCrossEntropy.apply

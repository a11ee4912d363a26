"""Cross-entropy without the logits: they stand in memory for one chunk of tokens at a time.

At 124M and a micro-batch of 64 x 1024 the logits are 65,536 x 50,304 numbers, 13 GB in float32, more than all
the rest of the step. The gradient of the loss is known as soon as the logits are, so the forward pass
computes both and nothing is computed twice. torch's linear_cross_entropy does the same, but has no softcap.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap) in float32: no token's score runs away. None leaves them."""
    logits = logits.float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None, ignored: int
) -> Tensor:
    """Mean loss in nats over the targets that are not ``ignored``, the logits all at once."""
    return F.cross_entropy(softcap(F.linear(x_ND, weight_VD), cap), targets_N, ignore_index=ignored)


class ChunkedCrossEntropy(torch.autograd.Function):
    """``cross_entropy`` in chunks of ``chunk`` tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        cap: float | None,
        ignored: int,
        chunk: int,
    ) -> Tensor:
        wanted = x_ND.requires_grad  # an evaluation needs no gradient
        count = (targets_N != ignored).sum().clamp_min(1)
        dtype = (
            torch.get_autocast_dtype(x_ND.device.type)
            if torch.is_autocast_enabled(x_ND.device.type)
            else x_ND.dtype
        )
        weight = weight_VD.to(dtype)
        total = x_ND.new_zeros((), dtype=torch.float32)
        grad_x, grad_weight = (
            torch.empty_like(x_ND),
            torch.zeros_like(weight_VD, dtype=torch.float32),
        )
        rows_V = torch.arange(len(weight_VD), device=x_ND.device)
        for start in range(0, len(x_ND), chunk):
            x = x_ND[start : start + chunk].to(dtype)
            if start and torch.compiler.is_compiling():
                # Adds 0: each chunk depends on the one before, or Inductor holds the logits of all at once (8.6 GB, not 4.0).
                before = total + grad_weight[0, 0] + grad_x[start - 1, 0] if wanted else total
                x = x + before.clamp(0, 0).to(dtype)
            targets_n1 = targets_N[start : start + chunk, None]
            kept_n1 = targets_n1 != ignored
            logits_nV = softcap(x @ weight.mT, cap)
            log_p_nV = torch.log_softmax(logits_nV, dim=-1)
            total -= (log_p_nV.gather(1, targets_n1.clamp_min(0)) * kept_n1).sum()
            if not wanted:
                continue
            # A comparison, not a scatter: Inductor makes one kernel of all this, which reads and writes each logit once.
            grad_nV = log_p_nV.exp_().add_(rows_V == targets_n1, alpha=-1)
            grad_nV *= kept_n1 / count
            if cap is not None:
                grad_nV *= 1 - (logits_nV / cap).square()  # of tanh
            grad = grad_nV.to(dtype)
            grad_x[start : start + chunk] = grad @ weight
            grad_weight += grad.mT @ x
        ctx.save_for_backward(grad_x, grad_weight.to(weight_VD.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grads[0], grad_weight * grads[0], None, None, None, None


def chunked_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None, ignored: int, chunk: int
) -> Tensor:
    """``cross_entropy``, with the logits of ``chunk`` tokens in memory at once."""
    loss: Tensor = ChunkedCrossEntropy.apply(x_ND, weight_VD, targets_N, cap, ignored, chunk)  # type: ignore[no-untyped-call]
    return loss

"""The softcapped loss as a Triton kernel: 33 instructions per logit, no memory but the logits.

It reads the logits twice, the second time from the L2 cache, and writes the gradient over them.
Shape suffixes as in model/loss.py.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from model.fp8 import E5M2, GRADIENT_SCALE
from model.loss import IGNORE_INDEX

BLOCK = 4096  # logits that a program reads at a time
WARPS = 8
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tanh(x, IS_APPROXIMATE: tl.constexpr):
    if IS_APPROXIMATE:  # relative error 2^-11, below that of bfloat16
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _exp2(x, IS_APPROXIMATE: tl.constexpr):
    if IS_APPROXIMATE:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def _row_kernel(
    logits,
    targets,
    count,
    losses,
    grads,
    IGNORED: tl.constexpr,
    V: tl.constexpr,
    CAP: tl.constexpr,
    WANTS_GRAD: tl.constexpr,
    FP8_SCALE: tl.constexpr,
    IS_APPROXIMATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one row: its loss, and its gradient over its logits.

    A capped logit is CAP · h with h = tanh(logit / CAP). It is at most CAP, so that the sum of
    exponentials needs no maximum. Exponentials and logarithms have the base 2. Without ``grads``
    the gradient replaces the logits.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row).to(tl.int32)
    is_kept = target != IGNORED
    target_logit = tl.load(logits + tl.where(is_kept, target, 0)).to(tl.float32)
    SCALE: tl.constexpr = CAP * LOG2_E
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        in_row = columns < V - start
        x = tl.load(logits + start + columns, mask=in_row, other=0).to(tl.float32)
        power = _exp2(_tanh(x * (1 / CAP), IS_APPROXIMATE) * SCALE, IS_APPROXIMATE)
        sums += tl.where(in_row, power, 0)
    log_sum = tl.log2(tl.sum(sums, 0))
    loss = (log_sum - _tanh(target_logit * (1 / CAP), IS_APPROXIMATE) * SCALE) / LOG2_E
    tl.store(losses + row, tl.where(is_kept, loss, 0))
    if WANTS_GRAD:
        if grads is None:
            grads, weight = logits, 1.0 / tl.load(count).to(tl.float32)
        else:
            grads, weight = grads + row * V, FP8_SCALE
        weight = tl.where(is_kept, weight, 0.0)
        for start in range(0, V, BLOCK):
            in_row = columns < V - start
            x = tl.load(logits + start + columns, mask=in_row, other=0).to(tl.float32)
            h = _tanh(x * (1 / CAP), IS_APPROXIMATE)
            p = _exp2(h * SCALE - log_sum, IS_APPROXIMATE) - (columns == target - start)
            grad = p * (weight - weight * h * h)  # weight times the derivative of tanh
            grad = grad.to(grads.dtype.element_ty)
            tl.store(grads + start + columns, grad, mask=in_row)


@triton_op("gpt_runner::softcapped_loss", mutates_args={"logits_nV", "grads_nV"})
def softcapped_loss(
    logits_nV: Tensor,
    targets_n: Tensor,
    count: Tensor,
    grads_nV: Tensor | None,
    wants_grad: bool,
    cap: float,
) -> Tensor:
    """Return each row's loss, 0 if ignored; write gradients to ``grads_nV``, or over the logits."""
    rows, columns = logits_nV.shape
    losses_n = torch.empty(rows, dtype=torch.float32, device=logits_nV.device)
    # Triton's interpreter, which tests use, runs no inline assembly.
    is_compiled = isinstance(_row_kernel, triton.JITFunction)
    launch = wrap_triton(_row_kernel) if is_compiled else _row_kernel
    # An evaluation has the exact tanh; float32 has more digits than the approximation.
    is_approximate = is_compiled and wants_grad and logits_nV.dtype == torch.bfloat16
    tensors = (logits_nV, targets_n, count, losses_n, grads_nV)
    constants = (IGNORE_INDEX, columns, cap, wants_grad, GRADIENT_SCALE, is_approximate, BLOCK)
    launch[(rows,)](*tensors, *constants, num_warps=WARPS)
    return losses_n


def kernel_loss(
    logits_nV: Tensor, targets_n: Tensor, count: Tensor, grad_dtype: torch.dtype | None, cap: float
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient as ``exact_loss`` does; the logits can be overwritten."""
    wants_grad = grad_dtype is not None
    grads_nV = torch.empty_like(logits_nV, dtype=E5M2) if grad_dtype == E5M2 else None
    losses_n = softcapped_loss(logits_nV, targets_n, count, grads_nV, wants_grad, cap)
    return losses_n.sum(), (logits_nV if grads_nV is None else grads_nV) if wants_grad else None

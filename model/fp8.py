"""Matrix products in float8, scaled tensor by tensor: by the datasheet twice bfloat16 on an H100.

Inputs and weights are e4m3 with their own scale; the gradient of the logits is e5m2, whose bound is
known. Shape suffixes as in model/gpt.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Times the number of targets, no gradient of a logit exceeds 1: 2^15 of e5m2's 57,344.
GRADIENT_SCALE = 2.0**15


class Scaled(NamedTuple):
    """Values in float8, and the factor that restores them."""

    values: Tensor
    factor: Tensor

    @property
    def mT(self) -> Scaled:
        """The transposed values."""
        return Scaled(self.values.mT, self.factor)

    def matmul(self, other: Scaled) -> Tensor:
        """Return the product in bfloat16."""
        # The hardware wants each row, and each column of ``other``, in one piece.
        rows, columns = self.values.contiguous(), other.values.mT.contiguous().mT
        factors = self.factor, other.factor
        return torch._scaled_mm(rows, columns, *factors, out_dtype=torch.bfloat16)


def quantize(x: Tensor) -> Scaled:
    """Return ``x`` in e4m3."""
    factor = x.abs().amax().float().clamp_min(1e-12) / torch.finfo(E4M3).max
    return Scaled((x.float() / factor).to(E4M3), factor)


class _Product(torch.autograd.Function):
    """x @ weight.mT, in float8 if asked, with a backward pass in bfloat16.

    On a GPU the product writes the gradient of ``weight`` in float32: nothing is rounded, and no
    other kernel converts it (0.5 GB for the 12 layers of GPT-2's size).
    """

    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, weight_MK: Tensor, fp8: bool) -> Tensor:
        weight_MK = weight_MK.bfloat16()
        ctx.save_for_backward(x_NK, weight_MK)
        return quantize(x_NK).matmul(quantize(weight_MK).mT) if fp8 else x_NK @ weight_MK.mT

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_NK, weight_MK = ctx.saved_tensors
        factors = grads[0].mT, x_NK
        # A CPU has no product with another dtype.
        grad_MK = torch.mm(*factors, torch.float32) if x_NK.is_cuda else torch.mm(*factors)
        return grads[0] @ weight_MK, grad_MK, None


class Linear(nn.Linear):
    """A linear layer of a block, whose forward product in training can be float8."""

    fp8 = False  # StepRunner sets it

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, with the bias if there is one."""
        is_mixed = x.is_cuda and torch.is_autocast_enabled("cuda")
        # torch's own product adds a bias at no cost.
        if not (self.training and (self.fp8 or (is_mixed and self.bias is None))):
            return super().forward(x)
        x_NK = x.flatten(0, -2).bfloat16()
        y: Tensor = _Product.apply(x_NK, self.weight, self.fp8)  # type: ignore[no-untyped-call]
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)

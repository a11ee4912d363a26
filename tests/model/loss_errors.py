"""Compare a form of the chunk loss with float64. As a script: the Triton kernel, as JSON lines.

Triton's interpreter, which runs kernels on the CPU, is chosen when Triton is first imported, so the
kernel needs a process of its own: TRITON_INTERPRET=1 python -m tests.model.loss_errors
"""

from __future__ import annotations

import json
from typing import Any

import torch

from model.fp8 import E5M2, GRADIENT_SCALE
from model.loss import ChunkLoss, chunked_cross_entropy, exact_loss

IGNORED = -100
CAP = 15.0
COLUMNS = (50, 4096, 9001)  # less than one block of the kernel, exactly one, and three
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-3}


def form_errors(form: ChunkLoss, columns: int, dtype: torch.dtype) -> dict[str, float]:
    """Return the relative errors of an evaluation's loss, and of a step's loss and gradient."""
    torch.manual_seed(0)
    logits = (torch.randn(12, columns) * 10).to(dtype)
    targets = torch.randint(0, columns, (12,))
    targets[::5] = IGNORED
    count = (targets != IGNORED).sum()
    exact = logits.double().requires_grad_()
    capped = CAP * torch.tanh(exact / CAP)
    expected = torch.nn.functional.cross_entropy(capped, targets, ignore_index=IGNORED)
    expected.backward()
    evaluated, no_gradient = form(logits.clone(), targets, count, None, CAP)
    trained, gradient = form(logits.clone(), targets, count, dtype, CAP)
    assert no_gradient is None
    assert gradient is not None
    assert gradient.dtype == dtype
    assert exact.grad is not None
    assert not gradient[::5].any()
    return {
        "evaluated": abs(evaluated.item() / count.item() / expected.item() - 1),
        "trained": abs(trained.item() / count.item() / expected.item() - 1),
        "gradient": float((gradient.double() - exact.grad).norm() / exact.grad.norm()),
    }


def chunked_error(form: ChunkLoss) -> float:
    """Return the largest difference of gradients to ``exact_loss``, in chunks of 10 tokens."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 16), torch.randn(50, 16) * 3
    targets = torch.randint(0, 50, (64,))
    targets[::5] = IGNORED
    results = []
    for chunk_loss in (exact_loss, form):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        chunked_cross_entropy(a, b, targets, CAP, 10, chunk_loss).backward()
        assert a.grad is not None
        assert b.grad is not None
        results.append(torch.cat([a.grad.flatten(), b.grad.flatten()]))
    return float((results[0] - results[1]).abs().max())


def fp8_error(form: ChunkLoss) -> float:
    """Return the relative error of the gradient in float8, which has two bits of mantissa."""
    torch.manual_seed(0)
    logits, targets, count = torch.randn(12, 4112), torch.randint(0, 4112, (12,)), torch.tensor(12)
    _, exact = exact_loss(logits.clone(), targets, count, torch.float32, CAP)
    _, gradient = form(logits.clone(), targets, count, E5M2, CAP)
    assert exact is not None
    assert gradient is not None
    assert gradient.dtype == E5M2
    return float((gradient.float() / GRADIENT_SCALE / count - exact).norm() / exact.norm())


def main() -> None:
    """Print the errors of the kernel for each case."""
    from triton.runtime import interpreter

    from model.loss_kernel import kernel_loss

    truncate = interpreter._convert_float

    def convert(data: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        if wanted.is_fp8e5():
            return torch.from_numpy(data).to(E5M2).view(torch.uint8).numpy()
        if not wanted.is_bf16():
            return truncate(data, given, wanted, rounding)
        return torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view("uint16")

    interpreter._convert_float = convert  # the interpreter truncates; a GPU rounds to nearest
    for dtype in TOLERANCES:
        for columns in COLUMNS:
            errors = form_errors(kernel_loss, columns, getattr(torch, dtype))
            print(json.dumps({"dtype": dtype, "columns": columns, **errors}))
    logits = torch.randn(4, 50)
    targets, count = torch.randint(0, 50, (4,)), torch.tensor(4)
    float8 = fp8_error(kernel_loss)
    _, gradient = kernel_loss(logits, targets, count, torch.float32, CAP)
    in_place = gradient is logits
    print(json.dumps({"chunked": chunked_error(kernel_loss), "in_place": in_place, "fp8": float8}))


if __name__ == "__main__":
    main()

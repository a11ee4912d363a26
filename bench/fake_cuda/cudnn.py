"""Fake cuDNN attention, the kernels that torch prefers on a Hopper GPU. Loaded by `import torch`.

The outputs have the sizes and strides of the real ones and are not computed, so that Inductor
compiles the graph of a Hopper, without copies of q, k and v.
"""

from __future__ import annotations

import warnings
from typing import Any

LIBRARIES: list[Any] = []  # a registration lives as long as its Library object


def register() -> None:
    """Replace torch's two cuDNN attention operators on CUDA."""
    import torch
    from torch import Tensor

    def forward(
        query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Any, ...]:
        batch, heads, length, _ = query.shape
        output = torch.empty_like(query)  # cuDNN keeps the layout of the queries
        logsumexp = query.new_empty((batch, heads, length, 1), dtype=torch.float32)
        seed, offset = (query.new_empty((), dtype=torch.int64) for _ in range(2))
        return output, logsumexp, None, None, length, key.shape[2], seed, offset, None

    def backward(
        _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():  # torch warns about every replaced operator
        warnings.simplefilter("ignore")
        library.impl("_scaled_dot_product_cudnn_attention", forward, "CUDA")
        library.impl("_scaled_dot_product_cudnn_attention_backward", backward, "CUDA")
    LIBRARIES.append(library)

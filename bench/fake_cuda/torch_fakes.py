"""Fakes for torch on the fake CUDA device: cuBLAS, cuSOLVER and cuSPARSE, and cuDNN attention.

    python torch_fakes.py | g++ -shared -fPIC -x c++ -

prints C++ stubs for the functions of the three libraries that torch calls. They return success.

``register``, which `import torch` calls, replaces the attention kernels that torch prefers on a
Hopper GPU. The outputs have the sizes and strides of the real ones and are not computed, so that
Inductor compiles the graph of a Hopper, without copies of q, k and v.
"""

from __future__ import annotations

import re
import subprocess
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LIBRARIES: list[Any] = []  # a registration lives as long as its Library object
# Functions with results: handles and descriptors, a mode, the only algorithm for a product.
OWN = """
static char anything[4096];
int cublasCreate_v2(void** handle) { return *handle = anything, 0; }
int cusolverDnCreate(void** handle) { return *handle = anything, 0; }
int cusparseCreate(void** handle) { return *handle = anything, 0; }
int cublasGetMathMode(void*, int* mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0; }
size_t cublasLtGetVersion() { return 130000; }
int cublasLtMatmulDescCreate(void** made, int, int) { return *made = anything, 0; }
int cublasLtMatrixLayoutCreate(void** made, int, unsigned long, unsigned long, long) {
    return *made = anything, 0;
}
int cublasLtMatmulPreferenceCreate(void** made) { return *made = anything, 0; }
int cublasLtMatmulAlgoGetHeuristic(
    void*, void*, void*, void*, void*, void*, void*, int, void* found, int* count) {
    return memset(found, 0, 96), *count = 1, 0;
}
"""


def imported_functions() -> set[str]:
    """Return the names of the functions that torch's libraries import."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    names: set[str] = set()
    for library in (Path(spec.origin).parent / "lib").glob("lib*torch*.so"):
        command = ["nm", "--dynamic", "--undefined-only", str(library)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names |= set(re.findall(r"\b(?:cublas|cusolver|cusparse)(?!Lt_)\w+", listed))
    return names


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


if __name__ == "__main__":
    print('#include <cstddef>\n#include <cstring>\nextern "C" {' + OWN)
    for name in sorted(imported_functions() - set(re.findall(r"\w+(?=\()", OWN))):
        print(f"int {name}() {{ return 0; }}")
    print("}")

"""Print C++ stubs for the functions of cuBLAS, cuSOLVER and cuSPARSE that torch calls.

    python libraries.py | g++ -shared -fPIC -x c++ -

Every stub returns success.
"""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

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


if __name__ == "__main__":
    print('#include <cstddef>\n#include <cstring>\nextern "C" {' + OWN)
    for name in sorted(imported_functions() - set(re.findall(r"\w+(?=\()", OWN))):
        print(f"int {name}() {{ return 0; }}")
    print("}")

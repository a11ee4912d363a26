"""Count the instructions of compiled Triton kernels from their machine code (SASS).

Works on the fake CUDA device (bench/fake_cuda), because kernels are only compiled and disassembled.
"""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

# One instruction per cycle for each of the 4 schedulers of 132 multiprocessors at 1.755 GHz (H200).
ISSUE_PER_SECOND = 132 * 4 * 1.755e9
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?);", re.MULTILINE)
BRANCH = re.compile(r"\bBRA(?:\.\S+)? .*?(?:0x|`\(\.L_x_)([0-9a-f]+)")
# Sizes and the block that a loop advances by, as Inductor and model/loss_kernel.py name them.
LOOPS = (("r0_numel", "R0_BLOCK"), ("rnumel", "RBLOCK"), ("V", "BLOCK"))


@dataclass(frozen=True)
class KernelCost:
    """Warp instructions of one launch."""

    name: str
    instructions: float


def launched_kernels(step: Callable[[], object]) -> list[KernelCost]:
    """Run ``step`` on the fake CUDA device and return the cost of each Triton launch."""
    from torch._inductor import config
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    driver = ctypes.CDLL("libcuda.so.1")
    costs: list[KernelCost] = []
    run = CachingAutotuner.run
    cubins: dict[int, tuple[int, list[tuple[int, int]]]] = {}

    def recorded(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(kernel, *args, **kwargs)  # type: ignore[no-untyped-call]
        if not kwargs.get("benchmark_run"):
            (launcher,) = kernel.launchers
            if id(launcher) not in cubins:
                cubins[id(launcher)] = parse_sass(disassemble(_cubin(kernel)))
            values = {
                **dict(zip(kernel.fn.arg_names, args, strict=False)),
                **kernel.triton_meta.get("constants", {}),
            }
            values = {key: value for key, value in values.items() if isinstance(value, int)}
            values |= launcher.config.kwargs
            programs = math.prod(driver.fake_cuda_grid(axis) for axis in range(3))
            warps = programs * launcher.config.num_warps
            per_warp = instructions_per_warp(*cubins[id(launcher)], values)
            costs.append(KernelCost(kernel.fn.__name__, warps * per_warp))
        return result

    with (
        config.patch(use_static_cuda_launcher=False, force_disable_caches=True),
        patch.object(CachingAutotuner, "run", recorded),
    ):
        step()
    return costs


def _cubin(kernel: Any) -> bytes:
    (result,) = kernel.compile_results
    return bytes(result.kernel.asm["cubin"])


def disassemble(cubin: bytes) -> str:
    """Return the SASS of a cubin, by Triton's copy of cuobjdump."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse_sass(sass: str) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of instructions, and the (first, last) index of each loop."""
    lines = INSTRUCTION.findall(sass)
    # The code ends with a branch to itself and padding.
    end = next(i for i in range(len(lines) - 1, -1, -1) if "EXIT" in lines[i][1]) + 1
    index = {int(address, 16): i for i, (address, _) in enumerate(lines[:end])}
    loops = []
    for i, (_, text) in enumerate(lines[:end]):
        target = BRANCH.search(text)
        if target and (first := index.get(int(target[1], 16))) is not None and first < i:
            loops.append((first, i))
    return end, loops


def instructions_per_warp(
    count: int, loops: list[tuple[int, int]], values: Mapping[str, Any]
) -> float:
    """Weight each loop by its trips; code outside of loops runs once."""
    trips = 1
    for size, block in LOOPS:
        if size in values and block in values:
            trips = math.ceil(values[size] / values[block])
            break
    return count + sum(last - first + 1 for first, last in loops) * (trips - 1)

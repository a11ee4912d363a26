"""The device of this process, the number format that pays on it, and its ceiling."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import torch

from job.compiling import should_compile
from job.exit_status import UserError
from job.faults import unusable
from job.memory import chosen_micro_batch
from job.peak_flops import datasheet_flops
from job.recipe import Recipe

GPU = Path("/dev/nvidia0")  # the first one, where the driver is there


def pick_device(asked: str | None, local_rank: int) -> torch.device:
    """The device asked for, else cuda, mps or cpu by what is there; UserError if it is not there."""
    kind = asked or (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU here; `runner doctor` says why, or use --device cpu"
        )
    if asked is None and kind == "cpu" and torch.version.cuda and GPU.exists():
        raise UserError(unusable(torch.version.cuda))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this is no Apple GPU; use --device cpu")
    if kind == "cpu":
        _keep_freed_memory()
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        return torch.device(kind, local_rank)
    return torch.device(kind)


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep what is freed: it hands large blocks back to the system and asks for them anew, up to
    2,700 page faults a step of a small network, which is 5 to 10 % of its time."""
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s by the datasheet; None where the table does not know the device."""
    if device.type != "cuda":
        return None
    return datasheet_flops(torch.cuda.get_device_name(device))


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for matrix products where the recipe asks for it or, with auto, where the device has it."""
    wanted = number_format(dtype, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def fitting_micro_batch(recipe: Recipe, device: torch.device, processes: int) -> int:
    """The recipe's ``micro_batch``; for ``auto`` what fits in the GPU's memory, on a CPU a number that suits it."""
    room = float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None
    bf16 = number_format(recipe.train.dtype, device) == "bfloat16"
    compiled, _ = should_compile(recipe, device.type)
    return chosen_micro_batch(recipe, room, processes, bf16, compiled)


def number_format(dtype: str, device: torch.device) -> str:
    """What ``train.dtype`` comes to on the device: bfloat16 or float32."""
    return ("bfloat16" if has_bfloat16(device) else "float32") if dtype == "auto" else dtype


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 run in hardware: a GPU's, or a CPU's AVX-512 BF16 or AMX, where they take half
    the time of float32 (docs/log.md)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def memory_bytes(device: torch.device) -> int:
    """Peak memory of the job: of the GPU's, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


@lru_cache(maxsize=1)
def gpu_use(device: torch.device, second: int) -> float | None:
    """The share of the last second in which the GPU was at work, 0 to 1, by NVML, which is asked once in each ``second``
    of a clock; None where nobody counts it."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (
        Exception
    ):  # no NVML, another driver, a part of a GPU: each has an error of its own; none ends a run
        return None

"""The device of this process: its number format, memory, utilization and peak FLOP/s."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import torch

from job.exit_status import UserError
from job.memory import chosen_micro_batch
from job.recipe import Recipe
from job.speed import datasheet_flops, should_compile
from job.training_errors import unusable

FIRST_GPU = Path("/dev/nvidia0")  # exists if the NVIDIA driver is loaded


def pick_device(requested: str | None, local_rank: int) -> torch.device:
    """Return the requested device, else cuda, mps or cpu; raise UserError if it is unavailable."""
    has_mps = torch.backends.mps.is_available()
    default = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    kind = requested or default
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch finds no GPU; run `runner doctor` for the cause, or use "
            "--device cpu"
        )
    if requested is None and kind == "cpu" and torch.version.cuda and FIRST_GPU.exists():
        raise UserError(unusable(torch.version.cuda))
    if kind == "mps" and not has_mps:
        raise UserError("--device mps: this machine has no Apple GPU; use --device cpu")
    if kind == "cpu":
        _keep_freed_memory()
    if kind == "cuda":
        # TF32 for the products that autocast leaves in float32
        torch.set_float32_matmul_precision("high")
        return torch.device(kind, local_rank)
    return torch.device(kind)


def _keep_freed_memory() -> None:
    """Stop glibc's malloc from returning freed memory to the system.

    By default a step of a small network causes up to 2,700 page faults: 5 to 10 % of its time.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def device_name(device: torch.device) -> str:
    """Return a name for users: a GPU's model, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{device.type}, {torch.get_num_threads()} threads"
    return device.type


def peak_flops(device: torch.device) -> float | None:
    """Return the datasheet's dense bf16 FLOP/s; None for an unknown device."""
    if device.type != "cuda":
        return None
    return datasheet_flops(torch.cuda.get_device_name(device))


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context that runs matrix products in the format of ``train.dtype``."""
    if number_format(dtype, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def fitting_micro_batch(recipe: Recipe, device: torch.device, processes: int) -> int:
    """Return the recipe's ``micro_batch``; for ``auto`` the largest that fits the GPU's memory."""
    memory = None
    if device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    bf16 = number_format(recipe.train.dtype, device) == "bfloat16"
    compiled, _ = should_compile(recipe, device.type)
    return chosen_micro_batch(recipe, memory, processes, bf16, compiled)


def number_format(dtype: str, device: torch.device) -> str:
    """Resolve ``train.dtype`` for the device: bfloat16 or float32."""
    return ("bfloat16" if has_bfloat16(device) else "float32") if dtype == "auto" else dtype


def has_bfloat16(device: torch.device) -> bool:
    """Return True if the hardware multiplies bfloat16: a GPU, or a CPU's AVX-512 BF16 or AMX.

    On such a CPU the products take half the time of float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: the GPU's, else the main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


@lru_cache(maxsize=1)
def gpu_use(device: torch.device, second: int) -> float | None:
    """Return the GPU's utilization over the last second, 0 to 1; None if it is unknown.

    NVML is asked once for each ``second`` of a clock.
    """
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:
        # NVML missing, another driver, a MIG slice: each raises its own error, none may end a run.
        return None

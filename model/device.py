"""The device of this process: its number format, memory, utilization and peak FLOP/s."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from job.exit_status import UserError
from job.machine import (
    datasheet_flops,
    keep_freed_memory,
    measured_product_flops,
    peak_memory_bytes,
    should_compile,
)
from job.memory import chosen_micro_batch
from job.paths import VolumePaths
from job.recipe import Recipe

FIRST_GPU = Path("/dev/nvidia0")  # exists if the NVIDIA driver is loaded


def pick_device(requested: str | None, local_rank: int) -> torch.device:
    """Return the requested device, else cuda, mps or cpu; raise UserError if it is unavailable."""
    has_mps = torch.backends.mps.is_available()
    default = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    kind = requested or default
    if kind == "cuda" and not torch.cuda.is_available():
        why = "torch finds no GPU; run `runner doctor` for the cause, or use --device cpu"
        raise UserError(f"--device cuda: {why}")
    if requested is None and kind == "cpu" and torch.version.cuda and FIRST_GPU.exists():
        raise UserError(
            f"torch (CUDA {torch.version.cuda}) can't use this machine's GPU: its driver may be "
            "too old (`nvidia-smi` shows the version). Update the driver, or use --device cpu"
        )
    if kind == "mps" and not has_mps:
        raise UserError("--device mps: this machine has no Apple GPU; use --device cpu")
    if kind == "cpu":
        keep_freed_memory()
    if kind == "cuda":
        # TF32 for the products that autocast leaves in float32
        torch.set_float32_matmul_precision("high")
        return torch.device(kind, local_rank)
    return torch.device(kind)


def device_name(device: torch.device) -> str:
    """Return a name for users: a GPU's model, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{device.type}, {threads} thread{'s' * (threads > 1)}"
    return device.type


def ceilings(dtype: str, device: torch.device, count: int) -> list[float | None]:
    """Return the FLOP/s of ``count`` devices: from the datasheet, and by `bench roofline`."""
    name, locations = device_name(device), VolumePaths.current()
    measured = measured_product_flops(name, number_format(dtype, device), locations)
    return [flops and flops * count for flops in (datasheet_flops(name), measured)]


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


def has_float8(device: torch.device) -> bool:
    """Return True if torch multiplies float8 on the device; a CPU does, slowly."""
    if device.type != "cuda":
        return device.type == "cpu"
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def usage(device: torch.device, second: int) -> dict[str, float | None]:
    """Return the peak memory of this process in bytes, and the GPU's utilization (0 to 1)."""
    if device.type != "cuda":
        return {"memory_bytes": peak_memory_bytes(), "gpu_use": None}
    peak = torch.cuda.max_memory_allocated(device)
    return {"memory_bytes": peak, "gpu_use": gpu_use(device, second)}


@lru_cache(maxsize=1)
def gpu_use(device: torch.device, second: int) -> float | None:
    """Return the GPU's utilization over the last second, asked once for each ``second``."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:
        # NVML missing, another driver, a MIG slice: each raises its own error, none may end a run.
        return None

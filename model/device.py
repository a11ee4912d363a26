"""The device of this process, the number format that pays on it, and its ceiling."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext

import torch

from model.exit_status import UserError
from model.recipe import Recipe

# Dense bf16 FLOP/s from the makers' datasheets, by a part of the name that the driver gives.
PEAK_FLOPS = {
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "RTX PRO 6000": 504e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "L4": 121e12,
    "T4": 65e12,  # fp16; it has no bf16
}

KINDS = ("cuda", "mps", "cpu")

# On 2 CPU cores compiling takes 20-40 s and then saves a third of each step, so it pays from a
# recipe of about 1e14 FLOPs, which are 10 minutes there (docs/log.md).
COMPILE_PAYS_FROM_FLOPS = 1e14


def pick_device(asked: str | None, local_rank: int) -> torch.device:
    """The device asked for, else cuda, mps or cpu by what is there; UserError if it is not there."""
    kind = asked or (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no GPU here; `runner doctor` says why, or use --device cpu"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this is no Apple GPU; use --device cpu")
    if kind == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        return torch.device(kind, local_rank)
    return torch.device(kind)


def device_name(device: torch.device) -> str:
    """What a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s by the datasheet; None where the table does not know the device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for matrix products where the recipe asks for it or, with auto, where the GPU has it."""
    if dtype == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        wanted = dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def should_compile(recipe: Recipe, device: torch.device, flops: float) -> tuple[bool, str]:
    """Whether to compile, and why. A function of recipe and machine alone, so that a resume agrees.

    ``flops`` is what the whole recipe costs.
    """
    if recipe.train.compile != "auto":
        return recipe.train.compile, "the recipe says so"
    if device.type == "mps":
        return False, "not on mps"
    if device.type == "cpu" and shutil.which("g++") is None:
        return False, "no C++ compiler here"
    if device.type == "cpu" and flops < COMPILE_PAYS_FROM_FLOPS:
        return False, "the run is too short for it to pay"
    return True, "the run is long enough for it to pay"


def memory_bytes(device: torch.device) -> int:
    """Peak memory of the job: of the GPU's, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere

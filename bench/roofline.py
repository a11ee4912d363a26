"""Measure the FLOP/s of a large matrix product and the memory bandwidth of this device.

    python -m bench.roofline [--device cuda] [--json]

No product reaches the datasheet's figure: of an H200's 989 TFLOP/s in bfloat16, about 790 are
reachable. The result is kept in the cache volume. From then on the trainer's metrics hold
``mfu_roofline``, the share of this figure, next to ``mfu``, the share of the datasheet's.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.benchmark import Timer

from job.arguments import add_device, argument_parser, parse, run
from job.exit_status import ExitStatus
from job.files import write_atomically
from job.machine import device_label, speed_file
from job.paths import VolumePaths
from model import device as devices

# Sides of the square matrices; the fastest product counts. 8192 takes 1.4 ms at 790 TFLOP/s; 2048
# takes 0.2 s on a core that reaches 80 GFLOP/s.
SIDES = {"cuda": (4096, 8192, 16384), "mps": (2048, 4096), "cpu": (512, 1024, 2048)}
COPIED_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 28}  # larger than any cache
MIN_RUN_S = 0.5  # per measurement
# After a product that takes longer, no larger one is tried. A CPU without bfloat16 units reaches
# 1 GFLOP/s in that format: 0.3 s for 512, and 17 s for 2048.
MAX_PRODUCT_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and keep the result; return the exit status."""
    parser = argument_parser("bench.roofline", __doc__ or "")
    add_device(parser)
    return run(_main, parse(parser, argv))


def _main(arguments: Namespace) -> ExitStatus:
    device = devices.pick_device(arguments.device, 0)
    result = {**measure(device), "torch": torch.__version__, "measured": round(time.time())}
    path = speed_file(devices.device_name(device), VolumePaths.current())
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    print(f"saved {path}; metrics of later runs include mfu_roofline", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"device          {result['device']}")
        print(f"bfloat16        {result['bfloat16'] / 1e12:.3f} TFLOP/s")
        single = "float32 (TF32)" if device.type == "cuda" else "float32       "
        print(f"{single}  {result['float32'] / 1e12:.3f} TFLOP/s")
        print(f"memory          {result['bandwidth'] / 1e9:.1f} GB/s, reads plus writes")
    return ExitStatus.DONE


def measure(device: torch.device) -> dict[str, Any]:
    """Return FLOP/s in bfloat16 and float32 (TF32 on CUDA, as in training), and bytes/s."""
    flops = {
        str(dtype).removeprefix("torch."): _product_flops(dtype, device)
        for dtype in (torch.bfloat16, torch.float32)
    }
    source = torch.ones(COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds("target.copy_(source)", MIN_RUN_S, target=target, source=source)
    return {
        "device": device_label(devices.device_name(device)),
        **flops,
        "bandwidth": 2 * COPIED_BYTES[device.type] / seconds,
    }


def _product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of the fastest product."""
    fastest = 0.0
    for side in SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = median_seconds("torch.mm(a, b, out=a_b)", MIN_RUN_S, a=a, b=b, a_b=a.clone())
        fastest = max(fastest, 2 * side**3 / seconds)
        if seconds > MAX_PRODUCT_S:
            break
    return fastest


def median_seconds(statement: str, min_run_s: float, **names: object) -> float:
    """Return the median time of ``statement``. torch's Timer synchronizes CUDA itself."""
    statement += "; torch.mps.synchronize()" if torch.backends.mps.is_available() else ""
    timer = Timer(statement, globals={"torch": torch, **names}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=min_run_s).median)


if __name__ == "__main__":
    sys.exit(main())

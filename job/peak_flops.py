"""What a GPU computes by its maker's datasheet, for the trainer's MFU and for the estimate before a launch alike."""

from __future__ import annotations

import re

# Dense bf16 FLOP/s from the makers' datasheets, by whole words of the name that the driver gives: an RTX A1000 is no A100.
# The first that fits counts, for `H100` stands in `H100 PCIe` too.
PEAK_FLOPS = {
    "B300": 2.25e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "RTX PRO 6000": 504e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "A10G": 70e12,  # as AWS has it: d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "L4": 121e12,
    "T4": 65e12,  # fp16; it has no bf16
}


def datasheet_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU that the driver, or a launch (``A100-80GB``, ``H100!``), calls ``name``; None
    where the table does not know it."""
    spaced = name.replace("-", " ")
    return next((flops for words, flops in PEAK_FLOPS.items() if re.search(rf"\b{words}\b", spaced)), None)

"""The GPU types that Modal rents, and the parser of ``--gpu``.

A type that is added here needs its peak FLOP/s in job/speed.py too, which the trainer reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.errors import did_you_mean, usage

NANOGPT_A100 = "nanoGPT, 124M on 8 A100: 300 B tokens in 4 days, 108k tokens/s per GPU"
NANOGPT_H100 = "nanoGPT, 124M on an H100: 380k tokens/s, reported by a user"
ASSUMED = "assumed; not measured"


@dataclass(frozen=True)
class GpuType:
    """One GPU type.

    ``memory_gb`` counts 1e9 bytes, from the datasheet. ``mfu`` is the share of the datasheet's bf16
    FLOP/s that a network as wide as GPT-2 124M (768) reaches, measured by ``mfu_source``.
    """

    memory_gb: int
    usd_per_hour: float  # autumn 2026 (modal.com/pricing); Modal's own upgrades cost the same
    mfu: float
    mfu_source: str = ASSUMED
    max_count: int = 8  # in one machine
    rdma: bool = False  # nodes exchange 3,200 Gbit/s with it, 50 without
    bf16: bool = True
    float32_share: float = 0.5  # of the bf16 FLOP/s, by TF32


GPU_TYPES = {
    # Turing has no bfloat16 and no TF32: 8.1 of 65 TFLOP/s.
    "T4": GpuType(16, 0.59, 0.30, bf16=False, float32_share=0.125),
    "L4": GpuType(24, 0.80, 0.30),
    "A10": GpuType(24, 1.10, 0.30, max_count=4),
    "L40S": GpuType(48, 1.95, 0.30),
    "A100-40GB": GpuType(40, 2.10, 0.30, NANOGPT_A100),
    "A100-80GB": GpuType(80, 2.50, 0.30, NANOGPT_A100),
    "RTX-PRO-6000": GpuType(96, 3.03, 0.25),
    "H100": GpuType(80, 3.95, 0.33, NANOGPT_H100, rdma=True),
    "H200": GpuType(141, 4.54, 0.33, NANOGPT_H100 + "; the same chip", rdma=True),
    "B200": GpuType(180, 6.25, 0.25, rdma=True),
    "B300": GpuType(270, 7.10, 0.25, rdma=True),
}

# Other names of a type, at its price. `H100!` is never upgraded to an H200, `B200+` may be a B300.
ALIASES = {"A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}

BY_NAME = {
    each: gpu_type
    for name, gpu_type in GPU_TYPES.items()
    for each in (name, *(alias for alias, of in ALIASES.items() if of == name))
}


@dataclass(frozen=True)
class GpuRequest:
    """``count`` GPUs of the first type in ``names`` that is available; no names: no GPU."""

    names: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return ",".join(self.modal_names())

    def modal_names(self) -> list[str]:
        """Return the alternatives as Modal's client takes them."""
        return [f"{name}:{self.count}" if self.count > 1 else name for name in self.names]


def parse_gpus(text: str) -> GpuRequest:
    """Parse ``--gpu``. Raises RunnerError, exit code 2, for a name or count that Modal lacks."""
    names: list[str] = []
    counts: list[int] = []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        name = name.upper()
        if name not in BY_NAME:
            guess = _suggest_count_syntax(name) or suggest_gpu(name)
            raise usage(f"unknown GPU type '{word.strip()}'{guess}")
        if colon and not COUNT.fullmatch(number):
            raise usage(f"invalid GPU count in '{word.strip()}'; use {name}:2")
        count = int(number) if colon else 1
        most = BY_NAME[name].max_count
        if not 1 <= count <= most:
            nodes = "; for more, add --nodes" if count > most == 8 else ""
            raise usage(f"a machine has 1 to {most} {name}, not {count}{nodes}")
        if name not in names:
            names.append(name)
        counts.append(count)
    if len(set(counts)) > 1:
        raise usage(
            f"'{text}' asks for different GPU counts, but a run has one number of processes; "
            f"use {','.join(f'{name}:{counts[0]}' for name in names)}"
        )
    return GpuRequest(tuple(names), counts[0])


COUNT = re.compile(r"[0-9]{1,6}")  # str.isdigit also accepts ² and other digits


def _suggest_count_syntax(word: str) -> str:
    """Return ``; did you mean 'H100:8'?`` for H100x8, H100-8 or 8xH100; '' for other words."""
    match = re.fullmatch(
        r"(?P<name>.+?)[X*/-](?P<count>[1-8])|(?P<first>[1-8])[X*](?P<last>.+)", word
    )
    if match is None:
        return ""
    name, count = match["name"] or match["last"], match["count"] or match["first"]
    known = name in BY_NAME and int(count) <= BY_NAME[name].max_count
    return f"; did you mean '{name}:{count}'?" if known else ""


def suggest_gpu(name: str) -> str:
    """Return ``; did you mean 'H100'?``, or the list of all types."""
    plain = {known.replace("-", "").lower(): known for known in BY_NAME}
    near = did_you_mean(re.sub(r"[-_ ]", "", name), plain)
    if near:
        key = near.split("'")[1]
        return f"; did you mean '{plain[key]}'?"
    return f"; Modal has {', '.join(BY_NAME)}"

"""The kinds of GPU that Modal rents, a line each: what one has, what an hour of it costs, how much of it training uses.

A kind that is added needs its FLOP/s in job/speed.py too, which the trainer reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.errors import did_you_mean, usage

NANOGPT_A100 = "nanoGPT, 124M on 8 A100: 300 B tokens in 4 days, 108k tokens/s a GPU"

NANOGPT_H100 = "nanoGPT, 124M on an H100: 380k tokens/s by a user's report"

ASSUMED = "assumed; nothing was measured"


@dataclass(frozen=True)
class GpuType:
    """One kind. ``memory_gb``: 1e9 bytes, by the maker's datasheet. ``dollars``: an hour, autumn 2026
    (modal.com/pricing); an upgrade that Modal makes by itself (H100 → H200) costs what was asked for. ``mfu``: the
    share of the datasheet's bf16 FLOP/s that a network as wide as GPT-2 124M (768) reaches, from ``mfu_source``.
    ``most``: of one machine."""

    memory_gb: int
    dollars: float
    mfu: float
    mfu_source: str = ASSUMED
    most: int = 8
    rdma: bool = False  # its machines have it: nodes exchange 3,200 Gbit/s, without it 50
    bf16: bool = True
    float32_share: float = 0.5  # of the bf16 FLOP/s, by TF32


GPU_TYPES = {
    # Turing: autocast has no bfloat16 there, and no TF32: 8.1 of 65 TFLOP/s.
    "T4": GpuType(16, 0.59, 0.30, bf16=False, float32_share=0.125),
    "L4": GpuType(24, 0.80, 0.30),
    "A10": GpuType(24, 1.10, 0.30, most=4),
    "L40S": GpuType(48, 1.95, 0.30),
    "A100-40GB": GpuType(40, 2.10, 0.30, NANOGPT_A100),
    "A100-80GB": GpuType(80, 2.50, 0.30, NANOGPT_A100),
    "RTX-PRO-6000": GpuType(96, 3.03, 0.25),
    "H100": GpuType(80, 3.95, 0.33, NANOGPT_H100, rdma=True),
    "H200": GpuType(141, 4.54, 0.33, NANOGPT_H100 + "; the same chip", rdma=True),
    "B200": GpuType(180, 6.25, 0.25, rdma=True),
    "B300": GpuType(270, 7.10, 0.25, rdma=True),
}

# Other names of a kind, at its price. `H100!` is never given an H200, `B200+` may be a B300.
ALIASES = {"A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}

BY_NAME = {
    each: kind
    for name, kind in GPU_TYPES.items()
    for each in (name, *(alias for alias, of in ALIASES.items() if of == name))
}


@dataclass(frozen=True)
class GpuRequest:
    """What is asked for: ``count`` of the first of ``names`` that is free. No names: a machine without."""

    names: tuple[str, ...] = ()
    count: int = 1

    def __str__(self) -> str:
        return ",".join(self.each())

    def each(self) -> list[str]:
        """The alternatives as Modal takes them."""
        return [f"{name}:{self.count}" if self.count > 1 else name for name in self.names]


def parse_gpus(text: str) -> GpuRequest:
    """Read ``--gpu``. Raises RunnerError, exit code 2, for a name or a number that Modal does not have."""
    names, counts = [], []
    for word in text.split(","):
        name, colon, number = word.strip().partition(":")
        name = name.upper()
        if name not in BY_NAME:
            raise usage(f"Modal has no GPU '{word.strip()}'{_with_number(name) or guess(name)}")
        if colon and not number.isdigit():
            raise usage(f"'{word.strip()}' names no number of GPUs; write {name}:2")
        count = int(number) if colon else 1
        most = BY_NAME[name].most
        if not 1 <= count <= most:
            more = "; for more, add --nodes" if count > most == 8 else ""
            raise usage(f"one machine has 1 to {most} {name}, not {count}{more}")
        if name not in names:
            names.append(name)
        counts.append(count)
    if len(set(counts)) > 1:
        raise usage(
            f"'{text}' asks for different numbers of GPUs, and a run has one number of processes; "
            f"write {','.join(f'{name}:{counts[0]}' for name in names)}"
        )
    return GpuRequest(tuple(names), counts[0])


def _with_number(word: str) -> str:
    """``; did you mean 'H100:8'?`` for the H100x8, H100-8 or 8xH100 of other clouds."""
    match = re.fullmatch(
        r"(?P<name>.+?)[X*/-](?P<count>[1-8])|(?P<first>[1-8])[X*](?P<last>.+)", word
    )
    if match is None:
        return ""
    name, count = match["name"] or match["last"], match["count"] or match["first"]
    known = name in BY_NAME and int(count) <= BY_NAME[name].most
    return f"; did you mean '{name}:{count}'?" if known else ""


def guess(name: str) -> str:
    """``; did you mean 'H100'?``, or the list of all."""
    plain = {known.replace("-", ""): known for known in BY_NAME}
    near = did_you_mean(
        name.replace("-", "").replace("_", "").replace(" ", ""), [k.lower() for k in plain]
    )
    if near:
        found = near.split("'")[1].upper()
        return f"; did you mean '{plain[found]}'?"
    return f"; it has {', '.join(BY_NAME)}"

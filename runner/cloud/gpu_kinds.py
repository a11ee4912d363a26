"""The kinds of GPU that Modal rents, a line each: what one has, what an hour of it costs, how much of it training uses.

A kind that is added needs its FLOP/s in job/peak_flops.py too, which the trainer reads.
"""

from __future__ import annotations

from dataclasses import dataclass

NANOGPT_A100 = "nanoGPT, 124M on 8 A100: 300 B tokens in 4 days, 108k tokens/s a GPU"
NANOGPT_H100 = "nanoGPT, 124M on an H100: 380k tokens/s by a user's report"
ASSUMED = "assumed; nothing was measured"


@dataclass(frozen=True)
class Kind:
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


KINDS = {
    # Turing: autocast has no bfloat16 there, and no TF32: 8.1 of 65 TFLOP/s.
    "T4": Kind(16, 0.59, 0.30, bf16=False, float32_share=0.125),
    "L4": Kind(24, 0.80, 0.30),
    "A10": Kind(24, 1.10, 0.30, most=4),
    "L40S": Kind(48, 1.95, 0.30),
    "A100-40GB": Kind(40, 2.10, 0.30, NANOGPT_A100),
    "A100-80GB": Kind(80, 2.50, 0.30, NANOGPT_A100),
    "RTX-PRO-6000": Kind(96, 3.03, 0.25),
    "H100": Kind(80, 3.95, 0.33, NANOGPT_H100, rdma=True),
    "H200": Kind(141, 4.54, 0.33, NANOGPT_H100 + "; the same chip", rdma=True),
    "B200": Kind(180, 6.25, 0.25, rdma=True),
    "B300": Kind(270, 7.10, 0.25, rdma=True),
}
# Other names of a kind, at its price. `H100!` is never given an H200, `B200+` may be a B300.
ALIASES = {"A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}
BY_NAME = {
    each: kind
    for name, kind in KINDS.items()
    for each in (name, *(alias for alias, of in ALIASES.items() if of == name))
}

"""Counting instructions in machine code, without a GPU."""

from __future__ import annotations

from bench.sass import instructions_per_warp, parse_sass

# Six instructions before the end, three of them a loop; then a branch to itself and padding.
SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000fe20000000800 */
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;          /* 0x0000000402027981 */
        /*0020*/                   FADD R4, R2, R4 ;                     /* 0x0000000402047221 */
        /*0030*/              @!P0 BRA 0x10 ;                            /* 0xffffffff00f08947 */
        /*0040*/                   STG.E desc[UR4][R6.64], R4 ;          /* 0x0000000406007986 */
        /*0050*/                   EXIT ;                                /* 0x000000000000794d */
        /*0060*/                   BRA 0x60;                             /* 0xfffffffc00fc7947 */
        /*0070*/                   NOP;                                  /* 0x0000000000007918 */
"""


def test_a_loop_counts_once_per_trip() -> None:
    count, loops = parse_sass(SASS)
    assert (count, loops) == (6, [(1, 3)])
    assert instructions_per_warp(count, loops, {}) == 6
    assert instructions_per_warp(count, loops, {"r0_numel": 100, "R0_BLOCK": 32}) == 6 + 3 * 3
    assert instructions_per_warp(count, loops, {"V": 64, "BLOCK": 32}) == 6 + 3

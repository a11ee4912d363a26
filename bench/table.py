"""Rows of figures for a person: a quiet table on stderr, where talk goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = {
    "contender": "",
    "micro_batch": "micro-batch",
    "ms_median": "ms/step",
    "ms_p10": "p10",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
    "mfu_roofline": "of roofline",
    "peak_memory_gb": "peak GB",
    "compile_cold_seconds": "compile s",
    "compile_warm_seconds": "warm s",
    "checkpoint_stall_ms": "stall ms",
    "stall_share_every_100_steps": "of 100 steps",
    "ours_is_faster": "ours is faster",
}
SHARES = ("mfu", "mfu_roofline", "stall_share_every_100_steps")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A column for each figure that some row has."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(
            COLUMNS[name], justify="left" if name == "contender" else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*(_cell(name, row.get(name)) for name in names))
    console = Console(stderr=True)
    console.width = max(console.width, 150 if not console.is_terminal else console.width)
    console.print(table)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.2%}"
    if name == "ours_is_faster":
        return f"{value:.2f}x"
    return (
        f"{value:,.2f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )

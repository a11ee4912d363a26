"""How a plan looks: a quiet table without borders, on stderr."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from runner.console import CliContext
from runner.plan import Plan


def show(plan: Plan, cli: CliContext) -> None:
    """Print the plan."""
    show_rows(cli, rows(plan))


def show_rows(cli: CliContext, lines: Sequence[tuple[str, str]]) -> None:
    """Print each name, dim, and what it is, folded where the terminal ends."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, value, style="yellow" if name == "warning" else None)
    cli.print_table(table)


def rows(plan: Plan) -> list[tuple[str, str]]:
    """The lines of the table: a name and what it is. A value that the plan does not have has no line."""
    folders = [
        f"{volume.name}: {volume.remote or _short(volume.here, plan.checkout)}"
        for volume in plan.volumes
    ]
    if plan.image:
        folders = [
            f"{folder} → {volume.inside}{'' if volume.writable else ' (read-only)'}"
            for folder, volume in zip(folders, plan.volumes, strict=True)
        ]
    found = [
        (
            "run",
            f"{plan.run or 'the newest'} ({plan.job} on {plan.target}{', detached' if plan.detach else ''})",
        ),
        ("does", "; ".join(plan.steps)),
        ("recipe", plan.recipe or ""),
        ("changed", " ".join(plan.overrides)),
        ("command", shlex.join(plan.command)),
        (
            "image",
            f"{plan.image}{'' if plan.image_built else ' (not built yet)'}" if plan.image else "",
        ),
        ("device", plan.device or ""),
        (
            "processes",
            f"{plan.gpus}, one on each GPU"
            if plan.gpus > 1 and plan.device != "cpu" and plan.folder is None
            else "",
        ),
        ("volumes", "\n".join(folders)),
        ("secrets", ", ".join(plan.secrets)),
        *plan.notes,
    ]
    return [(name, value) for name, value in found if value]


def _short(path: str, checkout: str) -> str:
    return path.removeprefix(f"{checkout}/")

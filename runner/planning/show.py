"""The plan as a table without borders, on stderr."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from runner.console import CliContext
from runner.plan import Plan


def show(plan: Plan, cli: CliContext) -> None:
    """Print the plan."""
    show_rows(cli, rows(plan))


def show_rows(cli: CliContext, lines: Sequence[tuple[str, str]]) -> None:
    """Print names, dim, and values, folded at the width of the terminal."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, value, style="yellow" if name == "warning" else None)
    cli.print_table(table)


def rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the names and values of the table, without empty ones."""
    process, detached = plan.process, ", detached" if plan.detach else ""
    one_per_gpu = process.gpus > 1 and process.device != "cpu" and plan.folder is None
    found = [
        ("run", f"{plan.run or 'the newest'} ({plan.job} on {plan.target}{detached})"),
        ("does", "; ".join(plan.steps)),
        ("recipe", plan.recipe or ""),
        ("changed", " ".join(plan.overrides)),
        ("command", shlex.join(process.command)),
        ("image", _image(plan)),
        ("device", process.device or ""),
        ("processes", f"{process.gpus}, one per GPU" if one_per_gpu else ""),
        ("volumes", "\n".join(_volumes(plan))),
        ("secrets", ", ".join(process.secrets)),
        *plan.extra_rows,
    ]
    return [(name, value) for name, value in found if value]


def _image(plan: Plan) -> str:
    if plan.image is None:
        return ""
    return plan.image.name + ("" if plan.image.is_built else " (not built yet)")


def _volumes(plan: Plan) -> list[str]:
    lines = []
    for volume in plan.volumes:
        line = f"{volume.name}: {volume.remote or volume.here.removeprefix(f'{plan.checkout}/')}"
        if plan.image is not None:
            line += f" → {volume.inside}{'' if volume.writable else ' (read-only)'}"
        lines.append(line)
    return lines

"""Write docs/cli.md: the help text of every command.

    python docs/cli_reference.py          same as `make docs`

A test compares the page with the commands.
"""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli import main

PAGE = Path(__file__).resolve().with_name("cli.md")
COLUMNS = 100

INTRODUCTION = """\
# Command-line reference
Generated from the commands by `make docs`. [runner.md](runner.md) shows how to use them together.
`runner local` takes the jobs and options of `runner host`.
"""


def page() -> str:
    """Return the page."""
    root = click.Context(main, info_name="runner", terminal_width=COLUMNS)
    names = main.list_commands(root)
    parts = [
        INTRODUCTION,
        " · ".join(f"[{name}](#runner-{name})" for name in names) + "\n",
        _section(root),
    ]
    for name in names:
        command = main.get_command(root, name)
        assert command is not None
        ctx = _context(command, name, root)
        parts.append(_section(ctx))
        if isinstance(command, click.Group) and name != "local":
            parts += [_section(_context(job, job.name, ctx)) for job in command.commands.values()]
    return "\n".join(parts)


def _context(command: click.Command, name: str | None, parent: click.Context) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, terminal_width=COLUMNS)


def _section(ctx: click.Context) -> str:
    ctx.help_option_names = ["-h", "--help"]
    lines = "\n".join(line.rstrip() for line in ctx.command.get_help(ctx).splitlines())
    return f"## {ctx.command_path}\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")

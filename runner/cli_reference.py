"""docs/cli.md: the help text of every command, as the runner prints it.

    python -m runner.cli_reference          write it anew; `make docs` does the same

A test compares the page with the commands, so it can't go stale.
"""

from __future__ import annotations

from pathlib import Path

import click

from runner.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
COLUMNS = 100

INTRODUCTION = """\
# Every command and option
Made from the commands by `make docs`; [runner.md](runner.md) shows how they are used together.
Exit status, environment and files are the same for all of them and stand with the first.
"""


def page() -> str:
    """The whole page."""
    root = click.Context(main, info_name="runner", terminal_width=COLUMNS)
    names = main.list_commands(root)
    parts = [
        INTRODUCTION,
        " · ".join(f"[{name}](#runner-{name})" for name in names) + "\n",
        _section("runner", main, None),
    ]
    for name in names:
        command = main.get_command(root, name)
        assert command is not None
        parts.append(_section(name, command, root))
    return "\n".join(parts)


def _section(name: str, command: click.Command, parent: click.Context | None) -> str:
    ctx = click.Context(command, info_name=name, parent=parent, terminal_width=COLUMNS)
    ctx.help_option_names = ["-h", "--help"]
    lines = "\n".join(line.rstrip() for line in command.get_help(ctx).splitlines())
    return f"## {ctx.command_path}\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")

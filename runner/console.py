"""All that the runner reads from and writes to: stdout is data, stderr is talk.

Commands receive an Environment and touch neither ``sys`` nor ``os.environ`` themselves, so that a test
gives them another folder, other variables and other targets without patching anything.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.errors import usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from runner.target import Target


@dataclass
class CliContext:
    """Where a command runs. ``targets`` holds the opened ones by name; tests put a fake there."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cwd: Path = field(default_factory=Path.cwd)
    terminal: bool | None = None  # None: ask the streams
    debug: bool = False
    line: str = "runner"  # the command line as typed, quoted for a shell
    targets: dict[str, Target] = field(default_factory=dict)
    only_given_targets: bool = False  # tests: no other target is opened
    unreachable_targets: set[str] = field(
        default_factory=set
    )  # targets that did not answer, which was said

    @property
    def is_terminal(self) -> bool:
        """Whether a person sits at both ends: stdin, stdout and stderr are all terminals."""
        if self.terminal is not None:
            return self.terminal
        return all(_is_tty(stream) for stream in (sys.stdin, sys.stdout, sys.stderr))

    @property
    def color(self) -> bool:
        """Whether stderr takes colour; NO_COLOR and TERM=dumb say no."""
        if self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb":
            return False
        return self.terminal if self.terminal is not None else _is_tty(sys.stderr)

    def write(self, text: str, newline: bool = True) -> None:
        """Data, on stdout."""
        click.echo(text, nl=newline)

    def json(self, value: Any) -> None:
        """Data as JSON, on stdout."""
        click.echo(json.dumps(value, indent=2, default=str))

    def info(self, text: str) -> None:
        """Talk, on stderr."""
        click.echo(text, err=True, color=self.color)

    def warn(self, text: str) -> None:
        """Talk that should not be overlooked, on stderr."""
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True, color=self.color)

    def ask(self, question: str) -> bool:
        """A yes or no from the terminal; no is the default."""
        return click.confirm(question, default=False, err=True)

    def print_table(self, table: Table, *, data: bool = False, least: int = 0) -> None:
        """A rich table as talk, or as ``data``; no blanks are left at the ends of its lines. Where the terminal
        has fewer columns than ``least``, it may break the lines, and no value is cut off."""
        console = self.console(data=data)
        console.width = max(console.width, least)
        with console.capture() as capture:
            console.print(table)
        lines = (line.rstrip() for line in capture.get().splitlines())
        click.echo("\n".join(lines), err=not data, color=self.color)

    def console(self, *, data: bool = False) -> Console:
        """A rich console for talk, or for ``data``; plain and as wide as it needs off a terminal."""
        from rich.console import Console

        class Piped(Console):
            """Leaves the end of a pipe to the command line, as all else does that prints."""

            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

        stream = sys.stdout if data else sys.stderr
        on_terminal = self.terminal if self.terminal is not None else _is_tty(stream)
        return Piped(
            file=stream,
            force_terminal=on_terminal,
            no_color=not self.color,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if on_terminal else 240,
        )


def _is_tty(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def confirm(
    cli: CliContext, facts: Sequence[str], action: str, yes: bool, line: str | None = None
) -> bool:
    """Tell the facts and ask; ``yes`` answers. Off a terminal raise RunnerError (2) with ``line``, which is what
    to type: by default what was typed, and -y."""
    if yes:
        return True
    if not cli.is_terminal:
        raise usage(f"{'; '.join(facts)}; to {action}, type `{line or f'{cli.line} -y'}`")
    for fact in facts:
        cli.info(fact)
    return cli.ask(f"{action}?")

"""Input and output of the commands: stdout carries data, stderr carries messages.

A command gets a CliContext and does not use ``sys`` or ``os.environ``, so that tests can give it
another folder, other variables and other targets. Everything shown on a terminal is sanitized
here: a run's name, its log or its sample may contain escape sequences.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.format import json_text, sanitize
from runner.errors import usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from runner.target import Target

PIPED_WIDTH = 240  # columns of a table without a terminal


@dataclass
class CliContext:
    """The folder, the variables, the streams and the opened targets of one command."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cwd: Path = field(default_factory=Path.cwd)
    terminal: bool | None = None  # None: ask the streams
    debug: bool = False
    line: str = "runner"  # the command line as typed, quoted for a shell
    targets: dict[str, Target] = field(default_factory=dict)
    only_given_targets: bool = False  # for tests: open no other target
    unreachable_targets: set[str] = field(default_factory=set)  # already warned about

    @property
    def is_terminal(self) -> bool:
        """Return True if stdin, stdout and stderr are terminals, so that a question is answered."""
        if self.terminal is not None:
            return self.terminal
        return all(_is_tty(stream) for stream in (sys.stdin, sys.stdout, sys.stderr))

    @property
    def color(self) -> bool:
        """Return True if stderr shows colors; NO_COLOR and TERM=dumb turn them off."""
        if self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb":
            return False
        return self.terminal if self.terminal is not None else _is_tty(sys.stderr)

    def write(self, text: str, newline: bool = True, label: str = "", color: str = "") -> None:
        """Write data to stdout after a colored ``label``. A file or pipe gets it unchanged."""
        on_terminal = self.terminal if self.terminal is not None else _is_tty(sys.stdout)
        styled = click.style(label, fg=color) if label and on_terminal and self.color else label
        click.echo(f"{styled}{sanitize(text) if on_terminal else text}", nl=newline, color=True)

    def json(self, value: Any) -> None:
        """Write data to stdout as JSON."""
        click.echo(json_text(value, indent=2))

    def info(self, text: str) -> None:
        """Write a message to stderr."""
        _write_message(sanitize(text), self.color)

    def warn(self, text: str) -> None:
        """Write a warning to stderr."""
        label = click.style("warning:", fg="yellow") if self.color else "warning:"
        _write_message(f"{label} {sanitize(text)}", self.color)

    def ask(self, question: str) -> bool:
        """Ask for y or n on the terminal; no is the default. Ctrl-C raises KeyboardInterrupt."""
        while True:
            click.echo(f"{sanitize(question)} [y/N]: ", err=True, nl=False)
            try:
                answer = input().strip().lower()
            except EOFError:
                click.echo("no answer; nothing was changed", err=True)
                return False
            except KeyboardInterrupt:
                click.echo(err=True)
                raise
            if answer in ("y", "yes"):
                return True
            if answer in ("", "n", "no"):
                return False

    def print_table(self, table: Table, *, data: bool = False, least: int = 0) -> None:
        """Print a table to stderr, or as ``data`` to stdout, without trailing blanks.

        If the terminal has fewer columns than ``least``, it wraps the lines; no value is cut.
        """
        console = self.console(data=data)
        console.width = max(console.width, least)
        with console.capture() as capture:
            console.print(table)
        lines = (line.rstrip() for line in capture.get().splitlines())
        click.echo("\n".join(lines), err=not data, color=self.color)

    def console(self, *, data: bool = False) -> Console:
        """Return a rich console on stderr, or for ``data`` on stdout; plain and wide if piped."""
        from rich.console import Console
        from rich.text import Text

        class SafeConsole(Console):
            """Sanitizes strings, and leaves a closed pipe to the command line."""

            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

            def render_str(self, text: str, **options: Any) -> Text:
                return super().render_str(sanitize(text), **options)

        stream = sys.stdout if data else sys.stderr
        on_terminal = self.terminal if self.terminal is not None else _is_tty(stream)
        return SafeConsole(
            file=stream,
            force_terminal=on_terminal,
            no_color=not self.color,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if on_terminal else PIPED_WIDTH,
        )


def open_closed_streams() -> None:
    """Connect closed standard streams (``>&-``, daemons) to the null device.

    Otherwise a print fails, and the next file that is opened becomes stdout.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _write_message(text: str, color: bool) -> None:
    """Write to stderr; a closed terminal or pipe must not end the runner before its job."""
    try:
        click.echo(text, err=True, color=color)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # also for what is still in the buffer


def _is_tty(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def confirm(
    cli: CliContext, details: Sequence[str], action: str, yes: bool, line: str | None = None
) -> bool:
    """Show ``details`` and ask to do ``action``; ``yes`` answers.

    Without a terminal raise RunnerError, exit code 2, with the command that confirms: ``line``, or
    the command as typed with -y.
    """
    if yes:
        return True
    if not cli.is_terminal:
        raise usage(f"{'; '.join(details)}; to {action}, run `{line or f'{cli.line} -y'}`")
    for detail in details:
        cli.info(detail)
    return cli.ask(f"{action}?")

"""Input and output of the commands: stdout carries data, stderr carries messages.

A command gets a CliContext and does not use ``sys`` or ``os.environ``, so that tests can give it
another folder, other variables and other targets. Everything shown on a terminal is sanitized
here: a run's name, its log or its sample may contain escape sequences.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

import click

from job.exit_status import ExitStatus
from job.files import name_in_errors
from job.format import json_text, sanitize
from runner.errors import usage
from runner.signals import JobOutput, SignalForwarder, press_ctrl_c, signal_handler

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from runner.target import Target

STDOUT = Path("/dev/stdout")  # in an error of a full disk
COLUMN_GAP = 2
PIPED_WIDTH = 240  # columns of a table without a terminal
INTERRUPT_POLL_S = 0.1
MIN_VALUE_WIDTH = 20


def current_folder() -> Path:
    """Return the current folder. Raises RunnerError, exit status 2, if it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise usage("the current folder was deleted; change to another one: `cd ~`") from None


@dataclass
class CliContext:
    """The folder, the variables, the streams and the opened targets of one command."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    cwd: Path = field(default_factory=current_folder)
    terminal: bool | None = None  # None: ask the streams
    debug: bool = False
    line: str = "runner"  # the command line as typed, quoted for a shell
    targets: dict[str, Target] = field(default_factory=dict)
    only_given_targets: bool = False  # for tests: open no other target
    unreachable_targets: set[str] = field(default_factory=set)  # already warned about

    @property
    def is_terminal(self) -> bool:
        """Return True if stdin, stdout and stderr are terminals, so that a question is answered."""
        return all(map(self._shows_on_terminal, (sys.stdin, sys.stdout, sys.stderr)))

    @property
    def color(self) -> bool:
        """Return True if stderr shows colors; NO_COLOR and TERM=dumb turn them off."""
        if self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb":
            return False
        return self._shows_on_terminal(sys.stderr)

    def _shows_on_terminal(self, stream: Any) -> bool:
        if self.terminal is not None:
            return self.terminal
        try:
            return bool(stream.isatty())
        except (AttributeError, ValueError):  # closed
            return False

    def write(self, text: str, newline: bool = True, label: str = "", color: str = "") -> None:
        """Write data to stdout after a colored ``label``. A file or pipe gets it unchanged."""
        on_terminal = self._shows_on_terminal(sys.stdout)
        styled = click.style(label, fg=color) if label and on_terminal and self.color else label
        with name_in_errors(STDOUT):
            click.echo(f"{styled}{sanitize(text) if on_terminal else text}", nl=newline, color=True)

    def json(self, value: Any) -> None:
        """Write data to stdout as JSON."""
        with name_in_errors(STDOUT):
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

    def confirm_stop(self, run: str, received: signal.Signals) -> bool:
        """Ask whether to stop a run or to leave it running on its machine.

        Without a terminal, SIGINT stops the run; SIGTERM and SIGHUP leave it.
        """
        if received != signal.SIGINT or not self.is_terminal:
            return received == signal.SIGINT
        with signal_handler(signal.default_int_handler, signal.SIGINT):
            try:
                return self.ask(f"Stop run '{run}'? (No: it continues without this terminal.)")
            except (click.Abort, KeyboardInterrupt):  # Ctrl-C again: leave
                return False

    def wait_for_end(
        self, run: str, output: JobOutput, stop: Callable[[signal.Signals], None]
    ) -> bool:
        """Wait for the end of a job on another machine; return False if the user left it.

        The first signal asks whether to ``stop`` the job, the second leaves a job that stops.
        """
        received: list[signal.Signals] = []
        again = threading.Event()
        is_stopping = False
        with SignalForwarder(received.append, again.set):
            while not output.ended.wait(INTERRUPT_POLL_S):
                if message := output.state(bool(received)):
                    self.info(message)
                if not received or (is_stopping and not again.is_set()):
                    continue
                with output.screen:
                    has_left = again.is_set() or not self.confirm_stop(run, received[0])
                    if has_left:
                        output.leave()
                if has_left:
                    state = "is still stopping" if is_stopping else "continues"
                    self.info(
                        f"detached; the run {state}. Follow it with `runner logs {run} --follow`, "
                        f"stop it with `runner stop {run}`"
                    )
                    return False
                is_stopping = True
                press = press_ctrl_c(received[0])
                self.info(f"stopping: the job writes its checkpoint; {press} to detach")
                stop(received[0])
        return True

    def print_rows(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print dimmed names and their values to stderr, wrapped at the width of the terminal.

        Without rich, whose import takes 4% of the CPU time of a launch.
        """
        on_terminal = self._shows_on_terminal(sys.stderr)
        width = shutil.get_terminal_size().columns if on_terminal else PIPED_WIDTH
        indent = max(len(name) for name, _ in rows) + 2
        wrapper = TextWrapper(max(width - indent, MIN_VALUE_WIDTH), break_on_hyphens=False)
        for name, value in rows:
            style = {"fg": "yellow"} if name == "warning" else {"dim": True}
            lines = [part for line in value.splitlines() for part in wrapper.wrap(sanitize(line))]
            text = f"\n{' ' * indent}".join(lines)
            click.echo(
                f"{click.style(name, **style)}{' ' * (indent - len(name))}{text}",
                err=True,
                color=self.color,
            )

    def print_table(self, table: Table, *, data: bool = False, min_width: int = 0) -> None:
        """Print a table to stderr, or as ``data`` to stdout, without trailing blanks.

        If the terminal has fewer columns than ``min_width``, it wraps the lines; no value is cut.
        """
        console = self.console(data=data)
        console.width = max(console.width, min_width)
        with name_in_errors(STDOUT if data else Path("/dev/stderr")):
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
        on_terminal = self._shows_on_terminal(stream)
        return SafeConsole(
            file=stream,
            force_terminal=on_terminal,
            no_color=not self.color,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if on_terminal else PIPED_WIDTH,
        )


def new_table(*titles: str, left_aligned: Container[str] = ()) -> Table:
    """Return a table without lines; columns not in ``left_aligned`` are right-aligned."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, no_wrap=True, justify="left" if title in left_aligned else "right")
    return table


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


def confirm(
    cli: CliContext, details: Sequence[str], action: str, yes: bool, line: str | None = None
) -> None:
    """Show ``details`` and ask to do ``action``; ``yes`` answers. End with 103 if declined.

    Without a terminal raise RunnerError, exit status 2, with the command that confirms: ``line``,
    or the command as typed with -y.
    """
    if yes:
        return
    if not cli.is_terminal:
        raise usage(f"{'; '.join(details)}; to {action}, run `{line or f'{cli.line} -y'}`")
    for detail in details:
        cli.info(detail)
    if not cli.ask(f"{action}?"):
        raise click.exceptions.Exit(ExitStatus.CANCELLED)

"""What the runner refuses: one clear line for the user, and the exit code that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import IO, Any

import click

from job.exit_status import ExitStatus


class RunnerError(click.ClickException):
    """An error whose text is complete: what, why and the next command to type."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.ERROR) -> None:
        super().__init__(message)
        self.exit_code = int(status)  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it on stderr; colour is stripped off a terminal."""
        click.echo(f"error: {self.message}", file=file, err=True)


class NoSuchRun(RunnerError):
    """There is no run ``run`` where it was looked for: exit code 102."""

    def __init__(self, run: str, message: str) -> None:
        super().__init__(message, ExitStatus.NOT_FOUND)
        self.run = run


def usage(message: str) -> RunnerError:
    """A mistake on the command line or in a recipe: exit code 2."""
    return RunnerError(message, ExitStatus.USAGE)


def not_found(message: str) -> RunnerError:
    """A run, file or volume that isn't there: exit code 102."""
    return RunnerError(message, ExitStatus.NOT_FOUND)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


class ModalUnavailable(OSError):
    """Modal, or the way to it, did not answer as it should; asked again later it may."""

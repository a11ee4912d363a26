"""Errors that the user reads: one line each, with the exit status."""

from __future__ import annotations

import errno
import sys
from typing import IO, Any

import click

from job.exit_status import ExitStatus, UserError
from job.format import did_you_mean as did_you_mean
from job.format import sanitize

# Errors of libraries about a user's file, key or account. A library that is not loaded raised none.
LIBRARY_ERRORS = (
    ("yaml", "YAMLError"),
    ("safetensors", "SafetensorError"),
    ("pyarrow", "ArrowException"),
    ("modal.exception", "Error"),
)


class RunnerError(click.ClickException):
    """An error whose message is complete: what is wrong, why, and what to type."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.ERROR) -> None:
        super().__init__(message)
        self.exit_code = int(status)  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error on stderr."""
        click.echo(f"error: {sanitize(self.message)}", file=file, err=True)


class NoSuchRun(RunnerError):
    """The run ``run`` does not exist on a target: exit status 102."""

    def __init__(self, run: str, message: str) -> None:
        super().__init__(message, ExitStatus.NOT_FOUND)
        self.run = run


class TargetUnavailable(OSError):
    """A target, or the network to it, did not answer; a retry may succeed."""

    @property
    def message(self) -> str:
        """Return the message for the user."""
        return str(self)


class ModalUnavailable(TargetUnavailable):
    """Modal, or the network to it, did not answer; the text is the client's."""

    @property
    def message(self) -> str:
        """Return the message for the user."""
        return f"Modal does not answer: {self}; check the network and try again"


def usage(message: str) -> RunnerError:
    """Return an error for a mistake on the command line or in a file: exit status 2."""
    return RunnerError(message, ExitStatus.USAGE)


def not_found(message: str) -> RunnerError:
    """Return an error for a missing run, file or volume: exit status 102."""
    return RunnerError(message, ExitStatus.NOT_FOUND)


def as_runner_error(error: Exception, debug: bool) -> click.ClickException:
    """Return any error as one line. Only an unexpected error is reported as a bug."""
    if isinstance(error, click.ClickException):
        return error
    if isinstance(error, UserError):
        return RunnerError(str(error), error.status)
    if isinstance(error, TargetUnavailable):
        return RunnerError(error.message)
    if isinstance(error, OSError):
        from job.files import describe_os_error

        hint = "" if error.errno == errno.EACCES else "; `runner doctor` checks this machine"
        return RunnerError(describe_os_error(error) + hint)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        # From Path.resolve, before Python 3.13.
        return usage(f"{str(error).rpartition(' from ')[2]} is a symbolic link to itself")
    if isinstance(error, UnicodeError):
        return RunnerError(f"a file or argument is not valid UTF-8: {error}; fix its encoding")
    if isinstance(error, MemoryError):
        return RunnerError("out of memory; free some memory and try again")
    if isinstance(error, RecursionError):
        return usage("the input is nested too deeply")
    for module, name in LIBRARY_ERRORS:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            message = " ".join(str(error).split()) or type(error).__name__
            return RunnerError(f"{module.partition('.')[0]}: {message}")
    hint = "" if debug else "; `runner --debug ...` shows the traceback"
    return RunnerError(f"{type(error).__name__}: {error}; this is a bug in the runner{hint}")

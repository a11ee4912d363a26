"""The end of a run: record a failure, or show a run that is already finished."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from job.arguments import say
from job.disk import in_words
from job.display import Display
from job.exit_status import ExitStatus, UserError
from job.format import sanitize
from job.next_command import next_command
from job.run_record import RunRecord, RunStatus
from job.run_session import RunSession


class Failed(UserError):
    """An operating system error that ended a training."""

    status = ExitStatus.JOB_FAILED


def note_failure(error: BaseException, display: Display, session: RunSession | None) -> None:
    """Write ``error`` to the log and the record, if the disk has room.

    Raises Failed for an OSError: it ended a run, and is not a usage error.
    """
    of_system = isinstance(error, OSError)
    named = (
        in_words(error)
        if of_system or isinstance(error, UserError)
        else f"{type(error).__name__}: {error}"
    )
    with suppress(OSError):
        display.log_only(f"failed: {named}")
    if session is not None:
        with suppress(OSError):
            session.end(RunStatus.FAILED, named)
    if of_system:
        raise Failed(named) from error


def how_it_ended(run: str, record: RunRecord) -> str:
    """Return ``run tiny is already finished: 60 steps, validation loss 2.5000``."""
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    return f"run {run} is already finished: {record.step} steps{val}"


def show_finished(folder: Path, record: RunRecord, as_json: bool) -> None:
    """Print the result, the newest sample, and the next command; or the record as JSON."""
    say(how_it_ended(folder.name, record))
    samples = sorted((folder / "samples").glob("step_*.txt"))
    if as_json:
        print((folder / "run.json").read_text(encoding="utf-8"), end="")
    elif samples:
        say(f"its newest sample ({samples[-1]}):")
        text = samples[-1].read_text(encoding="utf-8", errors="replace")
        print(sanitize(text) if sys.stdout.isatty() else text)
    another = next_command("train", f"--name {folder.name}-2")
    say(f"to train another run: {another}")

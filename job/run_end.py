"""How a run ends: what is noted of one that failed, and what is shown of one that is finished already."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from job.arguments import say
from job.disk import in_words
from job.display import Display
from job.exit_status import ExitStatus, UserError
from job.next_command import next_command
from job.run_record import RunRecord, RunStatus
from job.run_session import RunSession


class Failed(UserError):
    """The system refused something in the midst of a training."""

    status = ExitStatus.JOB_FAILED


def note_failure(error: BaseException, display: Display, session: RunSession | None) -> None:
    """Write ``error`` into log and record, as far as the disk has room for that. Raises Failed for what the system
    refused: that ends a run, and is no mistake of before it."""
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
    """``run tiny is finished already: 60 steps, validation loss 2.5000``."""
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    return f"run {run} is finished already: {record.step} steps{val}"


def show_finished(folder: Path, record: RunRecord, as_json: bool) -> None:
    """The result and the newest sample, or with ``as_json`` the record; and the line for another run."""
    say(how_it_ended(folder.name, record))
    samples = sorted((folder / "samples").glob("step_*.txt"))
    if as_json:
        print((folder / "run.json").read_text(), end="")
    elif samples:
        say(f"what it wrote ({samples[-1]}):")
        print(samples[-1].read_text())
    another = next_command("train", f"--name {folder.name}-2")
    say(f"train another: {another}")

"""The end of a run: a request to stop, a failure, or a run that is already finished."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from job.arguments import report
from job.display import Display, next_command
from job.exit_status import ExitStatus, UserError
from job.files import describe_os_error
from job.format import sanitize
from job.run_record import RunRecord, RunStatus, describe_end
from job.run_session import RunSession


class StopRequest:
    """Stores the newest signal that asks this process to stop."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; a second SIGINT interrupts at once."""
        signals = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            signals.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._receive) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def is_set(self) -> bool:
        """Return True if a signal was received."""
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


class Failed(UserError):
    """An operating system error that ended a training run."""

    status = ExitStatus.JOB_FAILED


def record_failure(error: BaseException, display: Display, session: RunSession | None) -> None:
    """Write ``error`` to the log and the record, if the disk has room.

    Raises Failed for an OSError: it ended a run, and is not a usage error.
    """
    is_complete = isinstance(error, OSError | UserError)
    named = describe_os_error(error) if is_complete else f"{type(error).__name__}: {error}"
    with suppress(OSError):
        display.log_only(f"failed: {named}")
    if session is not None:
        with suppress(OSError):
            session.end(RunStatus.FAILED, named)
    if isinstance(error, OSError):
        raise Failed(named) from error


def record_stop(stopped_by: str, step: int, display: Display, session: RunSession | None) -> None:
    """Report that a signal stopped the training, and record it."""
    display.report(
        f"stopped by {stopped_by}; the checkpoint of step {step} is written, the same command "
        "resumes from it"
    )
    if session is not None:
        session.end(RunStatus.UNFINISHED, stopped_by)


def show_finished(
    folder: Path, record: RunRecord, as_json: bool, recipe: str, overrides: list[str]
) -> None:
    """Print the result, the newest sample, and the next command; or the record as JSON.

    ``recipe`` and ``overrides`` are those of this command line.
    """
    report(describe_end(folder.name, record))
    samples = sorted((folder / "samples").glob("step_*.txt"))
    if as_json:
        print((folder / "run.json").read_text(encoding="utf-8"), end="")
    elif samples:
        report(f"its newest sample ({samples[-1]}):")
        text = samples[-1].read_text(encoding="utf-8", errors="replace")
        print(sanitize(text) if sys.stdout.isatty() else text)
    if Path(recipe).parent == folder:  # `runner resume` gives the run's own copy of its recipe
        recipe, overrides = record.recipe or "RECIPE", record.overrides
    words = shlex.join([recipe, *overrides, "--name", f"{folder.name}-2"])
    report(f"to train a new run: {next_command('train', words)}")

"""The run that this process works on. Outside the runner there is none, and nothing is recorded."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.logger import TBLogger
    from job.run_session import RunSession

RECORDED_LOSSES = {"train": "train_loss", "val": "val_loss"}  # the field of each logger's loss

_session: RunSession | None = None
_max_steps = 0
_loggers: weakref.WeakSet[TBLogger] = weakref.WeakSet()


def activate(session: RunSession, max_steps: int) -> None:
    """Let the library update the record of ``session``; ``max_steps`` is 0 if it is unknown."""
    global _session, _max_steps
    _session, _max_steps = session, max_steps


def update_record(**values: Any) -> None:
    """Set fields of the run's record, which is written to disk every few seconds."""
    # max_steps is set with the first step: without one the runner shows no progress at all.
    if _session is not None:
        _session.progress(max_steps=_max_steps, **values)


def recorded_losses() -> dict[str, float | None]:
    """Return the losses in the run's record, to be saved with a checkpoint."""
    if _session is None:
        return {}
    return {field: getattr(_session.record, field) for field in RECORDED_LOSSES.values()}


def register_logger(logger: TBLogger) -> None:
    """Have ``sync_loggers`` flush this logger."""
    _loggers.add(logger)


def sync_loggers(folder: Path) -> None:
    """Write everything logged below ``folder`` to disk.

    Call it before writing a checkpoint: the next attempt logs only the steps after the checkpoint.
    """
    for logger in list(_loggers):
        if logger.folder.absolute() == folder.absolute():
            logger.sync()

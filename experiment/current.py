"""The run that this process works on, for what the library notes in its record. None outside the runner."""

from __future__ import annotations

from typing import Any

from job.session import Session

SESSION: list[Session] = []  # one at most


def begin(session: Session, max_steps: int) -> None:
    """``max_steps`` goes into the record with the first step that is noted: a file may tell of none."""
    SESSION.append(session)
    _planned.append(max_steps)


def note(**values: Any) -> None:
    """Set fields of the run's record; they are written every few seconds."""
    for session in SESSION:
        session.progress(max_steps=_planned[-1], **values)


_planned: list[int] = []

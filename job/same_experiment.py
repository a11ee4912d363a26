"""Whether a run that is there is this very experiment: the same file's name, the same parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from job.runs import RunRecord
from job.same_job import other_job

JOB = "experiment"


def other_experiment(record: RunRecord, file: str, arguments: Mapping[str, Any]) -> str:
    """Why ``file`` with ``arguments`` (defaults too) can't go on with the run; '' where it can.

    ``file`` is the name without folders: the same one lies elsewhere on another target.
    """
    if why := other_job(record, JOB):
        return why
    if not record.arguments and not record.file:
        return ""  # it ended before it came to note them
    before = record.file.get("path", file).replace("\\", "/").rpartition("/")[2]
    lines = [f"  file: {before} → {file}"] if before != file else []
    for key in {**record.arguments, **arguments}:
        old, new = record.arguments.get(key, MISSING), arguments.get(key, MISSING)
        if old is MISSING or new is MISSING or old != new:
            lines.append(f"  {key}: {_shown(old)} → {_shown(new)}")
    if not lines:
        return ""
    return (
        f"run '{record.name}' was begun with other parameters, and going on would mix the two:\n"
        + "\n".join(lines)
        + "\nstart another run with --name NEW-NAME, or give the parameters that it was begun with"
    )


MISSING = object()


def _shown(value: object) -> str:
    return "(not there)" if value is MISSING else repr(value)

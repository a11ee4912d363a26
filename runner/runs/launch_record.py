"""``launch.json`` and ``exit_status`` in a run's folder: what the runner started last, and how it ended.

The record, run.json, is the job's own; these two also tell of a job that never came to write one.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

from job.exit_status import ExitStatus
from job.files import write_atomically
from runner.targets.protocol import Started

NAME = "launch.json"
EXIT = "exit_status"


def write_launch(folder: Path, started: Started) -> None:
    """Note ``started`` in the run's folder."""
    write_atomically(folder / NAME, dumps(started))


def dumps(started: Started) -> str:
    """As the file holds it."""
    return json.dumps(asdict(started), indent=2) + "\n"


def read_launch(folder: Path) -> Started | None:
    """What was started last; None where the runner started nothing."""
    try:
        return parse_launch((folder / NAME).read_text())
    except (OSError, ValueError):
        return None


def parse_launch(text: str | bytes) -> Started | None:
    """What the text of a ``launch.json`` says; None where it can't be read as one."""
    try:
        tree = json.loads(text)
        names = {field.name for field in fields(Started)}
        tree["more"] = tuple((str(name), str(value)) for name, value in tree.get("more", ()))
        return Started(**{key: value for key, value in tree.items() if key in names})
    except (ValueError, TypeError, AttributeError):
        return None


def make_folder(folder: Path) -> None:
    """Before a start: the run's folder, without how the one before ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXIT).unlink(missing_ok=True)


def note_exit(folder: Path, code: int) -> None:
    """Note the exit status of what was started last, where the disk has room for that: the run is `dead` without it."""
    with suppress(OSError):
        write_atomically(folder / EXIT, f"{code}\n")


def read_exit(folder: Path) -> int | None:
    """The exit status of what was started last; None while it runs, and where nobody saw it end."""
    try:
        return int((folder / EXIT).read_text())
    except (OSError, ValueError):
        return None


def forget_unbegun(folder: Path, code: int) -> bool:
    """Remove the folder where a job ended with ``code`` for a mistake, or by a Ctrl-C, before it wrote anything into it:
    the same name begins anew. Whether that was so: a folder that somebody else deleted may have held a run."""
    ends = (ExitStatus.ERROR, ExitStatus.USAGE, ExitStatus.INTERRUPTED)
    unbegun = code in ends and folder.is_dir() and {path.name for path in folder.iterdir()} <= {NAME, EXIT}
    if unbegun:
        shutil.rmtree(folder)
    return unbegun

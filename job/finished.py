"""What is shown of a run that is finished already, when it is started again."""

from __future__ import annotations

from pathlib import Path

from job.command_line import say
from job.runs import RunRecord


def show_finished(folder: Path, record: RunRecord, as_json: bool) -> None:
    """The result and the newest sample, or with ``as_json`` the record; and the line for another run."""
    val = f", validation loss {record.val_loss:.4f}" if record.val_loss is not None else ""
    say(f"run {folder.name} is finished already: {record.step} steps{val}")
    samples = sorted((folder / "samples").glob("step_*.txt"))
    if as_json:
        print((folder / "run.json").read_text(), end="")
    elif samples:
        say(f"what it wrote ({samples[-1]}):")
        print(samples[-1].read_text())
    say(f"train another: runner host train --name {folder.name}-2")

"""A training that is done: what it came to is read from the volume, and no machine is paid for showing it."""

from __future__ import annotations

import json
from dataclasses import asdict

from job.exit_status import ExitStatus
from job.run_end import how_it_ended
from job.run_record import RunRecord, RunStatus
from runner.console import CliContext
from runner.plan import TargetState
from runner.request import Request
from runner.runs.store import listing
from runner.target import VolumeFiles


def trained(request: Request, facts: TargetState) -> RunRecord | None:
    """The record of a training that has taken all the steps asked for; None where there is something left to do."""
    record = facts.record
    if request.job.name != "train" or request.settings is None or record is None:
        return None
    is_done = (
        record.status == RunStatus.FINISHED and record.step >= request.settings.train.max_steps
    )
    return record if is_done else None


def show_trained(
    cli: CliContext, files: VolumeFiles, run: str, record: RunRecord, as_json: bool
) -> ExitStatus:
    """What the job itself would print: its newest sample, or with ``as_json`` the record."""
    cli.info(how_it_ended(run, record))
    samples = sorted(e.path for e in listing(files, f"{run}/samples") if e.path.endswith(".txt"))
    if as_json:
        cli.write(json.dumps(asdict(record), indent=2))
    elif samples:
        cli.info(f"what it wrote ({samples[-1]}):")
        cli.write(files.read(samples[-1]).decode(errors="replace"))
    cli.info(f"nothing was started; to train another, type: runner cloud RECIPE --name {run}-2")
    return ExitStatus.DONE

"""A training that is done: what it came to is read from the volume, and no machine is paid for showing it."""

from __future__ import annotations

import json
from dataclasses import asdict

from job.exit_status import ExitStatus
from job.finished import how_it_ended
from job.runs import RunRecord
from runner.plans.planned import Facts
from runner.requests.request import Request, listing
from runner.targets.protocol import Files
from runner.terminal import Environment


def trained(request: Request, facts: Facts) -> RunRecord | None:
    """The record of a training that has taken all the steps asked for; None where there is something left to do."""
    record = facts.record
    if request.job.name != "train" or request.settings is None or record is None:
        return None
    is_done = record.status == "finished" and record.step >= request.settings.train.max_steps
    return record if is_done else None


def show_trained(env: Environment, files: Files, run: str, record: RunRecord, as_json: bool) -> ExitStatus:
    """What the job itself would print: its newest sample, or with ``as_json`` the record."""
    env.say(how_it_ended(run, record))
    samples = sorted(e.path for e in listing(files, f"{run}/samples") if e.path.endswith(".txt"))
    if as_json:
        env.write(json.dumps(asdict(record), indent=2))
    elif samples:
        env.say(f"what it wrote ({samples[-1]}):")
        env.write(files.read(samples[-1]).decode(errors="replace"))
    env.say(f"nothing was started; to train another, type: runner cloud RECIPE --name {run}-2")
    return ExitStatus.DONE

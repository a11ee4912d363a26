"""Show a run that is already finished, without starting anything."""

from __future__ import annotations

from dataclasses import asdict

from job.exit_status import ExitStatus
from job.results import what_came
from job.run_end import how_it_ended
from job.run_record import RunRecord, RunStatus
from job.step_folders import sha256
from runner.console import CliContext
from runner.plan import TargetState
from runner.request import Request
from runner.runs.store import listing
from runner.target import Target


def finished_record(request: Request, state: TargetState) -> RunRecord | None:
    """Return the record of a run that has nothing left to do, else None."""
    record = state.run.record
    if record is None or record.status != RunStatus.FINISHED:
        return None
    if request.experiment is not None:
        return record
    if request.job.name != "train" or request.settings is None:
        return None
    return record if record.step >= request.settings.train.max_steps else None


def show_finished(
    cli: CliContext, target: Target, request: Request, record: RunRecord
) -> ExitStatus:
    """Print the newest sample or the result, or the record with --json, and how to run it again."""
    if request.experiment is not None:
        file = request.experiment.file
        cli.info(
            f"run '{record.name}' already finished with these parameters: "
            f"{what_came(record.result)}"
        )
        if record.file.get("sha256") not in (None, sha256(file)):
            cli.warn(f"{file.name} has changed since; the result is that of the earlier file")
        again = f"run {file.name} --name {record.name}-2"
    else:
        cli.info(how_it_ended(request.run, record))
        again = f"RECIPE --name {request.run}-2"
    if request.as_json:
        cli.json(asdict(record))
    elif request.experiment is None:
        files = target.files("checkpoints")
        entries = listing(files, f"{request.run}/samples")
        samples = sorted(entry.path for entry in entries if entry.path.endswith(".txt"))
        if samples:
            cli.info(f"its newest sample ({samples[-1]}):")
            cli.write(files.read(samples[-1]).decode(errors="replace"))
    cli.info(f"nothing was started; to train again: `runner {target.name} {again}`")
    return ExitStatus.DONE

"""``run FILE [key=value ...]``: from what was typed to the request, without importing the user's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from job.compatibility import other_experiment
from job.exit_status import ExitStatus
from job.results import what_came
from job.run_record import RUN_NAME, RunRecord
from job.signature import ExperimentError, read_signature
from job.step_folders import sha256
from runner.console import CliContext
from runner.errors import did_you_mean, usage
from runner.jobs import EXPERIMENT
from runner.launch.parse import NO_OPTIONS, check_run_name
from runner.launch.parse_command import NO_SETUP
from runner.project import find_checkout
from runner.request import Experiment, LaunchArguments, Request, TargetOptions, UserCommand
from runner.runs.store import record_of
from runner.target import VolumeFiles

if TYPE_CHECKING:
    from runner.console import CliContext

WORD = "run"


def names_experiment(words: Sequence[str]) -> bool:
    """Whether the line says ``run``."""
    return WORD in words


def experiment_request(
    line: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> Request:
    """Check the line against the file's train(). ``files`` is the target's checkpoints volume, None for none yet.

    Raises RunnerError, exit code 2, for a mistake, and for a name whose run is another experiment.
    """
    rest = [word for word in line.words if word != WORD and "=" not in word]
    words = (*(word for word in line.words if "=" in word), *line.params)
    _check(line, rest)
    experiment = read_experiment((cwd / Path(rest[0]).expanduser()).resolve(), words)
    command = folder_of(experiment.file, line, cwd)
    name = line.name or experiment.file.stem
    if line.name is None and not RUN_NAME.match(name):
        raise usage(f"the file's name {name} can't be that of a run; give one with --name")
    check_run_name(name)
    record = record_of(files, name)
    if record is not None:
        why = other_experiment(record, experiment.file.name, dict(experiment.arguments))
        if why:
            raise usage(why)
    return Request(
        EXPERIMENT,
        name,
        overrides=experiment.words,
        device=line.device,
        detach=line.detach,
        as_json=line.as_json,
        target_options=options,
        experiment=experiment,
        command=command,
    )


def folder_of(file: Path, line: LaunchArguments, cwd: Path) -> UserCommand | None:
    """The folder that goes with the file: --dir, else its own. None where the file is part of the checkout, which
    every job sees. Raises RunnerError, exit code 2."""
    checkout = find_checkout(cwd)
    folder = (cwd / Path(line.folder).expanduser()).resolve() if line.folder else file.parent
    if not file.is_relative_to(folder):
        raise usage(f"--dir {line.folder}: {file.name} must lie in it")
    if folder.is_relative_to(checkout) and not line.setup:
        return None
    return UserCommand(
        (),
        folder,
        tuple(text for text in line.setup if text != NO_SETUP),
        NO_SETUP not in line.setup,
    )


def read_experiment(file: Path, words: Sequence[str]) -> Experiment:
    """The experiment in ``file`` with the parameters ``words``. Raises RunnerError, exit code 2."""
    if not file.is_file():
        near = did_you_mean(file.name, [path.name for path in file.parent.glob("*.py")])
        raise usage(f"there is no file {file}{near or '; `runner new experiment NAME` writes one'}")
    if file.suffix != ".py":
        raise usage(f"{file.name} is no Python file; an experiment's name ends in .py")
    try:
        signature = read_signature(file)
        arguments = signature.complete(signature.values(words))
    except ExperimentError as error:
        raise usage(str(error)) from None
    return Experiment(file, tuple(words), tuple(arguments.items()))


def show_finished(cli: CliContext, record: RunRecord, file: Path, as_json: bool) -> ExitStatus:
    """Say that nothing is started, and whether ``file`` is still what was run; with ``as_json`` the record is
    the data."""
    cli.info(
        f"run '{record.name}' is finished already, with these parameters: {what_came(record.result)}"
    )
    if record.file.get("sha256") not in (None, sha256(file)):
        cli.warn(
            f"{file.name} was edited since: that is the result of the file before, and nothing was run"
        )
    cli.info(f"to run it again, give another name: --name {record.name}-2")
    if as_json:
        cli.write(json.dumps(asdict(record), indent=2))
    return ExitStatus.DONE


def _check(line: LaunchArguments, rest: list[str]) -> None:
    if not rest:
        raise usage(
            "run which file? write: run my_experiment.py   (`runner new experiment NAME` writes one)"
        )
    if len(rest) > 1:
        raise usage(f"what is '{rest[1]}'? `run` takes one file, and its parameters as key=value")
    if line.command or line.keep or line.resume_with or line.resume_if:
        raise usage(
            "an experiment keeps what it writes below output_dir and finds it there; leave --keep and -- away"
        )
    for name in ("source", "into", "choices", "shards", "force"):
        if getattr(line, name):
            raise usage(f"--{name} belongs to another job; parameters of the file are key=value")
    if line.device not in (None, "cpu"):
        raise usage(
            f"--device {line.device}: the file chooses its device; only cpu hides the GPUs from it"
        )
    if (line.gpu or 1) > 1:
        raise usage(
            "an experiment is one process; it sees all GPUs that there are: leave --gpu away"
        )

"""Build the request for ``run FILE [key=value ...]`` without importing the user's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from job.compatibility import other_experiment
from job.run_record import RUN_NAME
from job.signature import ExperimentError, read_signature
from runner.errors import did_you_mean, usage
from runner.launch.arguments import LaunchArguments
from runner.launch.parse import NO_OPTIONS, check_run_name, split_overrides
from runner.launch.parse_command import NO_SETUP, setup_lines
from runner.project import find_checkout
from runner.request import Experiment, ExperimentRequest, TargetOptions, UserCommand
from runner.runs.store import record_of
from runner.target import VolumeFiles


def experiment_request(
    arguments: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> ExperimentRequest:
    """Check the arguments against the file's train().

    ``files`` is the target's checkpoints volume, None if it can't be read. Raises RunnerError, exit
    code 2, for a mistake and for a name that another experiment has.
    """
    rest, overrides = split_overrides(arguments.words)
    words = (*overrides, *arguments.params)
    _check(arguments, rest)
    experiment = read_experiment((cwd / Path(rest[0]).expanduser()).resolve(), words)
    command = folder_of(experiment.file, arguments, cwd)
    name = arguments.name or experiment.file.stem
    if arguments.name is None and not RUN_NAME.fullmatch(name):
        raise usage(f"{name!r} is not a valid run name; give the run another one with --name")
    check_run_name(name)
    record = record_of(files, name)
    if record is not None:
        problem = other_experiment(record, experiment.file.name, dict(experiment.arguments))
        if problem:
            raise usage(problem)
    return ExperimentRequest(
        run=name,
        overrides=experiment.words,
        device=arguments.device,
        detach=arguments.detach,
        as_json=arguments.as_json,
        target_options=options,
        experiment=experiment,
        command=command,
    )


def folder_of(file: Path, arguments: LaunchArguments, cwd: Path) -> UserCommand | None:
    """Return the folder to upload with the file: --dir, or the file's own.

    None if the file is part of the checkout, which every job sees. Raises RunnerError, exit code 2.
    """
    checkout = find_checkout(cwd)
    folder = (
        (cwd / Path(arguments.folder).expanduser()).resolve() if arguments.folder else file.parent
    )
    if not file.is_relative_to(folder):
        raise usage(f"--dir {arguments.folder} does not contain {file.name}; give its folder")
    if folder.is_relative_to(checkout) and not arguments.setup:
        return None
    return UserCommand((), folder, setup_lines(arguments), NO_SETUP not in arguments.setup)


def read_experiment(file: Path, words: Sequence[str]) -> Experiment:
    """Return the experiment in ``file`` with the parameters ``words``. Raises RunnerError."""
    if not file.is_file():
        hint = did_you_mean(file.name, [path.name for path in file.parent.glob("*.py")])
        raise usage(f"no file {file}{hint or '; `runner new experiment NAME` writes one'}")
    if file.suffix != ".py":
        raise usage(f"{file.name} is not a Python file; an experiment's name ends in .py")
    try:
        signature = read_signature(file)
        arguments = signature.complete(signature.values(words))
    except ExperimentError as error:
        raise usage(str(error)) from None
    return Experiment(file, tuple(words), tuple(arguments.items()))


def _check(arguments: LaunchArguments, rest: list[str]) -> None:
    if not rest:
        raise usage(
            "`run` needs a file: run my_experiment.py; `runner new experiment NAME` writes one"
        )
    if len(rest) > 1:
        raise usage(f"unexpected '{rest[1]}'; `run` takes one file, and parameters as key=value")
    if arguments.device not in (None, "cpu"):
        raise usage(
            f"--device {arguments.device}: the experiment chooses its device; "
            "only cpu, which hides the GPUs, is accepted"
        )

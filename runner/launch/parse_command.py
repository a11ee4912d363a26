"""Build the requests for the user's own code: a command after --, and ``run FILE [key=value ...]``.

The user's file is not imported.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

from job.compatibility import experiment_mismatch
from job.run_record import is_run_name
from job.signature import ExperimentError, read_signature
from job.typed_json import read_object
from runner.console import CliContext
from runner.errors import did_you_mean, usage
from runner.jobs import COMMAND, LaunchArguments
from runner.launch.parse import NO_OPTIONS, check_run_name, common_options, split_overrides
from runner.planning.metric_presets import read_metrics
from runner.project import find_checkout
from runner.request import (
    CommandRequest,
    Experiment,
    ExperimentRequest,
    TargetOptions,
    UserCommand,
    command_from_record,
    folder_name,
    read_persist_options,
    run_name,
)
from runner.runs.volume import listing, record_of
from runner.target import Target, VolumeFiles

ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
SHELL_BUILTINS = {"cd", "source", "export", "ulimit", "set", "eval"}
SHELL_SIGNS = {"&&", "||", "|", ">", ">>", "&", "2>&1"}  # not ; as find -exec needs it
SHELL_SYNTAX = re.compile(r"[|&;<>$`*~(]")

NO_SETUP = "none"  # as --setup: ignore the folder's requirements.txt

PARALLEL_READS = 16  # of run records


def command_request(
    arguments: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> CommandRequest:
    """Check the arguments of a command. Raises RunnerError, exit status 2.

    ``files`` is the target's checkpoints volume, None if it can't be read.
    """
    _check(arguments)
    folder = (cwd / Path(arguments.folder or ".").expanduser()).resolve()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise usage(f"--dir {arguments.folder} {problem}; give the folder to run the command in")
    command = UserCommand(
        argv=arguments.command,
        folder=folder,
        setup=setup_lines(arguments),
        requirements=NO_SETUP not in arguments.setup,
        persist=read_persist_options(arguments.persist, folder),
        resume_with=arguments.resume_with or "",
        resume_if=arguments.resume_if,
        metrics=read_metrics(arguments.metric, folder, arguments.command),
    )
    check_program(command.argv, folder)
    script = command.script
    if script is not None and not (folder / script).exists():
        files_here = [path.name for path in folder.glob(f"*{Path(script).suffix}")]
        raise usage(f"{script} does not exist in {folder}{did_you_mean(script, files_here)}")
    if arguments.name is not None:
        check_run_name(arguments.name)
    run, hint = arguments.name or run_name(folder, command.argv), ""
    if files is not None:
        run, hint = name_for(command, arguments.name, files)
    return CommandRequest(run=run, command=command, hint=hint, **common_options(arguments, options))


def check_program(argv: Sequence[str], folder: Path) -> None:
    """Raise RunnerError, exit status 2, for a line that only a shell could run."""
    if not argv:
        raise usage("the command is empty; write a program and its arguments")
    program, line = argv[0], " ".join(argv) if len(argv) == 1 else shlex.join(argv)
    through_shell = f"-- bash -c {shlex.quote(line)}"
    if ASSIGNMENT.match(program):
        raise usage(f"'{program}' sets a variable and is not a program; write `--env {program}`")
    if program in SHELL_BUILTINS:
        raise usage(f"'{program}' is part of a shell; write `{through_shell}`")
    for word in argv[1:]:
        if word in SHELL_SIGNS:
            raise usage(f"'{word}' works only in a shell; quote the whole line: -- bash -c '...'")
    if len(argv) == 1 and re.search(r"\s", program) and not (folder / program).exists():
        fix = through_shell if SHELL_SYNTAX.search(program) else f"-- {program}"
        raise usage(f"'{program}' is one word and not a program; write `{fix}`")


def setup_lines(arguments: LaunchArguments) -> tuple[str, ...]:
    """Return the --setup lines without ``none``. Raises RunnerError, exit status 2."""
    return check_setup([line for line in arguments.setup if line != NO_SETUP])


def check_setup(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines; raise RunnerError for one that would be several in the Dockerfile."""
    for line in lines:
        if len(line.splitlines()) != 1 or line.endswith("\\"):
            raise usage(
                f"setup {line!r} is not one line; pass each line as its own --setup, or run a "
                "script of the folder: --setup 'bash setup.sh'"
            )
    return tuple(lines)


def warn_shared_paths(cli: CliContext, target: Target, request: CommandRequest) -> None:
    """Warn if an active run on ``target`` may write one of the request's persisted paths."""
    files, paths = target.files("checkpoints"), _persisted(request.command, request.run)
    if not paths:
        return
    for state in target.runs():
        if not state.alive or state.run == request.run or state.job != COMMAND.name:
            continue
        other = command_of_run(files, state.run)
        if other is None:  # it is just starting; the name tells its folder
            is_shared = state.run.startswith(f"{folder_name(request.command.folder)}-")
        else:
            others = _persisted(other, state.run)
            is_shared = any(
                a.is_relative_to(b) or b.is_relative_to(a) for a in paths for b in others
            )
        if is_shared:
            cli.warn(
                f"run '{state.run}' is active and writes the same persisted path; for a folder per "
                "run, use --persist 'PATH=VOLUME/{run}/PATH'"
            )


def _persisted(command: UserCommand, run: str) -> list[PurePosixPath]:
    return [PurePosixPath(option.volume, option.path_in_volume(run)) for option in command.persist]


def name_for(command: UserCommand, requested: str | None, files: VolumeFiles) -> tuple[str, str]:
    """Return the run's name and a hint for the plan.

    Without a given name it is the run of the same command in the same folder, or the first free
    one of nanoGPT-train, nanoGPT-train-2, ... The hint names a run of the same command in a
    different folder, in case the folder was moved.
    """
    if requested is not None:
        before = command_of_run(files, requested)
        if before is not None:
            refuse_different_command(requested, before, command)
        return requested, ""
    base, hint = run_name(command.folder, command.argv), ""
    known = _commands(files, base)
    for name, before in known.items():
        if before is not None and before.argv == command.argv:
            if same_folder(before, command):
                return name, ""
            hint = hint or _elsewhere(name, before)
    names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in names if name not in known), hint


def _commands(files: VolumeFiles, base: str) -> dict[str, UserCommand | None]:
    """Return the commands of the runs ``base`` and ``base-N`` that have a record, in order."""
    numbered = re.compile(re.escape(base) + r"(?:-([2-9]|[1-9]\d+))?")
    numbers = {e.path: int(m[1] or 1) for e in listing(files) if (m := numbered.fullmatch(e.path))}
    names = sorted(numbers, key=lambda name: numbers[name])
    with ThreadPoolExecutor(PARALLEL_READS) as pool:  # each may be a network request
        commands = dict(zip(names, pool.map(partial(command_of_run, files), names), strict=True))
    return {
        name: command
        for name, command in commands.items()
        if command is not None or files.size(f"{name}/run.json") is not None
    }


def refuse_different_command(run: str, before: UserCommand, command: UserCommand) -> None:
    """Raise RunnerError, exit status 2, if ``run`` has a different command or folder.

    If the recorded folder no longer exists on this machine, the new one replaces it.
    """
    resume = f"use a different --name to start this one; `runner resume {run}` resumes the other"
    if before.argv != command.argv:
        raise usage(f"run '{run}' is a different command:\n  {shlex.join(before.argv)}\n{resume}")
    if not same_folder(before, command) and before.folder.is_dir():
        raise usage(
            f"run '{run}' is this command in a different folder; resuming would mix the two:\n"
            f"  folder: {before.folder} → {command.folder}\n{resume}"
        )


def same_folder(before: UserCommand, command: UserCommand) -> bool:
    """Return True if both run in the same folder, also through a symbolic link."""
    if before.folder == command.folder:
        return True
    return before.folder.is_dir() and before.folder.samefile(command.folder)


def _elsewhere(run: str, before: UserCommand) -> str:
    if before.folder.is_dir():
        return f"{run} is the same command in a different folder, {before.folder}"
    return (
        f"{run} is the same command in {before.folder}, which does not exist; if you moved "
        f"that folder, resume the run with --name {run}"
    )


def command_of_run(files: VolumeFiles, run: str) -> UserCommand | None:
    """Return the command that the run was last started with; None if its record has none."""
    try:
        tree = read_object(files.read(f"{run}/run.json"))
        return command_from_record(tree["attempts"][-1]["launch"]["command"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def _check(arguments: LaunchArguments) -> None:
    if arguments.args:
        raise usage(
            f"'{arguments.args[0]}' appears before --; a command takes no job, recipe or "
            "settings, and its own arguments come after --"
        )
    if not arguments.command:
        raise usage("no command; write it after --: runner host --dir FOLDER -- python train.py")
    try:
        shlex.split(arguments.resume_with or "")
    except ValueError as error:
        raise usage(
            f"--resume-with {arguments.resume_with}: {str(error).lower()}; quote it as in a shell"
        ) from None
    if arguments.resume_if and not arguments.resume_with:
        raise usage("--resume-if needs --resume-with, the arguments for a resumed command")


def experiment_request(
    arguments: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> ExperimentRequest:
    """Check the arguments against the file's train().

    ``files`` is the target's checkpoints volume, None if it can't be read. Raises RunnerError, exit
    code 2, for a mistake and for a name that a different experiment has.
    """
    positionals, overrides = split_overrides(arguments.args)
    args = (*overrides, *arguments.params)
    _check_experiment(arguments, positionals)
    experiment = read_experiment((cwd / Path(positionals[0]).expanduser()).resolve(), args)
    experiment = replace(experiment, trackers=arguments.trackers)
    command = folder_of(experiment.file, arguments, cwd)
    name = arguments.name or experiment.file.stem
    if arguments.name is None and not is_run_name(name):
        raise usage(f"{name!r} is not a valid run name; give the run a different one with --name")
    check_run_name(name)
    record = record_of(files, name)
    if record is not None:
        problem = experiment_mismatch(record, experiment.file.name, dict(experiment.arguments))
        if problem:
            raise usage(problem)
    return ExperimentRequest(
        run=name,
        overrides=experiment.args,
        experiment=experiment,
        command=command,
        **common_options(arguments, options),
    )


def folder_of(file: Path, arguments: LaunchArguments, cwd: Path) -> UserCommand | None:
    """Return the folder to upload with the file: --dir, or the file's own.

    None if the file is part of the checkout, which every job sees. Raises RunnerError, exit
    status 2.
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


def read_experiment(file: Path, args: Sequence[str]) -> Experiment:
    """Return the experiment in ``file`` with the parameters ``args``. Raises RunnerError."""
    if not file.is_file():
        hint = did_you_mean(file.name, [path.name for path in file.parent.glob("*.py")])
        raise usage(f"no file {file}{hint or '; `runner new experiment NAME` writes one'}")
    if file.suffix != ".py":
        raise usage(f"{file.name} is not a Python file; an experiment's name ends in .py")
    try:
        signature = read_signature(file)
        arguments = signature.complete(signature.values(args))
    except ExperimentError as error:
        raise usage(str(error)) from None
    return Experiment(file, tuple(args), tuple(arguments.items()))


def _check_experiment(arguments: LaunchArguments, extra: list[str]) -> None:
    if not extra:
        raise usage(
            "`run` needs a file: run my_experiment.py; `runner new experiment NAME` writes one"
        )
    if len(extra) > 1:
        raise usage(f"unexpected '{extra[1]}'; `run` takes one file, and parameters as key=value")
    if arguments.device not in (None, "cpu"):
        raise usage(
            f"--device {arguments.device}: the experiment chooses its device; "
            "only cpu, which hides the GPUs, is accepted"
        )

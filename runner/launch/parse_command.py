"""Build the request for a user's command: its options, and the words after --."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

from runner.console import CliContext
from runner.errors import usage
from runner.jobs import COMMAND
from runner.launch.arguments import LaunchArguments
from runner.launch.parse import NO_OPTIONS, check_run_name
from runner.request import (
    CommandRequest,
    TargetOptions,
    UserCommand,
    command_from_record,
    folder_name,
    read_persist_options,
    run_name,
)
from runner.runs.store import listing
from runner.target import Target, VolumeFiles

NO_SETUP = "none"  # as --setup: ignore the folder's requirements.txt

PARALLEL_READS = 16  # of run records


def command_request(
    arguments: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> CommandRequest:
    """Check the arguments of a command. Raises RunnerError, exit code 2.

    ``files`` is the target's checkpoints volume, None if it can't be read.
    """
    _check(arguments)
    folder = (cwd / Path(arguments.folder or ".").expanduser()).resolve()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise usage(f"--dir {arguments.folder} {problem}; give the folder to run the command in")
    command = UserCommand(
        words=arguments.command,
        folder=folder,
        setup=setup_lines(arguments),
        requirements=NO_SETUP not in arguments.setup,
        persist=read_persist_options(arguments.persist, folder),
        resume_with=arguments.resume_with or "",
        resume_if=arguments.resume_if,
    )
    if arguments.name is not None:
        check_run_name(arguments.name)
    run, hint = arguments.name or run_name(folder, command.words), ""
    if files is not None:
        run, hint = name_for(command, arguments.name, files)
    return CommandRequest(
        run=run,
        detach=arguments.detach,
        as_json=arguments.as_json,
        target_options=options,
        command=command,
        hint=hint,
    )


def setup_lines(arguments: LaunchArguments) -> tuple[str, ...]:
    """Return the --setup lines without ``none``. Raises RunnerError, exit code 2."""
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
    files, own = target.files("checkpoints"), _persisted(request.command, request.run)
    if not own:
        return
    for state in target.runs():
        if not state.alive or state.run == request.run or state.job != COMMAND.name:
            continue
        other = command_of_run(files, state.run)
        if other is None:  # it is just starting; the name tells its folder
            is_shared = state.run.startswith(f"{folder_name(request.command.folder)}-")
        else:
            theirs = _persisted(other, state.run)
            is_shared = any(a.is_relative_to(b) or b.is_relative_to(a) for a in own for b in theirs)
        if is_shared:
            cli.warn(
                f"run '{state.run}' is active and writes the same persisted path; for a folder per "
                "run, use --persist 'PATH=VOLUME/{run}/PATH'"
            )


def _persisted(command: UserCommand, run: str) -> list[PurePosixPath]:
    return [PurePosixPath(each.volume, each.path_in_volume(run)) for each in command.persist]


def name_for(command: UserCommand, given: str | None, files: VolumeFiles) -> tuple[str, str]:
    """Return the run's name and a hint for the plan.

    Without a given name it is the run of the same command in the same folder, or the first free
    one of nanoGPT-train, nanoGPT-train-2, ... The hint names a run of the same command in another
    folder, in case the folder was moved.
    """
    if given is not None:
        before = command_of_run(files, given)
        if before is not None:
            refuse_another(given, before, command)
        return given, ""
    base, hint = run_name(command.folder, command.words), ""
    known = _commands(files, base)
    for name, before in known.items():
        if before is not None and before.words == command.words:
            if same_folder(before, command):
                return name, ""
            hint = hint or _elsewhere(name, before)
    names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in names if name not in known), hint


def _commands(files: VolumeFiles, base: str) -> dict[str, UserCommand | None]:
    """Return the commands of the runs ``base`` and ``base-N`` that have a record, in order."""
    numbered = re.compile(re.escape(base) + r"(?:-([2-9]|[1-9]\d+))?")
    found = {e.path: int(m[1] or 1) for e in listing(files) if (m := numbered.fullmatch(e.path))}
    names = sorted(found, key=lambda name: found[name])
    with ThreadPoolExecutor(PARALLEL_READS) as pool:  # each may be a network request
        commands = dict(zip(names, pool.map(partial(command_of_run, files), names), strict=True))
    return {
        name: command
        for name, command in commands.items()
        if command is not None or files.size(f"{name}/run.json") is not None
    }


def refuse_another(run: str, before: UserCommand, command: UserCommand) -> None:
    """Raise RunnerError, exit code 2, if ``run`` is another command or runs in another folder.

    If the recorded folder no longer exists on this machine, the new one replaces it.
    """
    resume = f"use another --name to start this one; `runner resume {run}` resumes the other"
    if before.words != command.words:
        raise usage(f"run '{run}' is another command:\n  {shlex.join(before.words)}\n{resume}")
    if not same_folder(before, command) and before.folder.is_dir():
        raise usage(
            f"run '{run}' is this command in another folder; resuming would mix the two:\n"
            f"  folder: {before.folder} → {command.folder}\n{resume}"
        )


def same_folder(before: UserCommand, command: UserCommand) -> bool:
    """Return True if both run in the same folder, also through a symbolic link."""
    if before.folder == command.folder:
        return True
    return before.folder.is_dir() and before.folder.samefile(command.folder)


def _elsewhere(run: str, before: UserCommand) -> str:
    if before.folder.is_dir():
        return f"{run} is the same command in another folder, {before.folder}"
    return (
        f"{run} is the same command in {before.folder}, which does not exist here; if you moved "
        f"that folder, resume the run with --name {run}"
    )


def command_of_run(files: VolumeFiles, run: str) -> UserCommand | None:
    """Return the command that the run was last started with; None if its record has none."""
    try:
        tree = json.loads(files.read(f"{run}/run.json"))
        return command_from_record(tree["attempts"][-1]["launch"]["command"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def _check(arguments: LaunchArguments) -> None:
    if arguments.words:
        raise usage(
            f"'{arguments.words[0]}' appears before --; a command takes no job, recipe or "
            "settings, and its own arguments come after --"
        )
    if not arguments.command:
        raise usage("no command; write it after --: runner host --dir FOLDER -- python train.py")
    if arguments.resume_if and not arguments.resume_with:
        raise usage("--resume-if needs --resume-with, the arguments for a resumed command")

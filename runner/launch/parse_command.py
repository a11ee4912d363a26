"""From what was typed to the request for a command: ``--dir``, ``--setup``, ``--keep``, and the words behind --."""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

from runner.errors import usage
from runner.jobs import COMMAND
from runner.launch.parse import NO_OPTIONS, check_run_name
from runner.request import (
    LaunchArguments,
    Request,
    TargetOptions,
    UserCommand,
    command_from_record,
    read_persist_options,
    run_name,
)
from runner.runs.store import listing
from runner.target import VolumeFiles

NO_SETUP = "none"  # as the one --setup: not even the folder's requirements.txt

READERS = 16  # records that are read at a time


def command_request(
    line: LaunchArguments,
    cwd: Path,
    files: VolumeFiles | None,
    options: TargetOptions = NO_OPTIONS,
) -> Request:
    """Check the line. ``files`` is the target's checkpoints volume, None where it has none yet. Raises
    RunnerError, exit code 2."""
    _check(line)
    folder = (cwd / Path(line.folder or ".").expanduser()).resolve()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise usage(f"--dir {line.folder}: {what}; name the folder in which the command is to run")
    setup = tuple(text for text in line.setup if text != NO_SETUP)
    command = UserCommand(
        words=line.command,
        folder=folder,
        setup=setup,
        requirements=NO_SETUP not in line.setup,
        keep=read_persist_options(line.keep, folder),
        resume_with=line.resume_with or "",
        resume_if=line.resume_if,
    )
    if line.name is not None:
        check_run_name(line.name)
    run, hint = line.name or run_name(folder, command.words), ""
    if files is not None:
        run, hint = name_for(command, line.name, files)
    return Request(
        COMMAND,
        run,
        detach=line.detach,
        as_json=line.as_json,
        target_options=options,
        command=command,
        hint=hint,
    )


def name_for(command: UserCommand, given: str | None, files: VolumeFiles) -> tuple[str, str]:
    """The run's name: the one that was given, if the run of that name is this command's; or the first free one
    of nanoGPT-train, nanoGPT-train-2 ..., or the one that was this command's before. Second what the plan says
    of it: which run would have been meant, had its folder been moved here."""
    if given is not None:
        before = command_of_run(files, given)
        if before is not None:
            refuse_another(given, before, command)
        return given, ""
    base, elsewhere = run_name(command.folder, command.words), ""
    known = _commands(files, base)
    for name, before in known.items():
        if before is not None and before.words == command.words:
            if same_folder(before, command):
                return name, ""
            elsewhere = elsewhere or _elsewhere(name, before)
    names = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in names if name not in known), elsewhere


def _commands(files: VolumeFiles, base: str) -> dict[str, UserCommand | None]:
    """The runs of that name, with a number or without, in their order, and what command each is. A folder without a
    record is none yet."""
    numbered = re.compile(re.escape(base) + r"(?:-([2-9]|[1-9]\d+))?")
    found = {e.path: int(m[1] or 1) for e in listing(files) if (m := numbered.fullmatch(e.path))}
    names = sorted(found, key=lambda name: found[name])
    with ThreadPoolExecutor(READERS) as pool:  # in the cloud each is a request
        commands = dict(zip(names, pool.map(partial(command_of_run, files), names), strict=True))
    return {
        name: command
        for name, command in commands.items()
        if command is not None or files.size(f"{name}/run.json") is not None
    }


def refuse_another(run: str, before: UserCommand, command: UserCommand) -> None:
    """RunnerError, exit code 2, where the run is another command, or this one in a folder that is another. A
    folder that is gone was moved, or is of another machine: the one that was named now stands for it."""
    if before.words != command.words:
        raise usage(
            f"run '{run}' is another command:\n  {shlex.join(before.words)}\n"
            f"start this one under another --name; `runner resume {run}` goes on with that one"
        )
    if not same_folder(before, command) and before.folder.is_dir():
        raise usage(
            f"run '{run}' is this command in another folder, which is still there, and going on would mix the two:\n"
            f"  folder: {before.folder} → {command.folder}\n"
            f"start this one under another --name; `runner resume {run}` goes on with that one"
        )


def same_folder(before: UserCommand, command: UserCommand) -> bool:
    """Whether both are one folder of this machine, whatever the way to it is called."""
    if before.folder == command.folder:
        return True
    return before.folder.is_dir() and before.folder.samefile(command.folder)


def _elsewhere(run: str, before: UserCommand) -> str:
    if before.folder.is_dir():
        return f"{run} is the same command in {before.folder}, another folder"
    return (
        f"{run} is the same command in {before.folder}, which is not here; if that is this folder, "
        f"moved, go on with it: --name {run}"
    )


def command_of_run(files: VolumeFiles, run: str) -> UserCommand | None:
    """The command that the run was last started with; None where it has no record or is no command."""
    try:
        tree = json.loads(files.read(f"{run}/run.json"))
        return command_from_record(tree["attempts"][-1]["launch"]["command"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def _check(line: LaunchArguments) -> None:
    if not line.command:
        raise usage(
            "--dir, --setup, --keep and --resume-with belong to a command; write it behind --:\n"
            "  runner host --dir FOLDER -- python train.py"
        )
    if line.words:
        raise usage(
            f"'{line.words[0]}' stands before the --; what is to be run stands behind it, and a command has no recipe"
        )
    if line.gpu:
        raise usage(
            "--gpu N is for the trainer; a command says itself how many processes it has (torchrun), and "
            "CUDA_VISIBLE_DEVICES chooses GPUs of this machine"
        )
    others = {
        name: getattr(line, name)
        for name in ("source", "into", "device", "choices", "shards", "force")
    }
    for name, value in others.items():
        if value:
            raise usage(f"--{name} is not for a command; give it to the command itself, behind --")
    if line.resume_if and not line.resume_with:
        raise usage("--resume-if without --resume-with: say which words a later attempt gets")

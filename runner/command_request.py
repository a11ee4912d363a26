"""From what was typed to the request for a command: ``--dir``, ``--setup``, ``--keep``, and the words behind --."""

from __future__ import annotations

import json
from pathlib import Path

from runner.arguments import CommandLine
from runner.command import Command, from_record, read_keeps, run_name
from runner.errors import usage
from runner.jobs import COMMAND
from runner.request import Request, check_run_name
from runner.targets.protocol import Files

NO_SETUP = "none"  # as the one --setup: not even the folder's requirements.txt


def command_request(
    line: CommandLine, cwd: Path, files: Files | None, more: tuple[tuple[str, str], ...] = ()
) -> Request:
    """Check the line. ``files`` is the target's checkpoints volume, None where it has none yet. Raises
    RunnerError, exit code 2."""
    _check(line)
    folder = (cwd / Path(line.folder or ".").expanduser()).resolve()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise usage(f"--dir {line.folder}: {what}; name the folder in which the command is to run")
    setup = tuple(text for text in line.setup if text != NO_SETUP)
    command = Command(
        words=line.command,
        folder=folder,
        setup=setup,
        requirements=NO_SETUP not in line.setup,
        keep=read_keeps(line.keep, folder),
        resume_with=line.resume_with or "",
        resume_if=line.resume_if,
    )
    if line.name is not None:
        check_run_name(line.name)
    if files is None:
        run = line.name or run_name(folder, command.words)
    else:
        run = name_for(command, line.name, files)
    return Request(COMMAND, run, detach=line.detach, as_json=line.as_json, more=more, command=command)


def name_for(command: Command, given: str | None, files: Files) -> str:
    """The run's name: the one that was given, if the run of that name is this command's; or the first free one
    of nanoGPT-train, nanoGPT-train-2 ..., or the one that was this command's before."""
    if given is not None:
        before = command_of_run(files, given)
        if before is not None and before.words != command.words:
            raise usage(
                f"run '{given}' is another command:\n  {' '.join(before.words)}\n"
                f"start this one under another --name; `runner resume {given}` goes on with that one"
            )
        return given
    base, number = run_name(command.folder, command.words), 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        before = command_of_run(files, name)
        if before is None and files.size(f"{name}/run.json") is None:
            return name
        if before is not None and (before.words, before.folder.name) == (command.words, command.folder.name):
            return name
        number += 1


def command_of_run(files: Files, run: str) -> Command | None:
    """The command that the run was last started with; None where it has no record or is no command."""
    try:
        tree = json.loads(files.read(f"{run}/run.json"))
        return from_record(tree["attempts"][-1]["launch"]["command"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def _check(line: CommandLine) -> None:
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
    for name, value in (("source", line.source), ("into", line.into), ("device", line.device)):
        if value:
            raise usage(f"--{name} is not for a command; give it to the command itself, behind --")
    if line.resume_if and not line.resume_with:
        raise usage("--resume-if without --resume-with: say which words a later attempt gets")

"""The plan of a command in a folder. Pure, as ``make_plan`` is, which asks here."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from job.format import byte_size
from job.user_command.resume_args import words_of
from runner.plan import (
    CREDENTIALS,
    PersistedPath,
    Plan,
    PlannedFolder,
    TargetState,
    UploadManifest,
    launch_variable,
)
from runner.request import Request, UserCommand

SEEDS = "/job/.seeds"  # in the cloud: what the folder brings of its kept paths

COPY = "/tmp/job"  # in the cloud: where the folder is copied to if its mount is read-only

SHARED = " (it has files of its own and stays; its files are there as well)"

MAX_LEFT_OUT = 10  # shown in the plan


def command_plan(request: Request, command: UserCommand, facts: TargetState) -> Plan:
    """Work out the launch of ``command``."""
    folder = planned_folder(request.run, command, facts)
    kept = folder.kept
    return Plan(
        job=request.job.name,
        target=facts.target,
        run=request.run,
        recipe=None,
        overrides=(),
        command=(
            *facts.python,
            "-P",
            "-m",
            request.job.module,
            *_words(request, command, facts, kept),
        ),
        workspace=facts.workspace,
        checkout=facts.checkout,
        image=facts.image,
        image_built=facts.image_built,
        gpus=request.gpus,
        device=None,
        volumes=facts.volumes,
        environment=(*facts.environment, ("RUN_LAUNCH", launch_variable(request, facts))),
        secrets=(),  # code of others gets no key unasked: --env NAME hands one on
        resume=None,
        steps=tuple(_does(command, facts)),
        detach=request.detach,
        as_json=request.as_json,
        notes=(("new run", request.hint), *folder_notes(facts, folder)),
        target_options=request.target_options,
        writes_run=True,
        folder=folder,
    )


def planned_folder(run: str, command: UserCommand, facts: TargetState) -> PlannedFolder:
    """The folder as the job will see it."""
    kept = _kept(run, command, facts)
    return PlannedFolder(
        str(command.folder), facts.folder, facts.shipped, kept, facts.setup, facts.setup_built
    )


def _kept(run: str, command: UserCommand, facts: TargetState) -> tuple[PersistedPath, ...]:
    volumes = {volume.name: volume for volume in facts.volumes}
    return tuple(
        PersistedPath(
            keep.path,
            str(Path(volumes[keep.volume].here) / keep.of(run)),
            str(PurePosixPath(volumes[keep.volume].inside) / keep.of(run)),
        )
        for keep in command.keep
    )


def _words(
    request: Request, command: UserCommand, facts: TargetState, kept: tuple[PersistedPath, ...]
) -> tuple[str, ...]:
    words = ["--name", request.run, "--folder", facts.folder]
    # Compose mounts a kept folder; elsewhere the path becomes a link to it.
    mounted = facts.contained and facts.mounts
    for keep in kept:
        words += ["--kept", keep.inside] if mounted else ["--persist", f"{keep.path}={keep.inside}"]
    if not facts.mounts:
        words += ["--seeds", SEEDS, "--copy", f"{COPY}/{PurePosixPath(facts.folder).name}"]
    if request.as_json:
        words.append("--json")
    if command.resume_with:
        words.append(
            f"--resume-with={command.resume_with}"
        )  # its own dashes must not be taken for ours
    if command.resume_if:
        words.append(f"--resume-if={command.resume_if}")
    return (*words, "--", *command.words)


def _does(command: UserCommand, facts: TargetState) -> list[str]:
    words = []
    if facts.image and not facts.image_built:
        words.append("builds the image first, which takes some minutes and is done once")
    if facts.setup and not facts.setup_built:
        words.append("extends the image first, which is done once")
    if facts.attempts == 0:
        words.append("runs the command")
    elif facts.finished:
        words.append("runs the command again: it finished before")
    else:
        words.append(f"runs the command again, its attempt {facts.attempts + 1}")
    if _was_another(command, facts):
        words.append("from its beginning: it is another command than the last time")
    elif facts.attempts and command.resume_with:
        condition = (
            f" if {command.resume_if} is there" if command.resume_if else " if it left anything"
        )
        words.append(f"with {command.resume_with}{condition}")
    return words


def _was_another(command: UserCommand, facts: TargetState) -> bool:
    attempts = facts.record.attempts if facts.record else []
    return bool(attempts) and words_of(attempts[-1]) not in (None, list(command.words))


def folder_notes(facts: TargetState, folder: PlannedFolder) -> tuple[tuple[str, str], ...]:
    """Rows of the plan's table about the folder."""
    inside = f" → {folder.inside}" if folder.inside != folder.here else ""
    kept = [
        f"{keep.path} → {keep.inside}{SHARED if keep.path in facts.occupied else ''}"
        for keep in folder.kept
    ]
    return (
        ("folder", f"{folder.here}{inside}"),
        ("ships", describe_upload(folder.shipped) if folder.shipped else ""),
        ("keeps", "\n".join(kept)),
        ("setup", _setup(facts)),
    )


def _setup(facts: TargetState) -> str:
    if not facts.setup:
        return ""
    if not facts.contained:
        return "is yours to do on this machine, if it is not done:\n" + "\n".join(facts.setup)
    return "\n".join(facts.setup)


def describe_upload(shipped: UploadManifest) -> str:
    """Return ``18 files, 0.4 MB``, with the largest files and what is left out."""
    text = f"{shipped.files} file{'s' if shipped.files != 1 else ''}, {byte_size(shipped.bytes)}"
    if shipped.largest:
        largest = ", ".join(f"{path} {byte_size(size)}" for path, size in shipped.largest)
        text += f"; the largest: {largest}; .gitignore and .dockerignore can leave files out"
    if shipped.left_out:
        shown = [f"{path} ({reason})" for path, reason in shipped.left_out[:MAX_LEFT_OUT]]
        hidden = len(shipped.left_out) - len(shown)
        text += f"\nleft out: {', '.join(shown)}{f' and {hidden} more' if hidden else ''}"
    if any(reason == CREDENTIALS for _, reason in shipped.left_out):
        text += "\nto ship a file with credentials anyway, add the line `!PATH` to .dockerignore"
    return text

"""The plan of a command in the user's folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from job.format import byte_size, count
from job.notify import VARIABLE
from job.user_command.resume import recorded_argv
from runner.plan import (
    CREDENTIALS,
    FolderState,
    PersistedPath,
    Plan,
    PlannedFolder,
    PlannedProcess,
    TargetState,
    UploadManifest,
    launch_variable,
)
from runner.planning.metric_presets import describe_metrics
from runner.request import CommandRequest, Request, UserCommand

SEEDS = "/job/.seeds"  # on Modal: the folder's own files of persisted paths
MAX_OMITTED = 10  # shown in the plan

COPY = "/tmp/job"  # on Modal: a writable copy of the folder, whose mount is read-only


def command_plan(request: CommandRequest, state: TargetState) -> Plan:
    """Return the plan of the command."""
    environment = state.environment
    folder = planned_folder(request.run, request.command, state)
    return Plan(
        job=request.job.name,
        target=state.target,
        run=request.run,
        checkout=state.checkout,
        process=PlannedProcess(
            command=(
                *environment.python,
                "-P",  # not the working folder: its modules must not hide the supervisor's
                "-m",
                request.job.module,
                *_arguments(request, state, folder),
            ),
            workspace=environment.workspace,
            environment=(*environment.variables, ("RUN_LAUNCH", launch_variable(request, state))),
            # The user's code gets only the secrets that --env names; this one stays in the runner.
            secrets=tuple(n for n in state.secrets if n in notification_secrets(request)),
            gpus=request.gpus,
            device=request.device,
        ),
        volumes=environment.volumes,
        steps=tuple(_steps(request, state)),
        image=state.image,
        folder=folder,
        extra_rows=(
            ("new run", request.hint),
            *folder_rows(state, folder),
            ("metrics", describe_metrics(request.command.metrics)),
        ),
        detach=request.detach,
        as_json=request.as_json,
        writes_run=not request.is_interactive,
        target_options=request.target_options,
    )


def notification_secrets(request: Request) -> tuple[str, ...]:
    """Return the variable with the URL to notify; a sweep sends for all of its trials."""
    return (VARIABLE,) if request.job.writes_run and request.sweep is None else ()


def is_plain(request: CommandRequest, checkout: Path) -> bool:
    """Return True for a shell in the checkout itself, which every image has as its workspace."""
    command = request.command
    return command.folder == checkout and not (command.setup or command.persist)


def planned_folder(run: str, command: UserCommand, state: TargetState) -> PlannedFolder:
    """Return the folder as the job will see it."""
    folder = _folder(state)
    volumes = {volume.name: volume for volume in state.environment.volumes}
    persisted = tuple(
        PersistedPath(
            option.path,
            str(Path(volumes[option.volume].host_path) / option.path_in_volume(run)),
            str(PurePosixPath(volumes[option.volume].container_path) / option.path_in_volume(run)),
        )
        for option in command.persist
    )
    return PlannedFolder(
        str(command.folder),
        folder.container_path,
        folder.manifest,
        persisted,
        folder.setup,
        folder.is_setup_built,
    )


def _folder(state: TargetState) -> FolderState:
    return state.folder or FolderState("")


def _arguments(
    request: CommandRequest, state: TargetState, folder: PlannedFolder
) -> tuple[str, ...]:
    environment, command = state.environment, request.command
    args = ["--name", request.run, "--folder", folder.container_path]
    # Compose mounts a persisted folder; elsewhere the path becomes a link to the volume.
    is_mounted = environment.is_container and environment.can_mount
    for path in folder.persisted:
        args += (
            ["--mounted", path.container_path]
            if is_mounted
            else ["--persist", f"{path.path}={path.container_path}"]
        )
    if not environment.can_mount:
        args += ["--seeds", SEEDS, "--copy", f"{COPY}/{PurePosixPath(folder.container_path).name}"]
    if request.as_json:
        args.append("--json")
    if request.is_interactive:
        args.append("--interactive")
    if command.resume_with:
        args.append(f"--resume-with={command.resume_with}")  # = because the value begins with "-"
    if command.resume_if:
        args.append(f"--resume-if={command.resume_if}")
    return (*args, "--", *command.argv)


def _steps(request: CommandRequest, state: TargetState) -> list[str]:
    command, attempts = request.command, state.run.attempts
    steps = []
    if state.image is not None and not state.image.is_built:
        steps.append("builds the image first (some minutes, once)")
    if _folder(state).setup and not _folder(state).is_setup_built:
        steps.append("extends the image first (once)")
    if attempts == 0:
        steps.append("runs the command")
    elif state.run.is_finished:
        steps.append("runs the command again: it finished before")
    else:
        steps.append(f"runs the command again, its attempt {attempts + 1}")
    if _has_changed(command, state):
        steps.append("from its beginning: the command changed since the last attempt")
    elif attempts and command.resume_with:
        condition = (
            f"if {command.resume_if} exists" if command.resume_if else "if it left any files"
        )
        steps.append(f"with {command.resume_with} {condition}")
    return steps


def _has_changed(command: UserCommand, state: TargetState) -> bool:
    attempts = state.run.record.attempts if state.run.record else []
    return bool(attempts) and recorded_argv(attempts[-1]) not in (None, list(command.argv))


def folder_rows(state: TargetState, folder: PlannedFolder) -> tuple[tuple[str, str], ...]:
    """Return the rows of the plan about the folder."""
    inside = f" → {folder.container_path}" if folder.container_path != folder.host_path else ""
    occupied = _folder(state).occupied
    note = " (a folder with files: it is kept, and its files are copied)"
    persisted = [
        f"{path.path} → {path.container_path}{note if path.path in occupied else ''}"
        for path in folder.persisted
    ]
    return (
        ("folder", f"{folder.host_path}{inside}"),
        ("uploads", describe_upload(folder.manifest) if folder.manifest else ""),
        ("persists", "\n".join(persisted)),
        ("setup", _describe_setup(state)),
    )


def _describe_setup(state: TargetState) -> str:
    setup = _folder(state).setup
    if not setup:
        return ""
    if not state.environment.is_container:
        return "run it on this machine yourself, if you have not yet:\n" + "\n".join(setup)
    return "\n".join(setup)


def describe_upload(manifest: UploadManifest) -> str:
    """Return ``18 files, 0.4 MB``, with the largest entries and the omitted files."""
    text = f"{count(manifest.files, 'file')}, {byte_size(manifest.bytes)}"
    if manifest.largest:
        largest = ", ".join(f"{path} {byte_size(size)}" for path, size in manifest.largest)
        text += f"; the largest: {largest}; .gitignore and .dockerignore can omit files"
    if manifest.omitted:
        shown = [f"{path} ({reason})" for path, reason in manifest.omitted[:MAX_OMITTED]]
        hidden = len(manifest.omitted) - len(shown)
        text += f"\nomitted: {', '.join(shown)}{f' and {hidden} more' if hidden else ''}"
    if any(reason == CREDENTIALS for _, reason in manifest.omitted):
        text += "\nto upload a file with credentials anyway, add the line `!PATH` to .dockerignore"
    return text

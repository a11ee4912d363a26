"""``runner push``: upload to a remote volume."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from job.format import count
from job.step_folders import LATEST, MANIFEST, find_damage
from runner.console import CliContext
from runner.errors import TargetUnavailable, not_found, usage
from runner.planning.ignore_rules import may_hold_credentials
from runner.runs.attempts import LAUNCH_NAME
from runner.runs.store import read_launch
from runner.targets.blocks import RemoteEntry
from runner.transfer.mapping import VolumeMapping, is_active_remotely
from runner.transfer.plan import (
    Checkpoint,
    ContentMismatch,
    Reason,
    TransferResult,
    make_plan,
    newest_step,
    parse_step_name,
    split_markers,
)
from runner.transfer.upload import LocalFile, Uploader, batches, list_local, local_file
from runner.transfer.workers import FATAL_ERRNOS, FailedTransfer, Progress, Task, Workers

MAX_NAMED = 3  # files with credentials in a request for confirmation


def find_source(root: Path, has_runs: bool, name: str, cwd: Path) -> Path:
    """Return the file or folder ``name``: a path from ``cwd``, or one in the volume's folder.

    For checkpoints, a name without a slash is a run. Raises RunnerError, exit status 102.
    """
    from_cwd, from_volume = cwd / Path(name).expanduser(), root / name
    order = [from_volume, from_cwd] if has_runs and "/" not in name else [from_cwd, from_volume]
    for path in order:
        if path.exists():
            return path
    if Path(name).expanduser().is_absolute():
        raise not_found(f"{name} does not exist; give a file or folder")
    raise not_found(f"{name} is neither in {cwd} nor in {root}; give a file or folder")


def remote_path(mapping: VolumeMapping, source: Path, dest: str | None) -> str:
    """Return the path of ``source`` in the volume: ``dest``, else its path in the volume's folder
    on this machine, else its own name.

    A ``dest`` that ends with ``/`` is a folder to put it in; ``/`` alone is the volume.
    """
    source = Path(os.path.abspath(source))
    if dest is not None:
        path = PurePosixPath(dest.strip("/"))
        if ".." in path.parts:
            raise usage(f"--dest {dest} leads out of the volume; give a path inside it")
        is_parent = dest.endswith("/") and (dest != "/" or source.is_file())
        return "/".join((path / source.name if is_parent else path).parts)
    # The folder or one above it may be a link, for example to a larger disk.
    real = source.parent.resolve() / source.name
    for local, root in ((source, mapping.root), (real, mapping.root.resolve())):
        if local == root or source.resolve() == root:
            return ""
        if local.is_relative_to(root):
            return local.relative_to(root).as_posix()
    return source.name


class Push:
    """The plan of an upload from one listing of both sides, and its execution."""

    def __init__(
        self, mapping: VolumeMapping, source: Path, remote: str, everything: bool = False
    ) -> None:
        self.mapping = mapping
        self.source = source
        self.remote = remote
        files, failed = list_local(source, remote)
        self.local = {file.path: file for file in files if not self._is_local_launch(file)}
        self.entries = self._list_remote()
        is_inside_run = remote.count("/") > 0
        self.plan = make_plan(
            (file.entry for file in self.local.values()),
            lambda entry: self.local[entry.path].local.read_bytes(),
            self._is_unchanged,
            lambda entry: Reason.CHANGED if entry.path in self.entries else Reason.NEW,
            runs=mapping.has_runs,
            everything=everything or is_inside_run,
            refused=failed,
        )

    def confirmation_reasons(self, cli: CliContext) -> list[str]:
        """Return the reasons to ask for confirmation.

        They are credentials, and runs that are active on the target or at a later step there.
        """
        reasons = self._credentials()
        if not self.mapping.has_runs:
            return reasons
        latest = dict(self.plan.latest)
        changing = {row["path"].split("/")[0] for row in self.plan.rows()}
        for run in sorted({path.split("/")[0] for path in self.local}):
            remote = newest_step(run, self.entries)
            local = parse_step_name(latest.get(run, ""))
            if remote is not None and remote > local:
                reasons.append(
                    f"run '{run}' is at step {remote} on {self.mapping.place} "
                    f"and at {max(local, 0)} on this machine"
                )
            if run in changing and is_active_remotely(self.mapping, run):
                reasons.append(f"run '{run}' is active on {self.mapping.place}")
        return reasons

    def _credentials(self) -> list[str]:
        folder = self.source.parent
        paths = [row["path"] for row in self.plan.rows()]
        suspects = [
            path
            for path in paths
            if may_hold_credentials(folder, self.local[path].local.relative_to(folder).as_posix())
        ]
        if not suspects:
            return []
        more = f" and {len(suspects) - MAX_NAMED} more" if len(suspects) > MAX_NAMED else ""
        files = count(len(suspects), "file")
        return [f"{files} may hold credentials: {', '.join(suspects[:MAX_NAMED])}{more}"]

    def execute(self, cli: CliContext) -> TransferResult:
        """Upload; the result names what is missing."""
        progress = Progress(cli, "pushing", self.plan.count, self.plan.size)
        with progress, Workers() as workers:
            files = self.mapping.files.with_retries(sleep=workers.sleep)
            failed = self._execute(workers, Uploader(files, workers, progress))
        return TransferResult(self.plan, tuple(failed), progress.seconds, progress.done_size)

    def _execute(self, workers: Workers, uploader: Uploader) -> list[FailedTransfer]:
        plan = self.plan
        loose = [self.local[transfer.entry.path] for transfer in plan.files]
        failed = self._send(workers, uploader, loose, plan.checkpoints)
        # meta.json and `latest` say that something is complete: send them after all else arrived.
        ready, waiting = split_markers(
            [transfer.entry.path for transfer in plan.markers], [*plan.refused, *failed]
        )
        incomplete = {item.path for item in failed}
        failed += waiting + self._send(workers, uploader, [self.local[path] for path in ready])
        for run, name in plan.latest:
            if not any(path.startswith(f"{run}/{name}/") for path in incomplete):
                failed += self._move_latest(workers, uploader, run, name)
        return failed

    def _send(
        self,
        workers: Workers,
        uploader: Uploader,
        files: Sequence[LocalFile],
        checkpoints: Sequence[Checkpoint] = (),
    ) -> list[FailedTransfer]:
        """Send the files in batches and each checkpoint in one request; then confirm them."""
        single: list[LocalFile] = []  # of batches in which a file cannot be read or keeps changing

        def send_batch(batch: list[LocalFile]) -> None:
            try:
                uploader.send(batch)
            except TargetUnavailable:
                raise
            except OSError as error:
                if len(batch) == 1 or error.errno in FATAL_ERRNOS:
                    raise
                single.extend(batch)

        def send_checkpoint(checkpoint: Checkpoint) -> None:
            batch = [self.local[entry.path] for entry in checkpoint.entries]
            if damage := find_damage(batch[0].local.parent):
                raise ContentMismatch(f"the local checkpoint is damaged: {damage}")
            uploader.send(batch)

        tasks = [
            Task(tuple(file.path for file in batch), partial(send_batch, batch))
            for batch in batches(files)
        ]
        tasks += [
            Task(tuple(entry.path for entry in c.entries), partial(send_checkpoint, c))
            for c in checkpoints
        ]
        failed = workers.run_tasks(tasks)
        failed += workers.run_tasks(
            [Task((file.path,), partial(uploader.send, [file])) for file in single]
        )
        return failed + self._confirm(uploader.take_sent())

    def _confirm(self, sent: Sequence[LocalFile]) -> list[FailedTransfer]:
        """List the volume again, check that each sent file has its size, and record it."""
        if not sent:
            return []
        listed = time.time()
        self.entries = self._list_remote()
        missing = []
        for file in sent:
            entry = self.entries.get(file.path)
            if entry is None or entry.size != file.size:
                problem = "no such file" if entry is None else f"{entry.size} bytes"
                reason = f"the volume has {problem}, expected {file.size} bytes"
                missing.append(FailedTransfer(file.path, reason))
                continue
            with suppress(FileNotFoundError):  # deleted since it was sent
                if file.local.stat().st_mtime_ns == file.mtime_ns:
                    self.mapping.journal.record(entry, file.local, listed)
        return missing

    def _move_latest(
        self, workers: Workers, uploader: Uploader, run: str, name: str
    ) -> list[FailedTransfer]:
        """Point the volume's ``latest`` at the checkpoint, unless it names a newer valid one."""
        path, content = f"{run}/{LATEST}", f"{name}\n".encode()
        own = self.local[f"{run}/{name}/{MANIFEST}"].local.parent.with_name(LATEST)
        remote = self.entries.get(path)
        files, journal = self.mapping.files, self.mapping.journal
        if remote is not None and journal.is_unchanged(remote, own, settled=False):
            return []
        before = ""
        if remote is not None:
            before = files.read(path).decode(errors="replace").strip()
        is_valid = f"{run}/{before}/{MANIFEST}" in self.entries
        if before == name or (is_valid and parse_step_name(before) > parse_step_name(name)):
            return []
        with TemporaryDirectory() as folder:
            local = Path(folder) / LATEST
            local.write_bytes(content)
            send = partial(uploader.send, [local_file(local, path)])
            failed = workers.run_tasks([Task((path,), send)])
        entry = files.entry(path) if not failed else None
        if entry is not None and own.is_file() and own.read_bytes() == content:
            journal.record(entry, own, time.time())
        return failed

    def _list_remote(self) -> dict[str, RemoteEntry]:
        path = self.remote.split("/")[0] if self.mapping.has_runs else self.remote
        try:
            entries = self.mapping.files.listing(path)
        except FileNotFoundError:
            return {}
        return {entry.path: entry for entry in entries if entry.kind == "file"}

    def _is_local_launch(self, file: LocalFile) -> bool:
        """Return True if the file records a launch on this machine.

        It would replace the target's record of its own last launch, whose options a resume uses.
        """
        if not self.mapping.has_runs or file.path.partition("/")[2] != LAUNCH_NAME:
            return False
        launch = read_launch(file.local.parent)
        return launch is not None and launch.target != self.mapping.target.name

    def _is_unchanged(self, entry: RemoteEntry) -> bool:
        remote = self.entries.get(entry.path)
        file = self.local[entry.path]
        if remote is None or remote.size != file.size:
            return False
        # Not `settled`: this machine sent the remote file, and its content is the one to keep.
        return self.mapping.journal.is_unchanged(remote, file.local, settled=False)

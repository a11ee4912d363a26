"""``runner push``: upload to a remote volume."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from job.step_folders import LATEST, MANIFEST
from runner.console import CliContext
from runner.errors import TargetUnavailable, not_found, usage
from runner.planning.ignore_rules import may_hold_credentials
from runner.runs.attempts import LAUNCH_NAME as LAUNCH
from runner.runs.store import read_launch
from runner.targets.blocks import RemoteEntry
from runner.transfer.mapping import VolumeMapping, is_active_remotely
from runner.transfer.plan import (
    Checkpoint,
    ContentMismatch,
    Reason,
    find_damage,
    make_plan,
    newest_remote_step,
    parse_step_name,
    select,
    split_markers,
)
from runner.transfer.progress import Progress, TransferResult, count
from runner.transfer.upload import MAX_ATTEMPTS, LocalFile, Uploader, batches, list_local
from runner.transfer.workers import FATAL_ERRNOS, FailedTransfer, Task, Workers

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
        return str(path / source.name if is_parent else path).removeprefix(".").lstrip("/")
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
        selection = select(
            (file.entry for file in self.local.values()),
            lambda entry: self.local[entry.path].local.read_bytes(),
            runs=mapping.has_runs,
            everything=everything or is_inside_run,
        )
        selection.refused += failed
        self.plan = make_plan(selection, self._is_unchanged, self._reason)

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
            remote = newest_remote_step(run, self.entries)
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
        groups = [(batch, None) for batch in batches(loose)]
        folders = [([self.local[e.path] for e in c.entries], c) for c in plan.checkpoints]
        failed = self._send(workers, uploader, [*groups, *folders])
        failed += self._confirm([f for files, _ in (*groups, *folders) for f in files], failed)
        # meta.json and `latest` say that something is complete: send them after all else arrived.
        ready, waiting = split_markers(
            [transfer.entry.path for transfer in plan.markers], [*plan.refused, *failed]
        )
        incomplete = {item.path for item in failed}
        markers = [self.local[path] for path in ready]
        late = self._send(workers, uploader, [(batch, None) for batch in batches(markers)])
        failed += [*waiting, *late, *self._confirm(markers, late)]
        for run, name in plan.latest:
            if not any(path.startswith(f"{run}/{name}/") for path in incomplete):
                failed += self._move_latest(workers, uploader, run, name)
        return failed

    def _send(
        self,
        workers: Workers,
        uploader: Uploader,
        groups: Sequence[tuple[list[LocalFile], Checkpoint | None]],
    ) -> list[FailedTransfer]:
        """Send each group in one request."""
        single: list[FailedTransfer] = []
        tasks = [
            Task(str(number), partial(self._send_group, uploader, files, checkpoint, single))
            for number, (files, checkpoint) in enumerate(groups)
        ]
        failed = workers.run_tasks(tasks)
        return single + [
            FailedTransfer(file.path, item.reason)
            for item in failed
            for file in groups[int(item.path)][0]
        ]

    def _send_group(
        self,
        uploader: Uploader,
        files: list[LocalFile],
        checkpoint: Checkpoint | None,
        failed: list[FailedTransfer],
    ) -> None:
        if checkpoint is not None:
            damage = find_damage(files[0].local.parent)
            if damage is not None:
                raise ContentMismatch(f"the local checkpoint is damaged: {damage}")
            self._send_with_retries(uploader, files)
            return
        try:
            self._send_with_retries(uploader, files)
        except TargetUnavailable:
            raise
        except OSError as error:
            if len(files) == 1 or error.errno in FATAL_ERRNOS:
                raise
            # One of these files cannot be read or keeps changing: send the others without it.
            for file in files:
                try:
                    self._send_with_retries(uploader, [self._update(file)])
                except TargetUnavailable:
                    raise
                except OSError as problem:
                    reason = problem.strerror or str(problem)
                    failed.append(FailedTransfer(file.path, reason))

    def _send_with_retries(self, uploader: Uploader, files: list[LocalFile]) -> None:
        for attempt in range(MAX_ATTEMPTS):
            try:
                uploader.send(files)
                return
            except ContentMismatch:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
                files = [self._update(file) for file in files]

    def _update(self, file: LocalFile) -> LocalFile:
        status = file.local.stat()
        updated = replace(file, size=status.st_size, mtime_ns=status.st_mtime_ns)
        self.local[file.path] = updated
        return updated

    def _confirm(
        self, sent: Sequence[LocalFile], failed: Sequence[FailedTransfer]
    ) -> list[FailedTransfer]:
        """List the volume again, check that each file has its size, and record it."""
        failed_paths = {item.path for item in failed}
        expected = [self.local[file.path] for file in sent if file.path not in failed_paths]
        if not expected:
            return []
        listed = time.time()
        self.entries = self._list_remote()
        missing = []
        for file in expected:
            entry = self.entries.get(file.path)
            if entry is None or entry.size != file.size:
                problem = "no such file" if entry is None else f"{entry.size} bytes"
                reason = f"the volume has {problem}, expected {file.size} bytes"
                missing.append(FailedTransfer(file.path, reason))
            elif file.local.stat().st_mtime_ns == file.mtime_ns:
                self.mapping.journal.record(entry, file.local, listed)
        return missing

    def _move_latest(
        self, workers: Workers, uploader: Uploader, run: str, name: str
    ) -> list[FailedTransfer]:
        """Let ``latest`` there name the checkpoint, unless it names a newer valid one."""
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
            file = list_local(local, path)[0][0]
            failed = workers.run_tasks([Task(path, lambda: uploader.send([file]))])
        entry = files.entry(path) if not failed else None
        if entry is not None and own.is_file() and own.read_bytes() == content:
            journal.record(entry, own, time.time())
        return [FailedTransfer(path, item.reason) for item in failed]

    def _list_remote(self) -> dict[str, RemoteEntry]:
        path = self.remote.split("/")[0] if self.mapping.has_runs else self.remote
        try:
            entries = self.mapping.files.listing(path)
        except FileNotFoundError:
            return {}
        return {entry.path: entry for entry in entries if entry.kind == "file"}

    def _is_local_launch(self, file: LocalFile) -> bool:
        """Return True if the file records a launch on this machine.

        It would replace the options of the run's last launch there, which resuming there uses.
        """
        if not self.mapping.has_runs or file.path.partition("/")[2] != LAUNCH:
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

    def _reason(self, entry: RemoteEntry) -> Reason:
        return Reason.CHANGED if entry.path in self.entries else Reason.NEW

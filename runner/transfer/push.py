"""``runner push``: from a folder here to a volume in the cloud."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from job.step_folders import LATEST, MANIFEST
from runner.console import CliContext
from runner.errors import not_found, usage
from runner.runs.store import NAME as LAUNCH
from runner.runs.store import read_launch
from runner.targets.modal.runs import is_at_work
from runner.targets.modal.volume import RemoteEntry
from runner.transfer.checkpoints import Mismatch, damage, newest_remote_step
from runner.transfer.mapping import VolumeMapping, patient
from runner.transfer.plan import make_plan, step_of_name, waits
from runner.transfer.progress import Progress, TransferResult
from runner.transfer.selection import Checkpoint, select
from runner.transfer.upload import TRIES, LocalFile, Upload, batches, list_local
from runner.transfer.workers import FailedTransfer, Task, Workers


def find_source(root: Path, has_runs: bool, typed: str, cwd: Path) -> Path:
    """What ``typed`` means: a path from where it was typed, or one in the volume's folder ``root``. In the
    checkpoints a name is a run's. Raises RunnerError (102) where there is neither."""
    seen, kept = cwd / Path(typed).expanduser(), root / typed
    order = [kept, seen] if has_runs and "/" not in typed else [seen, kept]
    for path in order:
        if path.exists():
            return path.resolve() if path.is_symlink() else path
    raise not_found(
        f"there is no {typed} here, and none in {root}; give the path of a file or folder"
    )


def remote_path(place: VolumeMapping, source: Path, to: str | None) -> str:
    """Where ``source`` comes to lie: ``to``; else as in the volume's folder here; else under its own name.

    ``to`` that ends with ``/`` is a folder to put it in; ``/`` alone, for a folder's content, the volume.
    """
    source = source.resolve()
    if to is not None:
        path = PurePosixPath(to.strip("/"))
        if ".." in path.parts:
            raise usage(f"--to {to} leaves the volume; give a path inside it")
        put_into = to.endswith("/") and (to != "/" or source.is_file())
        return str(path / source.name if put_into else path).removeprefix(".").lstrip("/")
    root = place.root.resolve()
    if source == root:
        return ""
    return source.relative_to(root).as_posix() if source.is_relative_to(root) else source.name


class Push:
    """One look at both sides, and what follows from it."""

    def __init__(
        self, place: VolumeMapping, source: Path, remote: str, everything: bool = False
    ) -> None:
        self.place = place
        self.remote = remote
        found, left_out = list_local(source, remote)
        self.local = {file.path: file for file in found if not self._is_launch_here(file)}
        self.there = self._listing()
        in_a_run = remote.count("/") > 0
        self.chosen = select(
            (file.entry for file in self.local.values()),
            lambda entry: self.local[entry.path].local.read_bytes(),
            runs=place.has_runs,
            everything=everything or in_a_run,
        )
        self.chosen.notes += left_out
        self.plan = make_plan(self.chosen, self._is_same, self._why)

    def objections(self) -> list[str]:
        """Why a run should not be pushed without asking: it is at work there, or further."""
        found: list[str] = []
        if not self.place.has_runs:
            return found
        here = dict(self.plan.latest)
        for run in sorted({path.split("/")[0] for path in self.local}):
            there = newest_remote_step(run, self.there)
            step = step_of_name(here.get(run, ""))
            if there is not None and there > step:
                found.append(
                    f"run {run} is further in the cloud (step {there}, here {max(step, 0)})"
                )
            beat = self.there.get(f"{run}/heartbeat")
            if is_at_work(self.place.files, run, beat.modified if beat is not None else None):
                found.append(f"run {run} is at work in the cloud")
        return found

    def carry_out(self, cli: CliContext) -> TransferResult:
        """Do it. What could not be done is in the outcome."""
        progress = Progress(cli, "pushing", self.plan.count, self.plan.size)
        with progress, Workers() as workers:
            missing = self._carry_out(
                workers, Upload(patient(self.place.files, workers), workers, progress)
            )
        return TransferResult(self.plan, tuple(missing), progress.seconds, progress.done_size)

    def _carry_out(self, workers: Workers, upload: Upload) -> list[FailedTransfer]:
        plan = self.plan
        loose = [self.local[transfer.entry.path] for transfer in plan.files]
        marked = [self.local[transfer.entry.path] for transfer in plan.markers]
        groups = [(batch, None) for batch in batches(loose)]
        folders = [([self.local[e.path] for e in c.entries], c) for c in plan.checkpoints]
        missing = self._send(workers, upload, [*groups, *folders])
        missing += self._confirm([f for files, _ in (*groups, *folders) for f in files], missing)
        lost = {item.path for item in missing}
        # meta.json and `latest` say that something is complete: they go when all else is seen to be there.
        ready = [f for f in marked if not waits(f.path, lost)]
        missing += [
            FailedTransfer(f.path, "it waits for the rest of its folder")
            for f in marked
            if f not in ready
        ]
        late = self._send(workers, upload, [(batch, None) for batch in batches(ready)])
        missing += late
        missing += self._confirm(ready, late)
        for run, name in plan.latest:
            if not any(path.startswith(f"{run}/{name}/") for path in lost):
                missing += self._move_latest(workers, upload, run, name)
        return missing

    def _send(
        self,
        workers: Workers,
        upload: Upload,
        groups: Sequence[tuple[list[LocalFile], Checkpoint | None]],
    ) -> list[FailedTransfer]:
        tasks = [
            Task(str(number), partial(self._send_group, upload, files, checkpoint))
            for number, (files, checkpoint) in enumerate(groups)
        ]
        failed = workers.each(tasks)
        return [
            FailedTransfer(f.path, item.why) for item in failed for f in groups[int(item.path)][0]
        ]

    def _send_group(
        self, upload: Upload, files: list[LocalFile], checkpoint: Checkpoint | None
    ) -> None:
        if checkpoint is not None:
            wrong = damage(files[0].local.parent)
            if wrong is not None:
                raise Mismatch(f"the checkpoint here is damaged: {wrong}")
        for attempt in range(TRIES):
            try:
                upload.send(files)
                return
            except Mismatch:
                if attempt == TRIES - 1:
                    raise
                files = [self._again(file) for file in files]

    def _again(self, file: LocalFile) -> LocalFile:
        status = file.local.stat()
        now = replace(file, size=status.st_size, mtime_ns=status.st_mtime_ns)
        self.local[file.path] = now
        return now

    def _confirm(
        self, sent: Sequence[LocalFile], failed: Sequence[FailedTransfer]
    ) -> list[FailedTransfer]:
        """See by a new listing that each file is there in its size, and note it."""
        lost = {item.path for item in failed}
        expected = [self.local[file.path] for file in sent if file.path not in lost]
        if not expected:
            return []
        listed = time.time()
        self.there = self._listing()
        missing = []
        for file in expected:
            entry = self.there.get(file.path)
            if entry is None or entry.size != file.size:
                size = "nothing" if entry is None else f"{entry.size} bytes"
                missing.append(
                    FailedTransfer(file.path, f"the volume has {size}, not {file.size} bytes")
                )
            elif file.local.stat().st_mtime_ns == file.mtime_ns:
                self.place.journal.note(entry, file.local, listed)
        return missing

    def _move_latest(
        self, workers: Workers, upload: Upload, run: str, name: str
    ) -> list[FailedTransfer]:
        """Have ``latest`` in the volume name the checkpoint; never back to an older one that stands."""
        path, content = f"{run}/{LATEST}", f"{name}\n".encode()
        ours = self.local[f"{run}/{name}/{MANIFEST}"].local.parent.with_name(LATEST)
        there = self.there.get(path)
        if there is not None and self.place.journal.is_same(there, ours, settled=False):
            return []
        before = (
            self.place.files.read(path).decode(errors="replace").strip()
            if there is not None
            else ""
        )
        stands = f"{run}/{before}/{MANIFEST}" in self.there
        if before == name or (stands and step_of_name(before) > step_of_name(name)):
            return []
        with TemporaryDirectory() as folder:
            local = Path(folder) / LATEST
            local.write_bytes(content)
            file = list_local(local, path)[0][0]
            failed = workers.each([Task(path, lambda: upload.send([file]))])
        entry = self.place.files.entry(path) if not failed else None
        if entry is not None and ours.is_file() and ours.read_bytes() == content:
            self.place.journal.note(entry, ours, time.time())
        return [FailedTransfer(path, item.why) for item in failed]

    def _listing(self) -> dict[str, RemoteEntry]:
        where = self.remote.split("/")[0] if self.place.has_runs else self.remote
        try:
            return {
                entry.path: entry
                for entry in self.place.files.listing(where)
                if entry.kind == "file"
            }
        except FileNotFoundError:
            return {}

    def _is_launch_here(self, file: LocalFile) -> bool:
        """Whether it notes a start on this machine: that would replace the options with which the run was last in the
        cloud, and with which it is to go on there."""
        if not self.place.has_runs or file.path.partition("/")[2] != LAUNCH:
            return False
        launch = read_launch(file.local.parent)
        return launch is not None and launch.target != "cloud"

    def _is_same(self, entry: RemoteEntry) -> bool:
        # Without `settled`: what is here was sent under this name, and stays what is meant to be there.
        there = self.there.get(entry.path)
        file = self.local[entry.path]
        if there is None or there.size != file.size:
            return False
        return self.place.journal.is_same(there, file.local, settled=False)

    def _why(self, entry: RemoteEntry) -> str:
        return "changed" if entry.path in self.there else "new"

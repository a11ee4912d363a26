"""``runner pull``: download from a remote volume, once or until a run ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from job.files import free_bytes, nearest_existing, write_atomically
from job.format import byte_size
from job.run_record import RunStatus, read_record
from job.step_folders import LATEST, MANIFEST, PARTIAL
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.runs.store import is_active_locally
from runner.targets.blocks import RemoteEntry
from runner.transfer.download import CheckpointDownload, Downloader
from runner.transfer.mapping import (
    BLOCKS,
    PART,
    VolumeMapping,
    exclusive,
    list_remote,
    local_path,
    temporary_path,
)
from runner.transfer.plan import (
    Reason,
    TransferPlan,
    TransferResult,
    make_plan,
    newest_step,
    parse_step_name,
    print_result,
    split_markers,
)
from runner.transfer.workers import FailedTransfer, Progress, Task, Workers

# Between two attempts, a run of more than 24 hours or a preempted one is recorded as unfinished.
# A run without a new attempt for longer than this has ended.
RESTART_TIMEOUT_S = 180.0

# Few, because the next poll tries again: after a laptop sleeps, every open connection fails.
WATCH_ATTEMPTS = 3


class Pull:
    """The plan of a download from one listing of the volume, and its execution.

    Raises RunnerError, exit status 102, if the volume has no ``path``.
    """

    def __init__(self, mapping: VolumeMapping, path: str, everything: bool = False) -> None:
        self.mapping = mapping
        self.listed = time.time()
        self.entries = list_remote(mapping, path)
        is_inside_run = len([part for part in path.split("/") if part]) > 1
        self.plan = make_plan(
            self.entries,
            self._read_manifest,
            self._is_unchanged,
            self._reason,
            runs=mapping.has_runs,
            everything=everything or is_inside_run,
        )

    def confirmation_reasons(self) -> list[str]:
        """Return the reasons to ask for confirmation: runs that are active, or at a later step."""
        reasons = [f"run '{run}' is active on this machine" for run in self._active_runs()]
        return reasons + self._older_runs()

    def refuse_active(self) -> None:
        """Raise RunnerError if a run of this pull is active on this machine."""
        if active := self._active_runs():
            raise RunnerError(
                f"run '{active[0]}' is active on this machine; stop it first: "
                f"`runner stop {active[0]}`"
            )

    def execute(self, cli: CliContext, quiet: bool = False) -> TransferResult:
        """Download; the result names missing files. Raises RunnerError if the disk is too full."""
        self._check_free_space()
        progress = Progress(cli, "pulling", 0 if quiet else self.plan.count, self.plan.size)
        with progress, Workers() as workers:
            files = self.mapping.files.with_retries(sleep=workers.sleep)
            journal = self.mapping.journal
            downloader = Downloader(files, workers, journal, progress, self.listed)
            plan, failed = self._execute(workers, downloader)
        return TransferResult(plan, tuple(failed), progress.seconds, progress.done_size)

    def _execute(
        self, workers: Workers, downloader: Downloader
    ) -> tuple[TransferPlan, list[FailedTransfer]]:
        """Return the plan without checkpoints that were intact already, and the failures."""
        plan, root = self.plan, self.mapping.root

        def task(entry: RemoteEntry) -> Task:
            return Task((entry.path,), partial(self._fetch, downloader, entry))

        tasks = [task(transfer.entry) for transfer in plan.files]
        failed: list[FailedTransfer] = []
        for checkpoint in self.plan.checkpoints:
            try:
                download = CheckpointDownload(downloader, checkpoint, root)
            except OSError as error:
                failed += [FailedTransfer(entry.path, str(error)) for entry in checkpoint.entries]
                continue
            if download.is_intact_locally():
                others = tuple(other for other in plan.checkpoints if other is not checkpoint)
                unchanged = plan.unchanged + len(checkpoint.entries)
                plan = replace(plan, checkpoints=others, unchanged=unchanged)
            else:
                tasks += download.tasks()
        failed += workers.run_tasks(tasks)
        markers = {transfer.entry.path: transfer.entry for transfer in plan.markers}
        ready, waiting = split_markers(markers, [*plan.refused, *failed])
        failed += workers.run_tasks([task(markers[path]) for path in ready])
        failed += waiting
        for run, name in plan.latest:
            self._move_latest(run, name)
        return plan, failed

    def _fetch(self, downloader: Downloader, entry: RemoteEntry) -> None:
        target = local_path(self.mapping.root, entry.path)
        if downloader.fetch(entry, target):
            self.mapping.journal.record(entry, target, self.listed)
        downloader.progress.file_done()

    def _move_latest(self, run: str, name: str) -> None:
        """Point ``latest`` at checkpoint ``name`` if that is complete.

        It stays if it names a checkpoint that is complete and not older.
        """
        folder = self.mapping.root / run
        try:
            before = (folder / LATEST).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            before = ""
        is_valid = bool(before) and (folder / before / MANIFEST).is_file()
        is_newer = parse_step_name(name) > parse_step_name(before)
        if (folder / name / MANIFEST).is_file() and (is_newer or not is_valid):
            write_atomically(folder / LATEST, f"{name}\n")

    def _runs(self) -> list[str]:
        if not self.mapping.has_runs:
            return []
        return sorted({entry.path.split("/")[0] for entry in self.entries})

    def _active_runs(self) -> list[str]:
        """Return the runs that are active on this machine: they would write to replaced files."""
        return [run for run in self._runs() if is_active_locally(self.mapping.root / run)]

    def _older_runs(self) -> list[str]:
        """Return messages about runs whose newer log and record a pull would replace."""
        root, paths = self.mapping.root, [entry.path for entry in self.entries]
        older = []
        for run in self._runs():
            manifests = (root / run).glob(f"step_*/{MANIFEST}")
            local = newest_step(run, (path.relative_to(root).as_posix() for path in manifests))
            remote = newest_step(run, paths)
            if local is not None and local > (remote if remote is not None else -1):
                remote_step = "has no checkpoint" if remote is None else f"is at step {remote}"
                older.append(
                    f"run '{run}' is at step {local} on this machine "
                    f"and {remote_step} on {self.mapping.place}"
                )
        return older

    def _check_free_space(self) -> None:
        free, size = free_bytes(self.mapping.root), self.plan.size - self._partial_bytes()
        if size > free:
            folder = nearest_existing(self.mapping.root)
            raise RunnerError(
                f"the pull needs {byte_size(size)}, but {folder} has {byte_size(free)} free; "
                "free some space, or choose a different folder with --dest DIR"
            )

    def _partial_bytes(self) -> int:
        """Return the bytes that an interrupted pull has already downloaded."""
        root = self.mapping.root
        files = [temporary_path(root / transfer.entry.path, PART) for transfer in self.plan.files]
        for checkpoint in self.plan.checkpoints:
            files += (root / checkpoint.run / f"{PARTIAL}{checkpoint.name}").rglob("*")
        return sum(path.stat().st_blocks * 512 for path in files if path.is_file())

    def _is_unchanged(self, entry: RemoteEntry) -> bool:
        return self.mapping.journal.is_unchanged(entry, self.mapping.root / entry.path)

    def _reason(self, entry: RemoteEntry) -> Reason:
        local = self.mapping.root / entry.path
        if temporary_path(local, BLOCKS).exists():
            return Reason.CONTINUED
        return Reason.CHANGED if local.exists() else Reason.NEW

    def _read_manifest(self, entry: RemoteEntry) -> bytes:
        if self._is_unchanged(entry):
            return (self.mapping.root / entry.path).read_bytes()
        try:
            return self.mapping.files.read(entry.path)
        except FileNotFoundError:
            return b""


@dataclass(frozen=True)
class Clock:
    """Time and waiting, in seconds; tests pass their own."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def watch_run(
    cli: CliContext,
    mapping: VolumeMapping,
    path: str,
    everything: bool,
    interval: float,
    clock: Clock | None = None,
    replace_active: bool = False,
) -> TransferResult:
    """Pull every ``interval`` seconds until the run has ended and all of it is on this machine.

    Returns the last result. Reports a failed poll once, and tries again. ``replace_active``: also
    replace files of a run that is active on this machine.
    """
    clock = clock or Clock()
    run = path.strip("/").split("/")[0]
    if not run:
        raise usage("--watch follows one run; name it: `runner pull checkpoints RUN --watch`")
    mapping = replace(mapping, files=mapping.files.with_retries(attempts=WATCH_ATTEMPTS))
    cli.info(f"watching run '{run}'; Ctrl-C stops watching, and the run continues")
    ended: float | None = None
    reported = ""
    while True:
        result, problem = pull_once(cli, mapping, path, everything, replace_active)
        if problem and problem != reported:
            cli.info(f"the pull is incomplete: {problem}; trying again")
        reported = problem
        for checkpoint in result.plan.checkpoints if result is not None and not problem else ():
            cli.info(f"pulled {checkpoint.folder}")
        status, may_continue = RunStatus.RUNNING, True
        if result is not None:
            status, may_continue = _run_state(mapping, run)
        if status == RunStatus.RUNNING and may_continue:
            ended = None
        elif ended is None:
            ended = clock.now()
        is_over = ended is not None and (
            not may_continue or clock.now() - ended >= RESTART_TIMEOUT_S
        )
        # A container commits its last writes after it records its end, so the copy is complete
        # only when one more pull finds nothing new.
        if is_over and result is not None and result.is_complete and not result.plan.count:
            print_result(cli, result, "pulled", f"into {mapping.root}")
            cli.info(f"run '{run}' ended: {status}")
            return result
        clock.sleep(min(interval, 1.0) if is_over else interval)


def pull_once(
    cli: CliContext,
    mapping: VolumeMapping,
    path: str,
    everything: bool,
    replace_active: bool = False,
) -> tuple[TransferResult | None, str]:
    """Pull, and return the result and what went wrong."""
    try:
        with exclusive(mapping, cli.info):
            pull = Pull(mapping, path, everything)
            if not replace_active:
                pull.refuse_active()
            result = pull.execute(cli, quiet=True)
    except RunnerError as error:
        return None, error.message
    except OSError as error:
        return None, str(error)
    return result, result.failed[0].reason if result.failed else ""


def _run_state(mapping: VolumeMapping, run: str) -> tuple[RunStatus, bool]:
    """Return the run's status, and whether it may continue: it is active, or between attempts."""
    record = read_record(mapping.root / run)
    status = record.status if record is not None else RunStatus.RUNNING
    if status in (RunStatus.FINISHED, RunStatus.FAILED):
        return status, False
    # A killed process cannot update its record, which still says "running": ask the target.
    target = mapping.target
    try:
        state = target.state(run) if target.launched(run) is not None else None
    except (RunnerError, OSError):
        state = None
    if state is None:
        return status, True
    return (RunStatus.RUNNING, True) if state.alive else (state.status, False)

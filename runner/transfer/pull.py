"""``runner pull``: from a volume in the cloud to a folder here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from job.files import write_atomically
from job.format import byte_size
from job.run_record import RunStatus, read_record
from job.step_folders import LATEST, MANIFEST, PARTIAL
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.targets.modal.client import RetryPolicy
from runner.targets.modal.volume import ModalVolumeFiles, RemoteEntry
from runner.transfer.checkpoint_download import CheckpointDownload
from runner.transfer.checkpoints import newest_remote_step, newest_step
from runner.transfer.download import Download
from runner.transfer.mapping import VolumeMapping, alone, nothing_there, patient
from runner.transfer.plan import Transfer, make_plan, step_of_name, waits
from runner.transfer.progress import Progress, TransferResult, print_result
from runner.transfer.selection import BLOCKS, PART, beside, select, target_of
from runner.transfer.workers import FailedTransfer, Task, Workers


class Pull:
    """One look at the volume, and what follows from it. Raises RunnerError (102) where it has no ``path``."""

    def __init__(self, place: VolumeMapping, path: str, everything: bool = False) -> None:
        self.place = place
        self.listed = time.time()
        try:
            self.entries = place.files.listing(path)
        except FileNotFoundError as error:
            raise nothing_there(place, path) from error
        in_a_run = len([part for part in path.split("/") if part]) > 1
        self.chosen = select(
            self.entries,
            self._manifest,
            runs=place.has_runs,
            everything=everything or in_a_run,
        )
        self.plan = make_plan(self.chosen, self._is_same, self._why)

    def further_here(self) -> list[str]:
        """Runs whose newest checkpoint here is of a later step than the one in the cloud: a pull would put
        an older log and record over newer ones."""
        found: list[str] = []
        if not self.place.has_runs:
            return found
        paths = [entry.path for entry in self.entries]
        for run in sorted({path.split("/")[0] for path in paths}):
            here = newest_step(self.place.root / run)
            there = newest_remote_step(run, paths)
            if here is not None and here > (there if there is not None else -1):
                found.append(
                    f"{run} (step {here} here, {'none' if there is None else there} in the cloud)"
                )
        return found

    def carry_out(self, cli: CliContext, quiet: bool = False) -> TransferResult:
        """Do it. What could not be done is in the outcome. Raises RunnerError where there is no room."""
        self._check_room()
        progress = Progress(cli, "pulling", 0 if quiet else self.plan.count, self.plan.size)
        with progress, Workers() as workers:
            files = patient(self.place.files, workers)
            transfer = _Transfer(
                self, Download(files, workers, self.place.journal, progress, self.listed)
            )
            missing = transfer.run(workers)
        return TransferResult(transfer.plan, tuple(missing), progress.seconds, progress.done_size)

    def _check_room(self) -> None:
        there = next(
            folder for folder in (self.place.root, *self.place.root.parents) if folder.exists()
        )
        free = shutil.disk_usage(there).free
        size = self.plan.size - self._partly_here()
        if size > free:
            raise RunnerError(
                f"{byte_size(size)} are to come and {there} has {byte_size(free)} free; "
                "make room, or choose another place with --into DIR"
            )

    def _partly_here(self) -> int:
        """Bytes that an interrupted pull has taken already."""
        root = self.place.root
        files = [beside(root / transfer.entry.path, PART) for transfer in self.plan.files]
        for checkpoint in self.plan.checkpoints:
            files += (root / checkpoint.run / f"{PARTIAL}{checkpoint.name}").rglob("*")
        return sum(path.stat().st_blocks * 512 for path in files if path.is_file())

    def _is_same(self, entry: RemoteEntry) -> bool:
        return self.place.journal.is_same(entry, self.place.root / entry.path)

    def _why(self, entry: RemoteEntry) -> str:
        local = self.place.root / entry.path
        if beside(local, BLOCKS).exists():
            return "continued"
        return "changed" if local.exists() else "new"

    def _manifest(self, entry: RemoteEntry) -> bytes:
        if self._is_same(entry):
            return (self.place.root / entry.path).read_bytes()
        try:
            return self.place.files.read(entry.path)
        except FileNotFoundError:
            return b""


class _Transfer:
    """The steps of one pull, in their order."""

    def __init__(self, pull: Pull, download: Download) -> None:
        self.pull, self.download = pull, download
        self.root, self.journal = pull.place.root, pull.place.journal
        self.plan = pull.plan

    def run(self, workers: Workers) -> list[FailedTransfer]:
        plan = self.plan
        tasks, missing = [self._task(transfer) for transfer in plan.files], []
        for checkpoint in plan.checkpoints:
            try:
                one = CheckpointDownload(self.download, checkpoint, self.root)
            except OSError as error:
                missing += [FailedTransfer(entry.path, str(error)) for entry in checkpoint.entries]
                continue
            if one.is_here():
                kept = tuple(other for other in self.plan.checkpoints if other is not checkpoint)
                same = self.plan.same + len(checkpoint.entries)
                self.plan = replace(self.plan, checkpoints=kept, same=same)
            else:
                tasks += one.tasks()
        missing += workers.each(tasks)
        # A folder's meta.json comes when all else of it is there.
        lost = {item.path for item in missing}
        ready = [t for t in plan.markers if not waits(t.entry.path, lost)]
        missing += workers.each([self._task(transfer) for transfer in ready])
        missing += [
            FailedTransfer(t.entry.path, "it waits for the rest of its folder")
            for t in plan.markers
            if t not in ready
        ]
        for run, name in plan.latest:
            self._move_latest(run, name)
        return missing

    def _task(self, transfer: Transfer) -> Task:
        return Task(transfer.entry.path, partial(self._fetch, transfer.entry))

    def _fetch(self, entry: RemoteEntry) -> None:
        target = target_of(self.root, entry.path)
        if self.download.fetch(entry, target):
            self.journal.note(entry, target, self.download.listed)
        self.download.progress.file_done()

    def _move_latest(self, run: str, name: str) -> None:
        """Only to a checkpoint that is here under its final name, and never back to an older one."""
        latest = self.root / run / LATEST
        try:
            before = latest.read_text().strip()
        except OSError:
            before = ""
        there = (self.root / run / name / MANIFEST).is_file()
        stands = (self.root / run / before / MANIFEST).is_file() if before else False
        if there and not (stands and step_of_name(before) >= step_of_name(name)):
            write_atomically(latest, f"{name}\n")


# A run that is longer than 24 hours, or was preempted, is unfinished for a while between two attempts.
ATTEMPT_SECONDS = 180.0

# A laptop that slept finds its connections dead; each look has its own patience of this kind.
BRIEF = RetryPolicy(attempts=3)


@dataclass(frozen=True)
class Clock:
    """Time in seconds, and waiting; a test has its own."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def watch_run(
    cli: CliContext,
    place: VolumeMapping,
    path: str,
    everything: bool,
    every: float,
    clock: Clock | None = None,
) -> TransferResult:
    """Pull each ``every`` seconds until the run has ended and all of it is here; the last outcome. A look
    that fails, also because the run is not there yet, is told once and made again."""
    clock = clock or Clock()
    run = path.strip("/").split("/")[0]
    if not run:
        raise usage("--watch follows one run; name it: `runner pull checkpoints RUN --watch`")
    place = replace(place, files=ModalVolumeFiles(place.files.volume, BRIEF))
    cli.info(f"watching run {run}; Ctrl-C ends the watch and not the run")
    ended: float | None = None
    told = ""
    while True:
        outcome, trouble = look(cli, place, path, everything)
        if trouble and trouble != told:
            cli.info(f"not all came: {trouble}; trying again")
        told = trouble
        for checkpoint in outcome.plan.checkpoints if outcome is not None and not trouble else ():
            cli.info(f"{checkpoint.folder} is here")
        status = _status(place, run) if outcome is not None else RunStatus.RUNNING
        if status == RunStatus.RUNNING:
            ended = None
        elif ended is None:
            ended = clock.now()
        over = ended is not None and (
            status in (RunStatus.FINISHED, RunStatus.FAILED)
            or clock.now() - ended >= ATTEMPT_SECONDS
        )
        # What a container wrote last comes with its last commit, after the record that says that it ended:
        # so it is over when a further look found nothing new.
        if over and outcome is not None and outcome.is_complete and not outcome.plan.count:
            print_result(cli, outcome, "pulled", f"into {place.root}")
            cli.info(f"run {run} is {status}")
            return outcome
        clock.sleep(min(every, 1.0) if over else every)


def _status(place: VolumeMapping, run: str) -> str:
    record = read_record(place.root / run)
    return record.status if record is not None else RunStatus.RUNNING


def look(
    cli: CliContext, place: VolumeMapping, path: str, everything: bool
) -> tuple[TransferResult | None, str]:
    """One pull, and what went wrong with it."""
    try:
        with alone(place, cli.info):
            outcome = Pull(place, path, everything).carry_out(cli, quiet=True)
    except RunnerError as error:
        return None, error.message
    except OSError as error:
        return None, str(error)
    return outcome, outcome.missing[0].why if outcome.missing else ""

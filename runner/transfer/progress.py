"""Show the progress and the result of a transfer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from job.exit_status import ExitStatus
from job.format import byte_size
from runner.console import CliContext
from runner.transfer.plan import TransferPlan
from runner.transfer.workers import FailedTransfer

LINE_INTERVAL_S = 10.0
MAX_SHOWN = 10  # failures; --json lists all


class Progress:
    """Count bytes and files from any thread: a bar on a terminal, else a line every 10 seconds."""

    def __init__(
        self,
        cli: CliContext,
        verb: str,  # pulling, pushing
        files: int,
        size: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cli = cli
        self.verb = verb
        self.files, self.size = files, size
        self.done_files, self.done_size = 0, 0
        self.now = now
        self.started = self.last_line = now()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.cli.is_terminal and self.files:
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self.cli.console(),
                transient=True,
            )
            self._task = self._bar.add_task(self._description(), total=self.size)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start, above 0."""
        return max(self.now() - self.started, 1e-6)

    def advance(self, size: int) -> None:
        """Add ``size`` bytes; a negative number takes them back."""
        with self._lock:
            self.done_size += size
            self._show()

    @contextmanager
    def counted(self) -> Iterator[Callable[[int], int]]:
        """Yield a function that adds bytes and returns their sum; an error takes them back."""
        total = 0

        def count(size: int) -> int:
            nonlocal total
            total += size
            self.advance(size)
            return total

        try:
            yield count
        except BaseException:
            self.advance(-total)
            raise

    def file_done(self) -> None:
        """Count a file that is complete."""
        with self._lock:
            self.done_files += 1
            self._show()

    def _show(self) -> None:
        if not self.files:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done_size, description=self._description())
        elif self.now() - self.last_line >= LINE_INTERVAL_S:
            self.last_line = self.now()
            done, total = byte_size(self.done_size), byte_size(self.size)
            rate = byte_size(int(self.done_size / self.seconds))
            self.cli.info(f"{self._description()}, {done} of {total}, {rate}/s")

    def _description(self) -> str:
        return f"{self.verb} {self.done_files:,} of {count(self.files, 'file')}"


def count(number: int, noun: str) -> str:
    """Return ``1 file`` or ``2,000 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class TransferResult:
    """The plan, the files that failed, and ``size``, the bytes that were transferred."""

    plan: TransferPlan
    failed: tuple[FailedTransfer, ...]
    seconds: float
    size: int

    @property
    def missing(self) -> tuple[FailedTransfer, ...]:
        """Return every file that belongs to the transfer and did not arrive."""
        return (*self.plan.refused, *self.failed)

    @property
    def is_complete(self) -> bool:
        """Return True if every file arrived."""
        return not self.missing

    @property
    def status(self) -> ExitStatus:
        """Return the exit status."""
        return ExitStatus.DONE if self.is_complete else ExitStatus.ERROR


def print_result(cli: CliContext, result: TransferResult, verb: str, where: str) -> None:
    """Print how many files were transferred, were unchanged and are missing."""
    plan, missing = result.plan, result.missing
    moved = max(0, plan.count - len(result.failed))
    summary = f"{verb} {count(moved, 'file')} {where}"
    if moved:
        summary += f", {byte_size(result.size)} in {result.seconds:.0f} s"
    if plan.unchanged:
        summary += f"; {count(plan.unchanged, 'file')} unchanged"
    cli.info(summary)
    for item in missing[:MAX_SHOWN]:
        cli.info(f"  missing: {ascii(item.path)[1:-1]}: {item.reason}")
    if len(missing) > MAX_SHOWN:
        cli.info(f"  and {len(missing) - MAX_SHOWN:,} more; --json lists them all")
    if missing:
        total = count(plan.count + plan.unchanged + len(plan.refused), "file")
        remedy = "fix these and run" if plan.refused else "run"
        cli.info(f"error: {len(missing):,} of {total} missing; {remedy} `{cli.line}` again")


def result_to_json(result: TransferResult, **extra: object) -> dict[str, object]:
    """Return the result for --json."""
    return {
        **extra,
        "complete": result.is_complete,
        "files": result.plan.rows(),
        "unchanged": result.plan.unchanged,
        "bytes": result.size,
        "seconds": round(result.seconds, 3),
        "missing": [asdict(item) for item in result.missing],
        "notes": list(result.plan.notes),
    }


def show_plan(cli: CliContext, plan: TransferPlan, as_json: bool) -> None:
    """Print the plan on stdout, for --dry-run."""
    if as_json:
        cli.json(
            {
                "files": plan.rows(),
                "bytes": plan.size,
                "unchanged": plan.unchanged,
                "refused": [asdict(item) for item in plan.refused],
                "notes": list(plan.notes),
            }
        )
        return
    for row in plan.rows():
        cli.write(f"{row['reason']:<10} {byte_size(row['bytes']):>10}  {ascii(row['path'])[1:-1]}")
    for item in plan.refused:
        cli.info(f"  refused: {ascii(item.path)[1:-1]}: {item.reason}")
    for note in plan.notes:
        cli.info(f"  {note}")
    cli.info(
        f"would transfer {count(plan.count, 'file')}, at most {byte_size(plan.size)}; "
        f"{count(plan.unchanged, 'file')} unchanged"
    )

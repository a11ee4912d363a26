"""How far a transfer is: a bar on a terminal, a line every few seconds off it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from job.exit_status import ExitStatus
from job.format import byte_size
from runner.console import CliContext
from runner.transfer.plan import TransferPlan
from runner.transfer.workers import FailedTransfer

LINE_SECONDS = 10.0


class Progress:
    """Counts bytes and files; threads may share it. ``verb``: pulling, pushing."""

    def __init__(
        self,
        cli: CliContext,
        verb: str,
        files: int,
        size: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cli = cli
        self.verb = verb
        self.files, self.size = files, size
        self.done_files, self.done_size = 0, 0
        self.now = now
        self.began = self.last = now()
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
            self._task = self._bar.add_task(self._words(), total=self.size)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(self.now() - self.began, 1e-6)

    def advance(self, size: int) -> None:
        """So many bytes more are done; negative where they have to be done again."""
        with self._lock:
            self.done_size += size
            self._show()

    def file_done(self) -> None:
        """One file more is whole and in its place."""
        with self._lock:
            self.done_files += 1
            self._show()

    def _show(self) -> None:
        if not self.files:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done_size, description=self._words())
        elif self.now() - self.last >= LINE_SECONDS:
            self.last = self.now()
            rate = byte_size(int(self.done_size / self.seconds))
            self.cli.info(
                f"{self._words()}, {byte_size(self.done_size)} of {byte_size(self.size)}, {rate}/s"
            )

    def _words(self) -> str:
        return f"{self.verb} {self.done_files:,} of {count(self.files, 'file')}"


def count(number: int, noun: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


SHOWN = 10  # names of missing files; --json has them all


@dataclass(frozen=True)
class TransferResult:
    """``missing`` is what should be there and is not; ``size`` in bytes."""

    plan: TransferPlan
    missing: tuple[FailedTransfer, ...]
    seconds: float
    size: int

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is there."""
        return not self.missing and not self.plan.refused

    @property
    def status(self) -> ExitStatus:
        """The exit code."""
        return ExitStatus.DONE if self.is_complete else ExitStatus.ERROR


def print_result(cli: CliContext, outcome: TransferResult, verb: str, where: str) -> None:
    """Tell what moved, what was the same and what is missing. ``verb``: pulled, pushed."""
    plan, missing = outcome.plan, (*outcome.plan.refused, *outcome.missing)
    moved = plan.count - len(outcome.missing)
    same = (
        f"; {count(plan.same, 'file')} {'was' if plan.same == 1 else 'were'} the same"
        if plan.same
        else ""
    )
    took = f", {byte_size(outcome.size)} in {outcome.seconds:.0f} s" if moved else ""
    cli.info(f"{verb} {count(max(0, moved), 'file')} {where}{took}{same}")
    for item in missing[:SHOWN]:
        cli.info(f"  missing: {ascii(item.path)[1:-1]}: {item.why}")
    if len(missing) > SHOWN:
        cli.info(f"  and {len(missing) - SHOWN:,} more; --json lists them all")
    if outcome.missing:
        total = plan.count + plan.same
        cli.info(
            f"error: {len(outcome.missing):,} of {count(total, 'file')} missing; `{cli.line}` goes on from here"
        )
    elif plan.refused:
        cli.info(f"error: {count(len(plan.refused), 'name')} refused; the rest is complete")


def result_to_json(outcome: TransferResult, **more: object) -> dict[str, object]:
    """The same for a program."""
    return {
        **more,
        "complete": outcome.is_complete,
        "files": outcome.plan.rows(),
        "same": outcome.plan.same,
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
        "missing": [asdict(item) for item in (*outcome.plan.refused, *outcome.missing)],
        "notes": list(outcome.plan.notes),
    }


def show_plan(cli: CliContext, plan: TransferPlan, as_json: bool) -> None:
    """What --dry-run prints, on stdout."""
    if as_json:
        cli.json(
            {
                "files": plan.rows(),
                "bytes": plan.size,
                "same": plan.same,
                "refused": [asdict(item) for item in plan.refused],
                "notes": list(plan.notes),
            }
        )
        return
    for row in plan.rows():
        cli.write(f"{row['why']:<10} {byte_size(row['bytes']):>10}  {ascii(row['path'])[1:-1]}")
    for item in plan.refused:
        cli.info(f"  refused: {ascii(item.path)[1:-1]}: {item.why}")
    for note in plan.notes:
        cli.info(f"  {note}")
    cli.info(
        f"would move {count(plan.count, 'file')}, {byte_size(plan.size)} at most; "
        f"{count(plan.same, 'file')} the same"
    )

"""``TBLogger``: log an experiment's numbers to TensorBoard and metrics.jsonl while it trains.

The runner's record of the active run follows. Outside the runner no run is active.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.arguments import report
from job.exit_status import UserError
from job.files import fsync_file, name_in_errors, write_atomically
from job.metrics import read_metrics
from job.trackers.tensorboard import TensorBoard

if TYPE_CHECKING:
    from job.run_session import RunSession

# One flush per step would slow short steps down.
FLUSH_INTERVAL_S = 1.0
RECORDED_LOSSES = {"train": "train_loss", "val": "val_loss"}  # the field of each logger's loss

_session: RunSession | None = None
_max_steps = 0
_loggers: weakref.WeakSet[TBLogger] = weakref.WeakSet()


def activate(session: RunSession, max_steps: int) -> None:
    """Let the library update the record of ``session``; ``max_steps`` is 0 if it is unknown."""
    global _session, _max_steps
    _session, _max_steps = session, max_steps


def update_record(**values: Any) -> None:
    """Set fields of the run's record, which is written to disk every few seconds."""
    # max_steps is set with the first step: without one the runner shows no progress at all.
    if _session is not None:
        _session.progress(max_steps=_max_steps, **values)


def recorded_losses() -> dict[str, float | None]:
    """Return the losses in the run's record, to be saved with a checkpoint."""
    if _session is None:
        return {}
    return {field: getattr(_session.record, field) for field in RECORDED_LOSSES.values()}


def sync_loggers(folder: Path) -> None:
    """Write everything logged below ``folder`` to disk.

    Call it before writing a checkpoint: the next attempt logs only the steps after the checkpoint.
    """
    for logger in list(_loggers):
        if logger.folder.absolute() == folder.absolute():
            logger.sync()


class TBLogger:
    """Log scalars under ``name``: loss appears as ``train/loss`` for the default name.

    The first step that an attempt logs removes this logger's later steps, so that a resumed run
    has every step once.
    """

    def __init__(self, output_dir: str | Path, name: str = "train") -> None:
        self.folder = Path(output_dir)
        self.name = name
        self._path = self.folder / "metrics.jsonl"
        self._writer: TensorBoard | None = None  # None before the first step
        self._flushed = 0.0

    def log(self, step: int, **scalars: float) -> None:
        """Log one value per keyword; a tensor of one element is a valid value."""
        step = int(step)
        values = {key: _to_float(value, key) for key, value in scalars.items()}
        writer = self._writer or self._start(step)
        # JSON has no NaN and no infinity; null is what readers expect for a missing value.
        row = {key: value if math.isfinite(value) else None for key, value in values.items()}
        line = json.dumps({"kind": self.name, "step": step, **row}) + "\n"
        # Opened for each line, since another logger of this run may have replaced the file.
        with name_in_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        numbers = {f"{self.name}/{key}": value for key, value in values.items()}
        writer.log(numbers, step)
        if time.monotonic() - self._flushed > FLUSH_INTERVAL_S:
            self.flush()
        field = RECORDED_LOSSES.get(self.name)
        loss = {field: row["loss"]} if field and "loss" in row else {}
        update_record(step=step, **loss)

    def flush(self) -> None:
        """Show TensorBoard everything logged so far. Happens once a second and at exit anyway."""
        if self._writer is not None:
            self._writer.flush()
        self._flushed = time.monotonic()

    def sync(self) -> None:
        """Write everything logged so far to disk."""
        self.flush()
        if self._writer is not None:
            with name_in_errors(self._path):
                fsync_file(self._path)

    def close(self) -> None:
        """Close the TensorBoard file. Happens at exit anyway."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _start(self, step: int) -> TensorBoard:
        """Remove the steps that an earlier attempt logged from ``step`` on."""
        try:
            rows = read_metrics(self._path)
        except OSError as error:
            raise UserError(f"can't read {self._path}: {error.strerror}; remove it") from None
        kept = (row for row in rows if row["kind"] != self.name or row["step"] < step)
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        writer = self._writer = TensorBoard(self.folder / "tensorboard" / self.name, step, report)
        weakref.finalize(self, writer.close)
        _loggers.add(self)
        return writer


def _to_float(value: Any, key: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(
            f"log({key}=...): expected a number or a tensor of one element, got {value!r}"
        ) from None

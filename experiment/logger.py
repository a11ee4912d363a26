"""``TBLogger``: an experiment's numbers for TensorBoard and metrics.jsonl, live, each step once."""

from __future__ import annotations

import json
import math
import time
import weakref
from pathlib import Path
from typing import Any

from experiment import current
from job.files import write_atomically
from job.metrics import read_metrics

FLUSH_SECONDS = 1.0  # a flush waits for TensorBoard's writer; one for each step would slow small steps down


class TBLogger:
    """Logs under ``name``: ``TBLogger(output_dir, "train").log(step, loss=0.3)`` is ``train/loss`` in TensorBoard.

    Begun again by an attempt that goes on from a checkpoint, it forgets what was logged from its first step on, so
    that the curve has each step once.
    """

    def __init__(self, output_dir: str | Path, name: str = "train") -> None:
        self.folder = Path(output_dir)
        self.name = name
        self._path = self.folder / "metrics.jsonl"
        self._writer: Any = None
        self._flushed = 0.0

    def log(self, step: int, **scalars: float) -> None:
        """One line in metrics.jsonl, one point for each value in TensorBoard. One-element tensors will do."""
        values = {key: _number(value, key) for key, value in scalars.items()}
        if self._writer is None:
            self._begin(step)
        # JSON has no nan: a value that is none is null there.
        line = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self._path.open("a") as file:  # another logger of this run may have written it anew
            file.write(json.dumps({"kind": self.name, "step": step, **line}) + "\n")
        for key, value in values.items():
            self._writer.add_scalar(f"{self.name}/{key}", value, step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        self._note(step, line.get("loss"))

    def flush(self) -> None:
        """Let TensorBoard see what was logged; it happens by itself about once a second, and at the end."""
        if self._writer is not None:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """The same as the end of the process."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        rows = read_metrics(self._path)
        kept = [row for row in rows if row.get("kind") != self.name or row["step"] < step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = SummaryWriter(self.folder / "tensorboard" / self.name, purge_step=step)
        weakref.finalize(self, self._writer.close)  # at the end of the process too

    def _note(self, step: int, loss: float | None) -> None:
        field = {"train": "train_loss", "val": "val_loss"}.get(self.name)
        current.note(step=step, **({field: loss} if field and loss is not None else {}))


def _number(value: Any, key: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"log({key}=...) takes a number or a tensor of one element, not {value!r}") from None

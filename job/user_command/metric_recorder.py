"""Write the metrics of a command to the files of a training run: metrics.jsonl and run.json.

The metrics come from the command's output, or from metric files in its persisted paths. The files
have every value with its step, and replace the values from the output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from job.metrics import Metrics, read_metrics
from job.run_record import launch_metadata
from job.run_session import RunSession
from job.user_command import report
from job.user_command.metric_sources import MetricFiles, MetricRow, OutputMetrics

KINDS = {"valid": "val", "validation": "val", "eval": "val"}
PREFIX = re.compile(r"(?i)(train|val|valid|validation|eval|test)[/_.](.+)")
SUFFIX = re.compile(r"(?i)(.+)[/.](train|val|valid|validation|eval|test)")

# Names of values in the views, by the names that other programs use.
ALIASES = {"learning_rate": "lr", "loss_step": "loss", "tok_per_sec": "tokens_per_second"}


def kind_and_key(name: str) -> tuple[str, str]:
    """Return ``("val", "loss")`` for val_loss, eval/loss and loss/validation."""
    if match := PREFIX.fullmatch(name):
        kind, key = match[1].lower(), match[2]
    elif match := SUFFIX.fullmatch(name):
        kind, key = match[2].lower(), match[1]
    else:
        kind, key = "train", name
    return KINDS.get(kind, kind), ALIASES.get(key.lower(), key.lower() if key == "Loss" else key)


def recorded_patterns() -> dict[str, str]:
    """Return the patterns that the runner gave this launch, by name."""
    command = launch_metadata().get("command")
    metrics = command.get("metrics") if isinstance(command, dict) else None
    return {str(name): str(pattern) for name, pattern in metrics or ()}


class MetricRecorder:
    """Records the metrics of one attempt. ``output`` collects the command's output."""

    def __init__(
        self, session: RunSession, out: Path, patterns: Mapping[str, str], places: Sequence[Path]
    ) -> None:
        self.session = session
        self.output = OutputMetrics(patterns)
        self.newest: dict[str, float] = {}
        self._out = out
        self._files = MetricFiles(places, out)
        self._metrics: Metrics | None = None
        self._first_step = 0  # of this attempt
        self._last: tuple[int, dict[str, float]] | None = None

    def poll(self, is_last: bool = False) -> None:
        """Record the values that were printed or written since the last call."""
        had_rows = self._files.has_rows
        from_files = self._files.poll(is_last)
        from_output = list(self.output.rows())
        if from_files and not had_rows and self._metrics is not None:
            self.close_files()
            self._open(min(self._first_step, from_files[0].step))
        for row in from_files if self._files.has_rows else from_output:
            self._record(row)

    def close(self) -> None:
        """Record the rest."""
        self.poll(is_last=True)
        self.close_files()

    def close_files(self) -> None:
        """Close metrics.jsonl and the event file."""
        if self._metrics is not None:
            self._metrics.flush(durable=True)
            self._metrics.close()

    def _record(self, row: MetricRow) -> None:
        if (row.step, row.values) == self._last:  # a progress bar that is drawn again
            return
        self._last = row.step, row.values
        if not self._files.owns_metrics_file and self._metrics is None:
            self._open(row.step)
        by_kind: dict[str, dict[str, float]] = {}
        for name, value in row.values.items():
            kind, key = kind_and_key(name)
            by_kind.setdefault(kind, {})[key] = value
            self.newest[name] = value
        if self._metrics is not None:
            for kind, values in by_kind.items():
                self._metrics.log(kind, row.step, **values)
            self._metrics.flush()
        self._update_record(row, by_kind)

    def _open(self, first_step: int) -> None:
        """Open the files, without the steps of earlier attempts that this one repeats."""
        self._files.leave_own_file()
        self._first_step = first_step
        self._metrics = Metrics(self._out, first_step - 1, report)
        kept_lines = read_metrics(self._out / "metrics.jsonl")
        losses = [line["loss"] for line in kept_lines if line["kind"] == "val" and line.get("loss")]
        self.session.record.best_val_loss = min(losses, default=None)

    def _update_record(self, row: MetricRow, by_kind: Mapping[str, Mapping[str, float]]) -> None:
        record = self.session.record
        new: dict[str, Any] = {"step": row.step, "max_steps": row.max_steps or record.max_steps}
        if "loss" in by_kind.get("train", {}):
            new["train_loss"] = by_kind["train"]["loss"]
        if "loss" in by_kind.get("val", {}):
            new["val_loss"] = loss = by_kind["val"]["loss"]
            best = math.inf if record.best_val_loss is None else record.best_val_loss
            if loss < best:  # NaN never is
                new["best_val_loss"] = loss
        self.session.progress(**new)

    def result(self) -> dict[str, float]:
        """Return the newest values for the run's result, and the best validation loss."""
        best = self.session.record.best_val_loss
        values = dict(self.newest)
        if best is not None and any(kind_and_key(name) == ("val", "loss") for name in values):
            values["best_val_loss"] = best
        return values

"""Show a run: a live screen on a terminal, plain lines elsewhere, log.txt always."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from job.files import name_in_errors
from job.format import duration, runner_command
from job.metrics import sample_metrics
from job.paths import VolumePaths
from job.run_record import launch_metadata

PLOT_HEIGHT = 14
BAR = 16
# Plotting this many points takes 15 ms; a terminal can't show more.
PLOT_POINTS = 400


def loss_plot(train: list[tuple[int, float]], val: list[tuple[int, float]], width: int) -> str:
    """Return the curves as text: training loss as a line, validation loss as points; no color."""
    import plotext

    train, val = (
        [(step, loss) for step, loss in curve if math.isfinite(loss)] for curve in (train, val)
    )
    if not train:
        return ""
    stride = max(1, len(train) // PLOT_POINTS)
    train = [*train[::stride], train[-1]]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(max(40, min(100, width)), PLOT_HEIGHT)
    plotext.plot([s for s, _ in train], [v for _, v in train], marker="braille", label="train loss")
    if val:
        plotext.scatter(
            [s for s, _ in val], [v for _, v in val], marker="x", label="validation loss"
        )
    plotext.xlabel("step")
    return str(plotext.uncolorize(plotext.build()))


class Display:
    """Prints the messages of a run to stderr and ``log``; with ``silent`` (other ranks) nothing."""

    def __init__(self, log: Path | None, max_steps: int, silent: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=silent, highlight=False)
        self.file: TextIO | None = (
            log.open("a", buffering=1, encoding="utf-8") if log is not None and not silent else None
        )
        self.max_steps = max_steps
        self.train: list[tuple[int, float]] = []
        self.val: list[tuple[int, float]] = []
        self.status = ""
        self.live: Live | None = None
        self.silent = silent

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.silent:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def report(self, text: str) -> None:
        """Print one line and log it."""
        self.console.print(Text(text), soft_wrap=True)
        self.log_only(text)

    def log_only(self, text: str) -> None:
        """Write lines to log.txt alone, each with its time in UTC."""
        if self.file is not None:
            now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            with name_in_errors(Path(self.file.name)):
                self.file.writelines(f"{now} {line}\n" for line in text.splitlines() or [""])

    def show_step(
        self,
        step: int,
        loss: float,
        lr: float,
        tokens_per_second: float,
        mfu: float | None,
        eta: float,
    ) -> None:
        """Report progress: a line, or on a terminal a redrawn screen."""
        speed = f"{tokens_per_second:,.0f} tokens/s" + (
            f"  MFU {mfu:.1%}" if mfu is not None else ""
        )
        line = (
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}  loss {loss:.4f}  "
            f"lr {lr:.2e}  {speed}  {duration(eta)} left"
        )
        filled = round(BAR * step / self.max_steps)
        self.status = f"{'━' * filled}{'─' * (BAR - filled)}  {line}"
        self._show(line)

    def show_evaluation(self, step: int, loss: float) -> None:
        """Report a validation loss: a line, or on a terminal a point of the plot."""
        self.val.append((step, loss))
        line = (
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}  validation loss {loss:.4f}"
        )
        self._show(line)

    def _show(self, line: str) -> None:
        """Log the line; print it, or redraw the live screen."""
        if self.live is None:
            self.report(line)
            return
        self.log_only(line)
        plot = loss_plot(self.train, self.val, self.console.width - 2)
        val = f"  validation {self.val[-1][1]:.4f}" if self.val else ""
        status = Text(self.status + val, style="bold", no_wrap=True, overflow="ellipsis")
        self.live.update(Group(Text(plot.rstrip(), no_wrap=True), status))

    def recall(self, metrics: Path) -> None:
        """Load the curves of earlier attempts from metrics.jsonl for the plot."""
        for line in sample_metrics(metrics, PLOT_POINTS):
            if line["kind"] in ("train", "val") and isinstance(line.get("loss"), float):
                getattr(self, line["kind"]).append((line["step"], line["loss"]))

    def final_plot(self) -> None:
        """Print the finished curve."""
        if plot := loss_plot(self.train, self.val, self.console.width):
            self.report(plot)

    def finished(
        self, run: str, step: int, seconds: float, loss: float | None, val_loss: float | None
    ) -> None:
        """Report the result and the next command. ``seconds`` are those of training."""
        loss_text = f", loss {loss:.4f}" if loss is not None else ""
        val = f", validation loss {val_loss:.4f}" if val_loss is not None else ""
        self.report(
            f"run '{run}' finished: {step} steps in {duration(seconds)} of training{loss_text}{val}"
        )
        more = next_command("sample", f"--name {run} prompt='...'")
        self.report(f"sample from it: {more}")


INSIDE = Path("/vol/checkpoints")  # mount point in the image

MODULES = {"train": "model.train", "sample": "serving.sample"}


def next_command(job: str, arguments: str) -> str:
    """Return ``runner TARGET JOB ARGUMENTS`` for the target that the runner used.

    Without a runner: Compose's command in the container, and the host's elsewhere.
    """
    target = launch_metadata().get("target")
    if target is None and VolumePaths.current().checkpoints == INSIDE:
        return f"docker compose run --rm {job} python -m {MODULES[job]} {arguments}"
    return f"{runner_command(target or 'host')} {job} {arguments}"

"""The screen of `runner watch`: a pure function of one snapshot and the size of the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from job.format import byte_size, dollars, duration, one_line
from job.run_record import RunStatus
from runner.runs.history import History
from runner.runs.table import attempts_text, status_text
from runner.views.charts import Series, plot_series

STATUS_STYLE = {
    RunStatus.RUNNING: "bold green",
    RunStatus.QUEUED: "bold yellow",
    RunStatus.STARTING: "bold yellow",
    RunStatus.FINISHED: "bold green",
    RunStatus.UNFINISHED: "bold yellow",
    RunStatus.FAILED: "bold red",
    RunStatus.LOST: "bold red",
}

TWO_PLOTS_WIDTH = 110  # columns from which a second plot is shown next to the first

MAX_METRIC_LINES = 2

TEXT_SHARE = 0.25  # of the lines, for the sample or the log


@dataclass(frozen=True)
class Snapshot:
    """The newest state of a run, read ``age`` seconds ago; ``error`` is why later polls failed."""

    history: History
    age: float = 0.0
    error: str = ""
    has_ended: bool = False


def screen(snapshot: Snapshot, now: float, width: int, height: int) -> RenderableType:
    """Return the screen, at most ``height`` lines; ``now`` is in seconds since the epoch."""
    history = snapshot.history
    head = [_title(history, now), _progress(history, width), *_metric_lines(history, width)]
    text = _sample_or_log(history, max(0, int(height * TEXT_SHARE)))
    text_lines = text.plain.count("\n") + 2 if text is not None else 0
    parts: list[RenderableType] = [*head]
    plots = _plots(history, width, height - len(head) - 2 - text_lines)
    if plots is not None:
        parts += [Text(), plots]
    if text is not None:
        parts += [Text(), text]
    return Group(*parts, _status_line(snapshot))


def _title(history: History, now: float) -> Text:
    state = history.state
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(one_line(state.run), style="bold")
    title.append(f"  {one_line(state.job)} on {state.target}")
    if state.gpu:
        title.append(f" · {one_line(state.gpu)}")
    title.append(" · ")
    title.append(status_text(state), style=STATUS_STYLE.get(state.status, "bold"))
    if state.started:
        until = state.ended if state.ended and not state.alive else now
        title.append(f" · {duration(until - state.started)}")
    if state.attempts > 1:
        title.append(f" · attempts {one_line(attempts_text(state))}")
    if state.reason and not state.alive and state.reason != state.status:
        title.append(f" · {one_line(state.reason)}")
    return title


def _progress(history: History, width: int) -> RenderableType:
    state, metrics = history.state, history.metrics
    step = max(state.step, metrics.step if state.alive else 0)
    if not state.max_steps:
        return Text(f"step {step:,}" if step else "")
    text = Text(f"step {step:,}/{state.max_steps:,}  {step / state.max_steps:.0%}", no_wrap=True)
    remaining_s = seconds_left(history)
    if remaining_s is not None:
        text.append(f"  {duration(remaining_s)} left", style="bold")
    bar_width = max(8, min(40, width - 45))
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(ProgressBar(state.max_steps, step, bar_width, complete_style="green"), text)
    return row


def seconds_left(history: History) -> float | None:
    """Return the time to the last step at the newest speed; None if unknown or not running."""
    step_seconds = history.metrics.step_seconds
    if step_seconds is None or not history.state.alive:
        return None
    return max(0, history.state.max_steps - history.metrics.step) * step_seconds


def newest_metrics(history: History) -> list[tuple[str, str]]:
    """Return the newest values as (name, text), without those that were not measured."""
    newest, state = history.metrics.newest, history.state
    metrics: list[tuple[str, str]] = []
    if "loss" in newest:
        metrics.append(("loss", f"{newest['loss']:.4f}"))
    if "val_loss" in newest:
        text, best = f"{newest['val_loss']:.4f}", history.metrics.best
        if best and best[1] < newest["val_loss"]:
            text += f" (best {best[1]:.4f}, step {best[0]:,})"
        metrics.append(("validation", text))
    if "tokens_per_second" in newest:
        metrics.append(("tokens/s", f"{newest['tokens_per_second']:,.0f}"))
    if "mfu" in newest:
        metrics.append(("MFU", f"{newest['mfu']:.1%}"))
    if state.cost is not None:
        limit = history.max_cost
        share = f" of {dollars(limit)} ({state.cost / limit:.0%})" if limit else ""
        metrics.append(("cost", f"{dollars(state.cost)}{share}"))
    uses, memories = history.metrics.per_gpu("use"), history.metrics.per_gpu("memory")
    if len(uses) > 1:
        # All wait for the slowest, and look as busy as it does: a lower clock tells them apart.
        clocks = history.metrics.per_gpu("clock") or [1.0] * len(uses)
        speeds = [use * clock for use, clock in zip(uses, clocks, strict=False)]
        each = " ".join(f"{use:.0%}" for use in uses)
        metrics.append(("GPUs", f"{each} (slowest: {speeds.index(min(speeds))})"))
    elif uses or "gpu_use" in newest:
        metrics.append(("GPU", f"{[*uses, newest.get('gpu_use', 0)][0]:.0%}"))
    if len(memories) > 1:
        metrics.append(("memory", " ".join(byte_size(memory) for memory in memories)))
    elif memories or "memory_bytes" in newest:
        metrics.append(("memory", byte_size(newest.get("memory_bytes", sum(memories)))))
    if "lr" in newest:
        metrics.append(("lr", f"{newest['lr']:.2e}"))
    metrics += [
        (one_line(key), f"{newest[key]:.4g}")
        for key in history.metrics.extra_curves
        if key in newest
    ]
    return metrics


def _metric_lines(history: History, width: int) -> list[Text]:
    """Return the newest metrics in at most MAX_METRIC_LINES lines, most important first."""
    lines = [Text(no_wrap=True, overflow="ellipsis")]
    for name, text in newest_metrics(history):
        if lines[-1].plain and len(lines[-1]) + len(name) + len(text) + 4 > width:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        lines[-1].append("   " if lines[-1].plain else "")
        lines[-1].append(f"{name} ", style="dim")
        lines[-1].append(text)
    return lines[:MAX_METRIC_LINES]


def _plots(history: History, width: int, height: int) -> RenderableType | None:
    curves, metrics = history.metrics.curves, history.metrics
    loss = [
        Series("training loss", curves["loss"], "cyan"),
        Series("validation loss", curves["val_loss"], "orange", marks=True),
    ]
    plots = [loss] if any(series.curve for series in loss) else []
    if curves["tokens_per_second"]:
        plots.append([Series("tokens/s", curves["tokens_per_second"], "green")])
    plots += [[Series(one_line(key), curves[key], "magenta")] for key in metrics.extra_curves]
    if not plots:
        return None
    if width < TWO_PLOTS_WIDTH or len(plots) == 1:
        return plot_series(plots[0], width, height)
    second_width = width * 2 // 5
    left = plot_series(plots[0], width - second_width - 1, height)
    right = plot_series(plots[1], second_width, height)
    if left is None or right is None:
        return left
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(left, right)
    return row


def _sample_or_log(history: History, lines: int) -> Text | None:
    """Return the newest sample; before the first one, the end of the log."""
    if lines < 3:
        return None
    if history.samples:
        sample = history.samples[-1]
        title, rows = f"sample of step {sample.step}", sample.text.splitlines()[: lines - 1]
    elif history.log:
        title, rows = "log", list(history.log[1 - lines :])
    else:
        return None
    text = Text(title, style="dim", no_wrap=True, overflow="ellipsis")
    for row in rows:
        text.append("\n" + row.expandtabs(4), style="not dim")
    return text


def _status_line(snapshot: Snapshot) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    if snapshot.error:
        line.append(f"{_no_answer(snapshot)}: ", style="bold yellow")
        line.append(one_line(snapshot.error), style="yellow")
    elif not snapshot.history.is_complete:
        line.append("reading the metrics so far", style="dim")
    for url in snapshot.history.state.trackers.values():
        line.append("   " if line.plain else "")
        line.append(one_line(url), style="dim")
    if not snapshot.has_ended:
        line.append("   " if line.plain else "")
        line.append("press q to quit; the run continues", style="dim")
    return line


def _no_answer(snapshot: Snapshot) -> str:
    return f"no answer for {duration(snapshot.age)}, trying again"


def format_line(snapshot: Snapshot) -> str:
    """Return the snapshot as one line, for a log."""
    history = snapshot.history
    state = history.state
    parts = [status_text(state)]
    if state.max_steps:
        parts.append(f"step {max(state.step, history.metrics.step)}/{state.max_steps}")
    elif history.metrics.step:
        parts.append(f"step {history.metrics.step}")
    parts += [f"{name} {text}" for name, text in newest_metrics(history)]
    remaining_s = seconds_left(history)
    if remaining_s is not None:
        parts.append(f"{duration(remaining_s)} left")
    if snapshot.error:
        parts.append(f"{_no_answer(snapshot)}: {one_line(snapshot.error)}")
    return "  ".join(parts)


def to_json(snapshot: Snapshot) -> dict[str, object]:
    """Return the snapshot for --json: the run's state and newest metrics, seconds and dollars."""
    return {
        **asdict(snapshot.history.state),
        "newest": snapshot.history.metrics.newest,
        "seconds_left": seconds_left(snapshot.history),
        "max_cost": snapshot.history.max_cost,
        "trouble": snapshot.error or None,
    }

"""What the screen of `runner watch` shows: a pure function of what was read and of the screen's size."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from job.format import byte_size, duration, one_line
from job.run_record import RunStatus
from runner.format import dollars
from runner.runs.history import History
from runner.runs.table import attempts_text, status_text
from runner.views.terminal_plot import Line, plot

STATUS_STYLE = {
    RunStatus.RUNNING: "bold green",
    RunStatus.STARTING: "bold yellow",
    RunStatus.FINISHED: "bold green",
    RunStatus.UNFINISHED: "bold yellow",
    RunStatus.FAILED: "bold red",
    RunStatus.LOST: "bold red",
}

WIDE = 110  # columns from which on a second plot stands beside the first

FACT_LINES = 2

TEXT_SHARE = 0.25  # of the lines, for the sample or the log


@dataclass(frozen=True)
class Snapshot:
    """The newest look, and how the looking goes. ``age``: seconds since that look; ``trouble``: why those
    after it brought nothing."""

    history: History
    age: float = 0.0
    trouble: str = ""
    over: bool = False


def screen(seen: Snapshot, now: float, width: int, height: int) -> RenderableType:
    """The whole screen, at most ``height`` lines. ``now`` is in seconds since the epoch."""
    head = [_title(seen.history, now), _progress(seen.history, width), *_facts(seen.history, width)]
    foot = _foot(seen)
    text_lines = max(0, int(height * TEXT_SHARE))
    below = _below(seen.history, text_lines)
    room = height - len(head) - 2 - (below.plain.count("\n") + 2 if below else 0)
    parts: list[RenderableType] = [*head]
    plots = _plots(seen.history, width, room)
    if plots is not None:
        parts += [Text(), plots]
    if below is not None:
        parts += [Text(), below]
    return Group(*parts, foot)


def _title(history: History, now: float) -> Text:
    state = history.state
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(one_line(state.run), style="bold")
    title.append(f"  {state.job} on {state.target}")
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
        return Text()
    words = Text(f"step {step:,}/{state.max_steps:,}  {step / state.max_steps:.0%}", no_wrap=True)
    left = seconds_left(history)
    if left is not None:
        words.append(f"  {duration(left)} left", style="bold")
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(
        ProgressBar(
            state.max_steps, step, width=max(8, min(40, width - 45)), complete_style="green"
        ),
        words,
    )
    return row


def seconds_left(history: History) -> float | None:
    """Until the last step, at the speed of the newest one; None where that is not known or it does not run."""
    each = history.metrics.step_seconds
    if each is None or not history.state.alive:
        return None
    return max(0, history.state.max_steps - history.metrics.step) * each


def fact_words(history: History) -> list[tuple[str, str]]:
    """The newest numbers, as (name, words); what was not measured is not among them."""
    newest, state = history.metrics.newest, history.state
    found: list[tuple[str, str]] = []
    if "loss" in newest:
        found.append(("loss", f"{newest['loss']:.4f}"))
    if "val_loss" in newest:
        best = history.metrics.best
        lower = (
            f" (best {best[1]:.4f}, step {best[0]:,})"
            if best and best[1] < newest["val_loss"]
            else ""
        )
        found.append(("validation", f"{newest['val_loss']:.4f}{lower}"))
    if "tokens_per_second" in newest:
        found.append(("tokens/s", f"{newest['tokens_per_second']:,.0f}"))
    if "mfu" in newest:
        found.append(("MFU", f"{newest['mfu']:.1%}"))
    if state.cost is not None:
        cap = history.max_cost
        of = f" of {dollars(cap)} ({state.cost / cap:.0%})" if cap else ""
        found.append(("cost", f"{dollars(state.cost)}{of}"))
    if "gpu_use" in newest:
        found.append(("GPU", f"{newest['gpu_use']:.0%}"))
    if "memory_bytes" in newest:
        found.append(("memory", byte_size(newest["memory_bytes"])))
    if "lr" in newest:
        found.append(("lr", f"{newest['lr']:.2e}"))
    found += [
        (one_line(key), f"{newest[key]:.4g}")
        for key in history.metrics.extra_curves
        if key in newest
    ]
    return found


def _facts(history: History, width: int) -> list[Text]:
    """In as many lines as they need, two at most: what comes first matters most."""
    lines = [Text(no_wrap=True, overflow="ellipsis")]
    for name, words in fact_words(history):
        if lines[-1].plain and len(lines[-1]) + len(name) + len(words) + 4 > width:
            lines.append(Text(no_wrap=True, overflow="ellipsis"))
        lines[-1].append("   " if lines[-1].plain else "")
        lines[-1].append(f"{name} ", style="dim")
        lines[-1].append(words)
    return lines[:FACT_LINES]


def _plots(history: History, width: int, height: int) -> RenderableType | None:
    curves = history.metrics.curves
    loss = [
        Line("training loss", curves["loss"], "cyan"),
        Line("validation loss", curves["val_loss"], "orange", marks=True),
    ]
    found = [loss] if any(line.curve for line in loss) else []
    found += (
        [[Line("tokens/s", curves["tokens_per_second"], "green")]]
        if curves["tokens_per_second"]
        else []
    )
    found += [[Line(one_line(key), curves[key], "magenta")] for key in history.metrics.extra_curves]
    if not found:
        return None
    if width < WIDE or len(found) == 1:
        return plot(found[0], width, height)
    second = width * 2 // 5
    left, right = plot(found[0], width - second - 1, height), plot(found[1], second, height)
    if left is None or right is None:
        return left
    row = Table.grid(padding=(0, 1, 0, 0))
    row.add_row(left, right)
    return row


def _below(history: History, lines: int) -> Text | None:
    """The newest sample; before there is one the end of the log."""
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


def _foot(seen: Snapshot) -> Text:
    foot = Text(no_wrap=True, overflow="ellipsis")
    if seen.trouble:
        foot.append(f"no answer for {duration(seen.age)}, trying again: ", style="bold yellow")
        foot.append(one_line(seen.trouble), style="yellow")
    elif not seen.history.is_complete:
        foot.append("reading what it has done so far", style="dim")
    if not seen.over:
        foot.append("   " if foot.plain else "")
        foot.append("q leaves; the run goes on", style="dim")
    return foot


def line(seen: Snapshot) -> str:
    """One look as one line, for a log."""
    state = seen.history.state
    words = [status_text(state)]
    if state.max_steps:
        words.append(f"step {max(state.step, seen.history.metrics.step)}/{state.max_steps}")
    words += [f"{name} {value}" for name, value in fact_words(seen.history)]
    left = seconds_left(seen.history)
    if left is not None:
        words.append(f"{duration(left)} left")
    if seen.trouble:
        words.append(f"no answer for {duration(seen.age)}, trying again: {one_line(seen.trouble)}")
    return "  ".join(words)


def to_json(seen: Snapshot) -> dict[str, object]:
    """One look as JSON: how the run stands, the newest numbers, seconds and dollars."""
    return {
        **asdict(seen.history.state),
        "newest": seen.history.metrics.newest,
        "seconds_left": seconds_left(seen.history),
        "max_cost": seen.history.max_cost,
        "trouble": seen.trouble or None,
    }

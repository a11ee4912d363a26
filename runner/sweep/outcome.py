"""What came of a sweep: the table, best first; a plot in the terminal and as PNG; or all of it as JSON."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from runner.extras import install_line
from runner.history.numbers import dollars
from runner.runs.table import age
from runner.sweep.record import SweepRecord, Trial
from runner.sweep.seeds import Setting
from runner.terminal import Environment


def in_words(trial: Trial | Setting) -> str:
    """``lr=0.001 n_layer=4``."""
    return " ".join(f"{key}={shown(trial, key)}" for key in trial.values)


def shown(trial: Trial | Setting, key: str) -> str:
    """A value of a trial, short."""
    value = trial.values.get(key, "-")
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_outcome(env: Environment, record: SweepRecord, folder: Path, as_json: bool) -> None:
    """The table and the plot on stdout, or the facts as JSON; the PNG in the sweep's folder."""
    from runner.sweep.plot import terminal_plot, write_png

    picture = write_png(record, folder / "sweep.png")
    if as_json:
        env.json({**record.facts(), "plot": str(picture) if picture else None})
    else:
        show_results(env, record)
        show_means(env, record)
        text = terminal_plot(record)
        if text:
            env.write(text)
    if picture:
        env.say(f"plot: {picture}")
    elif find_spec("matplotlib") is None:
        env.say(f"no picture: matplotlib is not installed; type:\n  {install_line('report')}")
    if best := best_in_words(record):
        env.say(best)
    if record.count("failed"):
        env.say(
            f"{record.count('failed')} failed; `runner logs RUN` says why, --retry-failed tries them again"
        )
    if record.count("waiting", "unfinished"):
        env.say("some are left; the same line goes on with them")


def best_so_far(record: SweepRecord) -> str:
    """``; best 1.234 by s-002`` for a line while the sweep goes on; '' where nothing has finished."""
    best, found = record.best, record.settings
    if best is None:
        return ""
    if found:
        setting = f", with {in_words(found[0])}" if found[0].values else ""
        return f"; best mean {found[0].mean:.4g}, n={_count(found[0])}{setting}"
    return f"; best {best.metric:.4g} by {best.run}"


def best_in_words(record: SweepRecord) -> str:
    """The best trial, or the setting with the best mean over its seeds; '' where nothing has finished."""
    best, found = record.best, record.settings
    if best is None:
        return ""
    if not found:
        return f"best: {best.run} with {in_words(best)}: {record.metric} {best.metric:.6g}"
    first = found[0]
    which = "best by the mean over seeds" if len(found) > 1 else "mean over seeds"
    spread = f", standard deviation {first.sd:.2g}" if first.sd is not None else ""
    return (
        f"{which}: {in_words(first)}{': ' if first.values else ''}{record.metric} {first.mean:.6g}{spread}, "
        f"n={_count(first)}; the best of these runs is {best.run} with {best.metric:.6g}"
    )


def show_means(env: Environment, record: SweepRecord) -> None:
    """Where seeds are varied: a row for each setting without them, on stdout."""
    from rich.table import Table

    found = record.settings
    if not found:
        return
    keys = list(dict.fromkeys(key for setting in found for key in setting.values))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for key in (*keys, f"mean {record.metric}", "standard deviation", "n"):
        table.add_column(key, justify="right", no_wrap=True)
    for setting in found:
        table.add_row(
            *(shown(setting, key) for key in keys),
            "-" if setting.mean is None else f"{setting.mean:.5g}",
            "-" if setting.sd is None else f"{setting.sd:.2g}",
            _count(setting),
        )
    env.write("")
    env.print_table(table, data=True)


def _count(setting: Setting) -> str:
    return f"{setting.n}" if setting.n == setting.trials else f"{setting.n} of {setting.trials}"


def show_results(env: Environment, record: SweepRecord) -> None:
    """The table, on stdout: it is data."""
    from rich.table import Table

    keys = list(dict.fromkeys(key for trial in record.trials for key in trial.values))
    paid = any(trial.cost for trial in record.trials)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("run", no_wrap=True)
    for key in (*keys, record.metric, "step", *(["cost"] if paid else []), "took"):
        table.add_column(key, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for trial in record.ranked():
        took = age(trial.started, trial.ended) if trial.started and trial.ended else "-"
        table.add_row(
            trial.run,
            *(shown(trial, key) for key in keys),
            "-" if trial.metric is None else f"{trial.metric:.5g}",
            "-" if not trial.step and trial.metric is None else str(trial.step),
            *([dollars(trial.cost or 0)] if paid else []),
            took,
            trial.status + (f": {trial.reason.splitlines()[0][:60]}" if trial.reason else ""),
        )
    env.print_table(table, data=True)
    if paid:
        of = f" of {dollars(record.budget)}" if record.budget is not None else ""
        env.say(f"{dollars(record.spent)}{of}, the smoke run's {dollars(record.smoke_cost)} included")

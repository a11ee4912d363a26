"""What came of a sweep: the table, best first; a plot in the terminal and as PNG; or all of it as JSON."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from runner.extras import install_line
from runner.history.numbers import dollars
from runner.runs.table import age
from runner.sweep.record import SweepRecord, Trial
from runner.terminal import Environment


def in_words(trial: Trial) -> str:
    """``lr=0.001 n_layer=4``."""
    return " ".join(f"{key}={shown(trial, key)}" for key in trial.values)


def shown(trial: Trial, key: str) -> str:
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
        text = terminal_plot(record)
        if text:
            env.write(text)
    if picture:
        env.say(f"plot: {picture}")
    elif find_spec("matplotlib") is None:
        env.say(f"no picture: matplotlib is not installed; type:\n  {install_line('report')}")
    best = record.best
    if best is not None:
        env.say(f"best: {best.run} with {in_words(best)}: {record.metric} {best.metric:.6g}")
    if record.count("failed"):
        env.say(
            f"{record.count('failed')} failed; `runner logs RUN` says why, --retry-failed tries them again"
        )
    if record.count("waiting", "unfinished"):
        env.say("some are left; the same line goes on with them")


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

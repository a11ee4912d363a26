"""What came of a sweep: the table, best first; a plot in the terminal and as PNG; or all of it as JSON."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.files import write_atomically
from runner.console import CliContext
from runner.format import dollars
from runner.project import install_line
from runner.runs.table import age
from runner.sweep.record import SweepRecord, Trial, TrialGroup
from runner.views.charts import figure, png


def in_words(trial: Trial | TrialGroup) -> str:
    """``lr=0.001 n_layer=4``."""
    return " ".join(f"{key}={shown(trial, key)}" for key in trial.values)


def shown(trial: Trial | TrialGroup, key: str) -> str:
    """A value of a trial, short."""
    value = trial.values.get(key, "-")
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_outcome(cli: CliContext, record: SweepRecord, folder: Path, as_json: bool) -> None:
    """The table and the plot on stdout, or the facts as JSON; the PNG in the sweep's folder."""
    pass

    picture = write_png(record, folder / "sweep.png")
    if as_json:
        cli.json({**record.facts(), "plot": str(picture) if picture else None})
    else:
        show_results(cli, record)
        show_means(cli, record)
        text = terminal_plot(record)
        if text:
            cli.write(text)
    if picture:
        cli.info(f"plot: {picture}")
    elif find_spec("matplotlib") is None:
        cli.info(f"no picture: matplotlib is not installed; type:\n  {install_line('report')}")
    if best := best_in_words(record):
        cli.info(best)
    if record.count("failed"):
        cli.info(
            f"{record.count('failed')} failed; `runner logs RUN` says why, --retry-failed tries them again"
        )
    if record.count("waiting", "unfinished"):
        cli.info("some are left; the same line goes on with them")


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


def show_means(cli: CliContext, record: SweepRecord) -> None:
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
    cli.write("")
    cli.print_table(table, data=True)


def _count(setting: TrialGroup) -> str:
    return f"{setting.n}" if setting.n == setting.trials else f"{setting.n} of {setting.trials}"


def show_results(cli: CliContext, record: SweepRecord) -> None:
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
    cli.print_table(table, data=True)
    if paid:
        of = f" of {dollars(record.budget)}" if record.budget is not None else ""
        cli.info(
            f"{dollars(record.spent)}{of}, the smoke run's {dollars(record.smoke_cost)} included"
        )


WIDTH, HEIGHT = 70, 16

DECADES = 30.0  # largest value over smallest from which on an axis is logarithmic

PANELS = 6


def points(record: SweepRecord, key: str) -> list[tuple[Any, float, Trial]]:
    """(value, metric, trial) of the trials that have both."""
    return [
        (trial.values[key], trial.metric, trial)
        for trial in record.trials
        if trial.metric is not None and key in trial.values and trial.values[key] is not None
    ]


def is_number(values: list[Any]) -> bool:
    """Whether an axis of numbers can hold them."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def is_logarithmic(values: list[Any]) -> bool:
    """Whether they span so much that a linear axis would hide the small ones."""
    return is_number(values) and min(values) > 0 and max(values) / min(values) >= DECADES


def varied(record: SweepRecord) -> list[str]:
    """The keys with more than one value."""
    keys = dict.fromkeys(key for trial in record.trials for key in trial.values)
    return [key for key in keys if len({str(t.values.get(key)) for t in record.trials}) > 1]


def terminal_plot(record: SweepRecord) -> str:
    """The metric over the first numeric key; '' where there is nothing to draw, or no plotext."""
    try:
        import plotext
    except ImportError:
        return ""
    for key in varied(record):
        found = points(record, key)
        values = [value for value, _, _ in found]
        if len(found) < 2 or not is_number(values):
            continue
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(WIDTH, HEIGHT)
        if is_logarithmic(values):
            plotext.xscale("log")
        plotext.scatter(values, [metric for _, metric, _ in found], marker="x")
        plotext.xlabel(key)
        plotext.title(record.metric)
        return str(plotext.uncolorize(plotext.build())).rstrip()
    return ""


def write_png(record: SweepRecord, path: Path) -> Path | None:
    """The picture at ``path``; None where there is nothing to draw, or no matplotlib."""
    keys = [key for key in varied(record) if len(points(record, key)) > 1][:PANELS]
    if not keys:
        return None
    try:
        made, panels = figure(4.2 * len(keys), 3.4, len(keys))
    except ImportError:
        return None
    best = record.best
    for axes, key in zip(panels, keys, strict=True):
        _panel(axes, record, key, best)
    made.suptitle(f"{record.name}: {len(record.trials)} trials", fontsize=10)
    write_atomically(path, png(made))
    return path


def _panel(axes: Any, record: SweepRecord, key: str, best: Trial | None) -> None:
    found = points(record, key)
    values = [value for value, _, _ in found]
    numeric = is_number(values)
    for status, colour, word in (
        ("finished", "#2563a8", "finished"),
        ("stopped", "#c2703d", "stopped early"),
    ):
        rows = [
            (value if numeric else str(value), metric)
            for value, metric, t in found
            if t.status == status
        ]
        if rows:
            axes.scatter([x for x, _ in rows], [y for _, y in rows], color=colour, s=28, label=word)
    if best is not None and key in best.values:
        axes.scatter(
            [best.values[key] if numeric else str(best.values[key])],
            [best.metric],
            s=110,
            facecolors="none",
            edgecolors="#111111",
            label="best",
        )
    if is_logarithmic(values):
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(record.metric)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)

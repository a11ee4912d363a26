"""The results of a sweep: the table, best first, with a plot; or everything as JSON."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.files import write_atomically
from job.format import dollars, one_line
from runner.console import CliContext, new_table
from runner.project import install_line
from runner.runs.table import age
from runner.sweep.record import SweepRecord, Trial, TrialGroup, TrialStatus
from runner.views.charts import ScatterPoints, is_numeric, plot_scatter, scatter_png

MAX_PANELS = 6  # of the PNG
MAX_REASON_CHARACTERS = 60

# Of the points in the PNG.
COLORS = {TrialStatus.FINISHED: "#2563a8", TrialStatus.STOPPED: "#c2703d"}
LABELS = {TrialStatus.FINISHED: "finished", TrialStatus.STOPPED: "stopped early"}


def format_values(trial: Trial | TrialGroup) -> str:
    """Return ``lr=0.001 n_layer=4``."""
    return " ".join(f"{key}={format_value(trial, key)}" for key in trial.values)


def format_value(trial: Trial | TrialGroup, key: str) -> str:
    """Return one value of the trial."""
    value = trial.values.get(key, "-")
    return f"{value:g}" if isinstance(value, float) else one_line(str(value))


def show_outcome(cli: CliContext, record: SweepRecord, folder: Path, as_json: bool) -> None:
    """Print the tables and the plot, or JSON, on stdout; write the PNG into the sweep's folder."""
    picture = write_png(record, folder / "sweep.png")
    if as_json:
        cli.json({**record.to_json(), "plot": str(picture) if picture else None})
    else:
        show_trials(cli, record)
        show_groups(cli, record)
        if text := terminal_plot(record):
            cli.write(text)
    if picture:
        cli.info(f"plot: {picture}")
    elif find_spec("matplotlib") is None:
        cli.info(f"no PNG: matplotlib is not installed; run:\n  {install_line('report')}")
    if line := best_line(record):
        cli.info(line)
    if failed := [trial.run for trial in record.trials if trial.status == TrialStatus.FAILED]:
        cli.info(
            f"{len(failed)} failed; `runner logs {failed[0]}` shows why, and --retry-failed tries "
            "them again"
        )
    if record.count(TrialStatus.WAITING, TrialStatus.UNFINISHED):
        cli.info("some trials are not finished; run the same command again to resume the sweep")


def best_so_far(record: SweepRecord) -> str:
    """Return ``; best 1.234 by s-002`` for a progress message; '' before a trial has finished."""
    best, groups = record.best, record.groups
    if best is None:
        return ""
    if groups:
        values = f", with {format_values(groups[0])}" if groups[0].values else ""
        return f"; best mean {groups[0].mean:.4g}, n={_format_n(groups[0])}{values}"
    return f"; best {best.metric:.4g} by {best.run}"


def best_line(record: SweepRecord) -> str:
    """Return a line about the best trial, or the group with the best mean over its seeds."""
    best, groups = record.best, record.groups
    if best is None:
        return ""
    if not groups:
        return f"best: {best.run} with {format_values(best)}: {record.metric} {best.metric:.6g}"
    first = groups[0]
    title = "best mean over seeds" if len(groups) > 1 else "mean over seeds"
    values = f"{format_values(first)}: " if first.values else ""
    spread = f", standard deviation {first.sd:.2g}" if first.sd is not None else ""
    return (
        f"{title}: {values}{record.metric} {first.mean:.6g}{spread}, n={_format_n(first)}; "
        f"the best of these runs is {best.run} with {best.metric:.6g}"
    )


def show_trials(cli: CliContext, record: SweepRecord) -> None:
    """Print the table of trials on stdout."""
    keys = list(dict.fromkeys(key for trial in record.trials for key in trial.values))
    has_costs = any(trial.cost for trial in record.trials)
    numbers = (*keys, record.metric, "step", *(["cost"] if has_costs else []), "took")
    table = new_table("run", *numbers, "status", left_aligned=("run", "status"))
    for trial in record.ranked():
        reason = (
            one_line(trial.reason.splitlines()[0])[:MAX_REASON_CHARACTERS] if trial.reason else ""
        )
        table.add_row(
            trial.run,
            *(format_value(trial, key) for key in keys),
            "-" if trial.metric is None else f"{trial.metric:.5g}",
            "-" if not trial.step and trial.metric is None else str(trial.step),
            *([dollars(trial.cost or 0)] if has_costs else []),
            age(trial.started, trial.ended) if trial.started and trial.ended else "-",
            trial.status + (f": {reason}" if reason else ""),
        )
    cli.print_table(table, data=True)
    if has_costs:
        budget = f" of {dollars(record.budget)}" if record.budget is not None else ""
        smoke = dollars(record.smoke_cost)
        part = f", including {smoke} for the smoke run" if record.smoke_cost else ""
        cli.info(f"spent {dollars(record.spent)}{budget}{part}")


def show_groups(cli: CliContext, record: SweepRecord) -> None:
    """Print the table of means over seeds on stdout, if the sweep varies a seed."""
    groups = record.groups
    if not groups:
        return
    keys = list(dict.fromkeys(key for group in groups for key in group.values))
    table = new_table(*keys, f"mean {record.metric}", "standard deviation", "n")
    for group in groups:
        table.add_row(
            *(format_value(group, key) for key in keys),
            "-" if group.mean is None else f"{group.mean:.5g}",
            "-" if group.sd is None else f"{group.sd:.2g}",
            _format_n(group),
        )
    cli.write("")
    cli.print_table(table, data=True)


def _format_n(group: TrialGroup) -> str:
    return f"{group.n}" if group.n == group.trials else f"{group.n} of {group.trials}"


def terminal_plot(record: SweepRecord) -> str:
    """Return the metric over the first numeric key as text; '' without two points or plotext."""
    if find_spec("plotext") is None:
        return ""
    for key in _varied_keys(record):
        trials = _trials_with(record, key)
        values = [trial.values[key] for trial in trials]
        if len(trials) > 1 and is_numeric(values):
            metrics = [trial.metric for trial in trials if trial.metric is not None]
            return plot_scatter(values, metrics, xlabel=key, title=record.metric)
    return ""


def write_png(record: SweepRecord, path: Path) -> Path | None:
    """Write the metric over each varied key; return None without two points or matplotlib."""
    keys = [key for key in _varied_keys(record) if len(_trials_with(record, key)) > 1]
    if not keys or find_spec("matplotlib") is None:
        return None
    panels = [(key, _points(record, key)) for key in keys[:MAX_PANELS]]
    title = f"{record.name}: {len(record.trials)} trials"
    write_atomically(path, scatter_png(title, panels, ylabel=record.metric))
    return path


def _points(record: SweepRecord, key: str) -> list[ScatterPoints]:
    trials, best = _trials_with(record, key), record.best
    numeric = is_numeric([trial.values[key] for trial in trials])

    def x(trial: Trial) -> Any:
        return trial.values[key] if numeric else str(trial.values[key])

    points = []
    for status, color in COLORS.items():
        group = [trial for trial in trials if trial.status == status]
        points.append(
            ScatterPoints(LABELS[status], [x(t) for t in group], [t.metric for t in group], color)
        )
    if best is not None and key in best.values:
        points.append(ScatterPoints("best", [x(best)], [best.metric], "#111111", circled=True))
    return [series for series in points if series.x]


def _trials_with(record: SweepRecord, key: str) -> list[Trial]:
    """Return the trials with a metric and a value of ``key``."""
    return [
        trial
        for trial in record.trials
        if trial.metric is not None and trial.values.get(key) is not None
    ]


def _varied_keys(record: SweepRecord) -> list[str]:
    keys = dict.fromkeys(key for trial in record.trials for key in trial.values)
    return [key for key in keys if len({str(t.values.get(key)) for t in record.trials}) > 1]

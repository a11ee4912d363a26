"""Compare runs: the settings that differ, results, and curves in one plot.

\b
  runner compare quickstart lower-lr
  runner compare 'seed*'
  runner compare quickstart lower-lr --by time --png curves.png
"""

from typing import Any

import click

from runner import completion
from runner.cli_options import JSON, Choice
from runner.console import CliContext

MAX_PLOT = (100, 22)  # columns and lines


@click.command(help=__doc__)
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN RUN ...", shell_complete=completion.runs
)
@click.option(
    "--by",
    "axis",
    type=Choice(["step", "tokens", "time"]),
    default="step",
    help="X axis of the plot.",
)
@click.option("--png", metavar="FILE", help="Also write the plot to this file.")
@JSON
@click.pass_obj
def command(
    cli: CliContext, runs: tuple[str, ...], axis: Any, png: str | None, as_json: bool
) -> int:
    from runner.errors import usage
    from runner.runs.find import match_names
    from runner.runs.history import read_runs
    from runner.views import compare as view
    from runner.views.charts import check_matplotlib, is_png

    names = match_names(cli, runs)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        only = (
            f"; '{runs[0]}' matches only {names[0]}"
            if len(names) == 1 and names[0] not in runs
            else ""
        )
        raise usage(f"compare needs two or more different runs{only}; `runner runs` lists them")
    if png:
        check_matplotlib()
        if not (folder := (cli.cwd / png).parent).is_dir():
            raise usage(f"--png {png}: no folder {folder}; create it, or choose a different file")
        if (cli.cwd / png).exists() and not is_png(cli.cwd / png):
            raise usage(f"--png {png} exists and is not a PNG; choose a different file")
    histories = read_runs(cli, names)
    if as_json:
        cli.json(view.to_json(histories))
    else:
        cli.print_table(view.table(histories), data=True)
        console = cli.console(data=True)
        plot = view.terminal_plot(histories, axis, min(console.width, MAX_PLOT[0]), MAX_PLOT[1])
        if plot is not None:
            cli.write("")
            console.print(plot)
    if png:
        from job.files import write_atomically

        write_atomically(cli.cwd / png, view.png(histories, axis))
        cli.info(f"written: {png}")
    return 0

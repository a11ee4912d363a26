"""Write a run as one HTML page: curves, samples, settings, attempts, cost.

\b
  runner report             the newest run, as RUN.html
  runner report my_run --output my_run.html
  runner report my_run --output - > my_run.html

The page is self-contained: it loads no other files.
"""

import click

from runner.cli_options import RUN
from runner.console import CliContext


@click.command(help=__doc__)
@RUN
@click.option(
    "--output", metavar="FILE", help="File to write, or - for stdout; by default RUN.html."
)
@click.pass_obj
def command(cli: CliContext, run: str | None, output: str | None) -> int:
    import time

    from job.files import write_atomically
    from runner.errors import usage
    from runner.runs.find import select_run
    from runner.runs.history import read_runs
    from runner.views.charts import check_matplotlib
    from runner.views.report import html, is_report

    check_matplotlib()
    run = select_run(cli, None).state.run if run is None else run
    name = output or f"{run}.html"
    path = cli.cwd / name
    if name != "-" and path.is_dir():
        raise usage(f"{name} is a folder; use --output {name.rstrip('/')}/{run}.html")
    if name != "-" and not path.parent.is_dir():
        raise usage(
            f"--output {name}: no folder {path.parent}; create it, or choose a different --output"
        )
    if name != "-" and path.exists() and not is_report(path):
        raise usage(f"{name} exists and is not a report; choose a different --output")
    (history,) = read_runs(cli, [run], all_samples=True)
    page = html(history, time.time())
    if name == "-":
        cli.write(page)
        return 0
    write_atomically(path, page)
    cli.write(name)
    cli.info(f"written, {len(page) / 1000:.0f} kB; open it in a browser")
    return 0

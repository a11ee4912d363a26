"""Write a run as one HTML page: curves, samples, settings, attempts, cost.

The page asks for nothing else, so it can be mailed or kept. Without --into it
is RUN.html here; `--into -` prints it.

\b
  runner report warm --into warm.html
"""

import click

from runner import completion
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.option("--into", metavar="FILE", help="The file to write.")
@click.pass_obj
def command(cli: CliContext, run: str, into: str | None) -> int:
    import time

    from job.files import write_atomically
    from runner.errors import usage
    from runner.runs.history import read_runs
    from runner.views.charts import need_matplotlib
    from runner.views.report import html, is_report

    need_matplotlib()
    name = into or f"{run}.html"
    path = cli.cwd / name
    if name != "-" and path.is_dir():
        raise usage(
            f"{name} is a folder; type: runner report {run} --into {name.rstrip('/')}/{run}.html"
        )
    if name != "-" and not path.parent.is_dir():
        raise usage(
            f"--into {name}: there is no folder {path.parent}; make it first, or choose another"
        )
    if name != "-" and path.exists() and not is_report(path):
        raise usage(f"{name} is there and is no report; choose another name with --into")
    (history,) = read_runs(cli, [run], all_samples=True)
    page = html(history, time.time())
    if name == "-":
        cli.write(page)
        return 0
    write_atomically(path, page)
    cli.write(name)
    cli.info(f"written, {len(page) / 1000:.0f} kB; a browser shows it")
    return 0

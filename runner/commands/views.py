"""Compare runs, write reports and show curves."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from job.files import write_atomically
from runner import completion
from runner.cli_options import JSON, RUN, Choice, Integer
from runner.console import CliContext
from runner.errors import RunnerError, usage
from runner.project import find_checkout, install_line, volumes

MAX_PLOT = (100, 22)  # columns and lines
DOWNLOAD_INTERVAL_S = 10.0  # of the curves of a run on another machine


@click.command()
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
def compare_command(
    cli: CliContext, runs: tuple[str, ...], axis: Any, png: str | None, as_json: bool
) -> None:
    """Compare runs: the settings that differ, results, and curves in one plot.

    \b
      runner compare quickstart lower-lr
      runner compare 'seed*'
      runner compare quickstart lower-lr --by time --png curves.png
    """
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
        _check_file(f"--png {png}", cli.cwd / png, "curves.png", is_png, "a PNG")
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
        write_atomically(cli.cwd / png, view.png(histories, axis))
        cli.info(f"written: {png}")


def _check_file(
    option: str, path: Path, example: str, is_replaceable: Callable[[Path], bool], kind: str
) -> None:
    """Raise RunnerError, exit status 2, if ``path`` cannot be written or is another file."""
    if path.is_dir():
        raise usage(f"{option} is a folder; use {option.rstrip('/')}/{example}")
    if not path.parent.is_dir():
        raise usage(f"{option}: no folder {path.parent}; create it, or choose a different file")
    if path.exists() and not is_replaceable(path):
        raise usage(f"{option} exists and is not {kind}; choose a different file")


@click.command()
@RUN
@click.option(
    "--output", metavar="FILE", help="File to write, or - for stdout; by default RUN.html."
)
@click.pass_obj
def report_command(cli: CliContext, run: str | None, output: str | None) -> None:
    """Write a run as one HTML page: curves, samples, settings, attempts, cost.

    \b
      runner report             the newest run, as RUN.html
      runner report my_run --output my_run.html
      runner report my_run --output - > my_run.html

    The page is self-contained: it loads no other files.
    """
    from runner.runs.find import select_run
    from runner.runs.history import read_runs
    from runner.views.charts import check_matplotlib
    from runner.views.report import html, is_report

    check_matplotlib()
    run = select_run(cli, None).state.run if run is None else run
    name = output or f"{run}.html"
    path = cli.cwd / name
    if name != "-":
        _check_file(f"--output {name}", path, f"{run}.html", is_report, "a report")
    (history,) = read_runs(cli, [run], all_samples=True)
    page = html(history, time.time())
    if name == "-":
        cli.write(page)
        return
    write_atomically(path, page)
    cli.write(name)
    cli.info(f"written, {len(page) / 1000:.0f} kB; open it in a browser")


@click.command()
@RUN
@click.option(
    "--port",
    type=Integer(1, 65535, "a port"),
    default=6006,
    envvar="TENSORBOARD_PORT",
    metavar="PORT",
    show_default=True,
    help="Port on this machine.",
)
@click.pass_obj
def tensorboard_command(cli: CliContext, run: str | None, port: int) -> int:
    """Show loss curves in TensorBoard; Ctrl-C stops the server.

    \b
      runner tensorboard              all runs on this machine
      runner tensorboard my_run       one run, also while it trains on Modal or a box
    """
    from runner.runs.find import find_run
    from runner.system import System
    from runner.targets.compose import run_service
    from runner.targets.process import follow_process

    resolved = find_run(cli, run) if run is not None else None
    remote = None
    if resolved and resolved.target.has_remote_volumes and not resolved.state.is_copy:
        remote = resolved.target.name
    path = f"cache/tensorboard/{run}" if remote else f"checkpoints/{run or ''}"
    volume, _, inside = path.partition("/")
    folder = Path(getattr(volumes(find_checkout(cli.cwd), cli.environ), volume), inside)
    folder.mkdir(parents=True, exist_ok=True)
    cli.info(f"curves of {run or 'all local runs'}: http://127.0.0.1:{port} (Ctrl-C stops it)")
    with _download(cli, str(run), folder.parent, remote) if remote else nullcontext():
        if find_spec("tensorboard") is not None:
            server = [sys.executable, "-m", "tensorboard.main"]
            server += ["--host", "127.0.0.1", "--port", str(port), "--logdir", str(folder)]
            server += ["--reload_interval", "5"]
            return follow_process(cli.environ, server, cli.cwd, until_ctrl_c=True)
        if problem := System(cli.environ).engine.problem:
            raise RunnerError(
                f"TensorBoard is not installed, and its container can't start ({problem}); "
                f"run:\n  {install_line('train')}"
            )
        cli.environ = {**cli.environ, "TENSORBOARD_PORT": str(port)}
        server = ["tensorboard", "--host", "0.0.0.0", "--port", "6006", "--logdir", f"/vol/{path}"]
        server += ["--reload_interval", "5"]
        return run_service(cli, "tensorboard", tuple(server), is_server=True)


@contextmanager
def _download(cli: CliContext, run: str, root: Path, target: str) -> Iterator[None]:
    """Download the run's TensorBoard files into ``root`` repeatedly; report each new error once."""
    from runner.transfer.mapping import open_mapping
    from runner.transfer.pull import pull_once

    mapping, stopped = open_mapping(cli, "checkpoints", root, target=target), threading.Event()

    def poll() -> None:
        reported = ""
        while True:
            _, error = pull_once(cli, mapping, f"{run}/tensorboard", everything=False)
            if error and error != reported:
                cli.info(f"curves can't be downloaded: {error}; trying again")
            reported = error
            if stopped.wait(DOWNLOAD_INTERVAL_S):
                return

    threading.Thread(target=poll, name="curves", daemon=True).start()
    try:
        yield
    finally:
        stopped.set()

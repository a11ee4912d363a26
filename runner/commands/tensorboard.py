"""Show loss curves in TensorBoard; Ctrl-C stops the server.

\b
  runner tensorboard              all runs on this machine
  runner tensorboard my_run       one run, also while it trains on Modal
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import click

from runner import completion
from runner.cli_options import Integer
from runner.console import CliContext
from runner.errors import RunnerError
from runner.project import find_checkout, install_line, volumes
from runner.runs.find import find_run
from runner.system import System
from runner.targets.compose_project import run_service
from runner.targets.process import follow_process
from runner.transfer.mapping import open_mapping
from runner.transfer.pull import pull_once

DOWNLOAD_INTERVAL_S = 10.0

CONTAINER_PATHS = {"checkpoints": "/vol/checkpoints", "cache": "/vol/cache"}


def serve(cli: CliContext, run: str | None, port: int) -> int:
    """Serve the curves at ``port`` until Ctrl-C. Raises RunnerError: 102 for an unknown run."""
    local_volumes = volumes(find_checkout(cli.cwd), cli.environ)
    resolved = find_run(cli, run) if run is not None else None
    is_remote = (
        resolved is not None and resolved.target.has_remote_volumes and not resolved.state.is_copy
    )
    volume, path = ("cache", f"tensorboard/{run}") if is_remote else ("checkpoints", run or "")
    folder: Path = getattr(local_volumes, volume) / path
    folder.mkdir(parents=True, exist_ok=True)
    cli.info(f"curves of {run or 'all local runs'}: http://127.0.0.1:{port} (Ctrl-C stops it)")
    with _download(cli, run, folder.parent) if run is not None and is_remote else nullcontext():
        if find_spec("tensorboard") is not None:
            server = [
                sys.executable,
                "-m",
                "tensorboard.main",
                *_options("127.0.0.1", port, folder),
            ]
            return follow_process(cli.environ, server, cli.cwd, until_ctrl_c=True)
        if problem := System(cli.environ).engine.problem:
            raise RunnerError(
                f"TensorBoard is not installed, and its container can't start ({problem}); "
                f"run:\n  {install_line('train')}"
            )
        argv = ("tensorboard", *_options("0.0.0.0", 6006, Path(CONTAINER_PATHS[volume], path)))
        cli.environ = {**cli.environ, "TENSORBOARD_PORT": str(port)}
        return run_service(cli, "tensorboard", argv, is_server=True)


def _options(host: str, port: int, folder: Path) -> list[str]:
    return [
        *("--host", host, "--port", str(port)),
        *("--logdir", str(folder), "--reload_interval", "5"),
    ]


@contextmanager
def _download(cli: CliContext, run: str, root: Path) -> Iterator[None]:
    """Download the run's TensorBoard files into ``root`` repeatedly; report each new error once."""
    mapping, stopped = open_mapping(cli, "checkpoints", root), threading.Event()

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


@click.command(help=__doc__)
@click.argument("run", required=False, metavar="[RUN]", shell_complete=completion.runs)
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
def command(cli: CliContext, run: str | None, port: int) -> int:
    return serve(cli, run, port)

"""TensorBoard in the browser: over all runs of this machine, or over one run, of the cloud too while it trains.

It is this Python's own where that has TensorBoard, else the compose file's service.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from runner.console import CliContext
from runner.errors import RunnerError
from runner.project import find_checkout, install_line, volumes
from runner.runs.find import find_run
from runner.system import System
from runner.targets.compose_project import follow_process, run_service

LOOK_SECONDS = 10.0  # between two looks at a run in the cloud

INSIDE = {"checkpoints": "/vol/checkpoints", "cache": "/vol/cache"}


def serve(cli: CliContext, run: str | None, port: int) -> int:
    """Show the curves at ``port`` of this machine until Ctrl-C. Raises RunnerError: 102 for a run that is not there."""
    here = volumes(find_checkout(cli.cwd), cli.environ)
    where, path = "checkpoints", run or ""
    found = find_run(cli, run) if run is not None else None
    if found is not None and found.target.has_remote_volumes and not found.state.is_copy:
        where, path = "cache", f"tensorboard/{run}"
    folder: Path = getattr(here, where) / path
    folder.mkdir(parents=True, exist_ok=True)
    cli.info(f"curves of {run or 'all runs here'}: http://127.0.0.1:{port} (Ctrl-C ends it)")
    with _kept_up_to_date(cli, run, folder.parent) if where == "cache" and run else _as_it_is():
        if find_spec("tensorboard") is not None:
            server = [
                sys.executable,
                "-m",
                "tensorboard.main",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ]
            return follow_process(cli, [*server, *_words(str(folder))], cli.cwd, until_ctrl_c=True)
        if problem := System(cli.environ).engine.problem:
            raise RunnerError(
                f"TensorBoard is neither in this Python nor in a container ({problem}); type:\n  {install_line('train')}"
            )
        logdir = f"{INSIDE[where]}/{path}".rstrip("/")
        words = ("tensorboard", "--host", "0.0.0.0", "--port", "6006", *_words(logdir))
        cli.environ = {**cli.environ, "TENSORBOARD_PORT": str(port)}
        return run_service(cli, "tensorboard", words, is_server=True)


def _words(folder: str) -> list[str]:
    return ["--logdir", folder, "--reload_interval", "5"]


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _kept_up_to_date(cli: CliContext, run: str, root: Path) -> Iterator[None]:
    """Fetch what the run has written for TensorBoard into ``root``, again and again. A look that fails is told once."""
    from runner.transfer.mapping import open_mapping
    from runner.transfer.pull import pull_once

    place, ended = open_mapping(cli, "checkpoints", root), threading.Event()

    def keep() -> None:
        told = ""
        while True:
            _, why = pull_once(cli, place, f"{run}/tensorboard", everything=False)
            if why and why != told:
                cli.info(f"no new curves from the cloud: {why}; trying again")
            told = why
            if ended.wait(LOOK_SECONDS):
                return

    looker = threading.Thread(target=keep, name="curves", daemon=True)
    looker.start()
    try:
        yield
    finally:
        ended.set()

"""The host: a job is a process of this machine, in the Python that runs the runner.

It gets a session of its own, so that a Ctrl-C at the terminal reaches the runner alone, which passes it on
once; and so that a detached job outlives the terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from job.exit_status import ExitStatus
from job.paths import CACHES
from runner.console import CliContext
from runner.plan import Plan, TargetState, Volume
from runner.planning.plan import make_plan
from runner.project import install_line, secret_values, volumes
from runner.request import Request
from runner.runs.store import (
    forget_unbegun,
    make_folder,
    note_exit,
    read_exit,
    read_launch,
    state_named,
    states,
    write_launch,
)
from runner.signals import Interrupts, keep
from runner.system import System, wait_until
from runner.target import LaunchHandle, LocalVolume, RunInfo, Target, VolumeFiles
from runner.targets.inspect_local import inspect_local
from runner.targets.process import (
    for_command,
    identity_of,
    is_alive,
    occupied,
    signal_group,
    signal_leader,
    this_machine,
)

# How long `stop` waits for the checkpoint, in seconds, before it says that it is still being written.
STOP_SECONDS = 180.0


class HostTarget:
    """The target ``host``."""

    name = "host"
    poll_interval_s = 0.2

    def __init__(
        self, cli: CliContext, checkout: Path, has_module: Callable[[str], bool] | None = None
    ) -> None:
        self.cli = cli
        self.checkout = checkout
        self.locations = volumes(checkout, cli.environ)
        self.has_module = has_module or (lambda name: find_spec(name) is not None)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._launched: dict[str, LaunchHandle] = {}

    def facts(self, request: Request) -> TargetState:
        """Look for modules, GPUs, the run's folder and the commit."""
        found = inspect_local(self, self.cli, self.checkout, self.locations, request)
        here = self.locations
        own = {name: value for name in CACHES if (value := self.cli.environ.get(name))}
        variables = here.environment() | {
            name: str(self.cli.cwd / path) for name, path in own.items()
        }
        if request.command is not None:
            variables |= for_command(self.cli.environ)
        return replace(
            found,
            workspace=str(self.checkout),
            volumes=tuple(
                Volume(name, str(path), str(path))
                for name, path in (
                    ("data", here.data),
                    ("checkpoints", here.checkpoints),
                    ("cache", here.cache),
                )
            ),
            python=(sys.executable,),
            torchrun=(sys.executable, "-m", "torch.distributed.run"),
            contained=False,
            gpus=None if sys.platform == "darwin" else len(System(self.cli.environ).gpus),
            missing=tuple(module for module in request.job.needs if not self.has_module(module)),
            remedy=install_line("train"),
            environment=tuple(variables.items()),
            occupied=occupied(request.command) if request.command else (),
        )

    def plan(self, request: Request, facts: TargetState) -> Plan:
        """Nothing beyond what every target does."""
        return make_plan(request, facts)

    def start(self, plan: Plan) -> LaunchHandle:
        """Start the process. A detached one writes what it prints to ``output.txt`` in the run's folder."""
        environ = {
            **self.cli.environ,
            **dict(plan.environment),
            **secret_values(plan.secrets, self.cli.environ, self.checkout),
        }
        folder = self.locations.run(plan.run)
        if plan.is_noted:
            make_folder(folder)
        started = time.time()
        if not plan.detach:
            keep()
        process = (
            self._detach(plan, folder, environ) if plan.detach else self._attach(plan, environ)
        )
        launch = LaunchHandle(
            run=plan.run,
            target=self.name,
            job=plan.job,
            id=str(process.pid),
            started=started,
            detached=plan.detach,
            gpus=plan.gpus,
            device=plan.device,
            machine=this_machine(),
            identity=identity_of(process.pid),
        )
        if plan.is_noted:
            try:
                write_launch(folder, launch)
            except OSError:  # a full disk: nobody would find the job again
                signal_group(launch, signal.SIGKILL)
                raise
            self._launched[plan.run] = launch
        self._processes[launch.id] = process
        return launch

    def follow(self, started: LaunchHandle) -> int:
        """Wait for the process; the first Ctrl-C is passed on, the second kills every process of the job."""
        process = self._processes[started.id]
        folder, say = self.locations.run(started.run), self.cli.info

        def first(which: signal.Signals) -> None:
            say(f"stopping: {started.job} finishes what it is at; Ctrl-C again kills it")
            asked = signal.SIGINT if which == signal.SIGINT else signal.SIGTERM
            signal_leader(started, asked)

        def again() -> None:
            say("killing it")
            signal_group(started, signal.SIGKILL)

        with Interrupts(first, again) as interrupts:
            code = process.wait()
        code = code if code >= 0 else 128 - code
        if read_launch(folder) == started:
            note_exit(folder, code)
            if forget_unbegun(folder, code):
                self._launched.pop(started.run)
        return int(ExitStatus.INTERRUPTED) if interrupts.killed and code else code

    def stop(self, run: str, now: bool = False) -> bool:
        """SIGTERM, and wait for the checkpoint; or SIGKILL."""
        folder = self.locations.run(run)
        started = read_launch(folder)
        if started is None or started.target != self.name or not is_alive(started):
            return False
        if now:
            signal_group(started, signal.SIGKILL)
        else:
            signal_leader(started, signal.SIGTERM)
        wait_until(
            lambda: not is_alive(started),
            STOP_SECONDS,
            f"run '{run}' is still stopping; `runner status {run}` says when it is done, "
            f"`runner stop {run} --now` kills it",
        )
        return True

    def runs(self) -> Iterable[RunInfo]:
        """Every run whose last attempt was a process of this machine."""
        return states(self.locations.checkpoints, self.name, self._look)

    def state(self, run: str) -> RunInfo | None:
        """One of ``runs``."""
        return state_named(run, self.locations.checkpoints, self.name, self._look)

    def launched(self, run: str) -> LaunchHandle | None:
        """What the run's folder says; of a folder that was deleted meanwhile, what was started from here."""
        return read_launch(self.locations.run(run)) or self._launched.get(run)

    def output(self, run: str, lines: int) -> list[str]:
        """The end of ``output.txt``; empty where the last attempt was not detached."""
        try:
            text = (self.locations.run(run) / "output.txt").read_text(errors="replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    def files(self, volume: str) -> VolumeFiles:
        """The volume's folder."""
        return LocalVolume(getattr(self.locations, volume))

    def _look(self, started: LaunchHandle) -> tuple[bool, int | None]:
        return is_alive(started), read_exit(self.locations.run(started.run))

    def _attach(self, plan: Plan, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            plan.command, cwd=self.checkout, env=environ, start_new_session=True
        )

    def _detach(self, plan: Plan, folder: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        # The supervisor is this installation's (-P), the job the checkout's, which is its working folder.
        command = [
            sys.executable,
            "-P",
            "-m",
            "runner.targets.detached",
            str(folder),
            *plan.command,
        ]
        package = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), package]))
        with (folder / "output.txt").open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.checkout,
                env={**environ, "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def open_target(cli: CliContext, checkout: Path) -> Target:
    """The target for ``checkout``."""
    return HostTarget(cli, checkout)

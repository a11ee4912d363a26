"""The target ``host``: a job is a process of this machine, in the Python that runs the runner.

Each job gets its own session: a Ctrl-C at the terminal reaches only the runner, which passes it on
once, and a detached job outlives the terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from job.paths import CACHES, VOLUMES
from job.run_record import lock_holder
from job.user_command.process import missing_program
from runner.console import CliContext
from runner.errors import usage
from runner.plan import JobEnvironment, Plan, TargetState, Volume
from runner.project import INSTALLED, install_line, secret_values, volumes
from runner.request import CommandRequest, Request, UserCommand
from runner.runs.store import ProbeLaunch, read_launch
from runner.signals import hold_signals
from runner.system import System, wait_until
from runner.target import LaunchHandle
from runner.targets.base import LocalTarget, has_terminal
from runner.targets.process import (
    ask_to_stop,
    follow_process,
    identity_of,
    is_alive,
    kill,
    machine_name,
    start_detached,
)

STOP_TIMEOUT_S = 180.0  # for the checkpoint; then `stop` reports that the run is still stopping

# Set in a shell with an active environment, whose `python` is the user's choice.
ACTIVE_ENVIRONMENT = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_VIRTUAL_ENV")


class HostTarget(LocalTarget):
    """Runs jobs as processes of this machine."""

    name = "host"

    def __init__(
        self, cli: CliContext, checkout: Path, has_module: Callable[[str], bool] | None = None
    ) -> None:
        super().__init__(cli, checkout, volumes(checkout, cli.environ))
        self.has_module = has_module or (lambda name: find_spec(name) is not None)

    def inspect(self, request: Request) -> TargetState:
        """Return the modules, GPUs, variables and the run's state."""
        caches = {name: value for name in CACHES if (value := self.cli.environ.get(name))}
        variables = self.volumes.environment() | {
            name: str(self.cli.cwd / path) for name, path in caches.items()
        }
        if request.command is not None:
            variables |= command_environment(self.cli.environ)
        folders = {name: str(getattr(self.volumes, name)) for name in VOLUMES}
        environment = JobEnvironment(
            workspace=str(self.checkout),
            volumes=tuple(Volume(name, path, path) for name, path in folders.items()),
            python=(sys.executable,),
            torchrun=(sys.executable, "-m", "job.torchrun"),
            is_container=False,
            variables=tuple(variables.items()),
        )
        state = self.inspect_request(request, environment)
        if request.device == "mps" and sys.platform != "darwin":
            raise usage(
                "--device mps is the GPU of a Mac; remove it to use the GPU of this machine"
            )
        if state.folder is not None and request.command is not None:
            state = replace(
                state, folder=replace(state.folder, occupied=occupied_paths(request.command))
            )
        needs = (*request.job.needs, *request.trackers)  # a tracker's name is its module's
        missing = tuple(module for module in needs if not self.has_module(module))
        extra_of = {"torch": "train", **{name: name for name in request.trackers}}
        extras = dict.fromkeys(extra_of.get(name, request.job.extra) for name in missing)
        gpus = None if sys.platform == "darwin" else len(System(self.cli.environ).gpus)
        return replace(
            state,
            gpus=gpus,
            queue=self.queue_state(request, gpus or 0),
            missing_modules=missing,
            install_command=install_line(*extras),
        )

    def check_program(self, request: CommandRequest) -> None:
        """Look the program up in the command's PATH. Raises RunnerError."""
        environ = {**self.cli.environ, **command_environment(self.cli.environ)}
        environ |= dict(request.target_options.environment)
        command = request.command
        if problem := missing_program(command.argv[0], command.folder, environ.get("PATH")):
            raise usage(problem)

    def start(self, plan: Plan) -> LaunchHandle:
        """Start the process."""
        with self._starting(plan) as folder:
            return self._start_in(folder, plan)

    def _start_in(self, folder: Path, plan: Plan) -> LaunchHandle:
        job = plan.process
        environ = {**self.cli.environ, **dict(job.environment), **self._secrets(plan)}
        started = time.time()
        if plan.detach:
            process = start_detached(job.command, folder, self.checkout, environ)
        else:
            hold_signals()
            own_session = not has_terminal(plan.job)
            process = subprocess.Popen(
                job.command, cwd=self.checkout, env=environ, start_new_session=own_session
            )
        launch = LaunchHandle.of(
            plan,
            self.name,
            str(process.pid),
            started=started,
            location=machine_name(),
            identity=identity_of(process.pid),
        )
        try:
            self._record(plan, launch)
        except OSError:  # a full disk: without its record the job could not be found again
            kill(launch)
            raise
        self._processes[launch.id] = process
        return launch

    def stop(self, run: str, force: bool = False) -> bool:
        """Send SIGTERM and wait for the checkpoint; with ``force``, SIGKILL."""
        launch = self._active_launch(run)
        if launch is None:
            return False
        if force:
            kill(launch)
        else:
            ask_to_stop(launch)
        wait_until(
            lambda: not is_alive(launch),
            STOP_TIMEOUT_S,
            f"run '{run}' is still stopping; check on it with `runner status {run}`, "
            f"or kill it: `runner stop {run} --force`",
        )
        return True

    def _active_launch(self, run: str) -> LaunchHandle | None:
        """Return the launch of the process that works on the run; None without one.

        A second launch at the same moment is refused, but may have replaced the first one's record:
        then the run's lock names the process.
        """
        folder = self.volumes.run(run)
        launch = read_launch(folder)
        if launch is not None and launch.target == self.name and is_alive(launch):
            return launch
        holder = lock_holder(folder)
        if holder is None or launch is None or launch.target != self.name:
            return None
        return replace(
            launch, id=str(holder), location=machine_name(), identity=identity_of(holder)
        )

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Run the command at the terminal; tmux keeps a shell if the connection is lost."""
        plan = self.plan(request, self.inspect(request))
        environ = {**self.cli.environ, **dict(plan.process.environment), **self._secrets(plan)}
        return follow_process(environ, plan.process.command, self.checkout)

    def enter(self, run: str, argv: Sequence[str]) -> int:
        """Run ``argv`` on this machine with the variables and in the folder of the run."""
        launch = self.launched(run)
        process = Path("/proc", launch.id if launch is not None else "self")
        try:
            lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # macOS, or it has just ended
            lines = []
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
        if "TERM" in self.cli.environ:
            variables["TERM"] = self.cli.environ["TERM"]
        folder = self.volumes.run(run)
        environ = {**self.cli.environ, **variables, "RUN_NAME": run, "OUT_DIR": str(folder)}
        return follow_process(environ, argv, folder)

    def output(self, run: str, lines: int) -> list[str]:
        """Return the end of ``output.txt``; [] if the last attempt was not detached."""
        try:
            output = self.volumes.run(run) / "output.txt"
            text = output.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    def _secrets(self, plan: Plan) -> dict[str, str]:
        return secret_values(plan.process.secrets, self.cli.environ, self.checkout)

    def _prober(self, run: str | None) -> ProbeLaunch:
        return lambda launch: (is_alive(launch), None)

    def _interrupt(self, launch: LaunchHandle, received: signal.Signals) -> bool:
        ask_to_stop(launch, signal.SIGINT if received == signal.SIGINT else signal.SIGTERM)
        return True

    def _kill(self, launch: LaunchHandle) -> None:
        kill(launch)


def command_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables for the supervisor of a user's command.

    It imports the installed packages, which the command does not see. ``python`` is the runner's
    own, unless an environment is active in this shell.
    """
    python_path = os.pathsep.join(filter(None, [str(INSTALLED), environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": python_path}
    if not any(environ.get(name) for name in ACTIVE_ENVIRONMENT):
        programs = str(Path(sys.executable).parent)
        variables["PATH"] = os.pathsep.join(filter(None, [programs, environ.get("PATH")]))
    return variables


def occupied_paths(command: UserCommand) -> tuple[str, ...]:
    """Return the persisted paths that are folders with the user's files, which stay there."""
    paths = {option.path: command.folder / option.path for option in command.persist}
    return tuple(
        name
        for name, path in paths.items()
        if path.is_dir() and not path.is_symlink() and any(path.iterdir())
    )


open_target = HostTarget

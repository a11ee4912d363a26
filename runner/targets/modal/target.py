"""The target ``cloud``: a job is a function call on Modal, with the same Dockerfile and volumes.

Modal's client is imported at the first request: `runner runs` without an account must not wait
for it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus
from job.paths import VOLUMES
from runner.console import CliContext
from runner.errors import RunnerError
from runner.plan import Plan, TargetState
from runner.planning.gpus import BUILT_IN_PRICES, Prices, current_prices, usd_per_hour
from runner.planning.plan import already_active_message
from runner.project import volumes
from runner.request import SHELL_PREFIX, CommandRequest, Request, ServeRequest
from runner.runs.attempts import LAUNCH_NAME, STOP_NAME
from runner.runs.store import launch_json
from runner.runs.table import runner_status
from runner.signals import hold_signals
from runner.system import wait_until
from runner.target import LaunchHandle, RunCost, RunInfo, RunSource, Target, VolumeFiles
from runner.targets.modal import TARGET_NAME, calls, sandbox
from runner.targets.modal import runs as records
from runner.targets.modal.app import deploy_server, start_call
from runner.targets.modal.client import (
    NO_TOKEN,
    check_reachable,
    is_configured,
    need_token,
    unavailable_as_error,
)
from runner.targets.modal.image import ImageBuilds
from runner.targets.modal.inspect import EarlyRequests, inspect_modal
from runner.targets.modal.options import WITHOUT_GPU, ResolvedOptions, resolve_options
from runner.targets.modal.plan import ModalState, modal_plan
from runner.targets.modal.volume import ModalVolumeFiles

STOP_TIMEOUT_S = 900.0  # for the checkpoint
STOP_POLL_S = 2.0  # how long one poll of a stopping call waits

# A launch so soon after its plan does not read the run again. The container refuses a second
# launch, so a shorter time would win nothing.
RECENT_S = 5.0


class ModalTarget(Target):
    """The target ``cloud``."""

    name = TARGET_NAME
    poll_interval_s = 2.0  # each poll takes about ten requests
    bills = True
    has_remote_volumes = True
    default_parallel_trials = 4

    def __init__(self, cli: CliContext, checkout: Path) -> None:
        self.cli = cli
        self.checkout = checkout
        self.volumes = volumes(checkout, {})
        self.builds = ImageBuilds(checkout, self.volumes.cache, cli.environ)
        self._live_prices: Prices | None = None
        self._active_run: tuple[records.CloudRun, RunInfo] | None = None
        self._read_at = 0.0
        self._early: EarlyRequests | None = None
        self._files = {name: ModalVolumeFiles(name, cli.environ) for name in VOLUMES}

    def is_configured(self) -> bool:
        """Return True if there is a Modal token."""
        return is_configured(self.cli.environ)

    def check_configured(self) -> None:
        """Raise RunnerError without a Modal token."""
        need_token(self.cli.environ)

    def connect(self) -> None:
        """Import the client, and start the requests of every launch."""
        if self.is_configured():
            self._early = self.early_requests()

    def early_requests(self) -> EarlyRequests:
        """Start the requests of every launch."""
        return EarlyRequests(self.cli.environ, self._files.values())

    def mirror(self) -> RunSource:
        """Return the pulled copies of runs on Modal."""
        checkpoints = volumes(self.checkout, self.cli.environ).checkpoints
        return records.MirroredRuns(checkpoints, self.name)

    def inspect(self, request: Request) -> ModalState:
        """Return the run's records and the dataset on Modal, and the state of the image."""
        early, self._early = self._early, None  # a later plan asks again
        state = inspect_modal(self, request, early)
        self._live_prices = state.live
        self._active_run, self._read_at = state.active_run, time.monotonic()
        files = self._files["checkpoints"]
        records.check_monthly_cap(files, self.cli.environ, self.checkout, request)
        return state

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return the plan, with its cost."""
        assert isinstance(state, ModalState)
        return modal_plan(request, state, resolve_options(request), self._prices(state.live))

    def _prices(self, live: Prices | None) -> Prices:
        return current_prices(self.checkout, self.cli.environ, live or BUILT_IN_PRICES)

    def usd_per_hour(self, options: ResolvedOptions) -> dict[str, float]:
        """Return the price of a launch by GPU type."""
        prices = self._prices(self._live_prices)
        return usd_per_hour(options.machine, options.nodes, options.region, prices)

    def start(self, plan: Plan) -> LaunchHandle:
        """Build the image if needed, spawn the call, and record it in the run's folder."""
        need_token(self.cli.environ, "or run it on this machine: runner local")
        options = plan.target_options
        assert isinstance(options, ResolvedOptions)
        if plan.job == ServeRequest.job.name:
            return deploy_server(self, plan, options)
        if options.prepares_first:
            self._prepare_data(plan, options)
        used_s = 0.0
        if plan.records_launch:
            run, state = self._find_active(plan.run)
            if run.is_on_modal and state.alive:
                if not run.is_unconfirmed:
                    raise RunnerError(already_active_message(plan.run, f"{state.status} on Modal"))
                # Its client ended before it recorded the function call.
                name, app = plan.run, run.app
                if not plan.detach:
                    hold_signals()
                self.cli.info(f"run '{name}' was started before as app {app}; attaching to it")
                return replace(self.handle(plan, options), id=run.call, location=app)
            used_s = run.log.seconds(time.time())
        handle = self._spawn(plan, options, used_s)
        if not plan.detach:
            hold_signals()
        return handle

    def _find_active(self, run: str) -> tuple[records.CloudRun, RunInfo]:
        """Return the run and its state, as the plan found them if that was just now.

        It can have been started since.
        """
        cached, is_recent = self._active_run, time.monotonic() - self._read_at < RECENT_S
        if cached is not None and cached[0].name == run and is_recent:
            return cached
        return records.find_active(self.read(run))

    def _prepare_data(self, plan: Plan, options: ResolvedOptions) -> None:
        """Prepare the dataset without a GPU, and wait for it. Raises RunnerError if that fails."""
        self.cli.info("preparing the dataset on a machine without a GPU, before GPUs are rented")
        words = [plan.recipe] if plan.recipe else []
        command = ("python", "-m", "corpus.prepare", *words, *plan.overrides)
        process = replace(plan.process, command=command)
        preparation = replace(plan, job="prepare", process=process, writes_run=False, detach=False)
        handle = self._spawn(preparation, replace(options, machine=WITHOUT_GPU, nodes=1))
        code = self.follow(handle)
        if code is None:
            raise RunnerError(
                "the data is still being prepared, and no GPU was rented; when it is done, run the "
                "same command again",
                ExitStatus.INTERRUPTED,
            )
        if code:
            raise RunnerError(
                "preparing the dataset failed, and no GPU was rented; run the same command again "
                "to resume",
                runner_status(code),
            )

    def _spawn(self, plan: Plan, options: ResolvedOptions, used_s: float = 0.0) -> LaunchHandle:
        """Start the call of ``plan``, whose run has used up ``used_s``, and record it."""
        handle = start_call(self, plan, options, used_s)
        if plan.records_launch:
            self._confirm(handle)
        return handle

    def mounts(self) -> dict[Any, Any]:
        """Return the volumes by their mount points, created if they are missing."""
        return {f"/vol/{name}": files.create() for name, files in self._files.items()}

    def handle(self, plan: Plan, options: ResolvedOptions) -> LaunchHandle:
        """Return the handle of a new launch, without its app and its call."""
        own = {"gpus": options.gpus.count, "target_options": options}
        return LaunchHandle.of(plan, self.name, "", identity=uuid.uuid4().hex, **own)

    def record(self, handle: LaunchHandle) -> None:
        """Write the launch into the run's folder on the volume."""
        self._files["checkpoints"].write(f"{handle.run}/{LAUNCH_NAME}", launch_json(handle))

    def _confirm(self, handle: LaunchHandle) -> None:
        """Record the id of the call. The container records it too, as soon as it starts."""
        try:
            self.record(handle)
        except KeyboardInterrupt:
            calls.cancel_call(handle.id, kill=True)
            raise
        except (OSError, RunnerError) as error:
            message = getattr(error, "message", error)
            self.cli.warn(
                f"run '{handle.run}' started as {handle.id}, but that was not recorded: {message}"
            )

    def follow(self, started: LaunchHandle) -> int | None:
        """Print the job's output until it ends. Ctrl-C asks whether to stop it or to detach."""
        return calls.follow(self, started)

    def stop(self, run: str, force: bool = False) -> bool:
        """Write a request that the container finds within seconds; cancel a call without one."""
        if run.startswith(SHELL_PREFIX):
            shell = sandbox.find_shell(run)
            if shell is not None:
                shell.sandbox.terminate()
            return shell is not None
        cloud_run, state = records.find_active(self.read(run))
        if not state.alive:
            return False
        has_attempt = bool(cloud_run.log.attempts) and not cloud_run.is_launch_newest
        if has_attempt:  # with --force too, so that the record has the reason
            self._write_stop_request(run, cloud_run.call)
        if not cloud_run.call:
            calls.stop_app(cloud_run.app)
        elif force or not has_attempt:
            calls.cancel_call(cloud_run.call, kill=force)
        wait_until(
            lambda: not records.poll_run(cloud_run, STOP_POLL_S).alive,
            STOP_TIMEOUT_S,
            f"run '{run}' is still stopping; check `runner status {run}`, or kill it with "
            f"`runner stop {run} --force`",
        )
        if cloud_run.launch is not None and cloud_run.launch.job == ServeRequest.job.name:
            self._files["checkpoints"].remove(run, recursive=True)  # it holds nothing else
        return True

    def request_stop(self, handle: LaunchHandle) -> None:
        """Ask the call of ``handle`` to stop, without waiting."""
        run = self.read(handle.run)
        call = handle.id or (run.call if run.app == handle.location else "")
        if call and any(attempt.call == call for attempt in run.log.attempts):
            self._write_stop_request(handle.run, call)
        elif call:
            calls.cancel_call(call)
        else:
            calls.stop_app(handle.location)

    def _write_stop_request(self, run: str, call: str) -> None:
        request = json.dumps({"call": call, "asked": time.time()})
        self._files["checkpoints"].write(f"{run}/{STOP_NAME}", request)

    def costs(self, since: float) -> list[RunCost]:
        """Return the cost of each run since then, by its record and by Modal's bill."""
        need_token(self.cli.environ)
        return records.costs_since(self._files["checkpoints"], since)

    def remove(self, path: str) -> None:
        """Delete a folder of the checkpoints volume on Modal."""
        self._files["checkpoints"].remove(path, recursive=True)

    def write_record(self, run: str, name: str, text: str) -> None:
        """Write a small file on the volume; the container polls for a request."""
        self._files["checkpoints"].write(f"{run}/{name}", text)

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on Modal; none without an account.

        Raises RunnerError offline.
        """
        if not self.is_configured():
            if not self.builds.is_empty():
                raise RunnerError(NO_TOKEN)
            return []
        check_reachable(self.cli.environ)
        with unavailable_as_error(), ThreadPoolExecutor(1) as pool:
            shells = pool.submit(sandbox.open_shells)
            runs = records.all_states(self._files["checkpoints"])
            return [*runs, *(shell.info() for shell in shells.result())]

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on Modal."""
        if not self.is_configured():
            return None
        check_reachable(self.cli.environ)
        with unavailable_as_error():
            if run.startswith(SHELL_PREFIX):
                shell = sandbox.find_shell(run)
                return shell.info() if shell is not None else None
            cloud_run, state = records.find_active(self.read(run))
            if not cloud_run.is_on_modal:
                return None
            if not state.alive and cloud_run.log.status is None:  # it may have ended in between
                state = records.state_of(self.read(run))
            return state

    def open_shell(
        self, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
    ) -> int:
        """Run the command in a sandbox, or attach to the open shell."""
        return sandbox.run_shell(self, request, is_command, idle_s, yes)

    def enter(self, run: str, argv: Sequence[str]) -> int:
        """Run ``argv`` in the container of the run's attempt."""
        return sandbox.enter_container(self.cli, run, self.read(run).log.attempts, argv)

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the launch recorded in the run's folder."""
        return self.read(run).launch

    def output(self, run: str, lines: int) -> list[str]:
        """Return the newest call's last output lines that Modal still has."""
        cloud_run = self.read(run)
        return calls.read_log(cloud_run.app, lines) if cloud_run.app else []

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume on Modal, which is opened at the first access."""
        return self._files[volume]

    def block_files(self, volume: str, create: bool = False) -> ModalVolumeFiles:
        """Return the volume's files; ``create`` creates a missing volume."""
        need_token(self.cli.environ)
        files = self._files[volume]
        if create:
            files.create()
        return files

    def read(self, run: str) -> records.CloudRun:
        """Return the run's records on the volume."""
        return records.read_run(self._files["checkpoints"], run)


open_target = ModalTarget

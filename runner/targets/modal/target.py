"""The target ``cloud``: a job is a function call on Modal, with the same Dockerfile and volumes.

Modal's client is imported at the first request: `runner runs` without an account must not wait
for it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from job.exit_status import ExitStatus
from job.paths import VOLUMES
from job.user_command.checkpoint_backup import MARKER
from runner.console import CliContext
from runner.errors import ModalUnavailable, RunnerError
from runner.jobs import COMMAND
from runner.plan import Plan, TargetState
from runner.planning.plan import already_active
from runner.pricing.prices import BUILT_IN, Prices, current_prices, usd_per_hour
from runner.project import volumes
from runner.request import Request
from runner.runs.attempts import STOP_NAME
from runner.runs.endings import runner_status
from runner.runs.store import LAUNCH_NAME, launch_json
from runner.signals import hold_signals
from runner.system import wait_until
from runner.target import LaunchHandle, RunInfo, RunSource, VolumeFiles
from runner.targets.modal import TARGET_NAME, account, calls, follow, image
from runner.targets.modal import runs as records
from runner.targets.modal.app import AppLaunch, JobFolder, attempt_limit, start_app
from runner.targets.modal.client import check_reachable, unreachable_message
from runner.targets.modal.deadlines import attempt_timeout
from runner.targets.modal.inspect import inspect_modal
from runner.targets.modal.mirror import MirroredRuns
from runner.targets.modal.options import WITHOUT_GPU, ResolvedOptions, resolve_options
from runner.targets.modal.plan import ModalState, modal_plan
from runner.targets.modal.volume import LazyVolumeFiles, modal_name

if TYPE_CHECKING:
    from runner.targets.modal.entrypoint import JobSpec

STOP_TIMEOUT_S = 900.0  # for the checkpoint
STOP_POLL_S = 2.0


class ModalTarget:
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
        self._live_prices: Prices | None = None
        self._files = {name: LazyVolumeFiles(name, cli.environ) for name in VOLUMES}

    def is_configured(self) -> bool:
        """Return whether there is a Modal token."""
        return account.is_configured(self.cli.environ)

    def check_configured(self) -> None:
        """Raise RunnerError if there is no Modal token."""
        account.need_token(self.cli.environ)

    def mirror(self) -> RunSource:
        """Return the pulled copies of runs on Modal."""
        checkpoints = volumes(self.checkout, self.cli.environ).checkpoints
        return MirroredRuns(checkpoints, self.name)

    def inspect(self, request: Request) -> ModalState:
        """Return the run's records and the dataset on Modal, and the state of the image."""
        state = inspect_modal(self.cli, self.checkout, self._files, request)
        self._live_prices = state.live
        return state

    def plan(self, request: Request, state: TargetState) -> Plan:
        """Return the plan, with its cost."""
        assert isinstance(state, ModalState)
        return modal_plan(request, state, resolve_options(request), self._prices(state.live))

    def _prices(self, live: Prices | None) -> Prices:
        return current_prices(self.checkout, self.cli.environ, live or BUILT_IN)

    def start(self, plan: Plan) -> LaunchHandle:
        """Build the image if needed, spawn the call, and record it in the run's folder."""
        account.need_token(self.cli.environ, "or run it here: runner local")
        options = plan.target_options
        assert isinstance(options, ResolvedOptions)
        if options.prepares_first:
            self._prepare_data(plan, options)
        if plan.records_launch and (active := self._active_launch(plan.run)) is not None:
            return active
        handle = self._spawn(plan, options)
        if not plan.detach:
            hold_signals()
        return handle

    def _active_launch(self, run: str) -> LaunchHandle | None:
        """Return a launch to attach to: its client ended before it recorded the function call.

        Raises RunnerError if the run is active otherwise: it can have been started since the plan.
        """
        found = self.read(run)
        if not found.is_on_modal:
            return None
        state = records.state_of(found)
        if not state.alive:
            return None
        if found.is_unconfirmed and found.launch is not None:
            self.cli.info(f"run '{run}' was started before as app {found.app}; attaching to it")
            return replace(found.launch, id=found.call, location=found.app)
        raise RunnerError(already_active(run, f"{state.status} in the cloud"))

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

    def _spawn(self, plan: Plan, options: ResolvedOptions) -> LaunchHandle:
        """Start the call of ``plan``.

        The launch is recorded before the call is spawned: if this process ends in between, the app
        is found by the record, and its call by ``cloud.json``, which the container writes.
        """
        used_s = self.read(plan.run).log.seconds(time.time()) if plan.records_launch else 0.0
        timeout_s = attempt_timeout(options.timeout_s, used_s, attempt_limit(self.cli.environ))
        handle = LaunchHandle(
            run=plan.run,
            target=self.name,
            job=plan.job,
            id="",
            started=time.time(),
            detached=plan.detach,
            gpus=options.gpus.count,
            device=plan.process.device,
            identity=uuid.uuid4().hex,
            target_options=options,
        )
        folder = JobFolder.from_plan(plan)
        launch = AppLaunch(
            handle.identity,
            self._job_spec(plan, options, timeout_s),
            options,
            plan.process.secrets,
            timeout_s,
            self._is_image_built(plan),
            folder,
        )

        def on_app(app: str) -> None:
            self._remember_image(folder.setup_digest if folder else "")
            if plan.records_launch:
                self._record(replace(handle, location=app))

        app, call = start_app(
            launch, self.checkout, self.cli.environ, on_app, self.cli.info, not plan.as_json
        )
        handle = replace(handle, location=app, id=call)
        if plan.records_launch:
            self._confirm(handle)
        return handle

    def _job_spec(self, plan: Plan, options: ResolvedOptions, timeout_s: int) -> JobSpec:
        table = self._prices(self._live_prices)
        is_command = plan.job == COMMAND.name
        return {
            "run": plan.run,
            "job": plan.job,
            "command": list(plan.process.command),
            "env": dict(plan.process.environment),
            "volumes": {name: modal_name(name, self.cli.environ) for name in VOLUMES},
            "keeps_record": plan.records_launch,
            "attempt_s": float(timeout_s),
            "total_s": options.timeout_s,
            "max_cost": options.max_cost,
            "usd_per_hour": usd_per_hour(options.machine, options.nodes, options.region, table),
            "nodes": options.nodes,
            "stop_stalled_after_s": options.stop_stalled_after_s,
            "stop_idle_gpu_after_s": options.stop_idle_gpu_after_s,
            # A command writes where it likes, and marks no checkpoint as complete. The supervisor's
            # note about the checkpoint to resume from is the nearest to that.
            "commits": ["checkpoints", "data"] if is_command else ["checkpoints"],
            "marker": MARKER if is_command else "latest",
        }

    def _is_image_built(self, plan: Plan) -> bool:
        """Return whether Modal has the image, announcing a build."""
        account_id = account.account_id(self.cli.environ)
        is_built, _ = image.describe(self.checkout, self.volumes.cache, account_id)
        if not is_built:
            self.cli.info("building the image on Modal, which takes some minutes the first time")
        elif plan.folder is not None and not plan.folder.is_setup_built:
            self.cli.info("adding the setup to the image on Modal")
            return False
        return is_built

    def _record(self, handle: LaunchHandle) -> None:
        self._files["checkpoints"].write(f"{handle.run}/{LAUNCH_NAME}", launch_json(handle))

    def _confirm(self, handle: LaunchHandle) -> None:
        """Record the id of the call. The container records it too, as soon as it starts."""
        try:
            self._record(handle)
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
        return follow.follow(self, started)

    def stop(self, run: str, force: bool = False) -> bool:
        """Leave a request that the container finds within seconds; cancel a call without one."""
        found = self.read(run)
        if not records.state_of(found).alive:
            return False
        has_attempt = bool(found.log.attempts) and not found.is_launch_newest
        if has_attempt:  # with --force too, so that the record has the reason
            self._write_stop_request(run, found.call)
        if not found.call:
            calls.stop_app(found.app)
        elif force or not has_attempt:
            calls.cancel_call(found.call, kill=force)
        wait_until(
            lambda: not self._is_call_alive(found),
            STOP_TIMEOUT_S,
            f"run '{run}' is still stopping; check `runner status {run}`, or kill it with "
            f"`runner stop {run} --force`",
        )
        return True

    def _is_call_alive(self, run: records.CloudRun) -> bool:
        if run.call:
            return calls.poll_call(run.call, seconds=STOP_POLL_S).alive
        return calls.is_app_active(run.app)

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

    def runs(self) -> Iterable[RunInfo]:
        """Return every run whose last attempt was on Modal; none without an account.

        Raises RunnerError offline.
        """
        if not self.is_configured():
            if image.was_used(self.volumes.cache):
                raise RunnerError(account.NO_TOKEN)
            return []
        check_reachable(self.cli.environ)
        with _unavailable_as_error(), ThreadPoolExecutor(8) as pool:
            return list(pool.map(records.state_of, records.all_runs(self._files["checkpoints"])))

    def state(self, run: str) -> RunInfo | None:
        """Return the state of one run; None if its last attempt was not on Modal."""
        if not self.is_configured():
            return None
        check_reachable(self.cli.environ)
        with _unavailable_as_error():
            found = self.read(run)
            if not found.is_on_modal:
                return None
            state = records.state_of(found)
            if not state.alive and found.log.status is None:  # it may have ended in between
                state = records.state_of(self.read(run))
            return state

    def launched(self, run: str) -> LaunchHandle | None:
        """Return the launch recorded in the run's folder."""
        return self.read(run).launch

    def output(self, run: str, lines: int) -> list[str]:
        """Return the newest call's last output lines that Modal still has."""
        found = self.read(run)
        return calls.read_log(found.app, lines) if found.app else []

    def files(self, volume: str) -> VolumeFiles:
        """Return the volume on Modal, which is opened at the first access."""
        return self._files[volume]

    def read(self, run: str) -> records.CloudRun:
        """Return the run's records on the volume."""
        return records.read_run(self._files["checkpoints"], run)

    def _remember_image(self, setup: str) -> None:
        with suppress(OSError):  # only the next plan's text depends on it
            account_id = account.account_id(self.cli.environ)
            image.remember(self.checkout, self.volumes.cache, account_id, setup)


@contextmanager
def _unavailable_as_error() -> Iterator[None]:
    """Raise RunnerError if Modal does not answer after all retries."""
    try:
        yield
    except ModalUnavailable as error:
        raise RunnerError(unreachable_message(str(error))) from error


def open_target(cli: CliContext, checkout: Path) -> ModalTarget:
    """Open the target for ``checkout``."""
    return ModalTarget(cli, checkout)

"""The cloud: a job is a function call on Modal, in the image of the same Dockerfile, on the three volumes there.

Nothing here or below imports modal before it is needed: `runner runs` on a machine without an account must not
wait for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus
from job.paths import VOLUMES
from job.user_command.checkpoint_backup import MARKER
from runner.console import CliContext
from runner.errors import RunnerError
from runner.jobs import COMMAND
from runner.plan import Plan, TargetState
from runner.planning.plan import at_work_already
from runner.pricing.prices import BUILT_IN, Prices, current_prices, usd_per_hour
from runner.project import volumes
from runner.request import Request
from runner.runs.attempts import STOP
from runner.runs.endings import runner_status
from runner.runs.store import LAUNCH_NAME as LAUNCH
from runner.runs.store import launch_json
from runner.signals import hold_signals
from runner.system import wait_until
from runner.target import LaunchHandle, RunInfo, RunSource, VolumeFiles
from runner.targets.modal import TARGET_NAME, account, app, calls, follow, image
from runner.targets.modal import runs as records
from runner.targets.modal.app import GivenFolder
from runner.targets.modal.client import check_reachable
from runner.targets.modal.deadlines import attempt_timeout
from runner.targets.modal.inspect import inspect_modal
from runner.targets.modal.mirror import MirroredRuns
from runner.targets.modal.options import WITHOUT_GPU, ResolvedOptions, resolve_options
from runner.targets.modal.plan import ModalState, modal_plan
from runner.targets.modal.volume import LateFiles, NoFiles, modal_name

STOP_SECONDS = 900.0  # how long `stop` waits for the checkpoint


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
        self._live: Prices | None = None  # what Modal said when the facts were looked at
        self._files = {name: LateFiles(name, cli.environ) for name in VOLUMES}

    def is_configured(self) -> bool:
        """Return True if there is a Modal token."""
        return account.is_set_up(self.cli.environ)

    def check_configured(self) -> None:
        """Raise RunnerError if there is no Modal token."""
        account.need_token(self.cli.environ)

    def mirror(self) -> RunSource:
        """Return the pulled copies of runs on Modal."""
        checkpoints = volumes(self.checkout, self.cli.environ).checkpoints
        return MirroredRuns(checkpoints, self.name)

    def inspect(self, request: Request) -> ModalState:
        """Look at the run's records and the dataset on Modal, and at the image's last build."""
        found = inspect_modal(self.cli, self.checkout, self._files, request)
        self._live = found.live
        return found

    def plan(self, request: Request, state: TargetState) -> Plan:
        """``make_plan``, and what it costs."""
        assert isinstance(state, ModalState)
        return modal_plan(request, state, resolve_options(request), self._prices(state.live))

    def _prices(self, live: Prices | None) -> Prices:
        return current_prices(self.checkout, self.cli.environ, live or BUILT_IN)

    def start(self, plan: Plan) -> LaunchHandle:
        """Build the image where it must be, spawn the call, and note it in the run's folder on the volume."""
        account.need_token(self.cli.environ, "or run it here: runner local")
        options = plan.target_options
        assert isinstance(options, ResolvedOptions)
        if options.prepares_first:
            self._prepare(plan, options)
        used = self._used(plan.run) if plan.records_launch else 0.0
        started = time.time()
        call = self._spawn(plan, options, used, plan.records_launch)
        if not plan.detach:
            hold_signals()
        launch = LaunchHandle(
            run=plan.run,
            target=self.name,
            job=plan.job,
            id=call.id,
            started=started,
            detached=plan.detach,
            gpus=options.gpus.count,
            device=plan.device,
            location=call.app,
            target_options=options,
        )
        if plan.records_launch:
            self._note(launch)
        return launch

    def _used(self, run: str) -> float:
        """Seconds of its time that are used up. RunnerError where it was started elsewhere since the plan was made: a
        question may stand for hours, and data takes a while."""
        found = self.read(run)
        if found.is_of_cloud and (state := records.state_of(found)).alive:
            raise RunnerError(at_work_already(run, f"{state.status} in the cloud"))
        return found.ledger.seconds(time.time())

    def _prepare(self, plan: Plan, options: ResolvedOptions) -> None:
        """Make the dataset on a machine without a GPU, and wait for it. RunnerError where that fails."""
        self.cli.info(
            "preparing the dataset on a machine without a GPU; the GPU is asked for after that"
        )
        words = [plan.recipe] if plan.recipe else []
        command = ("python", "-m", "corpus.prepare", *words, *plan.overrides)
        first = replace(plan, job="prepare", command=command)
        call = self._spawn(first, replace(options, machine=WITHOUT_GPU, nodes=1), 0.0, noted=False)
        code = self.follow(
            LaunchHandle(plan.run, self.name, "prepare", call.id, time.time(), location=call.app)
        )
        if code is None:
            raise RunnerError(
                "the data is still being made, and no GPU was asked for; type the same again once it is there",
                ExitStatus.INTERRUPTED,
            )
        if code:
            raise RunnerError(
                "the dataset was not prepared, and no GPU was asked for; type the same again to go on",
                runner_status(code),
            )

    def _spawn(self, plan: Plan, options: ResolvedOptions, used: float, noted: bool) -> app.Call:
        """Start the call of ``plan``; ``used`` seconds of its time are used up, ``noted``: it keeps a record."""
        each = attempt_timeout(options.timeout_s, used, app.attempt_limit(self.cli.environ))
        table = self._prices(self._live)
        job = {
            "run": plan.run,
            "job": plan.job,
            "command": list(plan.command),
            "env": dict(plan.environment),
            "volumes": {name: modal_name(name, self.cli.environ) for name in VOLUMES},
            "keeps_record": noted,
            "attempt_seconds": float(each),
            "total_seconds": options.timeout_s,
            "max_cost": options.max_cost,
            "usd_per_hour": usd_per_hour(options.machine, options.nodes, options.region, table),
            "nodes": options.nodes,
            "stop_stalled_after": options.stop_stalled_after_s,
            "stop_idle_gpu_after": options.stop_idle_gpu_after_s,
            **_commits(plan),
        }
        given = GivenFolder.of(plan)
        built, _ = image.describe(
            self.checkout, self.volumes.cache, account.account_name(self.cli.environ)
        )
        if not built:
            self.cli.info("building the image on Modal; this takes some minutes and is done once")
        elif plan.folder is not None and not plan.folder.setup_built:
            built = False
            self.cli.info("extending the image on Modal, which is done once")
        return app.start(
            job,
            options,
            plan.secrets,
            self.checkout,
            self.cli.environ,
            each,
            lambda: self._image_is_there(given.digest if given else ""),
            self.cli.info,
            is_built=built,
            show_build=not plan.as_json,
            given=given,
        )

    def _note(self, launch: LaunchHandle) -> None:
        """So that any terminal finds the call. The body notes it too, as soon as a machine works on it."""
        try:
            self._files["checkpoints"].put(f"{launch.run}/{LAUNCH}", launch_json(launch))
        except KeyboardInterrupt:
            calls.cancel(launch.id, kill=True)  # nobody knows of it yet, and it would go on costing
            raise
        except (OSError, RunnerError) as error:
            self.cli.warn(
                f"run '{launch.run}' is started as {launch.id}; that could not be noted: {error}"
            )

    def follow(self, started: LaunchHandle) -> int | None:
        """Print what the job prints until it ends. Ctrl-C asks whether to stop the run or only to leave it."""
        return follow.follow(self, started)

    def stop(self, run: str, force: bool = False) -> bool:
        """Leave a request that the body finds within seconds; a call that no machine works on is cancelled."""
        found = self.read(run)
        state = records.state_of(found)
        if not state.alive:
            return False
        is_at_work = any(attempt.call == found.call for attempt in found.ledger.attempts)
        if is_at_work:
            self.ask_to_stop(
                run, found.call
            )  # with --force too: the body then knows who took its machine away
        if force or not is_at_work:
            calls.cancel(found.call, kill=force)
        wait_until(
            lambda: not calls.look(found.call, seconds=2.0).alive,
            STOP_SECONDS,
            f"run '{run}' is still stopping; `runner status {run}` says when it is done, "
            f"`runner stop {run} --force` kills it",
        )
        return True

    def ask_to_stop(self, run: str, call: str) -> None:
        """Have the call's body write a checkpoint and end."""
        self._files["checkpoints"].put(
            f"{run}/{STOP}", json.dumps({"call": call, "asked": time.time()})
        )

    def runs(self) -> Iterable[RunInfo]:
        """Every run whose last attempt was in the cloud; none without an account. Raises RunnerError offline."""
        if not account.is_set_up(self.cli.environ):
            if image.was_built_here(self.volumes.cache):
                raise RunnerError(account.NO_TOKEN)
            return []
        check_reachable(self.cli.environ)
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(records.state_of, records.all_runs(self._files["checkpoints"])))

    def state(self, run: str) -> RunInfo | None:
        """How one run stands; None where the cloud has none of that name."""
        if not account.is_set_up(self.cli.environ):
            return None
        check_reachable(self.cli.environ)
        found = self.read(run)
        if not found.is_of_cloud:
            return None
        state = records.state_of(found)
        if (
            not state.alive and found.ledger.status is None
        ):  # perhaps it ended between the two looks
            state = records.state_of(self.read(run))
        return state

    def launched(self, run: str) -> LaunchHandle | None:
        """What the run's folder on the volume says."""
        return self.read(run).launch

    def output(self, run: str, lines: int) -> list[str]:
        """What Modal still has of what the newest call printed."""
        found = self.read(run)
        return calls.log(found.app, lines) if found.app else []

    def files(self, volume: str) -> VolumeFiles:
        """The volume on Modal, opened when it is read. Without an account there is nothing in it: a plan is
        made all the same, and says so."""
        return self._files[volume] if account.is_set_up(self.cli.environ) else NoFiles()

    def read(self, run: str) -> records.CloudRun:
        """The run's records on the volume."""
        return records.read_run(self._files["checkpoints"], run)

    def _image_is_there(self, setup: str) -> None:
        with suppress(OSError):  # only the next plan's words depend on it
            name = account.account_name(self.cli.environ)
            image.remember(self.checkout, self.volumes.cache, name, setup)


def _commits(plan: Plan) -> dict[str, Any]:
    """What the body commits while a command is at work: it writes where it likes, and marks no checkpoint as
    whole; the note about the file that it goes on from is the nearest to one."""
    return (
        {"commits": ["checkpoints", "data"], "marker": MARKER} if plan.job == COMMAND.name else {}
    )


def open_target(cli: CliContext, checkout: Path) -> ModalTarget:
    """The target for ``checkout``."""
    return ModalTarget(cli, checkout)

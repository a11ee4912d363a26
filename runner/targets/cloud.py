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
from job.last_whole import MARKER
from job.locations import VOLUMES, Locations
from job.published import weights_of
from job.runs import RunRecord
from runner.checkout import git_state, volumes
from runner.cloud import account, app, calls, follow, image, rates, records
from runner.cloud.deadlines import attempt_timeout
from runner.cloud.files import LateFiles, NoFiles
from runner.cloud.given_folder import GivenFolder
from runner.cloud.ledger import STOP
from runner.cloud.options import WITHOUT_GPU, Options, from_pairs, read_options
from runner.cloud.plan import MODALS, PREPARE_FIRST, CloudFacts, cloud_plan
from runner.cloud.price_file import current_prices
from runner.cloud.prices import BUILT_IN, Prices, per_hour
from runner.cloud.secrets import check_kept, check_there
from runner.cloud.servers import check_proxy, check_reachable
from runner.cloud.volumes import modal_name
from runner.dotenv import secret_names
from runner.errors import RunnerError, usage
from runner.interrupts import keep
from runner.jobs import COMMAND
from runner.outcome import outcome
from runner.plans.other_side import OtherSide
from runner.plans.plan import at_work_already
from runner.plans.planned import Facts, Plan, Volume
from runner.plans.setup import digest, setup_lines
from runner.plans.shipped import list_files
from runner.requests.command import Command, folder_name
from runner.requests.request import Request, settings_begun_with
from runner.runs.launch_record import NAME as LAUNCH
from runner.runs.launch_record import dumps
from runner.runs.on_volumes import is_ready, step_of
from runner.runs.other_side import on_this_machine
from runner.targets.protocol import Files, RunState, Started
from runner.terminal import Environment
from runner.waiting import wait_until

WORKSPACE = "/workspace"
STOP_SECONDS = 900.0  # how long `stop` waits for the checkpoint


class Cloud:
    """The target ``cloud``."""

    name = "cloud"
    look_seconds = 2.0  # each look is some ten requests

    def __init__(self, env: Environment, checkout: Path) -> None:
        self.env = env
        self.checkout = checkout
        self.locations = volumes(checkout, {})
        self._live: Prices | None = None  # what Modal said when the facts were looked at
        self._files = {name: LateFiles(name, env.environ) for name in VOLUMES}

    def facts(self, request: Request) -> CloudFacts:
        """Look at the run's records and the dataset on Modal, and at the image's last build."""
        options = read_options(request)
        check_there(options.own_secrets, self.env.environ, self.checkout)
        has_account = account.is_set_up(self.env.environ)
        built, why = image.describe(
            self.checkout, self.locations.cache, account.account_name(self.env.environ)
        )
        found: dict[str, Any] = self._look(request) if has_account else {"dataset_ready": None}
        if has_account:
            check_kept(options.modal_secrets)
        if request.command is not None:
            found |= self._look_at_folder(request.command)
        return CloudFacts(
            target=self.name,
            checkout=str(self.checkout),
            workspace=WORKSPACE,
            volumes=tuple(
                Volume(
                    name,
                    str(getattr(self.locations, name)),
                    f"/vol/{name}",
                    remote=modal_name(name, self.env.environ),
                )
                for name in VOLUMES
            ),
            mounts=False,
            image=f"Dockerfile, {why}" if built else "Dockerfile",
            image_built=built,
            why_build=why,
            secrets=secret_names(self.env.environ, self.checkout),
            environment=tuple(
                {**Locations.under(Path("/vol")).environment(), "PYTHONPATH": WORKSPACE}.items()
            ),
            git=tuple(
                (git_state(request.command.folder if request.command else self.checkout) or {}).items()
            ),
            account=has_account,
            **found,
        )

    def plan(self, request: Request, facts: Facts) -> Plan:
        """``make_plan``, and what it costs."""
        assert isinstance(facts, CloudFacts)
        return cloud_plan(request, facts, read_options(request), self._prices(facts.live))

    def _prices(self, live: Prices | None) -> Prices:
        return current_prices(self.checkout, self.env.environ, live or BUILT_IN)

    def start(self, plan: Plan) -> Started:
        """Build the image where it must be, spawn the call, and note it in the run's folder on the volume."""
        account.need_token(self.env.environ, "or run it here: runner local")
        options = from_pairs(plan.more)
        if PREPARE_FIRST in plan.more:
            self._prepare(plan, options)
        used = self._used(plan.run) if plan.is_noted else 0.0
        started = time.time()
        call = self._spawn(plan, options, used, plan.is_noted)
        if not plan.detach:
            keep()
        launch = Started(
            run=plan.run,
            target=self.name,
            job=plan.job,
            id=call.id,
            started=started,
            detached=plan.detach,
            gpus=options.gpus.count,
            device=plan.device,
            machine=call.app,
            more=plan.more,
        )
        if plan.is_noted:
            self._note(launch)
        return launch

    def _used(self, run: str) -> float:
        """Seconds of its time that are used up. RunnerError where it was started elsewhere since the plan was made: a
        question may stand for hours, and data takes a while."""
        found = self.read(run)
        if found.is_of_cloud and (state := records.state_of(found)).alive:
            raise RunnerError(at_work_already(run, f"{state.status} in the cloud"))
        return found.ledger.seconds(time.time())

    def _prepare(self, plan: Plan, options: Options) -> None:
        """Make the dataset on a machine without a GPU, and wait for it. RunnerError where that fails."""
        self.env.say("preparing the dataset on a machine without a GPU; the GPU is asked for after that")
        words = [plan.recipe] if plan.recipe else []
        command = ("python", "-m", "corpus.prepare", *words, *plan.overrides)
        first = replace(plan, job="prepare", command=command)
        call = self._spawn(first, replace(options, machine=WITHOUT_GPU, nodes=1), 0.0, noted=False)
        code = self.follow(Started(plan.run, self.name, "prepare", call.id, time.time(), machine=call.app))
        if code is None:
            raise RunnerError(
                "the data is still being made, and no GPU was asked for; type the same again once it is there",
                ExitStatus.INTERRUPTED,
            )
        if code:
            raise RunnerError(
                "the dataset was not prepared, and no GPU was asked for; type the same again to go on",
                outcome(code),
            )

    def _spawn(self, plan: Plan, options: Options, used: float, noted: bool) -> app.Call:
        """Start the call of ``plan``; ``used`` seconds of its time are used up, ``noted``: it keeps a record."""
        each = attempt_timeout(options.timeout, used, app.attempt_limit(self.env.environ))
        table = self._prices(self._live)
        job = {
            "run": plan.run,
            "job": plan.job,
            "command": list(plan.command),
            "env": dict(plan.environment),
            "volumes": {name: modal_name(name, self.env.environ) for name in VOLUMES},
            "keeps_record": noted,
            "attempt_seconds": float(each),
            "total_seconds": options.timeout,
            "max_cost": options.max_cost,
            "usd_per_hour": per_hour(options.machine, options.nodes, options.region, table),
            "nodes": options.nodes,
            "stop_stalled_after": options.stop_stalled_after,
            "stop_idle_gpu_after": options.stop_idle_gpu_after,
            **_commits(plan),
        }
        given = GivenFolder.of(plan)
        built, _ = image.describe(self.checkout, self.locations.cache, account.account_name(self.env.environ))
        if not built:
            self.env.say("building the image on Modal; this takes some minutes and is done once")
        elif plan.folder is not None and not plan.folder.setup_built:
            built = False
            self.env.say("extending the image on Modal, which is done once")
        return app.start(
            job,
            options,
            [name for name in plan.secrets if not name.endswith(MODALS)],
            self.checkout,
            self.env.environ,
            each,
            lambda: self._image_is_there(given.digest if given else ""),
            self.env.say,
            is_built=built,
            show_build=not plan.as_json,
            given=given,
        )

    def _note(self, launch: Started) -> None:
        """So that any terminal finds the call. The body notes it too, as soon as a machine works on it."""
        try:
            self._files["checkpoints"].put(f"{launch.run}/{LAUNCH}", dumps(launch))
        except KeyboardInterrupt:
            calls.cancel(launch.id, kill=True)  # nobody knows of it yet, and it would go on costing
            raise
        except (OSError, RunnerError) as error:
            self.env.warn(f"run '{launch.run}' is started as {launch.id}; that could not be noted: {error}")

    def follow(self, started: Started) -> int | None:
        """Print what the job prints until it ends. Ctrl-C asks whether to stop the run or only to leave it."""
        return follow.follow(self, started)

    def stop(self, run: str, now: bool = False) -> bool:
        """Leave a request that the body finds within seconds; a call that no machine works on is cancelled."""
        found = self.read(run)
        state = records.state_of(found)
        if not state.alive:
            return False
        is_at_work = any(attempt.call == found.call for attempt in found.ledger.attempts)
        if is_at_work:
            self.ask_to_stop(run, found.call)  # with --now too: the body then knows who took its machine away
        if now or not is_at_work:
            calls.cancel(found.call, kill=now)
        wait_until(
            lambda: not calls.look(found.call, seconds=2.0).alive,
            STOP_SECONDS,
            f"run '{run}' is still stopping; `runner status {run}` says when it is done, "
            f"`runner stop {run} --now` kills it",
        )
        return True

    def ask_to_stop(self, run: str, call: str) -> None:
        """Have the call's body write a checkpoint and end."""
        self._files["checkpoints"].put(f"{run}/{STOP}", json.dumps({"call": call, "asked": time.time()}))

    def runs(self) -> Iterable[RunState]:
        """Every run whose last attempt was in the cloud; none without an account. Raises RunnerError offline."""
        if not account.is_set_up(self.env.environ):
            if image.was_built_here(self.locations.cache):
                raise RunnerError(account.NO_TOKEN)
            return []
        check_reachable(self.env.environ)
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(records.state_of, records.all_runs(self._files["checkpoints"])))

    def state(self, run: str) -> RunState | None:
        """How one run stands; None where the cloud has none of that name."""
        if not account.is_set_up(self.env.environ):
            return None
        check_reachable(self.env.environ)
        found = self.read(run)
        if not found.is_of_cloud:
            return None
        state = records.state_of(found)
        if not state.alive and found.ledger.status is None:  # perhaps it ended between the two looks
            state = records.state_of(self.read(run))
        return state

    def launched(self, run: str) -> Started | None:
        """What the run's folder on the volume says."""
        return self.read(run).launch

    def output(self, run: str, lines: int) -> list[str]:
        """What Modal still has of what the newest call printed."""
        found = self.read(run)
        return calls.log(found.app, lines) if found.app else []

    def files(self, volume: str) -> Files:
        """The volume on Modal, opened when it is read. Without an account there is nothing in it: a plan is
        made all the same, and says so."""
        return self._files[volume] if account.is_set_up(self.env.environ) else NoFiles()

    def read(self, run: str) -> records.CloudRun:
        """The run's records on the volume."""
        return records.read_run(self._files["checkpoints"], run)

    def _look(self, request: Request) -> dict[str, Any]:
        """What the volumes say of the run and of the dataset."""
        check_proxy(self.env.environ)  # before the prices are asked for, which are waited for
        checkpoints, data = self._files["checkpoints"], self._files["data"]
        dataset = request.settings.data.dataset if request.settings else None
        weights = weights_of(request.settings)
        with ThreadPoolExecutor(6) as pool:
            live = pool.submit(rates.live_prices)
            # Once, before all that read it: each would wait for a Modal that does not answer.
            _ = checkpoints.opened
            step = pool.submit(step_of, checkpoints, request.run)
            run = pool.submit(self.read, request.run)
            before = pool.submit(settings_begun_with, checkpoints, request)
            ready = pool.submit(is_ready, data, dataset) if dataset else None
            there = pool.submit(self._files["cache"].size, weights.weights) if weights else None
        found, busy = run.result(), None
        writes = request.job.has_run or request.detach
        if writes and found.is_of_cloud:
            state = records.state_of(found)
            busy = f"{state.status} in the cloud" if state.alive else None
        now = time.time()
        self._live = live.result()
        return {
            "live": self._live,
            "busy": busy,
            "step": step.result(),
            "dataset_ready": ready.result() if ready else None,
            "weights_ready": there.result() is not None if there else None,
            "seconds": found.ledger.seconds(now) if request.job.has_run else 0.0,
            "cost": found.ledger.cost(now) if request.job.has_run else 0.0,
            "attempts": len(found.ledger.attempts) if request.job.has_run else 0,
            "reached": records.reached(found),
            "begun_with": before.result(),
            "finished": found.record is not None and found.record.status == "finished",
            "record": found.record,
            "other": self._here(request, found.record),
        }

    def _here(self, request: Request, there: RunRecord | None) -> OtherSide | None:
        """What this machine has of the run."""
        return on_this_machine(self.env, self.checkout, request.run, there) if request.job.has_run else None

    def _look_at_folder(self, command: Command) -> dict[str, Any]:
        """What of the command's folder goes there, and what its image has besides."""
        lines = setup_lines(command)
        summary = list_files(command.folder, self.checkout).summary()
        if not summary.files:
            raise usage(
                f"nothing of {command.folder} would be in the cloud: it is empty, or .gitignore or .dockerignore "
                "names all that is in it"
            )
        account_name = account.account_name(self.env.environ)
        return {
            "folder": f"/job/{folder_name(command.folder)}",
            "shipped": summary,
            "setup": lines,
            "setup_built": not lines
            or image.has_setup(self.locations.cache, account_name, digest(command.folder, lines)),
        }

    def _image_is_there(self, setup: str) -> None:
        with suppress(OSError):  # only the next plan's words depend on it
            name = account.account_name(self.env.environ)
            image.remember(self.checkout, self.locations.cache, name, setup)


def _commits(plan: Plan) -> dict[str, Any]:
    """What the body commits while a command is at work: it writes where it likes, and marks no checkpoint as
    whole; the note about the file that it goes on from is the nearest to one."""
    return {"commits": ["checkpoints", "data"], "marker": MARKER} if plan.job == COMMAND.name else {}


def open_target(env: Environment, checkout: Path) -> Cloud:
    """The target for ``checkout``."""
    return Cloud(env, checkout)

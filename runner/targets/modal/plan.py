"""The parts of a plan that only Modal has: machine, memory, price, hours and limits. Pure."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

from job.format import count, dollars, duration
from job.run_record import EndReason
from runner.errors import usage
from runner.jobs import COMMAND
from runner.plan import Plan, PlanEstimate, TargetState
from runner.planning.estimate import (
    describe_fit,
    limit_warnings,
    memory_fit,
    refuse_too_large,
    smallest_gpu,
    training_seconds,
)
from runner.planning.gpus import BUILT_IN_PRICES, Prices, usd_per_hour
from runner.planning.plan import make_plan, with_rows
from runner.request import CommandRequest, Request, ServeRequest, TrainRequest
from runner.targets.modal import MASTER_PORT
from runner.targets.modal.client import NEW_TOKEN
from runner.targets.modal.options import WITHOUT_GPU, ResolvedOptions

if TYPE_CHECKING:
    from job.recipe import Recipe
    from runner.target import RunInfo
    from runner.targets.modal.runs import CloudRun

NO_ACCOUNT = f"no Modal token, so the runs and data on Modal are unknown; create one: {NEW_TOKEN}"


@dataclass(frozen=True)
class ModalState(TargetState):
    """The state of the target, with the image and what the run has used up so far."""

    build_reason: str = ""
    seconds: float = 0.0
    cost: float = 0.0
    reached: tuple[str, float] | None = None  # the limit that ended the last launch, and its value
    live: Prices | None = None  # this account's prices by Modal
    active_run: tuple[CloudRun, RunInfo] | None = None  # and its state, if it was read
    unconfirmed: bool = False  # an active launch whose client ended before it recorded the call

    def for_new_run(self) -> Self:
        """Return the state as it is for a run that does not exist yet."""
        return replace(super().for_new_run(), seconds=0.0, cost=0.0, reached=None)


@dataclass(frozen=True)
class Launch:
    """A request with its options, and the estimates by GPU type.

    ``seconds`` is empty for a job without an estimate.
    """

    request: Request
    state: ModalState
    options: ResolvedOptions
    hourly: dict[str, float]
    seconds: dict[str, float]

    @property
    def cost(self) -> dict[str, float]:
        """Return the estimated dollars of this launch by GPU type."""
        return {name: span / 3600 * self.hourly[name] for name, span in self.seconds.items()}

    @property
    def gpus(self) -> int:
        """Return the number of GPUs on all nodes."""
        return self.options.gpus.count * self.options.nodes

    @property
    def recipe(self) -> Recipe | None:
        """Return the recipe of a training on GPUs; None for other jobs."""
        is_training = isinstance(self.request, TrainRequest) and self.options.gpus.names
        return self.request.settings if is_training else None


def modal_plan(
    request: Request, state: ModalState, options: ResolvedOptions, table: Prices = BUILT_IN_PRICES
) -> Plan:
    """Return the plan of a launch on Modal. Raises RunnerError, exit status 2."""
    hourly = usd_per_hour(options.machine, options.nodes, options.region, table)
    _check(request, state, options)
    launch = Launch(request, state, options, hourly, {})
    launch = replace(launch, request=_with_micro_batch(launch))
    if recipe := launch.recipe:
        step = state.run.step or 0
        seconds = {n: training_seconds(recipe, n, launch.gpus, step) for n in options.gpus.names}
        launch = replace(launch, seconds=seconds)
    plan = make_plan(replace(launch.request, gpus=max(1, options.gpus.count)), state)
    if options.nodes > 1 and plan.job != COMMAND.name:
        command = _multi_node_command(plan.process.command, options.nodes)
        plan = replace(plan, process=replace(plan.process, command=command))
    prepares_first = _prepares_first(launch)
    plan = replace(
        plan,
        steps=(*plan.steps, *([_prepare_step(options, table)] if prepares_first else [])),
        target_options=replace(options, prepares_first=prepares_first),
        estimate=PlanEstimate(max(launch.seconds.values(), default=None), max(hourly.values())),
    )
    plan = _with_recorded_estimate(plan, launch)
    notes = [
        ("Modal secrets", ", ".join(options.modal_secrets)),
        ("build", state.build_reason if state.image and not state.image.is_built else ""),
        ("machine", _machine(options)),
        ("memory", _memory(launch)),
        ("price", _price(hourly, source_for(hourly, table.source))),
        ("estimate", _estimate(launch)),
        ("stops at", _limits(launch)),
        ("warning", _warning(launch)),
        ("warning", _not_persisted(plan)),
        ("hint", _processes(request, options)),
        ("account", "" if state.is_configured else NO_ACCOUNT),
        ("active", ATTACHES if state.unconfirmed else ""),
    ]
    price = None if state.unconfirmed else _price_text(launch)
    plan = with_rows(plan, *notes, price=price)
    if isinstance(request, ServeRequest):
        return server_plan(plan, options, max(hourly.values()))
    return plan


ATTACHES = "an interrupted launch of this run is active; this one follows it and starts nothing"


def _check(request: Request, state: ModalState, options: ResolvedOptions) -> None:
    if request.detach and not (request.job.writes_run or request.job.name == "prepare"):
        raise usage(
            f"{request.job.name} prints its result and keeps no log; remove --detach, or redirect "
            f"it: runner cloud {request.job.name} --name {request.run} > text.txt"
        )
    if not request.job.writes_run or _is_trained(request, state):
        return
    if isinstance(request, TrainRequest):
        refuse_too_large(request.settings, options.gpus, options.nodes)
    # The rest of a limit that ended the run is less than a machine needs to start.
    reason, limit = state.reached or ("", 0.0)
    timeout_s = options.timeout_s
    if state.seconds >= timeout_s or (reason == EndReason.RUN_TIMEOUT and timeout_s <= limit):
        raise usage(
            f"run '{request.run}' has used {duration(state.seconds)} of its {duration(timeout_s)}; "
            f"raise it: --timeout {math.ceil(2 * timeout_s / 3600)}h"
        )
    cap = options.max_cost
    if cap is not None and (state.cost >= cap or (reason == EndReason.BUDGET and cap <= limit)):
        raise usage(
            f"run '{request.run}' has cost {dollars(state.cost)} of its {dollars(cap)}; "
            f"raise it: --max-cost {math.ceil(2 * cap)}"
        )


def _is_trained(request: Request, state: ModalState) -> bool:
    """Return True if the run has all its steps, so that only its result is shown."""
    steps = request.settings.train.max_steps if request.settings is not None else None
    return state.run.step is not None and steps is not None and state.run.step >= steps


def _multi_node_command(command: tuple[str, ...], nodes: int) -> tuple[str, ...]:
    """Return torchrun's command for several nodes; each fills in its {rank} and the {address}."""
    at = command.index("--standalone")
    argv = (
        f"--nnodes={nodes}",
        "--node-rank={rank}",
        "--master-addr={address}",
        f"--master-port={MASTER_PORT}",
    )
    return (*command[:at], *argv, *command[at + 1 :])


def _prepares_first(launch: Launch) -> bool:
    """Return True if a machine without a GPU prepares the data and downloads pretrained weights."""
    state = launch.state
    needs_weights = state.is_pretrained_cached is False and state.run.step is None
    return launch.recipe is not None and (state.is_dataset_ready is False or needs_weights)


def _prepare_step(options: ResolvedOptions, table: Prices) -> str:
    hourly = usd_per_hour(WITHOUT_GPU, 1, options.region, table)[""]
    return f"first prepares the data on a machine without a GPU, for ${hourly:.2f} an hour"


def _machine(options: ResolvedOptions) -> str:
    machine = options.machine
    alternatives = [f"{machine.gpus.count} x {name}" for name in machine.gpus.names]
    gpus = ", else ".join(alternatives) or "no GPU"
    nodes = f"{options.nodes} nodes, each " if options.nodes > 1 else ""
    region = f", in {options.region}" if options.region else ""
    return f"{nodes}{gpus}, {machine.cores:g} cores, {machine.memory_gib:g} GiB{region}"


def _memory(launch: Launch) -> str:
    if launch.recipe is None:
        return ""
    return describe_fit(launch.recipe, launch.options.gpus.names, launch.gpus)


def _with_micro_batch(launch: Launch) -> Request:
    """Replace ``micro_batch: auto`` by the number that fits the smallest GPU asked for."""
    request, settings = launch.request, launch.recipe
    if settings is None or settings.train.micro_batch != "auto":
        return request
    fit = memory_fit(settings, smallest_gpu(launch.options.gpus.names), launch.gpus)
    train = settings.train.model_copy(update={"micro_batch": fit.micro_batch})
    others = [word for word in request.overrides if not _sets_micro_batch(word)]
    return replace(
        request,
        settings=settings.model_copy(update={"train": train}),
        overrides=(*others, f"train.micro_batch={fit.micro_batch}"),
    )


def _sets_micro_batch(override: str) -> bool:
    key = override.partition("=")[0].strip().removeprefix("--")
    return key in ("micro_batch", "train.micro_batch")


def _with_recorded_estimate(plan: Plan, launch: Launch) -> Plan:
    """Add the estimate for the first GPU, with what the run has used up, to the run's record."""
    if not launch.seconds:
        return plan
    name, span = next(iter(launch.seconds.items()))
    estimate = {
        "seconds": round(launch.state.seconds + span, 1),
        "usd": round(launch.state.cost + launch.cost[name], 4),
        "gpu": name,
    }
    variables = dict(plan.process.environment)
    variables["RUN_LAUNCH"] = json.dumps({**plan.metadata, "estimate": estimate})
    return replace(plan, process=replace(plan.process, environment=tuple(variables.items())))


def source_for(hourly: dict[str, float], source: str) -> str:
    """Return the source of the prices without its remark about other GPU types."""
    head, _, remark = source.partition("; ")
    return source if any(name and name in remark for name in hourly) else head


def _price(hourly: dict[str, float], source: str) -> str:
    prices = [
        f"${price:.2f}{f' on {name}' if len(hourly) > 1 else ''}" for name, price in hourly.items()
    ]
    return f"{', '.join(prices)} an hour ({source})"


def _estimate(launch: Launch) -> str:
    spans = [
        f"{duration(span)}, {dollars(launch.cost[name])}"
        f"{f' on {name}' if len(launch.seconds) > 1 else ''}"
        for name, span in launch.seconds.items()
    ]
    source = "calculated from FLOPs; replaced by a measurement after 50 steps"
    return f"about {'; '.join(spans)} ({source})" if spans else ""


def _warning(launch: Launch) -> str:
    state, options = launch.state, launch.options
    if not launch.seconds or _is_trained(launch.request, state):
        return ""
    limits = options.max_cost, options.timeout_s
    return limit_warnings(launch.seconds, launch.hourly, *limits, state.cost, state.seconds)


def _not_persisted(plan: Plan) -> str:
    """Return a warning about a command whose files would be lost; '' for any other plan."""
    if plan.job != COMMAND.name or plan.folder is None or plan.folder.persisted:
        return ""
    return (
        "files that the command writes into its folder are lost when it ends; keep them with "
        "--persist PATH=checkpoints, or write them to $OUT_DIR"
    )


def _processes(request: Request, options: ResolvedOptions) -> str:
    """Return a hint for a command that does not start one process for each GPU."""
    argv = request.command.argv if isinstance(request, CommandRequest) else ()
    number, program = options.gpus.count, PurePosixPath(argv[0]).name if argv else ""
    torchrun = f"torchrun --standalone --nproc_per_node={number}"
    if number > 1 and re.fullmatch(r"python[\d.]*", program):
        return f"{argv[0]} starts one process; {torchrun} starts one for each GPU"
    started = re.search(r"--nproc[_-]per[_-]node[= ](\d+)", " ".join(argv))
    if started is not None and program == "torchrun" and int(started[1]) != max(number, 1):
        gpus = count(number, "GPU") if number else "no GPU"
        return f"{argv[0]} starts {started[1]} processes on a machine with {gpus}; use {torchrun}"
    return ""


def _limits(launch: Launch) -> str:
    state, cap = launch.state, launch.options.max_cost
    # The runner does not know whether a user's code writes a checkpoint.
    then = ", after saving a checkpoint" if isinstance(launch.request, TrainRequest) else ""
    attempts = count(state.run.attempts, "attempt")
    spent = f"; {dollars(state.cost)} spent in {attempts}" if state.run.attempts else ""
    money = f" or {dollars(cap)}" if cap else ""
    hint = "" if cap else "; no maximum cost (--max-cost sets one)"
    limit = duration(launch.options.timeout_s)
    return f"{limit}{money} in total for all attempts{then}{hint}{spent}"


def _price_text(launch: Launch) -> str:
    state, options, highest = launch.state, launch.options, max(launch.hourly.values())
    most = highest * max(0.0, options.timeout_s - state.seconds) / 3600
    if options.max_cost is not None:
        most = min(most, max(0.0, options.max_cost - state.cost))
    if not launch.seconds:
        return f"This costs ${highest:.2f} an hour, {dollars(most)} at most."
    about = min(most, max(launch.cost.values()))
    return f"This will cost about {dollars(about)}, {dollars(most)} at most."


SCALEDOWN_S = 300  # without a request


def server_name(run: str) -> str:
    """Return the name under which a server of ``run`` is recorded."""
    return f"serve-{run}"


def server_plan(plan: Plan, options: ResolvedOptions, usd_per_hour: float) -> Plan:
    """Return the plan of a deployment. Raises RunnerError, exit status 2, for a limit."""
    if options.max_cost is not None:
        raise usage("--max-cost limits a run, and a server has no end; remove it")
    stop = f"`runner stop {server_name(plan.run)}`"
    idle = f"{SCALEDOWN_S // 60} minutes"
    price = (
        f"This costs {dollars(usd_per_hour)} an hour while it answers requests and for {idle} "
        f"after them, and nothing otherwise, until {stop}."
    )
    rows = [row for row in plan.extra_rows if row[0] != "stops at"]
    rows.append(("stops at", f"{stop}; its one machine ends {idle} after the last request"))
    return replace(
        plan,
        run=server_name(plan.run),
        extra_rows=tuple(rows),
        price=price,
        steps=tuple(step.partition(", at http")[0] for step in plan.steps),
        detach=True,
    )

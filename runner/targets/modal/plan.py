"""What only the cloud adds to a plan: GPU, memory, price, hours, cap, and the question. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

from job.format import duration
from job.recipe import Recipe
from job.run_record import EndReason
from runner.errors import usage
from runner.format import dollars
from runner.plan import Plan, TargetState
from runner.planning.plan import make_plan, with_notes
from runner.pricing import prices
from runner.pricing.estimate import (
    describe_fit,
    limit_warnings,
    memory_fit,
    refuse_too_large,
    smallest_gpu,
    training_seconds,
)
from runner.request import Request
from runner.targets.modal.options import WITHOUT_GPU, ResolvedOptions

MASTER_PORT = 29500  # torch's own default

NO_ACCOUNT = "no Modal token here, so what is there was not looked up; `modal token new` makes one"


@dataclass(frozen=True)
class ModalState(TargetState):
    """What the cloud knows besides: of the image, and what the run has used up so far."""

    why_build: str = ""
    seconds: float = 0.0
    cost: float = 0.0
    reached: tuple[str, float] | None = (
        None  # timeout or budget that ended its newest launch, and how much it was
    )
    live: prices.Prices | None = None  # what Modal says that this account pays


def modal_plan(
    request: Request,
    facts: ModalState,
    options: ResolvedOptions,
    table: prices.Prices = prices.BUILT_IN,
) -> Plan:
    """The plan of a launch in the cloud. ``table`` holds the prices. Raises RunnerError, exit code 2."""
    hourly = prices.usd_per_hour(options.machine, options.nodes, options.region, table)
    _check(request, facts, options)
    request = _with_micro_batch(request, options)
    plan = make_plan(replace(request, gpus=max(1, options.gpus.count)), facts)
    if options.nodes > 1:
        plan = replace(plan, command=_on_nodes(plan.command, options.nodes))
    first = prepares_first(request, facts, options)
    without_gpu = prices.usd_per_hour(WITHOUT_GPU, 1, options.region, table)[""]
    plan = replace(
        plan,
        environment=(*plan.environment, *options.environment),
        secrets=tuple(dict.fromkeys((*plan.secrets, *options.own_secrets))),
        steps=(*plan.steps, *_preparing(without_gpu, first)),
        target_options=replace(options, prepares_first=first),
    )
    seconds = _seconds(request.settings, request, facts, options)
    plan = _with_estimate(plan, seconds, hourly, facts)
    plan = replace(
        plan, seconds=max(seconds.values()) if seconds else None, usd_per_hour=max(hourly.values())
    )
    notes = [
        ("Modal secrets", ", ".join(options.modal_secrets)),
        ("rebuild", facts.why_build if not facts.image_built else ""),
        ("machine", _machine(options)),
        ("memory", _fit(request, options)),
        ("price", _price(hourly, table.source)),
        ("estimate", _estimate(seconds, hourly)),
        ("cap", _cap(request.job.name, options, facts)),
        ("warning", _warning(seconds, hourly, options, facts, request)),
        ("account", "" if facts.account else NO_ACCOUNT),
    ]
    return with_notes(plan, *notes, question=_question(seconds, hourly, options, facts))


def _check(request: Request, facts: ModalState, options: ResolvedOptions) -> None:
    if request.detach and not (request.job.writes_run or request.job.name == "prepare"):
        raise usage(
            f"{request.job.name} writes to this terminal and keeps no log; leave --detach away, "
            f"or write it to a file: runner cloud {request.job.name} --name {request.run} > text.txt"
        )
    if not request.job.writes_run or _is_trained(request, facts):
        return
    if request.job.name == "train" and request.settings is not None:
        refuse_too_large(request.settings, options.gpus, options.nodes)
    # What is left of a cap that ended it is less than a machine needs to begin.
    why, before = facts.reached or ("", 0.0)
    if facts.seconds >= options.timeout_s or (
        why == EndReason.RUN_TIMEOUT and options.timeout_s <= before
    ):
        raise usage(
            f"run '{request.run}' has used {duration(facts.seconds)} of its {duration(options.timeout_s)}; "
            f"give it more: --timeout {math.ceil(2 * options.timeout_s / 3600)}h"
        )
    cap = options.max_cost
    if cap is not None and (facts.cost >= cap or (why == EndReason.BUDGET and cap <= before)):
        raise usage(
            f"run '{request.run}' has cost {dollars(facts.cost)} of its {dollars(cap)}; "
            f"give it more: --max-cost {math.ceil(2 * cap)}"
        )


def _is_trained(request: Request, facts: ModalState) -> bool:
    """Whether the run only shows what it came to."""
    steps = request.settings.train.max_steps if request.settings is not None else None
    return facts.step is not None and steps is not None and facts.step >= steps


def _on_nodes(command: tuple[str, ...], nodes: int) -> tuple[str, ...]:
    """torchrun's words for several machines; {rank} and {address} are filled in on each."""
    at = command.index("--standalone")
    words = (
        f"--nnodes={nodes}",
        "--node-rank={rank}",
        "--master-addr={address}",
        f"--master-port={MASTER_PORT}",
    )
    return (*command[:at], *words, *command[at + 1 :])


def prepares_first(request: Request, facts: ModalState, options: ResolvedOptions) -> bool:
    """Whether the data is made, and published weights are downloaded, on a machine without a GPU before the one with GPUs
    is paid for."""
    weights = facts.weights_ready is False and facts.step is None
    missing = request.job.name == "train" and (facts.dataset_ready is False or weights)
    return missing and bool(options.gpus.names)


def _preparing(hourly: float, first: bool) -> list[str]:
    if not first:
        return []
    return [
        f"the data is made on a machine without a GPU, for ${hourly:.2f} an hour, before GPUs are asked for"
    ]


def _machine(options: ResolvedOptions) -> str:
    machine = options.machine
    gpus = (
        ", else ".join(f"{machine.gpus.count} x {name}" for name in machine.gpus.names) or "no GPU"
    )
    nodes = f"{options.nodes} nodes, each " if options.nodes > 1 else ""
    region = f", in {options.region}" if options.region else ""
    return f"{nodes}{gpus}, {machine.cores:g} cores, {machine.memory_gib:g} GiB{region}"


def _fit(request: Request, options: ResolvedOptions) -> str:
    if request.job.name != "train" or request.settings is None or not options.gpus.names:
        return ""
    return describe_fit(request.settings, options.gpus.names, options.gpus.count * options.nodes)


def _with_micro_batch(request: Request, options: ResolvedOptions) -> Request:
    """``micro_batch: auto`` as the number that fits on the smallest GPU asked for."""
    settings, names = request.settings, options.gpus.names
    if (
        settings is None
        or request.job.name != "train"
        or settings.train.micro_batch != "auto"
        or not names
    ):
        return request
    chosen = memory_fit(
        settings, smallest_gpu(names), options.gpus.count * options.nodes
    ).micro_batch
    train = settings.train.model_copy(update={"micro_batch": chosen})
    kept = [word for word in request.overrides if not _sets_micro_batch(word)]
    return replace(
        request,
        settings=settings.model_copy(update={"train": train}),
        overrides=(*kept, f"train.micro_batch={chosen}"),
    )


def _sets_micro_batch(override: str) -> bool:
    return override.partition("=")[0].strip().removeprefix("--") in (
        "micro_batch",
        "train.micro_batch",
    )


def _with_estimate(
    plan: Plan, seconds: dict[str, float] | None, hourly: dict[str, float], facts: ModalState
) -> Plan:
    """The plan whose record will hold what was estimated: of the first GPU asked for, with what the run has used up."""
    if seconds is None:
        return plan
    name, span = next(iter(seconds.items()))
    estimate = {
        "seconds": round(facts.seconds + span, 1),
        "usd": round(facts.cost + span / 3600 * hourly[name], 4),
        "gpu": name,
    }
    variables = dict(plan.environment)
    launch = {**json.loads(variables["RUN_LAUNCH"]), "estimate": estimate}
    return replace(plan, environment=tuple({**variables, "RUN_LAUNCH": json.dumps(launch)}.items()))


def _price(hourly: dict[str, float], source: str) -> str:
    if len(hourly) == 1:
        text = f"${next(iter(hourly.values())):.2f} an hour"
    else:
        text = ", ".join(f"${price:.2f} on {name}" for name, price in hourly.items()) + " an hour"
    return f"{text} ({source})"


def _seconds(
    settings: Recipe | None, request: Request, facts: ModalState, options: ResolvedOptions
) -> dict[str, float] | None:
    """Estimated seconds by GPU; None where there is nothing to estimate from."""
    if request.job.name != "train" or settings is None or not options.gpus.names:
        return None
    count = options.gpus.count * options.nodes
    return {
        name: training_seconds(settings, name, count, facts.step or 0)
        for name in options.gpus.names
    }


def _estimate(seconds: dict[str, float] | None, hourly: dict[str, float]) -> str:
    if seconds is None:
        return ""
    spans = [
        f"{duration(span)}, {dollars(span / 3600 * hourly[name])}{f' on {name}' if len(seconds) > 1 else ''}"
        for name, span in seconds.items()
    ]
    return (
        f"about {'; '.join(spans)} (from its FLOPs; after 50 steps the run says what it really is)"
    )


def _warning(
    seconds: dict[str, float] | None,
    hourly: dict[str, float],
    options: ResolvedOptions,
    facts: ModalState,
    request: Request,
) -> str:
    if seconds is None or _is_trained(request, facts):
        return ""
    return limit_warnings(
        seconds, hourly, options.max_cost, options.timeout_s, facts.cost, facts.seconds
    )


def _cap(job: str, options: ResolvedOptions, facts: ModalState) -> str:
    # Whether code of the user's writes a checkpoint is its own affair.
    then = "writes a checkpoint and ends" if job == "train" else "is told to end"
    attempts = f"{facts.attempts} attempt{'s' if facts.attempts > 1 else ''}"
    spent = f", {dollars(facts.cost)} spent in {attempts}" if facts.attempts else ""
    money = (
        f"{dollars(options.max_cost)}, then it {then}" if options.max_cost else "none in dollars"
    )
    return f"{money}; {duration(options.timeout_s)} over all attempts{spent}"


def _question(
    seconds: dict[str, float] | None,
    hourly: dict[str, float],
    options: ResolvedOptions,
    facts: ModalState,
) -> str:
    dearest = max(hourly.values())
    most = dearest * max(0.0, options.timeout_s - facts.seconds) / 3600
    if options.max_cost is not None:
        most = min(most, max(0.0, options.max_cost - facts.cost))
    if seconds is not None:
        about = max(span / 3600 * hourly[name] for name, span in seconds.items())
        return (
            f"This will cost about {dollars(min(about, most))}, {dollars(most)} at most. Start it?"
        )
    return f"This costs ${dearest:.2f} an hour, {dollars(most)} at most. Start it?"

"""The options of `runner cloud`: as given on the command line, and with every default filled in.

A launch record holds them as JSON; `runner resume` reads them again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from job.format import duration, parse_dollars, parse_duration
from runner.errors import usage
from runner.planning.estimate import training_machine
from runner.planning.gpus import GpuRequest, RentedMachine, parse_gpus
from runner.planning.metric_presets import are_known
from runner.request import CommandRequest, Request, TargetOptions
from runner.targets.modal.watchdog import LONGEST_RUN_S

DEFAULT_GPU = "H100"  # for a training run whose recipe names none
SMALL_GPUS = "L4,T4"  # for jobs that read a checkpoint; the L4 has bfloat16

# For jobs without a GPU: prepare reads in 4 processes and holds a shard of 200 MB in memory.
WITHOUT_GPU = RentedMachine(GpuRequest(), 4.0, 8.0)

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")  # in the names of variables


@dataclass(frozen=True)
class ModalOptions(TargetOptions):
    """The options as given; None or empty for one that was not."""

    nodes: int | None = None
    cores: float | None = None
    memory_gib: float | None = None
    timeout_s: float | None = None  # for the whole run, over all attempts
    region: str | None = None


@dataclass(frozen=True)
class ResolvedOptions(ModalOptions):
    """The options of one planned launch, every default filled in."""

    nodes: int = 1
    timeout_s: float = 24 * 3600.0
    machine: RentedMachine = WITHOUT_GPU  # one node
    stop_stalled_after_s: float | None = None
    stop_idle_gpu_after_s: float | None = None
    prepares_first: bool = False  # a machine without a GPU writes the dataset first

    @property
    def gpus(self) -> GpuRequest:
        """Return the GPUs of one node."""
        return self.machine.gpus


def parse_options(
    gpu: str | None = None,
    nodes: int | None = None,
    timeout: str | float | None = None,
    max_cost: str | float | None = None,
    region: str | None = None,
    cores: float | None = None,
    memory_gib: float | None = None,
    variables: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> ModalOptions:
    """Return the options typed on the command line. Raises RunnerError, exit status 2."""
    environment, forwarded_env = _parse_variables(variables)
    return ModalOptions(
        gpu=gpu,
        max_cost=parse_dollars(max_cost, "--max-cost") if isinstance(max_cost, str) else max_cost,
        nodes=nodes,
        cores=cores,
        memory_gib=memory_gib,
        timeout_s=_parse_timeout(timeout) if timeout else None,
        region=_parse_region(region) if region else None,
        environment=environment,
        forwarded_env=forwarded_env,
        modal_secrets=tuple(secrets),
    )


def resolve_options(request: Request) -> ResolvedOptions:
    """Fill in the defaults of one launch. Raises RunnerError, exit status 2."""
    given = request.target_options
    options = given if isinstance(given, ModalOptions) else ModalOptions()
    gpus = _gpus(request, options.gpu)
    nodes = options.nodes or 1
    if nodes > 1 and gpus.count != 8:
        raise usage("--nodes trains on whole machines; write --gpu H100:8 --nodes 2")
    if nodes > 1 and request.command is not None and "--standalone" in request.command.argv:
        raise usage(
            "--standalone limits torchrun to one machine; with --nodes remove it: torchrun gets "
            "the number of machines, their ranks and the address as variables"
        )
    resources = request.settings.resources if request.settings else None
    default = resources.timeout if resources and request.job.reads_recipe else "1h"
    if request.job.writes_run and not request.job.reads_recipe:
        default = "24h"
    watched = resources if request.job.name == "train" else None
    if isinstance(request, CommandRequest) and are_known(request.command.metrics):
        from job.recipe import ResourcesConfig  # pydantic is slow to import

        watched = ResourcesConfig()
    stalled = watched.stop_stalled_after if watched else None
    idle = watched.stop_idle_gpu_after if watched else None
    own = {
        "gpu": str(gpus) or None,
        "nodes": nodes,
        "timeout_s": options.timeout_s or _parse_timeout(default),
        "machine": _machine(request, gpus, options),
        "stop_stalled_after_s": parse_duration(stalled, "stop_stalled_after") if stalled else None,
        "stop_idle_gpu_after_s": parse_duration(idle, "stop_idle_gpu_after") if idle else None,
    }
    return ResolvedOptions(**{**vars(options), **own})


def _parse_region(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(r"[a-z0-9-]+", name) for name in names):
        raise usage(f"--region {text}: expected names such as us, eu-west or us-east,us-west")
    return ",".join(names)


def _parse_timeout(value: str | float) -> float:
    seconds = parse_duration(value, "--timeout") if isinstance(value, str) else value
    if seconds > LONGEST_RUN_S:
        raise usage(
            f"--timeout {duration(seconds)} is too long: a run on Modal lasts at most "
            f"{duration(LONGEST_RUN_S)} (11 attempts of 24 h); use that, and continue with "
            "`runner resume`"
        )
    return seconds


def _machine(request: Request, gpus: GpuRequest, options: ModalOptions) -> RentedMachine:
    machine = replace(WITHOUT_GPU, gpus=gpus)
    if gpus.names:
        cores = 4.0 if request.job.writes_run else 2.0
        machine = training_machine(request.settings, gpus, cores)
    return replace(
        machine,
        cores=options.cores or machine.cores,
        memory_gib=options.memory_gib or machine.memory_gib,
    )


def _gpus(request: Request, spec: str | None) -> GpuRequest:
    job = request.job
    if spec is not None and not job.takes_device:
        raise usage(f"{job.name} needs no GPU; remove --gpu")
    if spec is not None and request.device == "cpu":
        raise usage(f"--device cpu and --gpu {spec} contradict each other; remove one of the two")
    if not job.takes_device or request.device == "cpu":
        return GpuRequest((), request.gpus)
    if request.command is not None and request.experiment is None:
        return parse_gpus(spec) if spec else GpuRequest()  # a command may need none
    if not job.multi_gpu:
        return parse_gpus(spec or SMALL_GPUS)
    in_recipe = request.settings.resources.gpu if request.settings else None
    return parse_gpus(spec or in_recipe or DEFAULT_GPU)


def _parse_variables(options: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Split --env into NAME=VALUE pairs, which records show, and names of secrets."""
    plain, own = [], []
    for word in options:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise usage(
                f"--env {word}: expected NAME=VALUE, or the NAME of a variable in the environment "
                "or in .env"
            )
        if equals and any(part in name.upper() for part in SECRET_WORDS):
            raise usage(
                f"--env {name}=… would show its value in plans and records; put it into .env "
                f"or the environment and write --env {name}"
            )
        if equals:
            plain.append((name, value))
        else:
            own.append(name)
    return tuple(plain), tuple(own)

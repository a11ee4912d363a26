"""What only the cloud is asked: the options of `runner cloud`, and the machine that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from job.memory import network_size
from job.recipe import Recipe
from runner.errors import usage
from runner.format import parse_dollars, parse_duration, rough_duration
from runner.pricing.gpus import GpuRequest, parse_gpus
from runner.pricing.prices import RentedMachine
from runner.request import Request
from runner.targets.modal.deadlines import LONGEST_RUN

DEFAULT_GPU = "H100"  # of a training run whose recipe names none

SMALL_GPUS = "L4,T4"  # what reads a checkpoint: sample, evaluate; the first has bf16

# For jobs that need none: prepare reads in 4 processes at most, and holds a shard of 200 MB in memory.
WITHOUT_GPU = RentedMachine(GpuRequest(), 4.0, 8.0)

GUARDS = ("stop-stalled-after", "stop-idle-gpu-after")  # in the recipe's resources

# Names that tell of a value that must not be shown.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass(frozen=True)
class ModalOptions:
    """The options, checked. Times in seconds, money in US dollars."""

    machine: RentedMachine
    nodes: int = 1
    timeout: float = 24 * 3600.0  # of the whole run, over all attempts
    max_cost: float | None = None  # of the whole run, over all attempts
    region: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    own_secrets: tuple[str, ...] = ()  # names of variables here or in .env
    modal_secrets: tuple[str, ...] = ()  # names of secrets that Modal keeps
    stop_stalled_after: float | None = None
    stop_idle_gpu_after: float | None = None

    @property
    def gpus(self) -> GpuRequest:
        """GPUs of one node."""
        return self.machine.gpus

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """As (name, value), for the plan and the launch record; ``from_pairs`` reads them again."""
        found = [
            ("gpu", str(self.gpus)),
            ("gpus", str(self.gpus.count)),
            ("cores", f"{self.machine.cores:g}"),
            ("memory", f"{self.machine.memory_gib:g}"),
            ("nodes", str(self.nodes)),
            ("timeout", f"{self.timeout:.10g}s"),
            ("max-cost", f"{self.max_cost:.10g}" if self.max_cost is not None else ""),
            ("region", self.region or ""),
            *(
                (name, f"{span:.10g}s")
                for name, span in zip(
                    GUARDS, (self.stop_stalled_after, self.stop_idle_gpu_after), strict=True
                )
                if span is not None
            ),
            *(("env", f"{name}={value}") for name, value in self.environment),
            *(("env", name) for name in self.own_secrets),
            *(("secret", name) for name in self.modal_secrets),
        ]
        return tuple((name, value) for name, value in found if value)


def from_pairs(pairs: tuple[tuple[str, str], ...]) -> ModalOptions:
    """What ``Options.pairs`` wrote."""
    given = _by_name(pairs)
    gpu = _last(given, "gpu")
    gpus = parse_gpus(gpu) if gpu else GpuRequest((), int(_last(given, "gpus") or 1))
    machine = RentedMachine(
        gpus, float(_last(given, "cores") or 1), float(_last(given, "memory") or 1)
    )
    options = _options(given, machine, _last(given, "timeout") or "24h")
    return _guarded(options, *(_last(given, name) for name in GUARDS))


def read_options(request: Request) -> ModalOptions:
    """Check the options of one launch. Raises RunnerError, exit code 2."""
    given = _by_name(request.more)
    nodes = int(_last(given, "nodes") or 1)
    gpus = _gpus(request, _last(given, "gpu"))
    if nodes > 1 and (gpus.count != 8 or request.job.name != "train"):
        raise usage("--nodes takes whole machines and trains on them; write --gpu H100:8 --nodes 2")
    resources = request.settings.resources if request.settings else None
    default = resources.timeout if resources and request.job.reads_recipe else "1h"
    if request.job.writes_run and not request.job.reads_recipe:
        default = "24h"
    options = _options(given, _machine(request, gpus), _last(given, "timeout") or default)
    if resources is None or request.job.name != "train":
        return options
    return _guarded(options, resources.stop_stalled_after, resources.stop_idle_gpu_after)


def _guarded(options: ModalOptions, stalled: str | None, idle: str | None) -> ModalOptions:
    """The options with what the recipe says of runs that only cost."""
    return replace(
        options,
        stop_stalled_after=parse_duration(stalled, "stop_stalled_after") if stalled else None,
        stop_idle_gpu_after=parse_duration(idle, "stop_idle_gpu_after") if idle else None,
    )


def _options(given: dict[str, list[str]], machine: RentedMachine, span: str) -> ModalOptions:
    timeout = parse_duration(span, "--timeout")
    if timeout > LONGEST_RUN:
        raise usage(
            f"a run in the cloud lasts at most {rough_duration(LONGEST_RUN)} (Modal allows 11 attempts of "
            "24 h); give that much, and take it up again with `runner resume`"
        )
    cap = _last(given, "max-cost")
    plain, own = _variables(given.get("env", []))
    return ModalOptions(
        machine=machine,
        nodes=int(_last(given, "nodes") or 1),
        timeout=timeout,
        max_cost=parse_dollars(cap, "--max-cost") if cap else None,
        region=_last(given, "region"),
        environment=plain,
        own_secrets=own,
        modal_secrets=tuple(given.get("secret", [])),
    )


def _machine(request: Request, gpus: GpuRequest) -> RentedMachine:
    if not gpus.names:
        return replace(WITHOUT_GPU, gpus=gpus)
    if request.job.name == "train" and request.settings is not None:
        return training_machine(request.settings, gpus)
    return _machine_for(request.settings, gpus, 4.0 if request.job.writes_run else 2.0)


def training_machine(recipe: Recipe, gpus: GpuRequest) -> RentedMachine:
    """Cores and memory that a training run asks for beside its ``gpus``. A container may use more than it asked for,
    and then pays for it."""
    return _machine_for(recipe, gpus, 4.0)


def _machine_for(recipe: Recipe | None, gpus: GpuRequest, cores: float) -> RentedMachine:
    memory = 8.0 * gpus.count
    if (
        recipe is not None
    ):  # weights and optimizer are copied to the CPU while a checkpoint is written
        state = network_size(recipe.model, recipe.data.tokenizer).parameters * 12
        memory = max(memory, 4.0 + 2.0 * state / 2**30)
    return RentedMachine(gpus, cores * min(gpus.count, 4), float(math.ceil(memory)))


def _gpus(request: Request, asked: str | None) -> GpuRequest:
    job = request.job
    if asked is not None and not job.takes_device:
        raise usage(f"{job.name} needs no GPU; leave --gpu away")
    if asked is not None and request.device == "cpu":
        raise usage(
            f"--device cpu takes no GPU and --gpu {asked} asks for one; leave one of the two away"
        )
    if not job.takes_device or request.device == "cpu":
        return GpuRequest((), request.gpus)
    if request.command is not None and request.experiment is None:
        return parse_gpus(asked) if asked else GpuRequest()  # nothing tells that it needs one
    if not job.multi_gpu:
        return parse_gpus(asked or SMALL_GPUS)
    in_recipe = request.settings.resources.gpu if request.settings else None
    return parse_gpus(asked or in_recipe or DEFAULT_GPU)


def _variables(words: list[str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """``K=V`` is shown and kept in the record; ``K`` alone is a secret whose value is found here or in .env."""
    plain, own = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise usage(
                f"--env {word}: write NAME=VALUE, or NAME for a value that is here or in .env"
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


def _by_name(pairs: tuple[tuple[str, str], ...]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    return given


def _last(given: dict[str, list[str]], name: str) -> str | None:
    return given[name][-1] if given.get(name) else None

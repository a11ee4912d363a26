"""What only the cloud is asked: the options of `runner cloud`, read from a request's ``more``."""

from __future__ import annotations

from dataclasses import dataclass

from runner.cloud import durations
from runner.cloud.deadlines import LONGEST_RUN
from runner.cloud.gpus import Gpus, parse_gpus
from runner.errors import usage
from runner.request import Request

DEFAULT_GPU = "H100"  # of a training run whose recipe names none
SMALL_GPUS = "L4,T4"  # what reads a checkpoint: sample, evaluate; the first has bf16

# Names that tell of a value that must not be shown.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


@dataclass(frozen=True)
class Options:
    """The options, checked. Times in seconds, money in US dollars."""

    gpus: Gpus = Gpus()
    nodes: int = 1
    timeout: float = 24 * 3600.0  # of the whole run, over all attempts
    max_cost: float | None = None  # of the whole run, over all attempts
    region: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    own_secrets: tuple[str, ...] = ()  # names of variables here or in .env
    modal_secrets: tuple[str, ...] = ()  # names of secrets that Modal keeps


def read_options(request: Request) -> Options:
    """Check the options of one launch. Raises RunnerError, exit code 2."""
    given: dict[str, list[str]] = {}
    for name, value in request.more:
        given.setdefault(name, []).append(value)
    nodes = int(_last(given, "nodes") or 1)
    gpus = _gpus(request, _last(given, "gpu"))
    if nodes > 1 and (gpus.count != 8 or request.job.name != "train"):
        raise usage("--nodes takes whole machines and trains on them; write --gpu H100:8 --nodes 2")
    resources = request.settings.resources if request.settings else None
    timeout = durations.seconds(
        _last(given, "timeout") or (resources.timeout if resources else "24h"), "--timeout"
    )
    if timeout > LONGEST_RUN:
        raise usage(
            f"a run in the cloud lasts at most {durations.in_words(LONGEST_RUN)} (Modal allows 11 attempts of "
            "24 h); give that much, and take it up again with `runner resume`"
        )
    cap = _last(given, "max-cost")
    plain, own = _variables(given.get("env", []))
    return Options(
        gpus=gpus,
        nodes=nodes,
        timeout=timeout,
        max_cost=durations.dollars(cap, "--max-cost") if cap else None,
        region=_last(given, "region"),
        environment=plain,
        own_secrets=own,
        modal_secrets=tuple(given.get("secret", [])),
    )


def _gpus(request: Request, asked: str | None) -> Gpus:
    job = request.job
    if asked is not None and not job.takes_device:
        raise usage(f"{job.name} needs no GPU; leave --gpu away")
    if not job.takes_device or request.device == "cpu":
        return Gpus((), request.gpus)
    if not job.in_processes:
        return parse_gpus(asked or SMALL_GPUS)
    in_recipe = request.settings.resources.gpu if request.settings else None
    return parse_gpus(asked or in_recipe or DEFAULT_GPU)


def _variables(words: list[str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """``K=V`` is shown and kept in the record; ``K`` alone is a secret whose value is found here or in .env."""
    plain, own = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise usage(f"--env {word}: write NAME=VALUE, or NAME for a value that is here or in .env")
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


def _last(given: dict[str, list[str]], name: str) -> str | None:
    return given[name][-1] if given.get(name) else None

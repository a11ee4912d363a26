"""A run that is in two places, here and in the cloud: what forbids to go on with it in one of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from runner.errors import RunnerError, usage


@dataclass(frozen=True)
class OtherSide:
    """What the cloud has of a run that is started here, or this machine of one that is started there."""

    target: str  # that it was last on there
    alive: bool = False
    step: int | None = None  # of its newest checkpoint there
    went_on: bool = False  # a command, whose checkpoints have no steps, was started there since


def check_other_side(run: str, target: str, step: int | None, other: OtherSide, folder: str) -> None:
    """RunnerError where ``run`` is at work on the other side, or further there than the ``step`` from which ``target``
    would go on; ``folder`` is the run's on this machine."""
    if other.alive:
        raise at_work(run, other.target, target)
    there, here = ("here", "in the cloud") if target == "cloud" else ("in the cloud", "here")
    bring = f"bring that first: `runner {'push' if target == 'cloud' else 'pull'} checkpoints {run}`"
    if other.went_on:
        raise usage(f"run '{run}' went on {there}, and what it kept {here} is older; {bring}")
    if other.step is None or other.step <= (-1 if step is None else step):
        return
    if step is None:
        raise usage(f"run '{run}' is at step {other.step} {there} and has no checkpoint {here}; {bring}")
    way = f"move {folder} away" if target == "cloud" else f"rename {folder}, and take that name up"
    raise usage(
        f"run '{run}' is at step {other.step} {there} and at step {step} {here}, where it would go on; {bring} "
        f"(or {way}, to go on from the older one)"
    )


def at_work(run: str, there: str, here: str) -> RunnerError:
    """The error for a start on ``here`` of a run that is at work on ``there``."""
    where = "in the cloud" if there == "cloud" else f"on {there}"
    side = "pull" if there == "cloud" else "push" if here == "cloud" else ""
    bring = f" then `runner {side} checkpoints {run}`," if side else ""
    return RunnerError(
        f"run '{run}' is at work {where}; `runner stop {run}` first,{bring} or give another --name"
    )

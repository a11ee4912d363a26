"""What a run that is taken up again keeps of its last launch on the same target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.targets.protocol import Target

CPU = "cpu"


@dataclass(frozen=True)
class Again:
    """On what it goes on: processes, a device, and the options that only the cloud has."""

    gpus: int = 1
    device: str | None = None
    more: tuple[tuple[str, str], ...] = ()


def machine_again(
    target: Target, run: str, gpus: int | None, device: str | None, given: dict[str, str]
) -> Again:
    """The machine of the last launch there, where nothing else is given now. GPUs that are asked for now end an earlier
    ``--device cpu``; that word ends earlier GPUs in the cloud, where elsewhere it is for the processes that there are."""
    last, in_cloud = target.launched(run), target.name == "cloud"
    if last is None or last.target != target.name:  # the folder may have that of a start elsewhere
        return Again(gpus or 1, device, tuple(given.items()))
    without_gpu = in_cloud and device == CPU
    replaced = {*given, "gpu"} if without_gpu else {*given}
    before = last.more if in_cloud else ()
    return Again(
        gpus=gpus or (1 if without_gpu else last.gpus),
        device=device or (None if gpus or "gpu" in given else last.device),
        more=(*(pair for pair in before if pair[0] not in replaced), *given.items()),
    )

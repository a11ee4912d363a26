"""The containers of runs, found again by their labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runner.machine import Machine

RUN = "gpt-runner.run"
JOB = "gpt-runner.job"
CHECKOUT = "gpt-runner.checkout"


@dataclass(frozen=True)
class Container:
    """A container of a run. ``code`` is its exit status once it ended."""

    id: str
    run: str
    alive: bool
    code: int | None


def labels(run: str, job: str, checkout: Path) -> list[str]:
    """The words that put the labels on a new container."""
    pairs = ((RUN, run), (JOB, job), (CHECKOUT, str(checkout)))
    return [word for name, value in pairs for word in ("--label", f"{name}={value}")]


def containers(machine: Machine, checkout: Path, run: str | None = None) -> list[Container]:
    """Those of this checkout, newest first; all runs' or one's. Empty where no engine answers."""
    filters = ["--filter", f"label={CHECKOUT}={checkout}"]
    if run is not None:
        filters += ["--filter", f"label={RUN}={run}"]
    return _list(machine, filters)


def container_named(machine: Machine, id: str) -> list[Container]:
    """The container with that id, which need not be one that the runner started: `docker compose up train`."""
    return _list(machine, ["--filter", f"id={id}"]) if is_container_id(id) else []


def is_container_id(host: str) -> bool:
    """Whether a host's name is what the engine gives a container: its id's first 12 digits."""
    return re.fullmatch(r"[0-9a-f]{12}", host) is not None


def _list(machine: Machine, filters: list[str]) -> list[Container]:
    shape = f'{{{{.ID}}}}\t{{{{.Label "{RUN}"}}}}\t{{{{.Status}}}}'
    answer = machine.call(["docker", "ps", "--all", "--no-trunc", *filters, "--format", shape])
    if answer.code:
        return []
    rows = [line.split("\t") for line in answer.out.splitlines()]
    return [_container(*row) for row in rows if len(row) == 3]


def _container(id: str, run: str, status: str) -> Container:
    ended = re.match(r"Exited \((\d+)\)", status)
    gone = ended is not None or status.startswith(("Dead", "Removal"))
    return Container(id, run, not gone, int(ended[1]) if ended else None)

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

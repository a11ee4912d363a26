"""Who trains: ours, and peers from their own checkouts. Each is a module with ``train(setup, task)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bench.measured import Measured
from bench.setup import Setup


@dataclass(frozen=True)
class Task:
    """What a contender is to do. ``lr`` None: its own; ``val_tokens``: evaluate over so many at the end, -1 all."""

    name: str  # of this run
    steps: int
    micro_batch: int | None = None
    lr: float | None = None
    val_tokens: int | None = None


class Contender(Protocol):
    """A module of this package."""

    def train(self, setup: Setup, task: Task) -> Measured:
        """Train ``task.steps`` steps of the recipe's shape and tokens; Failed where it does not come to that."""
        ...


def contenders(setup: Setup, only: str | None) -> dict[str, Contender]:
    """Ours and the peers that were given, by name."""
    from bench.contenders import hugging_face, nanochat, nanogpt, ours

    known: dict[str, Contender] = {
        "ours": ours,
        "nanogpt": nanogpt,
        "nanochat": nanochat,
        "hf": hugging_face,
    }
    if unknown := [
        name for name in (*setup.peers, *(only or "").split(",")) if name and name not in known
    ]:
        from job.exit_status import UserError

        raise UserError(f"there is no contender {unknown[0]}; there are {', '.join(known)}")
    wanted = only.split(",") if only else list(known)
    return {
        name: known[name]
        for name in known
        if name in wanted and (name == "ours" or name in setup.peers)
    }

"""A container as the scheduler sees it, and a group of them that belongs together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from modal_proto import api_pb2

from .calls import Input
from .executor import Running
from .functions import Function
from .volume_views import View


@dataclass
class Task:
    """A container. `fate` says why it is being ended: preempted, crashed, timeout, cancelled, stopped."""

    id: str
    function: Function
    views: list[View] = field(default_factory=list)
    inputs: dict[str, Input] = field(default_factory=dict)  # that it works on
    latest: Input | None = None
    given: int = 0
    fate: str = ""
    ready: bool = False
    running: Running | None = None
    exit_code: int | None = None
    result: api_pb2.GenericResult | None = None  # of a body that could not be imported
    cancelled: list[str] = field(default_factory=list)
    started_at: float = field(default_factory=time.time)
    ended_at: float = 0.0
    rank: int = 0
    cluster: Cluster | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    @property
    def used_up(self) -> bool:
        """It was for one input, and has had it."""
        definition = self.function.definition
        return bool(self.given and (definition.single_use_containers or definition.max_inputs == 1))

    @property
    def leader(self) -> Task:
        """The container whose output counts: itself, unless it is one of a cluster."""
        return self.cluster.tasks[0] if self.cluster else self

    @property
    def members(self) -> list[Task]:
        return self.cluster.tasks if self.cluster else [self]


@dataclass
class Cluster:
    """Containers that are scheduled together; each gets the same inputs, and rank 0's output counts."""

    id: str
    tasks: list[Task] = field(default_factory=list)
    hello: dict[str, str] = field(default_factory=dict)  # task id: address

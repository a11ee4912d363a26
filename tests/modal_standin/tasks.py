"""A container in the scheduler, and a cluster of containers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from modal_proto import api_pb2

from .calls import Input
from .executor import Container, Running
from .functions import Function
from .volume_views import View


@dataclass
class Task:
    """A container. `fate` is why it ends: preempted, crashed, timeout, cancelled, stopped."""

    id: str
    function: Function
    views: list[View] = field(default_factory=list)
    inputs: dict[str, Input] = field(default_factory=dict)  # in progress
    latest: Input | None = None
    given: int = 0
    fate: str = ""
    ready: bool = False
    running: Running | None = None
    container: Container | None = None
    exit_code: int | None = None
    result: api_pb2.GenericResult | None = None  # a body that could not be imported
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
        """Return whether it was for a single input and has received it."""
        definition = self.function.definition
        return bool(self.given and (definition.single_use_containers or definition.max_inputs == 1))

    @property
    def leader(self) -> Task:
        """Return the container whose output counts: itself, or the first of its cluster."""
        return self.cluster.tasks[0] if self.cluster else self

    @property
    def members(self) -> list[Task]:
        return self.cluster.tasks if self.cluster else [self]


@dataclass
class Cluster:
    """Containers that start together and get the same inputs; rank 0's output counts."""

    id: str
    tasks: list[Task] = field(default_factory=list)
    hello: dict[str, str] = field(default_factory=dict)  # task id: address

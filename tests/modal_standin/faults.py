"""Faults by rule: which request fails, how, how often, and with what probability."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from grpclib import Status

HTTP_FAULTS = {"cut", "truncate", "corrupt"}
RPC_FAULTS = {status.name for status in Status} | {"disconnect", "lost"}


@dataclass
class Rule:
    """`on` is the name of an RPC, or BlockGet, BlockPut, BlobGet, BlobPut for HTTP; a pattern is allowed."""

    on: str
    fault: str
    times: int | None
    probability: float
    after: int
    match: str
    fired: int = 0
    seen: int = 0
    chance: random.Random = field(default_factory=random.Random)


class Faults:
    """The rules in force. The first that applies to a request is the one that strikes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(
        self,
        on: str,
        fault: str,
        times: int | None = 1,
        probability: float = 1.0,
        seed: int = 0,
        after: int = 0,
        match: str = "",
    ) -> None:
        """Let `fault` strike requests of the name `on`.

        fault: for an RPC a gRPC status ("UNAVAILABLE"), "disconnect" (the connection is closed before the
        request is looked at) or "lost" (it is carried out, and the connection closed before the answer);
        for HTTP a status ("503"), "cut" (the connection ends in mid-body), "truncate" (a body that is
        short and says so) or "corrupt" (one byte is wrong).
        times: how often at most; None: no limit. after: so many requests pass first.
        match: strike only requests whose text (of the message, or the path) contains it.

        Raises ValueError for a fault that does not exist.
        """
        if fault not in HTTP_FAULTS | RPC_FAULTS and not fault.isdigit():
            known = ", ".join(sorted(HTTP_FAULTS | RPC_FAULTS))
            raise ValueError(f"no such fault: {fault!r}; there are {known} and HTTP statuses")
        rule = Rule(on, fault, times, probability, after, match, chance=random.Random(seed))
        with self._lock:
            self._rules.append(rule)

    def draw(self, name: str, text: str = "") -> str | None:
        """The fault that strikes this request, or None."""
        with self._lock:
            for rule in self._rules:
                if not fnmatchcase(name, rule.on) or (rule.match and rule.match not in text):
                    continue
                rule.seen += 1
                if rule.seen <= rule.after or (rule.times is not None and rule.fired >= rule.times):
                    continue
                if rule.chance.random() < rule.probability:
                    rule.fired += 1
                    return rule.fault
        return None

    def fired(self) -> int:
        with self._lock:
            return sum(rule.fired for rule in self._rules)

    def needs_text(self) -> bool:
        with self._lock:
            return any(rule.match for rule in self._rules)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

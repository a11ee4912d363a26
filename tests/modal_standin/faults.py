"""Rules for faults: the requests that fail, how, how often and with which probability."""

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
    """A rule. `on` is a pattern for an RPC, or for BlockGet, BlockPut, BlobGet, BlobPut (HTTP)."""

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
    """The active rules. The first that matches a request applies."""

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
        """Make requests named `on` fail with `fault`.

        fault: for an RPC, a gRPC status ("UNAVAILABLE"), "disconnect" (close the connection before
        the request is executed) or "lost" (execute it, and close the connection before the
        answer); for HTTP, a status ("503"), "cut" (close the connection in the body), "truncate"
        (a shorter body, and a length that says so) or "corrupt" (one wrong byte).
        times: how often at most; None for no limit. after: the number of requests to let pass.
        match: a text that the message, or the path, must contain.

        Raises ValueError for an unknown fault.
        """
        if fault not in HTTP_FAULTS | RPC_FAULTS and not fault.isdigit():
            known = ", ".join(sorted(HTTP_FAULTS | RPC_FAULTS))
            raise ValueError(f"no such fault: {fault!r}; there are {known} and HTTP statuses")
        rule = Rule(on, fault, times, probability, after, match, chance=random.Random(seed))
        with self._lock:
            self._rules.append(rule)

    def draw(self, name: str, text: str = "") -> str | None:
        """Return the fault for this request, or None."""
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

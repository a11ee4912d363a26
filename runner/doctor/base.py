"""What a check reports, and what it is given to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from runner.system import System

# ok: as it should be. note: good to know. warning: something will not work. error: must be fixed.
Severity = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. ``remedy`` is the next thing to type or do."""

    severity: Severity
    message: str
    remedy: str = ""
    file: str | None = None
    line: int | None = None


@dataclass
class CheckContext:
    """The checkout and the machine under examination."""

    checkout: Path
    environ: Mapping[str, str] = field(repr=False)

    @cached_property
    def machine(self) -> System:
        """What is installed here."""
        return System(self.environ)

    @cached_property
    def torch_here(self) -> bool:
        """Whether `runner host` can train: found, and not imported, which would take seconds."""
        return find_spec("torch") is not None

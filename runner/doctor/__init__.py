"""The checks of ``runner doctor``: their findings, and the checkout and machine to examine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

from job.paths import VolumePaths
from runner.project import volumes
from runner.system import System


class Severity(StrEnum):
    """The seriousness of a finding."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # something will not work
    ERROR = "error"  # must be fixed


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``remedy`` is a command or an edit."""

    severity: Severity
    message: str
    remedy: str = ""
    file: str | None = None
    line: int | None = None


ok = partial(Finding, Severity.OK)
note = partial(Finding, Severity.NOTE)
warning = partial(Finding, Severity.WARNING)
failure = partial(Finding, Severity.ERROR)


@dataclass
class CheckContext:
    """The checkout and the machine to examine."""

    checkout: Path
    environ: Mapping[str, str] = field(repr=False)

    @cached_property
    def machine(self) -> System:
        """Return the programs and devices of this machine."""
        return System(self.environ)

    @property
    def volumes(self) -> VolumePaths:
        """Return the volumes' folders on this machine."""
        return volumes(self.checkout, self.environ)

    @cached_property
    def has_torch(self) -> bool:
        """Return True if torch is installed; importing it would take seconds."""
        return find_spec("torch") is not None

"""What `runner doctor` looks at. A check is a file of this folder with ``check``, and ``fix`` where it can.

``ORDER`` in it is its place in the list: what others build on comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from runner.doctor.base import CheckContext, Finding

__all__ = ["CheckContext", "Finding", "examine", "repair"]


def examine(scene: CheckContext) -> Iterator[Finding]:
    """What every check finds, in order."""
    for module in _checks():
        yield from module.check(scene)


def repair(scene: CheckContext) -> Iterator[str]:
    """Let every check that can put its matter right do so; what was done, in words."""
    for module in _checks():
        if hasattr(module, "fix"):
            yield from module.fix(scene)


def _checks() -> list[ModuleType]:
    names = [
        p.stem
        for p in Path(__file__).parent.glob("*.py")
        if p.stem not in ("__init__", "base", "parity")
    ]
    return sorted((import_module(f"runner.doctor.{name}") for name in names), key=_place)


def _place(module: ModuleType) -> tuple[int, str]:
    return getattr(module, "ORDER", 100), module.__name__

"""Library for experiments: Python files with ``train(output_dir=".", ...) -> dict``.

    from experiment import TBLogger, load_checkpoint, save_checkpoint, should_stop

Each name is imported on first use, so that a file that needs no torch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.checkpoint import (
        ConfigMismatch,
        LoadedCheckpoint,
        load_checkpoint,
        save_checkpoint,
    )
    from experiment.logger import TBLogger
    from experiment.preemption import should_stop

__all__ = [
    "ConfigMismatch",
    "LoadedCheckpoint",
    "TBLogger",
    "load_checkpoint",
    "save_checkpoint",
    "should_stop",
]

MODULES = {"TBLogger": "logger", "should_stop": "preemption"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiment' has no '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"experiment.{MODULES.get(name, 'checkpoint')}"), name)

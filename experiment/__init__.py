"""What an experiment imports: a Python file with ``train(output_dir=".", ...) -> dict`` that the runner runs.

    from experiment import TBLogger, load_checkpoint, save_checkpoint, should_stop

Each name is loaded when it is first asked for: a file that needs no torch does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiment.checkpoint import Loaded, OtherConfiguration, load_checkpoint, save_checkpoint
    from experiment.logger import TBLogger
    from experiment.stopping import should_stop

__all__ = [
    "Loaded",
    "OtherConfiguration",
    "TBLogger",
    "load_checkpoint",
    "save_checkpoint",
    "should_stop",
]

MODULES = {"TBLogger": "logger", "should_stop": "stopping"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiment' has no '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"experiment.{MODULES.get(name, 'checkpoint')}"), name)

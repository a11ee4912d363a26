"""Loading the user's file, whose folder may hold modules with the names of ours: its model.py is theirs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from job.locations import CHECKOUT
from job.signature import FUNCTION, ExperimentError

OURS = ("model", "corpus", "job", "runner")


def load_train(path: Path) -> Callable[..., Any]:
    """The function ``train`` of the file, which is run as a module of its own name, its folder searched first."""
    make_room(path.parent)
    sys.path[:] = [str(path.parent), *(entry for entry in sys.path if entry != str(path.parent))]
    sys.argv = [str(path)]
    name = path.stem if path.stem not in sys.modules else f"experiment_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExperimentError(f"{path}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look it up there
    spec.loader.exec_module(module)
    train: Callable[..., Any] = getattr(module, FUNCTION)
    return train


def make_room(folder: Path) -> None:
    """Forget those of our packages whose names the user's folder has too. The library keeps hold of them."""
    if folder == CHECKOUT:
        return
    taken = [name for name in OURS if (folder / f"{name}.py").exists() or (folder / name).is_dir()]
    if not taken:
        return
    for part in ("checkpoint", "logger"):  # they import ours, and must do so before the names are given away
        import_module(f"experiment.{part}")
    for name in [*sys.modules]:
        if name.partition(".")[0] in taken:
            del sys.modules[name]

"""What a command on the host needs besides: the Python that it finds, and folders that stay where they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from runner.checkout import INSTALLED
from runner.requests.command import Command

# Set where the user has chosen an environment in this shell; its `python` is theirs then.
CHOSEN = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_VIRTUAL_ENV")


def for_command(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables for the process around the command: it finds our packages, which the command does not get, and
    as `python` the one that runs the runner, where no environment is active in this shell."""
    found = {"PYTHONPATH": os.pathsep.join(filter(None, [str(INSTALLED), environ.get("PYTHONPATH")]))}
    if not any(environ.get(name) for name in CHOSEN):
        bin_folder = str(Path(sys.executable).parent)
        found["PATH"] = os.pathsep.join(filter(None, [bin_folder, environ.get("PATH")]))
    return found


def occupied(command: Command) -> tuple[str, ...]:
    """The paths to keep in whose place real folders with content are: they are the user's, and stay."""
    return tuple(keep.path for keep in command.keep if _has_content(command.folder / keep.path))


def _has_content(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and any(path.iterdir())

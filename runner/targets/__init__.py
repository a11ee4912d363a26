"""The targets by name. A target is a file of this folder; adding one touches nothing else."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import did_you_mean, usage

if TYPE_CHECKING:
    from runner.targets.protocol import Target
    from runner.terminal import Environment


def target_names() -> list[str]:
    """The files of this folder, without importing them."""
    return sorted(
        path.stem
        for path in Path(__file__).parent.glob("*.py")
        if path.stem != "protocol" and not path.stem.startswith("_")
    )


def open_target(name: str, env: Environment, checkout: Path) -> Target:
    """The target ``name``, imported and opened once. Raises RunnerError, exit code 2, for a wrong name."""
    if name not in env.targets:
        names = target_names()
        if name not in names:
            raise usage(
                f"there is no target '{name}'{did_you_mean(name, names) or '; there are ' + ', '.join(names)}"
            )
        env.targets[name] = import_module(f"runner.targets.{name}").open_target(env, checkout)
    return env.targets[name]


def all_targets(env: Environment, checkout: Path) -> list[Target]:
    """Every target; one that a test put into the environment stands for all of that name."""
    names = sorted({*target_names(), *env.targets}) if not env.only_given_targets else sorted(env.targets)
    return [open_target(name, env, checkout) for name in names]

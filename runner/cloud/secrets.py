"""Secrets of a launch: names in the plan, values only in the function's environment on Modal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.dotenv import read_dotenv, secret_values
from runner.errors import usage

if TYPE_CHECKING:
    import modal


def check_there(names: Iterable[str], environ: Mapping[str, str], checkout: Path) -> None:
    """RunnerError, exit code 2, for a name that has no value here or in .env."""
    kept = read_dotenv(checkout)
    for name in names:
        if not environ.get(name) and not kept.get(name):
            raise usage(
                f"--env {name}: there is no {name} in the environment or in .env; write --env {name}=VALUE"
            )


def modal_secrets(
    own: Iterable[str], named: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> list[modal.Secret]:
    """The values of ``own`` variables, and Modal's own secrets by name, as its functions take them."""
    import modal

    values: dict[str, str | None] = {**secret_values(own, environ, checkout)}
    found = [modal.Secret.from_dict(values)] if values else []
    return [*found, *(modal.Secret.from_name(name) for name in named)]

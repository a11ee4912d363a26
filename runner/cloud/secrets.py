"""Secrets of a launch: names in the plan, values only in the function's environment on Modal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cloud.modal_errors import in_our_words
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


def check_kept(names: Iterable[str]) -> None:
    """RunnerError, exit code 2, for a secret that Modal does not keep: a build of the image would come first."""
    import modal

    for name in names:
        try:
            with in_our_words():
                modal.Secret.from_name(name).hydrate()
        except FileNotFoundError:
            raise usage(
                f"--secret {name}: Modal keeps no secret of that name; to make it, type: "
                f"modal secret create {name} KEY=VALUE"
            ) from None


def modal_secrets(
    own: Iterable[str], named: Iterable[str], environ: Mapping[str, str], checkout: Path
) -> list[modal.Secret]:
    """The values of ``own`` variables, and Modal's own secrets by name, as its functions take them."""
    import modal

    values: dict[str, str | None] = {**secret_values(own, environ, checkout)}
    found = [modal.Secret.from_dict(values)] if values else []
    return [*found, *(modal.Secret.from_name(name) for name in named)]

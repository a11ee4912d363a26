"""Whether the user has a Modal account set up, told without importing modal."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError

NO_TOKEN = "there is no Modal token here"

CREDENTIALS = (
    "token_id",
    "token_secret",
    "oauth_refresh_token",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_jwt_key",
)


def config_file(environ: Mapping[str, str]) -> Path:
    """Where Modal's client keeps tokens."""
    return Path(
        environ.get("MODAL_CONFIG_PATH")
        or Path(environ.get("HOME", "~")).expanduser() / ".modal.toml"
    )


def profiles(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The file's sections by name; none where there is no file.

    Raises RunnerError for a file with which modal could not even be imported.
    """
    file = config_file(environ)
    if not file.exists():
        return {}
    import toml  # the client's reader, not tomllib: what it takes is good, and what it refuses is not

    try:
        with file.open() as stream:
            found = toml.load(stream)
    except Exception as error:  # it raises IndexError too, for what it did not expect
        raise RunnerError(_unreadable(file, str(error))) from error
    if not all(isinstance(section, dict) for section in found.values()):
        raise RunnerError(
            _unreadable(file, "each line must belong to a section, such as [default]")
        )
    return found


def _unreadable(file: Path, why: str) -> str:
    path = shlex.quote(str(file))
    return (
        f"Modal's client can't read {file}: {' '.join(why.split())}; mend it, or begin anew: "
        f"mv {path} {path}.old && modal token new"
    )


def setting(name: str, environ: Mapping[str, str]) -> Any:
    """A setting of Modal's client as it looks it up: the variable, else the profile in force; None without."""
    variable = f"MODAL_{name.upper()}"
    if variable in environ:
        return environ[variable]
    known = profiles(environ)
    active = next(
        (profile for profile, section in known.items() if section.get("active") is True), "default"
    )
    return known.get(environ.get("MODAL_PROFILE") or active, {}).get(name)


def is_set_up(environ: Mapping[str, str]) -> bool:
    """Whether there are credentials, in the environment or in the file that `modal setup` writes.

    Raises RunnerError for a file that can't be read.
    """
    given = {
        name: environ[f"MODAL_{name.upper()}"]
        for name in CREDENTIALS
        if f"MODAL_{name.upper()}" in environ
    }
    # Any profile counts: where none is in force, the client says which there are.
    return any(_are_complete({**section, **given}) for section in [{}, *profiles(environ).values()])


def _are_complete(values: Mapping[str, Any]) -> bool:
    """Whether the client takes the credentials: a token, or what a refresh token of OAuth needs."""
    if values.get("token_id") and values.get("token_secret"):
        return True
    has_secret, has_key = bool(values.get("oauth_client_secret")), bool(values.get("oauth_jwt_key"))
    return (
        bool(values.get("oauth_refresh_token") and values.get("oauth_client_id"))
        and has_secret != has_key
    )


def need_token(environ: Mapping[str, str], otherwise: str = "") -> None:
    """RunnerError where there is none, before a network is looked for that would be of no use. ``otherwise``: what to
    type in its place."""
    if not is_set_up(environ):
        raise RunnerError(
            f"{NO_TOKEN}; type: modal token new{f'   ({otherwise})' if otherwise else ''}"
        )


def account_name(environ: Mapping[str, str]) -> str:
    """A name that differs between accounts, profiles and environments, and tells no token.

    The whole file is in it: `modal profile activate` and `modal token new` change nothing else.
    """
    parts = [
        environ.get(f"MODAL_{name}", "")
        for name in ("SERVER_URL", "TOKEN_ID", "PROFILE", "ENVIRONMENT")
    ]
    try:
        file = config_file(environ).read_bytes()
    except OSError:
        file = b""
    return hashlib.sha256("\0".join(parts).encode() + file).hexdigest()[:16]

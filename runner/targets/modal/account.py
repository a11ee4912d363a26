"""The user's Modal account: credentials and settings of Modal's client, without importing modal."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import RunnerError

NO_TOKEN = "this machine has no Modal token"

CREDENTIALS = (
    "token_id",
    "token_secret",
    "oauth_refresh_token",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_jwt_key",
)


def config_file(environ: Mapping[str, str]) -> Path:
    """Return the file in which Modal's client stores tokens."""
    return Path(
        environ.get("MODAL_CONFIG_PATH")
        or Path(environ.get("HOME", "~")).expanduser() / ".modal.toml"
    )


def profiles(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the sections of the file by name; none if there is no file.

    Raises RunnerError for a file that makes even ``import modal`` fail.
    """
    file = config_file(environ)
    if not file.exists():
        return {}
    import toml  # the client's parser: tomllib accepts and refuses other files

    try:
        with file.open(encoding="utf-8") as stream:
            sections = toml.load(stream)
    except Exception as error:  # it also raises IndexError
        raise RunnerError(_invalid_file(file, str(error))) from error
    if not all(isinstance(section, dict) for section in sections.values()):
        raise RunnerError(
            _invalid_file(file, "each line must belong to a section such as [default]")
        )
    return sections


def _invalid_file(file: Path, why: str) -> str:
    path = shlex.quote(str(file))
    return (
        f"Modal's client can't read {file}: {' '.join(why.split())}; fix it, or create another: "
        f"mv {path} {path}.old && modal token new"
    )


def setting(name: str, environ: Mapping[str, str]) -> Any:
    """Return a setting of Modal's client: the variable's or the profile's; None if unset."""
    variable = f"MODAL_{name.upper()}"
    if variable in environ:
        return environ[variable]
    sections = profiles(environ)
    active = next(
        (profile for profile, section in sections.items() if section.get("active") is True),
        "default",
    )
    return sections.get(environ.get("MODAL_PROFILE") or active, {}).get(name)


def is_configured(environ: Mapping[str, str]) -> bool:
    """Return whether there are credentials, in the environment or in the client's file.

    Raises RunnerError for a file that can't be read.
    """
    given = {
        name: environ[f"MODAL_{name.upper()}"]
        for name in CREDENTIALS
        if f"MODAL_{name.upper()}" in environ
    }
    # Any profile counts: if none is active, the client's error lists them.
    sections = [{}, *profiles(environ).values()]
    return any(_are_complete({**section, **given}) for section in sections)


def _are_complete(values: Mapping[str, Any]) -> bool:
    """Return whether the client accepts the credentials: a token, or an OAuth refresh token."""
    if values.get("token_id") and values.get("token_secret"):
        return True
    has_secret, has_key = bool(values.get("oauth_client_secret")), bool(values.get("oauth_jwt_key"))
    return (
        bool(values.get("oauth_refresh_token") and values.get("oauth_client_id"))
        and has_secret != has_key
    )


def need_token(environ: Mapping[str, str], alternative: str = "") -> None:
    """Raise RunnerError without credentials. ``alternative`` is a command that needs none."""
    if not is_configured(environ):
        hint = f"   ({alternative})" if alternative else ""
        raise RunnerError(f"{NO_TOKEN}; type: modal token new{hint}")


def account_id(environ: Mapping[str, str]) -> str:
    """Return a hash that differs between accounts, profiles and environments.

    It covers the whole file: `modal profile activate` and `modal token new` change nothing else.
    """
    names = ("SERVER_URL", "TOKEN_ID", "PROFILE", "ENVIRONMENT")
    parts = [environ.get(f"MODAL_{name}", "") for name in names]
    try:
        file = config_file(environ).read_bytes()
    except OSError:
        file = b""
    return hashlib.sha256("\0".join(parts).encode() + file).hexdigest()[:16]

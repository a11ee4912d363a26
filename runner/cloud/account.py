"""Whether the user has a Modal account set up, told without importing modal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from runner.errors import RunnerError

NO_TOKEN = "there is no Modal token here"


def config_file(environ: Mapping[str, str]) -> Path:
    """Where Modal's client keeps tokens."""
    return Path(
        environ.get("MODAL_CONFIG_PATH") or Path(environ.get("HOME", "~")).expanduser() / ".modal.toml"
    )


def is_set_up(environ: Mapping[str, str]) -> bool:
    """Whether there is a token, in the environment or in the file that `modal setup` writes."""
    if environ.get("MODAL_TOKEN_ID") and environ.get("MODAL_TOKEN_SECRET"):
        return True
    try:
        return "token_id" in config_file(environ).read_text(encoding="utf-8")
    except OSError:
        return False


def need_token(environ: Mapping[str, str], otherwise: str = "") -> None:
    """RunnerError where there is none, before a network is looked for that would be of no use. ``otherwise``: what to
    type in its place."""
    if not is_set_up(environ):
        raise RunnerError(f"{NO_TOKEN}; type: modal token new{f'   ({otherwise})' if otherwise else ''}")


def account_name(environ: Mapping[str, str]) -> str:
    """A name that differs between accounts, profiles and environments, and tells no token."""
    parts = [
        environ.get(f"MODAL_{name}", "") for name in ("SERVER_URL", "TOKEN_ID", "PROFILE", "ENVIRONMENT")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

"""Whether the user has a Modal account set up, told without importing modal."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from runner.errors import RunnerError

SERVER = "https://api.modal.com"
PATIENCE = 1.5  # seconds for a connection: who lists the runs of this machine must not wait for a network


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


def account_name(environ: Mapping[str, str]) -> str:
    """A name that differs between accounts, profiles and environments, and tells no token."""
    parts = [
        environ.get(f"MODAL_{name}", "") for name in ("SERVER_URL", "TOKEN_ID", "PROFILE", "ENVIRONMENT")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def check_reachable(environ: Mapping[str, str]) -> None:
    """RunnerError within PATIENCE seconds where there is no way to Modal; the client would try for a minute."""
    if any(environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # the way is the proxy's business
    server = urlsplit(environ.get("MODAL_SERVER_URL") or SERVER)
    port = server.port or (443 if server.scheme == "https" else 80)
    try:
        socket.create_connection((server.hostname or "", port), PATIENCE).close()
    except OSError as error:
        raise RunnerError(f"Modal can't be reached ({error}); check the network") from error

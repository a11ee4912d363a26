"""Where Modal answers: ``server_url`` of its client is a list, of which one that answers is enough."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from runner.errors import RunnerError

DEFAULT = "https://api.modal.com,https://api.modal2.com"  # as of modal 1.6; a test compares it
PATIENCE = 1.5  # seconds for a connection: who lists the runs of this machine must not wait for a network


def addresses(urls: str) -> list[tuple[str, int]]:
    """Host and port of each server in a list with commas."""
    found = [urlsplit(url.strip()) for url in urls.split(",") if url.strip()]
    return [(url.hostname or "", url.port or (80 if url.scheme == "http" else 443)) for url in found]


def has_proxy(environ: Mapping[str, str]) -> bool:
    """Whether the way to Modal, and what its name stands for, are a proxy's business."""
    return any(environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))


def check_known(urls: str, environ: Mapping[str, str] = os.environ) -> None:
    """RunnerError at once where no server's name can be resolved; the client would try for a minute."""
    if has_proxy(environ):
        return
    why = []
    for host, port in addresses(urls):
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            why.append(f"{host} is unknown here ({error.strerror})")
        else:
            return
    raise RunnerError(unreachable(" and ".join(why)))


def check_reachable(environ: Mapping[str, str]) -> None:
    """RunnerError within PATIENCE seconds for each server where there is no way to any; without a look at modal."""
    if has_proxy(environ):
        return
    why = ""
    for address in addresses(environ.get("MODAL_SERVER_URL") or DEFAULT):
        try:
            socket.create_connection(address, PATIENCE).close()
        except OSError as error:
            why = why or str(error)
        else:
            return
    raise RunnerError(f"Modal can't be reached ({why}); check the network")


def unreachable(why: str) -> str:
    """The whole line for a Modal that does not answer a command which needs it."""
    return f"Modal can't be reached: {why.rstrip('.')}; check the network and type the same again"

"""Where Modal answers: ``server_url`` of its client is a list, of which one that answers is enough."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from runner.cloud.account import setting
from runner.errors import RunnerError
from runner.extras import pip_install

DEFAULT = "https://api.modal.com,https://api.modal2.com"  # as of modal 1.6; a test compares it
PROXY_PACKAGES = ("python_socks", "aiohttp_socks")  # modal[api-proxy-support]: for its calls, and for blocks
PATIENCE = 1.5  # seconds for a connection: who lists the runs of this machine must not wait for a network


def addresses(urls: str) -> list[tuple[str, int]]:
    """Host and port of each server in a list with commas."""
    found = [urlsplit(url.strip()) for url in urls.split(",") if url.strip()]
    return [(url.hostname or "", url.port or (80 if url.scheme == "http" else 443)) for url in found]


def proxy_variable(environ: Mapping[str, str]) -> str:
    """The variable whose proxy the client takes to Modal; '' where it goes there itself. NO_PROXY is not asked: the
    client asks it for its calls, and sends the blocks of files through the proxy all the same."""
    for name in ("https_proxy", "all_proxy"):
        found = name if name in environ else name.upper()  # a small one that is empty stands for none
        if environ.get(found):
            off = str(setting("disable_api_proxy", environ) or "").lower() not in ("", "0", "false")
            return "" if off else found
    return ""


def check_proxy(environ: Mapping[str, str]) -> None:
    """RunnerError where the client has a proxy and not what it needs to speak to it; it would try for a minute."""
    variable = proxy_variable(environ)
    if variable and not all(find_spec(package) for package in PROXY_PACKAGES):
        raise RunnerError(
            f"{variable} names a proxy, for which Modal's client needs packages that are not here; type: "
            f"{pip_install('modal[api-proxy-support]')}   (or go without it: MODAL_DISABLE_API_PROXY=1)"
        )


def check_known(urls: str, environ: Mapping[str, str] = os.environ) -> None:
    """RunnerError at once where no server's name can be resolved; the client would try for a minute."""
    check_proxy(environ)
    if proxy_variable(environ):  # the way there, and what the names stand for, are the proxy's business
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


def check_reachable(environ: Mapping[str, str], urls: str = "") -> None:
    """RunnerError within PATIENCE seconds for each server where there is no way to any; without a look at modal.
    ``urls`` is the client's setting, where that was looked at."""
    check_proxy(environ)
    if proxy_variable(environ):  # the way there, and what the names stand for, are the proxy's business
        return
    why = ""
    for address in addresses(urls or environ.get("MODAL_SERVER_URL") or DEFAULT):
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

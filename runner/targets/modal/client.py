"""Requests to Modal: errors as the runner's own, retries, and whether Modal can be reached."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar
from urllib.parse import urlsplit

from runner.errors import ModalUnavailable, RunnerError
from runner.project import pip_install
from runner.targets.modal.account import setting

# Modal reports an account at its limit with the status of a busy server, and these words.
BILLING_WORDS = ("spend limit", "billing", "payment")
BILLING_HINT = "modal.com/settings/usage shows the limit and the card"


@contextmanager
def translate_modal_errors() -> Iterator[None]:
    """Raise Modal's errors as FileNotFoundError, ModalUnavailable (retry) or RunnerError (do not).

    RemoteError passes through: only the caller knows whether it comes from an image or a function.
    """
    import aiohttp
    from grpclib.exceptions import StreamTerminatedError
    from modal import exception

    try:
        yield
    except exception.NotFoundError as error:
        raise FileNotFoundError(str(error)) from error
    except exception.AuthError as error:
        raise RunnerError(_auth_message(str(error))) from error
    except exception.PermissionDeniedError as error:
        raise RunnerError(
            f"Modal denies access: {error}; `modal profile list` shows the active workspace"
        ) from error
    except (
        exception.ServiceError,
        exception.InternalError,
        exception.ResourceExhaustedError,
    ) as error:
        if any(word in str(error).lower() for word in BILLING_WORDS):
            raise RunnerError(f"Modal refuses: {error}; {BILLING_HINT}") from error
        raise ModalUnavailable(str(error)) from error
    except (exception.ConnectionError, exception.TimeoutError) as error:
        raise ModalUnavailable(str(error)) from error
    except (aiohttp.ClientError, ConnectionError, TimeoutError, socket.gaierror) as error:
        raise ModalUnavailable(f"{type(error).__name__}: {error}") from error
    except exception.ClientClosed as error:
        raise ModalUnavailable(f"the connection was closed: {error}") from error
    except exception.InvalidError as error:
        hint = f"; {BILLING_HINT}, or use --gpu L4" if "payment method" in str(error) else ""
        raise RunnerError(f"Modal refuses: {error}{hint}") from error
    except StreamTerminatedError as error:  # the connection was cut during a listing
        raise ModalUnavailable(f"the connection was cut: {error}") from error
    except exception.ExecutionError as error:  # an HTTP status of 400 and above, or a wrong digest
        raise ModalUnavailable(str(error)) from error
    except exception.DataLossError as error:
        raise RunnerError(f"Modal has lost data: {error}") from error
    except exception.RemoteError:
        raise
    except exception.Error as error:
        raise RunnerError(f"Modal: {error}") from error


def _auth_message(text: str) -> str:
    if "Token missing" in text:
        return (
            "this machine has no Modal token; create one with `modal token new` (or set "
            "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET)"
        )
    return f"Modal does not accept the token: {text}; create another with `modal token new`"


T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """The number of attempts of a request, and the growing delays between them.

    The client itself repeats a call 3 times and an upload of a block 11 times within a few seconds.
    These retries come on top: by default about half a minute, enough to switch networks.
    """

    attempts: int = 7
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    def call(self, request: Callable[[], T]) -> T:
        """Return ``request()``, repeated after each ModalUnavailable; raise the last one."""
        delay = self.first_delay_s
        for _ in range(self.attempts - 1):
            try:
                return request()
            except ModalUnavailable:
                # Half of it at random, so that parallel transfers do not retry all at once.
                self.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, self.max_delay_s)
        return request()


DEFAULT_SERVERS = "https://api.modal.com,https://api.modal2.com"  # of modal 1.6; a test compares it

PROXY_PACKAGES = ("python_socks", "aiohttp_socks")  # of modal[api-proxy-support]

CONNECT_TIMEOUT_S = 1.5  # short: listing the runs of this machine must not wait for a network


def server_addresses(urls: str) -> list[tuple[str, int]]:
    """Return host and port of each server in a comma-separated list."""
    parsed = [urlsplit(url.strip()) for url in urls.split(",") if url.strip()]
    return [
        (url.hostname or "", url.port or (80 if url.scheme == "http" else 443)) for url in parsed
    ]


def proxy_variable(environ: Mapping[str, str]) -> str:
    """Return the variable that names the client's proxy; '' if it connects directly.

    NO_PROXY is ignored: the client follows it for calls, but not for the blocks of files.
    """
    for lower in ("https_proxy", "all_proxy"):
        name = lower if lower in environ else lower.upper()  # an empty lowercase one disables it
        if environ.get(name):
            disabled = str(setting("disable_api_proxy", environ) or "").lower()
            return name if disabled in ("", "0", "false") else ""
    return ""


def check_proxy(environ: Mapping[str, str]) -> None:
    """Raise RunnerError if the client lacks packages for its proxy; it would retry for a minute."""
    variable = proxy_variable(environ)
    if variable and not all(find_spec(package) for package in PROXY_PACKAGES):
        raise RunnerError(
            f"{variable} names a proxy, for which Modal's client lacks packages; type: "
            f"{pip_install('modal[api-proxy-support]')}   (or connect directly: "
            "MODAL_DISABLE_API_PROXY=1)"
        )


def check_known_hosts(urls: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise RunnerError if no server's name resolves; the client would retry for a minute."""
    check_proxy(environ)
    if proxy_variable(environ):  # the proxy resolves the names
        return
    problems = []
    for host, port in server_addresses(urls):
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            problems.append(f"{host} does not resolve ({error.strerror})")
        else:
            return
    raise RunnerError(unreachable_message(" and ".join(problems)))


def check_reachable(environ: Mapping[str, str], urls: str = "") -> None:
    """Raise RunnerError within CONNECT_TIMEOUT_S per server if none can be reached.

    Does not import modal. ``urls`` is the client's setting, if it is known.
    """
    check_proxy(environ)
    if proxy_variable(environ):
        return
    problem = ""
    for address in server_addresses(urls or environ.get("MODAL_SERVER_URL") or DEFAULT_SERVERS):
        try:
            socket.create_connection(address, CONNECT_TIMEOUT_S).close()
        except OSError as error:
            problem = problem or str(error)
        else:
            return
    raise RunnerError(f"Modal can't be reached ({problem}); check the network")


def unreachable_message(problem: str) -> str:
    """Return the error for a command that needs Modal."""
    return f"Modal can't be reached: {problem.rstrip('.')}; check the network and try again"

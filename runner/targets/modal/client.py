"""What the Modal client raises, in the runner's words."""

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

# What Modal says where an account is at its limit, with the status of a server that is busy.
MONEY = ("spend limit", "billing", "payment")

BILLING = "modal.com/settings/usage has the limit and the card"


@contextmanager
def translate_modal_errors() -> Iterator[None]:
    """Modal's errors as FileNotFoundError, FileExistsError, Unavailable (worth asking again) or RunnerError."""
    import aiohttp
    from grpclib.exceptions import StreamTerminatedError
    from modal import exception

    try:
        yield
    except exception.NotFoundError as error:
        raise FileNotFoundError(str(error)) from error
    except exception.AuthError as error:
        raise RunnerError(_no_access(str(error))) from error
    except exception.PermissionDeniedError as error:
        raise RunnerError(
            f"Modal refuses: {error}; `modal profile list` shows the workspace that you act in"
        ) from error
    except (
        exception.ServiceError,
        exception.InternalError,
        exception.ResourceExhaustedError,
    ) as error:
        if any(word in str(error).lower() for word in MONEY):
            raise RunnerError(f"Modal refuses: {error}; {BILLING}") from error
        raise ModalUnavailable(str(error)) from error
    except (exception.ConnectionError, exception.TimeoutError) as error:
        raise ModalUnavailable(str(error)) from error
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise ModalUnavailable(f"{type(error).__name__}: {error}") from error
    except exception.ClientClosed as error:
        raise ModalUnavailable(f"the connection was closed: {error}") from error
    except exception.InvalidError as error:
        advice = f"; {BILLING}, or take --gpu L4" if "payment method" in str(error) else ""
        raise RunnerError(f"Modal refuses: {error}{advice}") from error
    except StreamTerminatedError as error:  # the connection was cut in the middle of a listing
        raise ModalUnavailable(f"the connection was cut: {error}") from error
    except (
        exception.ExecutionError
    ) as error:  # an HTTP status of 400 and above, or a digest that differs
        raise ModalUnavailable(str(error)) from error
    except exception.DataLossError as error:
        raise RunnerError(f"Modal has lost data: {error}") from error
    except exception.RemoteError:
        raise  # what an image's commands or a function's body gave: the caller knows which
    except exception.Error as error:
        raise RunnerError(f"Modal: {error}") from error


def _no_access(text: str) -> str:
    if "Token missing" in text:
        return (
            "this machine has no Modal token; `modal token new` makes one (or set MODAL_TOKEN_ID and "
            "MODAL_TOKEN_SECRET)"
        )
    return f"Modal does not accept the token: {text}; `modal token new` makes another"


T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is made, and the seconds between: ``first``, doubled each time, at most ``most``.

    The client itself repeats a call 3 times and an upload of a block 11 times within a second or a few; this
    comes on top: with the defaults about half a minute, which outlasts a switch from one network to another.
    """

    attempts: int = 7
    first: float = 0.5
    most: float = 10.0
    sleep: Callable[[float], None] = time.sleep

    def ask(self, request: Callable[[], T]) -> T:
        """``request()``, made again after each Unavailable; the last one is raised."""
        delay = self.first
        for _ in range(self.attempts - 1):
            try:
                return request()
            except ModalUnavailable:
                # Half of it at random, so that parallel transfers don't come back all at once.
                self.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, self.most)
        return request()


DEFAULT = "https://api.modal.com,https://api.modal2.com"  # as of modal 1.6; a test compares it

PROXY_PACKAGES = (
    "python_socks",
    "aiohttp_socks",
)  # modal[api-proxy-support]: for its calls, and for blocks

PATIENCE = (
    1.5  # seconds for a connection: who lists the runs of this machine must not wait for a network
)


def addresses(urls: str) -> list[tuple[str, int]]:
    """Host and port of each server in a list with commas."""
    found = [urlsplit(url.strip()) for url in urls.split(",") if url.strip()]
    return [
        (url.hostname or "", url.port or (80 if url.scheme == "http" else 443)) for url in found
    ]


def proxy_variable(environ: Mapping[str, str]) -> str:
    """The variable whose proxy the client takes to Modal; '' where it goes there itself. NO_PROXY is not asked: the
    client asks it for its calls, and sends the blocks of files through the proxy all the same."""
    for name in ("https_proxy", "all_proxy"):
        found = (
            name if name in environ else name.upper()
        )  # a small one that is empty stands for none
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
    if proxy_variable(
        environ
    ):  # the way there, and what the names stand for, are the proxy's business
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
    if proxy_variable(
        environ
    ):  # the way there, and what the names stand for, are the proxy's business
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

"""The user's Modal account and requests to Modal: credentials, errors, retries, reachability.

`modal` is imported at the first request.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from job.files import read_file
from runner.errors import ModalUnavailable, RunnerError
from runner.project import pip_install

NO_TOKEN = "this machine has no Modal token"


def new_token_command() -> str:
    """Return the command that creates a token.

    uv and pipx put Modal's program into PATH only with an option.
    """
    program = ["modal"] if shutil.which("modal") else [sys.executable, "-m", "modal"]
    return shlex.join([*program, "token", "new"])


NEW_TOKEN = new_token_command()

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
    """Return the sections of the file by name; empty without a file.

    Raises RunnerError for a file that makes even ``import modal`` fail.
    """
    file = config_file(environ)
    if not file.exists():
        return {}
    import toml  # the client's parser: tomllib accepts and refuses other files

    try:
        sections = toml.loads(read_file(file).decode("utf-8"))
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
        f"Modal's client can't read {file}: {' '.join(why.split())}; fix it, or create a new one: "
        f"mv {path} {path}.old && {NEW_TOKEN}"
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
    """Return True if there are credentials, in the environment or in the client's file.

    Raises RunnerError for a file that can't be read.
    """
    credentials = {
        name: environ[f"MODAL_{name.upper()}"]
        for name in CREDENTIALS
        if f"MODAL_{name.upper()}" in environ
    }
    # Any profile counts: if none is active, the client's error lists them.
    sections = [{}, *profiles(environ).values()]
    return any(_are_complete({**section, **credentials}) for section in sections)


def _are_complete(values: Mapping[str, Any]) -> bool:
    """Return True if the client accepts the credentials: a token, or an OAuth refresh token."""
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
        raise RunnerError(f"{NO_TOKEN}; create one: {NEW_TOKEN}{hint}")


def account_id(environ: Mapping[str, str]) -> str:
    """Return a hash that differs between accounts, profiles and environments.

    It covers the whole file: `modal profile activate` and `modal token new` change nothing else.
    """
    names = ("SERVER_URL", "TOKEN_ID", "PROFILE", "ENVIRONMENT")
    parts = [environ.get(f"MODAL_{name}", "") for name in names]
    try:
        file = read_file(config_file(environ))
    except OSError:
        file = b""
    return hashlib.sha256("\0".join(parts).encode() + file).hexdigest()[:16]


# Modal reports an account at its limit with the status of a busy server, and these words.
BILLING_WORDS = ("spend limit", "billing", "payment")
BILLING_HINT = "modal.com/settings/usage shows the limit and the card"


@contextmanager
def translate_modal_errors() -> Iterator[None]:
    """Raise Modal's errors as FileNotFoundError, ModalUnavailable (retry) or RunnerError (do not).

    RemoteError passes through: only the caller knows whether it comes from an image or a function.
    """
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
    # ExecutionError: an HTTP status of 400 and above, or a wrong digest.
    except (exception.ConnectionError, exception.TimeoutError, exception.ExecutionError) as error:
        raise ModalUnavailable(str(error)) from error
    except _network_errors() as error:
        raise ModalUnavailable(f"{type(error).__name__}: {error}") from error
    except exception.ClientClosed as error:
        raise ModalUnavailable(f"the connection was closed: {error}") from error
    except exception.InvalidError as error:
        hint = f"; {BILLING_HINT}, or use --gpu L4" if "payment method" in str(error) else ""
        raise RunnerError(f"Modal refuses: {error}{hint}") from error
    except StreamTerminatedError as error:  # the connection was cut during a listing
        raise ModalUnavailable(f"the connection was cut: {error}") from error
    except exception.DataLossError as error:
        raise RunnerError(f"Modal has lost data: {error}") from error
    except exception.RemoteError:
        raise
    except exception.Error as error:
        raise RunnerError(f"Modal: {error}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a connection, and of HTTP if the client used it.

    A launch without HTTP must not import aiohttp, which takes 0.1 s.
    """
    aiohttp = sys.modules.get("aiohttp")
    http = (aiohttp.ClientError,) if aiohttp is not None else ()
    return (*http, ConnectionError, TimeoutError, socket.gaierror)


def _auth_message(text: str) -> str:
    if "Token missing" in text:
        return (
            f"this machine has no Modal token; create one with `{NEW_TOKEN}` (or set "
            "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET)"
        )
    return f"Modal does not accept the token: {text}; create a new one with `{NEW_TOKEN}`"


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
            f"{variable} names a proxy, for which Modal's client lacks packages; install them: "
            f"{pip_install('modal[api-proxy-support]')}   (or connect directly: "
            "MODAL_DISABLE_API_PROXY=1)"
        )


def check_reachable(environ: Mapping[str, str], urls: str = "") -> None:
    """Raise RunnerError within CONNECT_TIMEOUT_S per server if none can be reached.

    The client would retry for a minute. Does not import modal; ``urls`` is its setting, if known.
    """
    check_proxy(environ)
    if proxy_variable(environ):  # the proxy resolves the names
        return
    problems = []
    for address in server_addresses(urls or environ.get("MODAL_SERVER_URL") or DEFAULT_SERVERS):
        try:
            socket.create_connection(address, CONNECT_TIMEOUT_S).close()
        except OSError as error:
            problems.append(f"{address[0]} ({error.strerror or error})")
        else:
            return
    raise RunnerError(unreachable_message(", ".join(problems)))


def unreachable_message(problem: str) -> str:
    """Return the error for a command that needs Modal."""
    return f"Modal can't be reached: {problem.rstrip('.')}; check the network and try again"


@contextmanager
def unavailable_as_error() -> Iterator[None]:
    """Raise RunnerError if Modal does not answer after all retries."""
    try:
        yield
    except ModalUnavailable as error:
        raise RunnerError(unreachable_message(str(error))) from error

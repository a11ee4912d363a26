"""What the Modal client raises, in the runner's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runner.cloud.patience import Unavailable
from runner.errors import RunnerError

# What Modal says where an account is at its limit, with the status of a server that is busy.
MONEY = ("spend limit", "billing", "payment")
BILLING = "modal.com/settings/usage has the limit and the card"


@contextmanager
def in_our_words() -> Iterator[None]:
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
    except (exception.ServiceError, exception.InternalError, exception.ResourceExhaustedError) as error:
        if any(word in str(error).lower() for word in MONEY):
            raise RunnerError(f"Modal refuses: {error}; {BILLING}") from error
        raise Unavailable(str(error)) from error
    except (exception.ConnectionError, exception.TimeoutError) as error:
        raise Unavailable(str(error)) from error
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    except exception.ClientClosed as error:
        raise Unavailable(f"the connection was closed: {error}") from error
    except exception.InvalidError as error:
        advice = f"; {BILLING}, or take --gpu L4" if "payment method" in str(error) else ""
        raise RunnerError(f"Modal refuses: {error}{advice}") from error
    except StreamTerminatedError as error:  # the connection was cut in the middle of a listing
        raise Unavailable(f"the connection was cut: {error}") from error
    except exception.ExecutionError as error:  # an HTTP status of 400 and above, or a digest that differs
        raise Unavailable(str(error)) from error
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

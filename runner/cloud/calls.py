"""Function calls on Modal, found again by their id from any terminal, machine and day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.cloud.modal_errors import in_our_words
from runner.cloud.patience import Unavailable


@dataclass(frozen=True)
class CallState:
    """``alive``: it waits for a machine or works. Else ``value`` is what the body returned, or ``error`` why
    it gave none."""

    alive: bool
    value: dict[str, Any] | None = None
    error: str = ""
    attempts_used_up: bool = False


def look(call: str, seconds: float = 0.0) -> CallState:
    """How the call stands, waited for at most ``seconds``. Raises Unavailable where Modal can't be asked."""
    import modal
    from modal import exception

    from runner.cloud.inside import AttemptOver

    try:
        with in_our_words():
            try:
                value = modal.FunctionCall.from_id(call).get(timeout=seconds)
            except exception.FunctionTimeoutError as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except exception.OutputExpiredError:
                return CallState(False, error="it ended more than a week ago")
            except TimeoutError:
                return CallState(True)
            except AttemptOver as error:
                return CallState(False, error=str(error), attempts_used_up=True)
            except exception.InputCancellation:
                return CallState(False, error="cancelled")
            except exception.RemoteError as error:
                return CallState(False, error=str(error))
    except FileNotFoundError:
        return CallState(False, error="Modal does not know the call any more")
    except Unavailable:
        raise
    except Exception as error:  # what the body raised comes out of get() as it was
        if type(error).__module__.startswith(("runner.errors", "modal")):
            raise
        return CallState(False, error=f"{type(error).__name__}: {error}")
    return CallState(False, value=value if isinstance(value, dict) else {})


def cancel(call: str, kill: bool = False) -> None:
    """End the call without a retry; with ``kill`` its container too, at once."""
    import modal

    with in_our_words():
        modal.FunctionCall.from_id(call).cancel(terminate_containers=kill)


def log(call: str, lines: int) -> list[str]:
    """The last lines that Modal has of what the call printed; it keeps them a day on the smallest plan."""
    import modal

    with in_our_words():
        entries = list(modal.FunctionCall.from_id(call).logs.tail(max(lines, 1)))
    return "".join(entry.message for entry in entries).splitlines()[-lines:] if lines else []


def stream(call: str) -> Iterator[tuple[bool, str]]:
    """What the call prints from now on, until it ends: (whether on stderr, text)."""
    import modal

    for entry in modal.FunctionCall.from_id(call).logs.stream():
        yield entry.source != "stdout", entry.message

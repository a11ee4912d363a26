"""The methods that tests call, in the server's process or another one."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modal_proto import api_pb2, task_command_router_pb2

from .images import Build
from .record import Request
from .server import ADDRESS_FILE


class StandinError(Exception):
    """A test asked for something that the stand-in cannot do."""


class Api(ABC):
    """The methods of `ModalStandin` and `connect(state)`; `controls.py` explains them."""

    @abstractmethod
    def call(self, method: str, **arguments: Any) -> Any:
        """Run a control on the server. Raises StandinError."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Return the value for MODAL_SERVER_URL."""

    @property
    @abstractmethod
    def heartbeat_interval(self) -> float:
        """Return the seconds between two heartbeats of a client."""

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables that point a process's Modal client at the stand-in."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-standin",
            "MODAL_TOKEN_SECRET": "as-standin",
            "MODAL_CONFIG_PATH": "/dev/null",
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_HEARTBEAT_INTERVAL": str(self.heartbeat_interval),
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Point the Modal client of this process at the stand-in."""
        from modal.client import _Client

        before = dict(os.environ)
        os.environ.update(self.environ)
        _Client._set_env_client(None)
        try:
            yield
        finally:
            _Client._set_env_client(None)
            os.environ.clear()
            os.environ.update(before)

    # --- queries

    def recorded(self, rpc: str | None = None, after: int = -1) -> list[Request]:
        """Return the requests in order: of one RPC, or with a number higher than `after`."""
        return [
            Request(r["number"], r["at"], r["rpc"], _message(r["kind"], r["data"]), r["task"])
            for r in self.call("recorded", rpc=rpc, after=after)
        ]

    @property
    def builds(self) -> list[Build]:
        """Return the image layers that were not cached, including failed ones."""
        return [
            Build(b["image_id"], tuple(b["commands"]), b["failure"]) for b in self.call("builds")
        ]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the containers, including ended ones, in the order they started."""
        return list(self.call("tasks"))

    def calls(self) -> list[dict[str, Any]]:
        return list(self.call("calls"))

    def apps(self) -> list[dict[str, Any]]:
        return list(self.call("apps"))

    def log(self, of: str = "") -> str:
        """Return the output of everything, or of one app, call, function or container."""
        return str(self.call("log", of=of))

    def unimplemented(self) -> list[str]:
        """Return the requested RPCs that the stand-in does not implement."""
        return list(self.call("problems")["unimplemented"])

    def errors(self) -> list[str]:
        """Return the tracebacks of the stand-in's own errors."""
        return list(self.call("problems")["errors"])

    def http_requests(self, name: str | None = None) -> list[tuple[str, str]]:
        """Return (BlockGet | BlockPut | BlobGet | BlobPut, path) of each transfer."""
        return [(n, path) for n, path in self.call("http_requests") if name in (None, n)]

    def volume_path(self, name: str) -> Path:
        """Return the folder of a volume. Raises StandinError if it does not exist."""
        return Path(self.call("volume_path", name=name))

    def appeared(self, value: str) -> list[str]:
        """Return where a secret value appears, apart from the fields that carry secrets."""
        return list(self.call("appeared", value=value))

    def write_dockerfile(self, image_id: str, folder: Path) -> Path:
        """Write the recorded build as a context and one Dockerfile for all layers."""
        return Path(self.call("write_dockerfile", image_id=image_id, folder=str(folder)))

    # --- actions

    def add_secret(self, name: str, values: Mapping[str, str]) -> None:
        self.call("add_secret", name=name, values=dict(values))

    def inject(self, on: str, fault: str, **options: Any) -> None:
        """Make requests fail; see `faults.py`. Options: times, probability, seed, after, match."""
        self.call("inject", on=on, fault=fault, **options)

    def faults_fired(self) -> int:
        return int(self.call("faults_fired"))

    def clear_faults(self) -> None:
        self.call("clear_faults")

    def volume_rules(self, **rules: Any) -> None:
        """Set how strict block transfers are; see `volume_blocks.py`. Without rules: lenient."""
        self.call("volume_rules", **rules)

    def disconnect(self) -> int:
        """Close the connections of clients, and return their number."""
        return int(self.call("disconnect"))

    def preempt(self, task: str = "", grace: float | None = None, wait: bool = True) -> str:
        """Preempt the busy container, or the given one, and return its id after it ended."""
        return str(self.call("preempt", task=task, grace=grace, wait=wait))

    def crash(self, task: str = "", wait: bool = True) -> str:
        """Kill the container without a warning, as if its machine crashed."""
        return str(self.call("crash", task=task, wait=wait))

    def preempt_when(self, **condition: Any) -> None:
        """Preempt when a file or log line appears, or after some seconds; see `controls.py`."""
        self.call("preempt_when", **condition)

    def wait_until(self, condition: Callable[[], Any], timeout: float = 60.0) -> Any:
        """Wait until the condition is true and return its value.

        Raises StandinError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise StandinError(
                    f"waited {timeout} s in vain; the log so far:\n{self.log()[-4000:]}"
                )
            time.sleep(0.02)
        return value


class Remote(Api):
    """A stand-in that another process started."""

    def __init__(self, server_url: str, control_url: str, heartbeat_interval: float) -> None:
        self._server_url = server_url
        self._heartbeat_interval = heartbeat_interval
        self._control_url = control_url

    @property
    def url(self) -> str:
        return self._server_url

    @property
    def heartbeat_interval(self) -> float:
        return self._heartbeat_interval

    def call(self, method: str, **arguments: Any) -> Any:
        request = urllib.request.Request(
            f"{self._control_url}/control/{method}",
            data=json.dumps(arguments).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise StandinError(json.load(error).get("error", str(error))) from None
        except OSError as error:
            raise StandinError(f"no stand-in answers at {self._control_url}: {error}") from error


def connect(state: Path) -> Remote:
    """Return the stand-in that runs with this state directory. Raises StandinError without one."""
    try:
        address = json.loads((state / ADDRESS_FILE).read_text())
    except FileNotFoundError:
        raise StandinError(f"no stand-in runs with the state directory {state}") from None
    return Remote(address["server"], address["control"], address["heartbeat_interval"])


def _message(kind: str, data: str) -> Any:
    from google.protobuf import empty_pb2

    name = kind.rpartition(".")[2]
    for module in (api_pb2, task_command_router_pb2, empty_pb2):
        if hasattr(module, name) and getattr(module, name).DESCRIPTOR.full_name == kind:
            return getattr(module, name).FromString(base64.b64decode(data))
    raise StandinError(f"unknown message {kind}")

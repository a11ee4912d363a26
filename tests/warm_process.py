"""Processes forked from one that has imported torch: 0.02 s of CPU to start, instead of 3.6 s.

Two thirds of the tests of model/ start a trainer for 10 to 60 steps, which take 0.2 to 0.5 s. They
need processes, with a pid, signals and an exit status, but no fresh import of torch. All forks of
one server have the same hash seed: to compare results bit for bit, train one of them in a separate
process, as the fixture ``unbroken`` does.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from threading import Thread
from types import TracebackType

from tests.conftest import CHECKOUT
from tests.warm_server import NUMBER_BYTES

# These networks are too small for two threads, whose spinning makes a busy machine ten times
# slower. Torch reads the variable once, when it is imported.
ONE_THREAD = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class WarmProcess:
    """A replacement for `subprocess.Popen` that runs ``python COMMAND`` in the checkout.

    COMMAND is ``-m MODULE WORDS`` or ``-c CODE WORDS``. stdin is empty; stdout and stderr are pipes
    of text.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert environment.items() >= ONE_THREAD.items(), "the server has these variables already"
        self.args = list(command)
        self.returncode: int | None = None
        outs = [os.pipe() for _ in range(3)]
        message = json.dumps({"command": self.args, "environment": dict(environment)}).encode()
        socket.send_fds(_server(), [message], [write for _, write in outs])
        for _, write in outs:
            os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in outs[:2])
        self._report = os.fdopen(outs[2][0], "rb", buffering=0)
        self.pid = self._read_number()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._read_number()
            self._report.close()
        return self.returncode

    def _read_number(self) -> int:
        data = self._report.read(NUMBER_BYTES)
        assert len(data) == NUMBER_BYTES, (
            "the server of warm processes has ended; see its messages on stderr"
        )
        return int.from_bytes(data, "big", signed=True)

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return stdout and stderr."""
        texts = ["", ""]

        def read(number: int) -> None:
            texts[number] = (self.stdout, self.stderr)[number].read()

        readers = [Thread(target=read, args=(number,), daemon=True) for number in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


@cache
def _server() -> socket.socket:
    """Return the socket of the server, which starts with the first job and ends with pytest."""
    client_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_server", str(server_end.fileno())],
        cwd=CHECKOUT,
        env={**os.environ, **ONE_THREAD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[server_end.fileno()],
    )
    server_end.close()

    @atexit.register
    def end() -> None:
        client_end.close()
        process.wait(10)

    return client_end

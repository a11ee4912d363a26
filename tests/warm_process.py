"""A process of ours that is forked from one with torch in it: it begins in 0.02 s of CPU instead of 3.6.

Two thirds of the tests of model/ start trainers for 10 to 60 steps, which take 0.2 to 0.5 s. What they prove needs
processes, with a pid, signals and an exit status; that each imports torch anew proves nothing more. All forks of
one server have the same seed of hashes, however: compare what must be equal to the last bit with what a process
of its own has trained, as the fixture ``unbroken`` has.
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
from tests.warm_server import NUMBER

# One thread: these networks are too small for two, whose spinning would slow a busy machine tenfold. Torch reads
# it once, when it is imported.
ONE_THREAD = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class WarmProcess:
    """What `subprocess.Popen` would be for ``python COMMAND`` in the checkout: COMMAND is ``-m MODULE WORDS`` or
    ``-c CODE WORDS``, stdin is empty, stdout and stderr are pipes that give text."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert environment.items() >= ONE_THREAD.items(), (
            "what the server was started with can't change"
        )
        self.args = list(command)
        self.returncode: int | None = None
        outs = [os.pipe() for _ in range(3)]
        message = json.dumps({"command": self.args, "environment": dict(environment)}).encode()
        socket.send_fds(_server(), [message], [write for _, write in outs])
        for _, write in outs:
            os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in outs[:2])
        self._told = os.fdopen(outs[2][0], "rb", buffering=0)
        self.pid = self._number()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, negative for a signal; TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = self._number()
            self._told.close()
        return self.returncode

    def _number(self) -> int:
        told = self._told.read(NUMBER)
        assert len(told) == NUMBER, (
            "the server of warm processes has ended; its stderr is that of the tests"
        )
        return int.from_bytes(told, "big", signed=True)

    def poll(self) -> int | None:
        """The exit status once there is one."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end. stdout and stderr."""
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
        """Nothing once it has ended."""
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
    """The way to the server, which is started for the first job of this process of pytest and ends with it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_server", str(its.fileno())],
        cwd=CHECKOUT,
        env={**os.environ, **ONE_THREAD},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
    )
    its.close()

    @atexit.register
    def end() -> None:
        ours.close()
        process.wait(10)

    return ours

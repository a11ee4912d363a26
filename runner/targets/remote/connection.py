"""The connection to a box: one multiplexed ssh connection, or a context of the local Docker client.

The box needs Docker and sshd. ssh itself handles passwords, keys and host keys: it asks on the
terminal, and without one it fails rather than wait. A container's log is printed exactly once,
through lost connections.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from job.exit_status import ExitStatus
from runner.errors import RunnerError, TargetUnavailable, usage
from runner.signals import JobOutput
from runner.system import COMMAND_TIMEOUT_S, POLL_INTERVAL_S, CompletedCommand, System
from runner.target import LaunchHandle
from runner.targets.blocks import RetryPolicy

if TYPE_CHECKING:
    from runner.targets.remote.target import RemoteTarget

T = TypeVar("T")

BOX_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$")
SSH_FAILED = 255  # ssh's own exit status; docker has none above 127
CONNECT_TIMEOUT_S = 10
TRANSPORT_ERRORS = re.compile(r"error during connect|cannot connect to the docker daemon", re.I)

# Parts of errors in lower case, and what to do about each.
REMEDIES = {
    "could not resolve hostname": "check the name, or define the host in ~/.ssh/config",
    "host key verification failed": "`ssh {box}` shows the key and how to accept it",
    "permission denied (": "`ssh {box}` must log in: add your key with `ssh-copy-id {box}`",
    "docker daemon socket": (
        "let the user use Docker on {box}, `sudo usermod -aG docker USER`, and wait a minute: the "
        "open connection keeps the old groups"
    ),
    "cannot connect to the docker daemon": "start it on {box}: `sudo systemctl start docker`",
    "docker: command not found": "install Docker on {box}",
    "no space left": "free space on {box}: `docker system prune`, `runner cache clear --target "
    "remote:{box}`",
}


CHECK_CONNECTION = "check the connection: `ssh {box} docker info`"


def explain(box: str, text: str, default: str = CHECK_CONNECTION) -> str:
    """Return the last line of an error of the box, with its remedy, or the ``default`` one."""
    line = text.strip().rpartition("\n")[2].strip().rstrip(".")
    remedies = (remedy for part, remedy in REMEDIES.items() if part in text.lower())
    return "; ".join(filter(None, [f"{box}: {line}", next(remedies, default).format(box=box)]))


class BoxUnavailable(TargetUnavailable):
    """The box, or the network to it, did not answer; a retry may succeed."""


@dataclass
class BoxSystem(System):
    """The programs of a box: ``docker`` and other commands run there."""

    box: str = ""
    is_terminal: bool = False
    has_answered: bool = False  # so that a box that is off is not asked again and again

    def __post_init__(self) -> None:
        if not BOX_NAME.match(self.box):
            raise usage(
                f"'{self.box}' is not a box; expected a [user@]host that ssh accepts, or a Docker "
                "context"
            )

    @cached_property
    def context_endpoint(self) -> str | None:
        """Return the address of the Docker context named like the box; None without one."""
        answer = System(self.environ).call(
            ["docker", "context", "inspect", self.box, "--format", "{{.Endpoints.docker.Host}}"]
        )
        return answer.out.strip() if answer.code == 0 else None

    @property
    def host(self) -> str | None:
        """Return the ssh host; None if a Docker context reaches the engine without ssh."""
        endpoint = self.context_endpoint
        if endpoint is None:
            return self.box
        return endpoint.removeprefix("ssh://") if endpoint.startswith("ssh://") else None

    def command_line(self, command: Sequence[str]) -> list[str]:
        """Return the local command line that runs ``command`` on the box."""
        if self.host is None:
            head = ["docker", "--context", self.box] if command[0] == "docker" else [command[0]]
            return [*head, *command[1:]]
        options = {
            "BatchMode": "no" if self.is_terminal else "yes",
            "ConnectTimeout": str(CONNECT_TIMEOUT_S),
            "ControlMaster": "auto",
            "ControlPath": f"{_socket_folder()}/%C",
            "ControlPersist": "60",
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        address, _, port = self.host.partition(":")
        settings += ["-p", port] if port else []
        return ["ssh", *settings, "--", address, shlex.join(command)]

    def program(self, name: str) -> str | None:
        """Return the local program that replaces ``name``: ssh, which finds it on the box."""
        local = name in ("docker", "ssh") and self.host is None
        return super().program(name if local or name == "ssh" else "ssh")

    def call(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        extra_env: Mapping[str, str] | None = None,
    ) -> CompletedCommand:
        """Run a program on the box, again if the connection breaks off in between.

        Raises BoxUnavailable if the box does not answer.
        """
        local = System(self.environ)
        return self.retry(
            lambda: self.check(local.call(self.command_line(command), cwd, timeout_s, extra_env))
        )

    def retry(self, request: Callable[[], T], policy: RetryPolicy | None = None) -> T:
        """Return ``request()``, repeated by ``policy`` unless the box has never answered.

        Raises BoxUnavailable.
        """
        return (policy or RetryPolicy()).call(request, lambda: self.has_answered)

    def check(self, answer: CompletedCommand) -> CompletedCommand:
        """Return ``answer``. Raises BoxUnavailable if it is an error of the connection."""
        lost = answer.code in (SSH_FAILED, 124) or TRANSPORT_ERRORS.search(answer.err)
        if answer.code and lost:
            raise BoxUnavailable(explain(self.box, answer.last_line))
        self.has_answered = True
        return answer

    def send(self, command: Sequence[str], content: bytes) -> CompletedCommand:
        """Run a program on the box with ``content`` as its stdin."""
        done = subprocess.run(
            self.command_line(command), input=content, capture_output=True, env=dict(self.environ)
        )
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return self.check(CompletedCommand(done.returncode, out, err))

    def run_visibly(
        self, command: Sequence[str], content: bytes = b"", cwd: Path | None = None
    ) -> int:
        """Run a program on the box. Raises BoxUnavailable if the connection breaks off."""
        code = super().run_visibly(command, content, cwd)
        if code == SSH_FAILED:
            raise BoxUnavailable(explain(self.box, "the connection was lost"))
        return code

    def popen(
        self, command: Sequence[str], stdin: int | IO[bytes] | None = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program on the box, in its own process group: the runner handles Ctrl-C."""
        return subprocess.Popen(
            self.command_line(command),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(self.environ),
            process_group=0,
        )


def _socket_folder() -> Path:
    """Return the folder of ssh's sockets, whose paths are limited to about 100 bytes."""
    folder = Path(tempfile.gettempdir()) / f"gpt-runner-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise RunnerError(f"{folder} belongs to a different user; set TMPDIR to your own folder")
    folder.chmod(0o700)
    return folder


RECONNECT_INTERVAL_S = 2.0
STAMP = re.compile(rb"^(\d{4}-\d\d-\d\dT[0-9:.]+Z) ?")


def follow_container(target: RemoteTarget, handle: LaunchHandle) -> int | None:
    """Print the job's output until it ends; return its exit status, None if detached."""
    copier = LogCopier(target, handle.id)
    copier.start()
    stop = partial(target.signal_container, handle.id)
    if not target.cli.wait_for_end(handle.run, copier, stop):
        return None
    if copier.code is None:
        target.cli.info(f"the container of run '{handle.run}' was removed on {target.box}")
    return ExitStatus.ERROR if copier.code is None else copier.code


class LogCopier(JobOutput):
    """Copies a container's log to stdout and stderr, and learns its exit status.

    Docker stamps every line with its time, so that after a lost connection the copy continues after
    the last line that was printed.
    """

    def __init__(self, target: RemoteTarget, container: str) -> None:
        super().__init__()
        self.target, self.container = target, container
        self.code: int | None = None
        self.is_lost, self.is_loss_reported = False, False
        self._printed = {1: b"", 2: b""}  # the stamp of the last line of each stream
        self._process: subprocess.Popen[bytes] | None = None
        self._is_final = False

    def run(self) -> None:
        """Copy until the container has ended."""
        while not self.has_left:
            try:
                self._copy()
                is_alive, code = self.target.container_state(self.container)
                self.is_lost = False
                if not is_alive:
                    self._is_final = True
                    self._copy()  # the last lines, if the connection was lost at the end
                    self.code = code
                    self.ended.set()
                    return
            except BoxUnavailable:
                self.is_lost = True
            time.sleep(RECONNECT_INTERVAL_S if self.is_lost else POLL_INTERVAL_S)

    def leave(self) -> None:
        """Stop copying."""
        super().leave()
        if self._process is not None:
            self._process.kill()

    def state(self, is_interrupted: bool) -> str:
        """Return once for each loss of the connection that the run continues."""
        is_new = self.is_lost and not self.is_loss_reported
        self.is_loss_reported = self.is_lost
        box = self.target.box
        return f"the connection to {box} was lost; the run continues there" if is_new else ""

    def _copy(self) -> None:
        since = min(self._printed.values()).decode()
        command = ["docker", "logs", "--follow", "--timestamps"]
        command += ["--since", since] if since else []
        self._process = process = self.target.system.popen([*command, self.container])
        assert process.stdout is not None
        assert process.stderr is not None
        errors = threading.Thread(target=self._print, args=(process.stderr, 2), daemon=True)
        errors.start()
        self._print(process.stdout, 1)
        errors.join()
        process.wait()

    def _print(self, source: IO[bytes], number: int) -> None:
        stream = sys.stdout if number == 1 else sys.stderr
        for line in source:
            match = STAMP.match(line)
            is_complete = line.endswith(b"\n") or self._is_final
            # A message of ssh, a truncated line, which will be sent again, or a repeated one.
            if match is None or not is_complete or match[1] <= self._printed[number]:
                continue
            self._printed[number] = match[1]
            if not self.write(stream, line[match.end() :].decode(errors="replace")):
                return

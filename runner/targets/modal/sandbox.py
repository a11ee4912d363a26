"""`runner shell --target cloud`: a Modal Sandbox with the image, code and volumes of a job.

Unlike that of `modal shell`, the sandbox does not get the user's token.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.format import duration
from job.paths import WORKSPACE
from job.run_record import RunStatus
from runner.console import CliContext, confirm
from runner.errors import ModalUnavailable, RunnerError, usage
from runner.planning.command_plan import is_plain
from runner.planning.gpus import (
    GpuRequest,
    Prices,
    RentedMachine,
    current_prices,
    parse_gpus,
    usd_per_hour,
)
from runner.planning.plan import make_plan
from runner.project import PROJECT
from runner.request import SHELL_PREFIX, CommandRequest
from runner.runs.attempts import CloudAttempt
from runner.runs.table import age
from runner.signals import signal_handler
from runner.target import RunInfo
from runner.targets.modal import TARGET_NAME
from runner.targets.modal import image as images
from runner.targets.modal.app import JobFolder, build_output, launch_errors, modal_secrets
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.options import resolve_options

if TYPE_CHECKING:
    from runner.targets.modal.target import ModalTarget

SHELL_APP = f"{PROJECT}-shell"
MAX_SANDBOX_S = 24 * 3600  # Modal's limit

ALIVE_FILE = "/root/.runner_alive"  # its age is the time since the client was connected
ALIVE_INTERVAL_S = 60.0

# The sandbox's main process, with which the sandbox ends. Modal's own idle_timeout counts the
# shell of a lost client as busy.
END_WHEN_LOST = (
    "touch {file}; while [ $(( $(date +%s) - $(stat -c %Y {file}) )) -le {idle_s} ]; "
    "do sleep 1; done"
)

LOST_STATUS = 128 + signal.SIGHUP  # this terminal was closed

SANDBOX_PRICE_FACTOR = 3.0  # for cores and memory, compared with a function
CORES, MEMORY_GIB = 4.0, 16.0

TERMINAL_FILE = "/root/.runner_terminal"


def parse_shell_gpus(text: str | None) -> GpuRequest:
    """Parse ``--gpu``: a sandbox takes one type. Raises RunnerError, exit status 2."""
    gpus = parse_gpus(text) if text else GpuRequest()
    if len(gpus.names) > 1:
        first = gpus.modal_names()[0]
        raise usage(f"a shell takes one GPU type, not {text}; use --gpu {first}")
    return gpus


def shell_price(gpus: GpuRequest, prices: Prices) -> float:
    """Return the price in US dollars per hour."""
    machine = RentedMachine(GpuRequest(), CORES, MEMORY_GIB)
    cores = sum(usd_per_hour(machine, prices=prices).values())
    gpus_only = sum(usd_per_hour(RentedMachine(gpus, 0.0, 0.0), prices=prices).values())
    return gpus_only + SANDBOX_PRICE_FACTOR * cores


def run_shell(
    target: ModalTarget, request: CommandRequest, is_command: bool, idle_s: float, yes: bool
) -> int:
    """Open a shell or attach to the open one, or run the command instead.

    The sandbox ends with the command or the shell. If this process is lost, the sandbox ends after
    ``idle_s`` seconds, and until then the same request attaches to the shell.
    """
    cli, checkout, options = target.cli, target.checkout, resolve_options(request)
    gpus = parse_shell_gpus(options.gpu)
    gpu_name = gpus.modal_names()[0] if gpus.names else None
    if not is_command and (shell := find_shell(request.run)) is not None:
        cli.info(f"attaching to {request.run}; it has been open for {age(shell.started)}")
        return _session(cli, shell.sandbox, request.command.argv, is_command, idle_s)
    price = shell_price(gpus, current_prices(checkout, cli.environ))
    summary = (
        f"a Modal sandbox with {gpu_name or 'no GPU'}: about ${price:.2f} an hour; it ends when "
        f"you leave it, or after {duration(idle_s)} without input"
    )
    confirmed_line = cli.line.replace(" shell", " shell -y", 1)
    confirm(cli, [summary], "open it", yes, confirmed_line)
    import modal

    plan = make_plan(request, target.inspect(request))
    has_folder = not is_plain(request, checkout)
    folder = JobFolder.from_plan(plan) if has_folder else None
    argv = plan.process.command if has_folder else request.command.argv
    image = images.define_image(checkout, folder)
    with launch_errors():
        with build_output(True):
            images.build_now(image, cli.info)
        tags = {"project": PROJECT, "kind": "shell", "run": request.run, "gpu": gpu_name or ""}
        sandbox = modal.Sandbox.create(
            *("bash", "-c", END_WHEN_LOST.format(file=ALIVE_FILE, idle_s=max(1, int(idle_s)))),
            app=modal.App.lookup(SHELL_APP, create_if_missing=True),
            image=image,
            gpu=gpu_name,
            cpu=CORES,
            memory=int(MEMORY_GIB * 1024),
            volumes=target.mounts(),
            workdir=WORKSPACE,
            timeout=MAX_SANDBOX_S,
            env=dict(plan.process.environment),
            secrets=modal_secrets(target, options.forwarded_env, options),
            tags={**tags, "started": f"{time.time():.0f}", "price": f"{price:.4f}"},
        )
    target.builds.remember(folder.setup_digest if folder else "")
    return _session(cli, sandbox, argv, is_command, idle_s)


def _session(
    cli: CliContext, sandbox: Any, argv: Sequence[str], is_command: bool, idle_s: float
) -> int:
    """Run ``argv`` in the sandbox and end it, unless the connection to a shell was lost."""
    is_over = is_command
    try:
        with (
            translate_modal_errors(),
            signal_handler(_exit, signal.SIGTERM, signal.SIGHUP),
            _alive(sandbox, idle_s),
        ):
            code = _run(cli, sandbox, argv)
        is_over |= code != LOST_STATUS
        return code
    except (ModalUnavailable, OSError) as error:
        raise RunnerError(
            f"the connection was lost ({error}); within {duration(idle_s)}, the same command line "
            "attaches to the shell again"
        ) from error
    finally:
        if is_over:
            with suppress(Exception), translate_modal_errors():
                sandbox.terminate()


@contextmanager
def _alive(sandbox: Any, idle_s: float) -> Iterator[None]:
    """Keep the sandbox alive while its client is connected."""
    closed = threading.Event()

    def touch() -> None:
        while not closed.wait(min(ALIVE_INTERVAL_S, idle_s / 4)):
            with suppress(Exception):
                sandbox.exec("touch", ALIVE_FILE).wait()

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        closed.set()


@dataclass(frozen=True)
class OpenShell:
    """A sandbox with a shell; ``price`` is in US dollars per hour."""

    sandbox: Any
    run: str
    gpu: str
    started: float
    price: float

    def info(self) -> RunInfo:
        """Return the row of `runner runs`."""
        return RunInfo(
            run=self.run,
            job="shell",
            target=TARGET_NAME,
            status=RunStatus.RUNNING,
            alive=True,
            gpu=self.gpu or None,
            attempts=1,
            started=self.started,
            cost=round((time.time() - self.started) / 3600 * self.price, 4),
        )


def open_shells() -> list[OpenShell]:
    """Return the open shells of this account."""
    import modal

    shells = []
    with suppress(FileNotFoundError), translate_modal_errors():  # no shell was opened yet
        app = modal.App.lookup(SHELL_APP).app_id
        for sandbox in modal.Sandbox.list(app_id=app, tags={"project": PROJECT, "kind": "shell"}):
            tags = sandbox.get_tags()
            started, price = float(tags.get("started", 0)), float(tags.get("price", 0))
            shells.append(
                OpenShell(sandbox, tags.get("run", ""), tags.get("gpu", ""), started, price)
            )
    return shells


def find_shell(run: str) -> OpenShell | None:
    """Return the open shell of that name."""
    return next((shell for shell in open_shells() if shell.run == run), None)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _run(cli: CliContext, sandbox: Any, argv: Sequence[str]) -> int:
    if not cli.is_terminal:
        return pump(sandbox.exec(*argv, text=False))
    # Modal sets the terminal's size only at the start; `resize` sets it later by the device's name.
    line = f"tty > {TERMINAL_FILE}; exec {shlex.join(argv)}"
    process = sandbox.exec("bash", "-c", line, pty=True, text=False)

    def resize(rows: int, columns: int) -> None:
        command = f"stty -F $(cat {TERMINAL_FILE}) rows {rows} cols {columns}"
        with suppress(Exception):
            sandbox.exec("sh", "-c", command).wait()

    return attach(process, resize)


def enter_container(
    cli: CliContext, run: str, attempts: Sequence[CloudAttempt], argv: Sequence[str]
) -> int:
    """Run ``argv`` in the container of the run's last attempt, or in an open shell."""
    if (shell := find_shell(run) if run.startswith(SHELL_PREFIX) else None) is not None:
        return _run(cli, shell.sandbox, argv)
    if not attempts:
        raise RunnerError(f"run '{run}' has no container yet; try again when it is running")
    container = attempts[-1].container
    with translate_modal_errors():
        return _run(cli, FunctionContainer(container), argv)


class FunctionContainer:
    """Starts processes in the container of a function, as `modal container exec` does."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id

    def exec(self, *argv: str, pty: bool = False, text: bool = True) -> Any:
        """Start a process, as `Sandbox.exec` does."""
        from modal._utils.async_utils import synchronizer

        start = synchronizer.create_blocking(_start_in_container, "start", __name__)
        return start(self._task_id, argv, pty, text)


async def _start_in_container(task_id: str, argv: Sequence[str], pty: bool, text: bool) -> Any:
    from modal._output.pty import get_pty_info
    from modal.client import _Client
    from modal.container_process import _ContainerProcess
    from modal.sandbox._impl_v1 import command_router_access_fetcher
    from modal.sandbox._task_command_router_client import TaskCommandRouterClient
    from modal_proto import task_command_router_pb2 as router_pb2

    client = await _Client.from_env()
    access = command_router_access_fetcher(client, task_id)
    router = await TaskCommandRouterClient.connect(client, task_id, access)
    request = router_pb2.TaskExecStartRequest(
        task_id=task_id,
        exec_id=str(uuid.uuid4()),
        command_args=argv,
        stdout_config=router_pb2.TaskExecStdoutConfig.TASK_EXEC_STDOUT_CONFIG_PIPE,
        stderr_config=router_pb2.TaskExecStderrConfig.TASK_EXEC_STDERR_CONFIG_PIPE,
        pty_info=get_pty_info(shell=True) if pty else None,
    )
    await router.exec_start(request)
    return _ContainerProcess(request.exec_id, task_id, client, router, text=text)


# Modal ends a terminal that sends nothing for a while; its own client sends an empty message this
# often.
KEEPALIVE_INTERVAL_S = 5.0

READ_SIZE = 65536


def pump(process: Any) -> int:
    """Connect stdin, stdout and stderr without a terminal; return the process's exit status."""
    errors = threading.Thread(target=_copy, args=(process.stderr, 2), daemon=True)
    inputs = threading.Thread(target=_feed, args=(process,), daemon=True)
    errors.start()
    inputs.start()
    _copy(process.stdout, 1)
    errors.join()
    return int(process.wait())


def attach(process: Any, resize: Callable[[int, int], None]) -> int:
    """Connect the terminal until ``process`` ends. ``resize`` gets rows and columns."""
    wake_read, wake_write = os.pipe()
    changes = threading.Event()
    ended = threading.Event()

    def read_output() -> None:
        try:
            _copy(process.stdout, 1)
        finally:
            ended.set()
            changes.set()
            os.write(wake_write, b".")

    def follow_size() -> None:
        while changes.wait() and not ended.is_set():
            changes.clear()
            size = os.get_terminal_size(0)
            resize(size.lines, size.columns)

    output = threading.Thread(target=read_output, daemon=True)
    sizes = threading.Thread(target=follow_size, daemon=True)
    with _raw(), signal_handler(lambda *_: changes.set(), signal.SIGWINCH):
        output.start()
        sizes.start()
        while not ended.is_set():
            readable, _, _ = select.select([0, wake_read], [], [], KEEPALIVE_INTERVAL_S)
            keys = os.read(0, 4096) if 0 in readable else b""
            if wake_read in readable or (0 in readable and not keys):
                break
            with suppress(Exception):  # it has just ended; its output shows how
                process.stdin.write(keys)
                process.stdin.drain()
    if not ended.is_set():  # this terminal was closed
        return 128 + signal.SIGHUP
    output.join()
    return int(process.wait())


def _copy(stream: Any, descriptor: int) -> None:
    for chunk in stream:
        content = chunk if isinstance(chunk, bytes) else chunk.encode()
        while content:
            content = content[os.write(descriptor, content) :]


def _feed(process: Any) -> None:
    with suppress(Exception):
        while content := os.read(sys.stdin.fileno(), READ_SIZE):
            process.stdin.write(content)
            process.stdin.drain()
    with suppress(Exception):
        process.stdin.write_eof()
        process.stdin.drain()


@contextmanager
def _raw() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)

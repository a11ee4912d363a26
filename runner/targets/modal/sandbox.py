"""`runner shell --target cloud`: a Modal Sandbox with the image, code and volumes of a job.

The sandbox has no secrets, unlike that of `modal shell`, which gives the user's token to all that
runs inside.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from job.exit_status import ExitStatus
from job.format import duration
from job.paths import VOLUMES
from runner.console import CliContext, confirm
from runner.errors import usage
from runner.pricing.gpus import GpuRequest, parse_gpus
from runner.pricing.prices import Prices, RentedMachine, current_prices, usd_per_hour
from runner.signals import SIGNALS
from runner.targets.modal import image as images
from runner.targets.modal.app import NAME, build_output, launch_errors
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.volume import open_volume

MAX_SANDBOX_S = 24 * 3600  # Modal's limit

# Modal ends the sandbox this long after its last process: when the shell ended but this process
# could not end the sandbox, because it was killed or the laptop sleeps.
IDLE_TIMEOUT_S = 60

SANDBOX_PRICE_FACTOR = 3.0  # for cores and memory, compared with a function
CORES, MEMORY_GIB = 4.0, 16.0

TERMINAL_FILE = "/root/.runner_terminal"


def parse_shell_gpus(text: str | None) -> GpuRequest:
    """Parse ``--gpu``: a sandbox takes one type. Raises RunnerError, exit code 2."""
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
    cli: CliContext, checkout: Path, gpu: str | None, words: Sequence[str], idle_s: float, yes: bool
) -> int:
    """Open a shell, or run ``words`` instead; return the exit status.

    The shell ends after ``idle_s`` seconds at its prompt without input, and the sandbox with it.
    """
    gpus = parse_shell_gpus(gpu)
    if not words and not cli.is_terminal:
        raise usage(
            "a shell needs a terminal; without one, give a command: "
            "`runner shell --target cloud python -V`"
        )
    price = shell_price(gpus, current_prices(checkout, cli.environ))
    gpu_name = gpus.modal_names()[0] if gpus.names else None
    summary = (
        f"a Modal sandbox with {gpu_name or 'no GPU'}: about ${price:.2f} an hour; it ends when "
        f"you leave it, or after {duration(idle_s)} without input"
    )
    confirmed_line = cli.line.replace(" shell", " shell -y", 1)
    if not confirm(cli, [summary], "open it", yes, confirmed_line):
        return int(ExitStatus.CANCELLED)
    import modal

    volumes: Any = {f"/vol/{name}": open_volume(name, cli.environ) for name in VOLUMES}
    image = images.define_image(checkout)
    with launch_errors():
        with build_output(True):
            images.build_now(image, cli.info)
        sandbox = modal.Sandbox.create(
            app=modal.App.lookup(f"{NAME}-shell", create_if_missing=True),
            image=image,
            gpu=gpu_name,
            cpu=CORES,
            memory=int(MEMORY_GIB * 1024),
            volumes=volumes,
            workdir=images.WORKSPACE,
            timeout=MAX_SANDBOX_S,
            idle_timeout=IDLE_TIMEOUT_S,
            tags={"project": NAME, "kind": "shell"},
        )
    try:
        with translate_modal_errors(), _exit_on_signals():
            return _run(cli, sandbox, words, int(idle_s))
    finally:
        with suppress(Exception), translate_modal_errors():
            sandbox.terminate()


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that the sandbox is terminated."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {which: signal.signal(which, end) for which in SIGNALS if which != signal.SIGINT}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _run(cli: CliContext, sandbox: Any, words: Sequence[str], idle_s: int) -> int:
    from runner.targets.modal.pty import attach, pump

    if not cli.is_terminal:
        return pump(sandbox.exec(*words, text=False))
    # Modal sets the terminal's size only at the start; `resize` sets it later by the device's name.
    # With TMOUT bash ends at its prompt after so many seconds, even if nobody sees it.
    program = shlex.join(words) if words else "bash -i"
    line = f"tty > {TERMINAL_FILE}; export TMOUT={idle_s}; exec {program}"
    process = sandbox.exec("bash", "-c", line, pty=True, text=False)

    def resize(rows: int, columns: int) -> None:
        command = f"stty -F $(cat {TERMINAL_FILE}) rows {rows} cols {columns}"
        with suppress(Exception):
            sandbox.exec("sh", "-c", command).wait()

    return attach(process, resize)

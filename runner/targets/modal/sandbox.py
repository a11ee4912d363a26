"""A shell in the cloud: a Modal Sandbox with the image, code and volumes of a job.

No token of the user's goes in: the sandbox has no secrets at all, unlike that of ``modal shell``, which gives
the user's own token to whatever runs inside.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from job.format import duration
from job.paths import VOLUMES
from runner.console import CliContext, confirm
from runner.errors import usage
from runner.pricing.gpus import GpuRequest, parse_gpus
from runner.pricing.prices import Prices, RentedMachine, current_prices, usd_per_hour
from runner.signals import SIGNALS
from runner.targets.modal import image as images
from runner.targets.modal.app import NAME, build_log, explained
from runner.targets.modal.client import translate_modal_errors
from runner.targets.modal.volume import open_volume

LONGEST = 24 * 3600  # seconds; Modal's limit for a sandbox

# Seconds without a process of ours, after which Modal ends the sandbox: when the shell has ended and this
# process could not say so, because the laptop is asleep or it was killed.
LEFT_ALONE = 60

SANDBOX_FACTOR = 3.0  # cores and memory of a sandbox cost about three times those of a function

CORES, MEMORY_GIB = 4.0, 16.0

TERMINAL_FILE = "/root/.runner_terminal"


def shell_gpus(text: str | None) -> GpuRequest:
    """One type of GPU, or none: a sandbox takes no list. Raises RunnerError, exit code 2."""
    gpus = parse_gpus(text) if text else GpuRequest()
    if len(gpus.names) > 1:
        raise usage(
            f"a shell takes one type of GPU, not {text}; write --gpu {gpus.modal_names()[0]}"
        )
    return gpus


def price(gpus: GpuRequest, prices: Prices) -> float:
    """US dollars an hour."""
    cores = sum(
        usd_per_hour(RentedMachine(GpuRequest(), CORES, MEMORY_GIB), prices=prices).values()
    )
    alone = sum(usd_per_hour(RentedMachine(gpus, 0.0, 0.0), prices=prices).values())
    return alone + SANDBOX_FACTOR * cores


def run_shell(
    cli: CliContext, checkout: Path, gpu: str | None, words: Sequence[str], idle: float, yes: bool
) -> int:
    """Open the shell, or run ``words`` in its place; the exit status of what ran.

    The shell ends after ``idle`` seconds without a key at its prompt; then, or when it is left, the sandbox.
    """
    gpus = shell_gpus(gpu)
    if not words and not cli.is_terminal:
        raise usage(
            "a shell needs a terminal; give it a command: `runner shell --target cloud python -V`"
        )
    dollars = price(gpus, current_prices(checkout, cli.environ))
    where = f"a sandbox of Modal with {gpus.modal_names()[0] if gpus.names else 'no GPU'}"
    ends = f"it ends when you leave it, or after {duration(idle)} without a key"
    if not confirm(
        cli,
        [f"{where}: about ${dollars:.2f} an hour; {ends}"],
        "open it",
        yes,
        cli.line.replace(" shell", " shell -y", 1),
    ):
        return 103
    import modal

    volumes: Any = {f"/vol/{name}": open_volume(name, cli.environ) for name in VOLUMES}
    image = images.build(checkout)
    with explained():
        with build_log(True):  # a first build takes some minutes
            images.make(image, cli.info)
        sandbox = modal.Sandbox.create(
            app=modal.App.lookup(f"{NAME}-shell", create_if_missing=True),
            image=image,
            gpu=gpus.modal_names()[0] if gpus.names else None,
            cpu=CORES,
            memory=int(MEMORY_GIB * 1024),
            volumes=volumes,
            workdir=images.WORKSPACE,
            timeout=LONGEST,
            idle_timeout=LEFT_ALONE,
            tags={"project": NAME, "kind": "shell"},
        )
    try:
        with translate_modal_errors(), _ended_by_signals():
            return _run(cli, sandbox, words, int(idle))
    finally:
        with suppress(Exception), translate_modal_errors():
            sandbox.terminate()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end this process by its own way, which ends the sandbox."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {which: signal.signal(which, end) for which in SIGNALS if which != signal.SIGINT}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _run(cli: CliContext, sandbox: Any, words: Sequence[str], idle: int) -> int:
    from runner.targets.modal.pty import attach, pump

    if not cli.is_terminal:
        return pump(sandbox.exec(*words, text=False))
    # A terminal's size travels with the start alone; `resize` sets it later by the terminal's name.
    # TMOUT: bash ends at its prompt after so many seconds, also when nobody is there to see it.
    program = shlex.join(words) if words else "bash -i"
    line = f"tty > {TERMINAL_FILE}; export TMOUT={idle}; exec {program}"
    process = sandbox.exec("bash", "-c", line, pty=True, text=False)

    def resize(rows: int, columns: int) -> None:
        command = f"stty -F $(cat {TERMINAL_FILE}) rows {rows} cols {columns}"
        with suppress(Exception):
            sandbox.exec("sh", "-c", command).wait()

    return attach(process, resize)

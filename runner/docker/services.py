"""The compose file's services that are no jobs: the shell, TensorBoard."""

from __future__ import annotations

import signal
import subprocess
import threading
from pathlib import Path

from runner.checkout import find_checkout, volumes
from runner.docker.compose import Compose
from runner.docker.settings_file import write_missing
from runner.errors import RunnerError
from runner.machine import Machine
from runner.terminal import Environment


def run_service(env: Environment, service: str, words: tuple[str, ...], is_server: bool = False) -> int:
    """One container of ``service`` with the terminal; its exit status. With ``is_server`` it has the service's ports, and
    ends with Ctrl-C."""
    compose, checkout = _ready(env)
    flags = ["--service-ports"] * is_server + ["-T"] * (not env.is_terminal)
    return follow_process(env, compose.command("run", "--rm", *flags, service, *words), checkout, is_server)


def _ready(env: Environment) -> tuple[Compose, Path]:
    checkout = find_checkout(env.cwd)
    machine = Machine(env.environ)
    if machine.engine.problem:
        raise RunnerError(f"{machine.engine.problem}; `runner doctor` says more")
    for line in write_missing(machine, checkout):
        env.say(line)
    here = volumes(checkout, {})
    for folder in (here.data, here.checkpoints, here.cache):
        folder.mkdir(parents=True, exist_ok=True)
    return Compose(machine, checkout), checkout


def follow_process(env: Environment, words: list[str], folder: Path, until_ctrl_c: bool = False) -> int:
    """Wait for it; its exit status. Ctrl-C is its own: it has it from the terminal too, and with ``until_ctrl_c`` that is
    a good end. SIGTERM is passed on."""
    process: subprocess.Popen[bytes] | None = None
    interrupted = threading.Event()

    def pass_on(number: int, _: object) -> None:
        if process is not None:
            process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: interrupted.set()),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        process = subprocess.Popen(words, cwd=folder, env=dict(env.environ))
        code = process.wait()
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    if until_ctrl_c and interrupted.is_set():
        return 0
    return code if code >= 0 else 128 - code

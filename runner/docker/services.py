"""The compose file's services that are no jobs: the shell, TensorBoard."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from runner.checkout import find_checkout, volumes
from runner.docker.compose import Compose
from runner.docker.settings_file import write_missing
from runner.errors import RunnerError
from runner.machine import Machine
from runner.terminal import Environment


def run_service(env: Environment, service: str, words: tuple[str, ...]) -> int:
    """One container of ``service`` with the terminal; its exit status."""
    compose, checkout = _ready(env)
    flags = [] if env.is_terminal else ["-T"]
    return _call(env, compose.command("run", "--rm", *flags, service, *words), checkout)


def up_service(env: Environment, service: str) -> int:
    """``docker compose up`` of one service, until Ctrl-C."""
    compose, checkout = _ready(env)
    return _call(env, compose.command("up", service), checkout)


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


def _call(env: Environment, words: list[str], checkout: Path) -> int:
    # Ctrl-C is the container's: compose has it from the terminal, and we wait for what it makes of it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.Popen(words, cwd=checkout, env=dict(env.environ)).wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code

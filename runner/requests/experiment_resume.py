"""`runner resume RUN` of an experiment: the same file with the same parameters, as its record has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.checkout import find_checkout
from runner.command_line.arguments import CommandLine
from runner.errors import RunnerError, usage
from runner.requests.experiment import from_record
from runner.requests.experiment_request import experiment_request
from runner.requests.last_launch import machine_again
from runner.requests.request import Request
from runner.runs.find import Found, refuse_a_second
from runner.runs.on_volumes import record_of
from runner.targets import open_target

if TYPE_CHECKING:
    from runner.targets.protocol import Target
    from runner.terminal import Environment


def resume_experiment(
    env: Environment,
    line: CommandLine,
    found: Found,
    overrides: tuple[str, ...],
    on: str | None,
    more: tuple[tuple[str, str], ...],
) -> tuple[Target, Request]:
    """The target and the request. Raises RunnerError where the record names no file of this machine."""
    run = found.state.run
    if overrides:
        raise usage(
            f"'{overrides[0]}': with other parameters it is another run; start it under another --name"
        )
    target = open_target(on, env, find_checkout(env.cwd)) if on else found.target
    refuse_a_second(found, target)
    record = record_of(target.files("checkpoints"), run)
    if record is None:
        side = "push" if target.name == "cloud" else "pull"
        raise RunnerError(
            f"run '{run}' is not on {target.name}; bring it first: runner {side} checkpoints {run}"
        )
    launched = from_record(record.attempts[-1].launch) if record.attempts else None
    if launched is None:
        raise RunnerError(
            f"run '{run}' was not started by the runner; type: runner {target.name} run FILE --name {run}"
        )
    file, words = launched
    if not file.is_file():
        raise RunnerError(
            f"{file}, which run '{run}' runs, is not on this machine; where it is now, type:\n"
            f"  runner {target.name} run {file.name} {' '.join(words)} --name {run}"
        )
    given = dict(more)
    if target.name != "cloud" and given:
        raise usage(f"--{next(iter(given))} belongs to the cloud; {target.name} costs nothing")
    machine = machine_again(target, run, None, line.device, given)
    again = CommandLine(
        ("run", str(file), *words),
        run,
        device=machine.device,
        detach=line.detach,
        as_json=line.as_json,
    )
    return target, experiment_request(again, env.cwd, target.files("checkpoints"), machine.more)

"""What a run that is taken up again is asked to do: the same as last time, unless it was said otherwise."""

from __future__ import annotations

import shlex
from dataclasses import replace

from runner.checkout import find_checkout, volumes
from runner.cloud.account import need_token
from runner.command_line.arguments import CommandLine
from runner.errors import RunnerError, usage
from runner.jobs import COMMAND, EXPERIMENT, JOBS, WITH_RUN
from runner.requests.command_request import command_of_run
from runner.requests.experiment_resume import resume_experiment
from runner.requests.last_launch import machine_again
from runner.requests.request import Request, settings_of_run
from runner.runs.find import Found, find_run, refuse_a_second
from runner.targets import open_target
from runner.targets.protocol import Target
from runner.terminal import Environment


def resume_request(
    env: Environment,
    line: CommandLine,
    overrides: tuple[str, ...],
    on: str | None,
    more: tuple[tuple[str, str], ...] = (),
) -> tuple[Target, Request]:
    """The target and the request that take up the run ``line.name``. Raises RunnerError."""
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise usage(f"'{wrong[0]}' is no key=value; `runner resume` takes up one run")
    run = line.name or ""
    found = find_run(env, run)
    if found.state.is_copy and on is None:
        raise RunnerError(
            f"run '{run}' was last in the cloud, which does not answer for it; to go on from the copy that was "
            f"pulled: `runner resume {run} --on host`"
        )
    if found.state.job == EXPERIMENT.name:
        return resume_experiment(env, line, found, overrides, on, more)
    if found.state.job not in WITH_RUN:
        raise usage(f"run '{run}' is a {found.state.job}, which has nothing to take up; start it again")
    checkout = find_checkout(env.cwd)
    target = open_target(on, env, checkout) if on else found.target
    if target.name == "cloud":
        need_token(env.environ)
    refuse_a_second(found, target)
    given = dict(more)
    if target.name != "cloud":
        line = replace(line, gpu=_number(given.pop("gpu", None)))
        if given:
            raise usage(f"--{next(iter(given))} belongs to the cloud; {target.name} costs nothing")
    if found.state.job == COMMAND.name:
        return target, _command_again(found, target, line, overrides, given)
    settings = settings_of_run(target.files("checkpoints"), run, overrides, section="train")
    if settings is None and target is not found.target:
        raise RunnerError(_not_there(run, found.target.name, target.name))
    if settings is None and found.state.attempts:
        raise RunnerError(
            f"the recipe.yaml of run '{run}' is gone, which it would go on with; put it back into its folder, or train "
            f"another: `runner {target.name} RECIPE --name {run}-2`"
        )
    if settings is None:
        raise RunnerError(
            f"run '{run}' has no recipe yet: it ended before it began; start it again with "
            f"`runner {target.name} RECIPE --name {run}`"
        )
    folder = volumes(checkout, env.environ if target.name == "host" else {}).run(run)
    machine = machine_again(target, run, line.gpu, line.device, given)
    return target, Request(
        JOBS["train"],
        run,
        recipe=folder / "recipe.yaml",
        overrides=overrides,
        settings=settings,
        gpus=machine.gpus,
        device=machine.device,
        detach=line.detach,
        as_json=line.as_json,
        more=machine.more,
    )


def _command_again(
    found: Found, target: Target, line: CommandLine, overrides: tuple[str, ...], given: dict[str, str]
) -> Request:
    """The command of the run, as it was; in its folder, which must be here."""
    run = found.state.run
    if overrides:
        raise usage(f"run '{run}' is a command, and has no settings; `{overrides[0]}` can't be changed")
    command = command_of_run(target.files("checkpoints"), run)
    if command is None and target is not found.target:
        raise RunnerError(_not_there(run, found.target.name, target.name))
    if command is None:
        raise RunnerError(f"run '{run}' ended before it began; start it again with the line that started it")
    if not command.folder.is_dir():
        raise usage(
            f"run '{run}' was started in {command.folder}, which is not on this machine; name the folder:\n"
            f"  runner {target.name} --name {run} --dir FOLDER -- {shlex.join(command.words)}"
        )
    return Request(
        COMMAND,
        run,
        detach=line.detach,
        as_json=line.as_json,
        more=machine_again(target, run, line.gpu, line.device, given).more,
        command=command,
    )


def _number(word: str | None) -> int | None:
    if word is None:
        return None
    if not word.isdigit() or int(word) < 1:
        raise usage(f"--gpu {word}: here that is a number of GPUs; names are for the cloud (--on cloud)")
    return int(word)


def _not_there(run: str, last: str, target: str) -> str:
    if last == "cloud":
        return f"run '{run}' is in the cloud and not here; bring it first: runner pull checkpoints {run}"
    return f"run '{run}' is not on {target}; bring it there first: runner push checkpoints {run}"

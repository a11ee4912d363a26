"""What a run that is taken up again is asked to do: the same as last time, unless it was said otherwise."""

from __future__ import annotations

from pathlib import Path

from runner.arguments import CommandLine
from runner.checkout import find_checkout
from runner.errors import RunnerError, usage
from runner.find_run import find_run
from runner.jobs import JOBS
from runner.launch_record import read_launch
from runner.request import Request, settings_of_run
from runner.targets import open_target
from runner.targets.protocol import Target
from runner.terminal import Environment


def resume_request(
    env: Environment, line: CommandLine, overrides: tuple[str, ...], on: str | None
) -> tuple[Target, Request]:
    """The target and the request that take up the run ``line.name``. Raises RunnerError."""
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise usage(f"'{wrong[0]}' is no key=value; `runner resume` takes up one run")
    run = line.name or ""
    found = find_run(env, run)
    if found.state.job != "train":
        raise usage(f"run '{run}' is a {found.state.job}, which has nothing to take up; start it again")
    target = open_target(on, env, find_checkout(env.cwd)) if on else found.target
    settings = settings_of_run(target.files("checkpoints"), run, overrides)
    if settings is None:
        raise RunnerError(
            f"run '{run}' has no recipe yet: it ended before it began; start it again with "
            f"`runner {target.name} RECIPE --name {run}`"
        )
    last = read_launch(Path(found.state.folder)) if found.state.folder else None
    return target, Request(
        JOBS["train"],
        run,
        recipe=Path(found.state.folder) / "recipe.yaml",
        overrides=overrides,
        settings=settings,
        gpus=line.gpu or (last.gpus if last else 1),
        device=line.device or (last.device if last and target is found.target else None),
        detach=line.detach,
        as_json=line.as_json,
    )

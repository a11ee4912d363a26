"""Resume a run, or change a live one."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from job.format import json_text, runner_command
from runner import completion
from runner.cli_options import (
    DETACH,
    DEVICE,
    DRY_RUN,
    JSON,
    MAX_COST,
    NOTIFY,
    QUEUE,
    SHARE,
    TAG,
    TIMEOUT,
    YES,
    target_option,
)
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found, usage
from runner.jobs import LaunchArguments

if TYPE_CHECKING:
    from job.recipe import Recipe
    from runner.runs.find import ResolvedRun

# A container on Modal polls every 3 s and commits its volume at least once a minute.
ANSWER_TIMEOUT_S = 180.0


@click.command()
@click.argument("args", nargs=-1, metavar="[RUN] [key=value ...]", shell_complete=completion.runs)
@target_option("host, local, cloud or remote:BOX.")
@click.option(
    "--gpu",
    metavar="N|NAME[:N]",
    help="Number of GPUs; on Modal NAME[:N], same as in `runner cloud`.",
    shell_complete=completion.gpus,
)
@TIMEOUT
@MAX_COST
@NOTIFY
@DEVICE
@DRY_RUN
@DETACH
@TAG
@QUEUE
@SHARE
@JSON
@YES
@click.pass_obj
def resume_command(
    cli: CliContext,
    /,
    args: tuple[str, ...],
    target: str | None,
    gpu: str | None,
    timeout: float | None,
    max_cost: float | None,
    **other_options: Any,
) -> int:
    """Resume a run from its newest checkpoint, with the settings it was started with.

    \b
      runner resume                           the newest run
      runner resume my_run
      runner resume my_run checkpoint_every=100
      runner resume my_run max_steps=2000
      runner resume my_run --target cloud --gpu H100

    The run resumes on the target of its last attempt; --target moves it to a different one.
    `host` and `local` share their volumes. To and from Modal, copy the run first with
    `runner push checkpoints RUN` or `runner pull checkpoints RUN`.

    Settings that would make it a different run, such as lr, are refused. max_steps can change
    as long as no completed step depends on it: with schedule=constant, or before the last
    decay_steps. Otherwise start a new run from its weights:

    \b
      runner host quickstart --name longer init_from=my_run max_steps=2000
    """
    from runner.launch.execute import run_request
    from runner.launch.parse import split_overrides
    from runner.launch.resume import resume_request
    from runner.runs.find import select_run
    from runner.targets.modal.options import parse_options

    names, overrides = split_overrides(args)
    if len(names) > 1:
        raise usage(f"unexpected '{names[1]}'; `runner resume` takes one run and key=value")
    resolved = select_run(cli, names[0] if names else None)
    arguments = LaunchArguments(args=tuple(overrides), name=resolved.state.run, **other_options)
    options = parse_options(gpu=gpu, timeout=timeout, max_cost=max_cost)
    chosen, request = resume_request(cli, resolved, arguments, target, options)
    if arguments.access is not None and chosen.has_remote_volumes:
        raise usage(
            f"--{arguments.access} is an option of host and local, whose runs use the same GPUs"
        )
    return run_request(cli, chosen, request, arguments)


@click.command()
@click.argument("run", shell_complete=completion.runs)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE ...]")
@click.option("--checkpoint", is_flag=True, help="Write a checkpoint now, and wait for it.")
@TAG
@click.option("--untag", multiple=True, metavar="NAME", help="Remove a tag. Repeatable.")
@click.pass_obj
def set_command(
    cli: CliContext,
    run: str,
    settings: tuple[str, ...],
    checkpoint: bool,
    tags: tuple[str, ...],
    untag: tuple[str, ...],
) -> None:
    """Change settings of a live training run, or write a checkpoint now.

    \b
      runner set my_run log_every=1 sample_every=500
      runner set my_run --checkpoint
      runner set my_run --tag good --untag draft

    Tags can be changed for every run, also for one that has ended.
    """
    from job.live_request import LiveRequest, check_live_settings
    from job.run_record import REQUEST_NAME
    from runner.runs.find import find_run
    from runner.runs.volume import recipe_of, record_of, step_of
    from runner.system import wait_until

    if "=" in run:
        raise usage(f"'{run}' is a setting, and no run is named; type `runner set RUN {run}`")
    is_tagging, is_changing = bool(tags or untag), bool(settings or checkpoint)
    if not is_tagging and not is_changing:
        raise usage("nothing to do; give settings (log_every=1), --checkpoint or --tag")
    if is_tagging and is_changing:
        raise usage("change tags in a command of their own, without settings and --checkpoint")
    resolved = find_run(cli, run)
    if is_tagging:
        _change_tags(cli, resolved, tags, untag)
        return
    state, target = resolved.state, resolved.target
    if state.job != "train":
        raise RunnerError(
            f"run '{run}' has job {state.job}; `runner set` changes only training runs"
        )
    files = target.files("checkpoints")
    recipe = recipe_of(files, run, section="train")
    changed = recipe_of(files, run, settings, "train")
    if not state.alive:
        raise RunnerError(
            f"run '{run}' is not running (status: {state.status})"
            + _remedy(resolved, recipe, changed, settings)
        )
    if recipe is None or changed is None:
        raise RunnerError(f"run '{run}' is still starting; try again when it trains")
    check_live_settings(recipe, changed, state.step)
    request = LiveRequest(uuid.uuid4().hex, checkpoint, list(settings))
    target.write_record(run, REQUEST_NAME, request.to_json())
    answer: dict[str, object] = {}

    def is_answered() -> bool:
        record = record_of(files, run)
        if record is not None and record.request.get("id") == request.id:
            answer.update(record.request)
        is_written = "step" in answer and (step_of(files, run) or 0) >= int(str(answer["step"]))
        return "error" in answer or ("step" in answer and (is_written or not checkpoint))

    wait_until(
        is_answered,
        ANSWER_TIMEOUT_S,
        f"run '{run}' has not answered within {ANSWER_TIMEOUT_S:.0f} s; it applies the request "
        f"before its next step; `runner status {run}` shows if it is alive",
    )
    if "error" in answer:
        raise RunnerError(str(answer["error"]))
    done = [*settings, *(["checkpoint written"] if checkpoint else [])]
    cli.info(f"run '{run}', step {answer['step']}: {', '.join(done)}")


def _change_tags(
    cli: CliContext, resolved: ResolvedRun, added: Sequence[str], removed: Sequence[str]
) -> None:
    from runner.runs.attempts import TAGS_NAME
    from runner.runs.store import TagRecord

    run, before = resolved.state.run, resolved.state.tags
    if resolved.state.is_copy:
        raise RunnerError(
            f"run '{run}' is on target {resolved.target.name}, which does not answer; "
            "try again later"
        )
    for name in removed:
        if name not in before:
            hint = did_you_mean(name, before) or f"; its tags: {', '.join(before) or 'none'}"
            raise not_found(f"run '{run}' has no tag '{name}'{hint}")
    tags = tuple(name for name in dict.fromkeys((*before, *added)) if name not in removed)
    content = json_text(TagRecord(time.time(), tags)) + "\n"
    resolved.target.write_record(run, TAGS_NAME, content)
    cli.info(f"tags of run '{run}': {', '.join(tags) or 'none'}")


def _remedy(
    resolved: ResolvedRun, recipe: Recipe | None, changed: Recipe | None, settings: Sequence[str]
) -> str:
    """Return the command that trains with ``settings``: resume the run, or start a new one."""
    from job.compatibility import recipe_mismatch

    state, overrides = resolved.state, shlex.join(settings)
    if recipe is None or changed is None or not settings:
        return ""
    can_resume = state.step < changed.train.max_steps
    if can_resume and not recipe_mismatch(
        state.run, recipe, changed, resolved.target.name, state.step
    ):
        return f"; change a setting when you resume it: `runner resume {state.run} {overrides}`"
    line = f"{runner_command(resolved.target.name)} {state.recipe or 'RECIPE'} {overrides}"
    return f"; to train with {overrides}, start a new run: `{line} --name NEW-NAME`"

"""List, show, follow and stop runs, and the queue for the GPUs."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

import click

from job.run_record import RunStatus
from runner.cli_options import DURATION, JSON, RUN, Choice, Integer, Number
from runner.console import CliContext
from runner.errors import RunnerError, did_you_mean, not_found, usage
from runner.jobs import RESUMABLE_JOBS


@click.command()
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME", help="Runs with this tag. Repeatable."
)
@click.option(
    "--status",
    "statuses",
    type=Choice([status.value for status in RunStatus]),
    multiple=True,
    help="Runs with this status. Repeatable: one of them.",
)
@click.option("--recipe", metavar="NAME", help="Runs of this recipe.")
@JSON
@click.pass_obj
def runs_command(
    cli: CliContext,
    tags: tuple[str, ...],
    statuses: tuple[str, ...],
    recipe: str | None,
    as_json: bool,
) -> None:
    """List the runs, newest first.

    \b
      runner runs
      runner runs --tag ablation --status failed
      runner runs --recipe shakespeare_char --json

    A run is `lost` if it ended without a record of its end. Like an `unfinished` run,
    it resumes from its newest checkpoint with `runner resume RUN`.
    """
    from runner.runs.find import every_run
    from runner.runs.store import NO_RUNS
    from runner.runs.table import show_runs

    every = [run.state for run in every_run(cli)]
    states = [
        state
        for state in every
        if {*tags} <= {*state.tags}
        and (not statuses or state.status in statuses)
        and recipe in (None, state.recipe)
    ]
    if as_json:
        cli.json(states)
    elif states:
        show_runs(states, cli)
    elif every:
        cli.info(f"none of the {len(every)} runs matches")
    else:
        cli.info(NO_RUNS)


@click.command()
@RUN
@JSON
@click.pass_obj
def status_command(cli: CliContext, run: str | None, as_json: bool) -> None:
    """Show the status of a run: progress, loss, attempts, cost.

    \b
      runner status             the newest run
      runner status my_run
    """
    from runner.runs.find import select_run
    from runner.runs.table import limit_message, resume_message, rows

    resolved = select_run(cli, run)
    state = resolved.state
    if as_json:
        cli.json(state)
        return
    for name, value in rows(state):
        cli.write(f"{name:<9} {value}")
    if state.status == RunStatus.LOST or (
        state.status == RunStatus.FAILED and state.reason is None
    ):
        for line in resolved.source.output(state.run, 10):
            cli.info(f"  {line}")
    if (limit := limit_message(state.run, state.unfinished_reason)) and not state.is_copy:
        cli.info(limit)
    elif (
        state.status in (RunStatus.LOST, RunStatus.FAILED, RunStatus.UNFINISHED)
        and state.job in RESUMABLE_JOBS
    ):
        options = " --target host" if state.is_copy else ""
        cli.info(resume_message(state.run, state.job, options))


@click.command()
@RUN
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run ends.")
@click.option("--tail", "lines", type=Integer(0), metavar="N", help="Print only the last N lines.")
@click.option(
    "--since",
    type=DURATION,
    metavar="TIME",
    help="Print only lines written in the last 30m, 2h or 1d.",
)
@click.pass_obj
def logs_command(
    cli: CliContext, run: str | None, follow: bool, lines: int | None, since: float | None
) -> None:
    """Print the log of a run, running or finished.

    \b
      runner logs               the newest run
      runner logs my_run --follow
      runner logs my_run --since 30m --tail 20
    """
    from runner.runs import volume as run_log
    from runner.runs.find import select_run

    resolved = select_run(cli, run)
    run = resolved.state.run
    files, path = resolved.source.files("checkpoints"), f"{run}/log.txt"
    text, end = run_log.tail(files, path, None if since else lines)
    if since and text and not run_log.has_timestamps(text):
        raise usage(
            f"the log of '{run}' is the output of its program, without times; "
            "use --tail 50 instead of --since"
        )
    if since:
        text = run_log.since(text, time.time() - since)
        recent = text.splitlines(keepends=True)
        text = "".join(recent[max(0, len(recent) - lines) :] if lines is not None else recent)
    cli.write(text, newline=False)

    for piece in run_log.follow(resolved.source, run, end) if follow else ():
        cli.write(piece, newline=False)
    if files.size(path) is None:  # it ended before it had a log, or its job writes none
        output = resolved.source.output(run, lines if lines is not None else 1000)
        if not output and not resolved.state.alive:
            raise not_found(f"run '{run}' has no log; `runner status {run}` shows its status")
        for line in output:
            cli.write(line)


@click.command()
@RUN
@click.option(
    "--interval",
    type=Number(0.1),
    metavar="SECONDS",
    help="Refresh interval in seconds.",
)
@JSON
@click.pass_obj
def watch_command(cli: CliContext, run: str | None, interval: float | None, as_json: bool) -> int:
    """Watch a run live: loss curves, throughput, cost, samples.

    \b
      runner watch              the newest run
      runner watch my_run

    q or Ctrl-C leaves the run running. The exit status is that of the run, or 130 if you
    leave before it ends. Without a terminal, the command prints a line every 10 seconds.
    """
    from runner.runs.find import select_run
    from runner.views.watch import watch

    return watch(cli, select_run(cli, run), interval, as_json)


@click.command()
@RUN
@click.option(
    "--force", is_flag=True, help="Kill the run; progress since its last checkpoint is lost."
)
@click.pass_obj
def stop_command(cli: CliContext, run: str | None, force: bool) -> None:
    """Stop a run, or remove it from the queue. A training run saves a checkpoint first.

    \b
      runner stop               the newest run
      runner stop my_run
      runner stop my_run --force
    """
    from runner.runs.find import select_run
    from runner.runs.store import LAUNCH_FILES
    from runner.runs.volume import listing

    resolved = select_run(cli, run)
    state = resolved.state
    resolved.check_reachable()
    if not state.alive:
        cli.info(f"run '{state.run}' is not running (status: {state.status})")
        return
    was_queued = state.status == RunStatus.QUEUED
    saves = (
        "; it saves a checkpoint first"
        if state.job == "train" and not (force or was_queued)
        else ""
    )
    cli.info(f"stopping run '{state.run}' on {resolved.target.name}{saves}")
    if not resolved.target.stop(state.run, force):
        raise RunnerError(
            f"run '{state.run}' was not started by the runner; press Ctrl-C in its terminal"
        )
    if was_queued and ((now := resolved.target.state(state.run)) is None or not now.attempts):
        entries = listing(resolved.target.files("checkpoints"), state.run)
        if entries and {PurePosixPath(entry.path).name for entry in entries} <= LAUNCH_FILES:
            resolved.target.remove(state.run)  # the launch created the folder
        cli.info("removed from the queue")
        return
    resume = f"; `runner resume {state.run}` resumes it" if state.job in RESUMABLE_JOBS else ""
    cli.info(f"stopped{resume}")


@click.command()
@click.option("--first", metavar="RUN", help="Move a waiting run to the front.")
@JSON
@click.pass_obj
def queue_command(cli: CliContext, first: str | None, as_json: bool) -> None:
    """List the runs that use or wait for the GPUs of this machine.

    \b
      runner queue
      runner queue --first my_run

    `runner host ... --queue` and `runner local ... --queue` add a run; `runner stop RUN`
    removes one. Runs start in the order of the list.
    """
    from job.gpu_queue import WHOLE_MACHINE, live_tickets, move_first
    from runner.home import queue_folder

    queue = queue_folder(cli.environ)
    waiting = [ticket.run for ticket in live_tickets(queue) if not ticket.taken]
    if first is not None and (first not in waiting or not move_first(queue, first)):
        hint = did_you_mean(first, waiting) or "; `runner queue` lists the queue"
        raise not_found(f"run '{first}' is not waiting in the queue{hint}")
    tickets = live_tickets(queue)
    if as_json:
        cli.json(tickets)
        return
    running = sum(bool(ticket.taken) for ticket in tickets)
    for number, ticket in enumerate(tickets, 1):
        gpus = "running" if ticket.taken == (WHOLE_MACHINE,) else f"GPU {', '.join(ticket.taken)}"
        state = gpus if ticket.taken else f"position {number - running}"
        cli.write(f"{state:<12} {ticket.run:<24} {ticket.folder}")
    if not tickets:
        cli.info("no run uses or waits for the GPUs of this machine")

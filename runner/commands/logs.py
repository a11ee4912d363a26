"""Print the log of a run, running or finished.

\b
  runner logs               the newest run
  runner logs my_run --follow
  runner logs my_run --since 30m --tail 20
"""

import click

from runner.cli_options import DURATION, RUN, Integer
from runner.console import CliContext


@click.command(help=__doc__)
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
def command(
    cli: CliContext, run: str | None, follow: bool, lines: int | None, since: float | None
) -> int:
    import time

    from runner.errors import not_found, usage
    from runner.runs import logs as run_log
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

    def alive() -> bool:
        state = resolved.source.state(run)
        return state is not None and state.alive

    if follow:
        for piece in run_log.follow(files, path, end, alive, resolved.source.poll_interval_s):
            cli.write(piece, newline=False)
    if files.size(path) is None:  # it ended before it had a log, or its job writes none
        output = resolved.source.output(run, lines if lines is not None else 1000)
        if not output and not resolved.state.alive:
            raise not_found(f"run '{run}' has no log; `runner status {run}` shows its status")
        for line in output:
            cli.write(line)
    return 0

"""Print a run's log, also of one that is over.

\b
  runner logs warm --follow
  runner logs warm --since 30m --tail 20
"""

import click

from runner import completion
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option(
    "--tail", "lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines."
)
@click.option("--since", metavar="TIME", help="Only what was written in the last 30m, 2h, 1d.")
@click.pass_obj
def command(cli: CliContext, run: str, follow: bool, lines: int | None, since: str | None) -> int:
    import time

    from runner.errors import not_found, usage
    from runner.format import parse_duration
    from runner.runs import logs as run_log
    from runner.runs.find import find_run

    found = find_run(cli, run)
    files, path = found.source.files("checkpoints"), f"{run}/log.txt"
    text, end = run_log.tail(files, path, None if since else lines)
    if since and text and not run_log.has_timestamps(text):
        raise usage(
            f"the log of '{run}' is what its program printed, without times; leave --since away, or take --tail 50"
        )
    if since:
        text = run_log.since(text, time.time() - parse_duration(since, "--since"))
        kept = text.splitlines(keepends=True)
        text = "".join(kept[max(0, len(kept) - lines) :] if lines is not None else kept)
    cli.write(text, newline=False)

    def alive() -> bool:
        state = found.source.state(run)
        return state is not None and state.alive

    if follow:
        for piece in run_log.follow(files, path, end, alive, found.source.poll_interval_s):
            cli.write(piece, newline=False)
    if files.size(path) is None:  # it died before it had a log, or is a job that keeps none
        output = found.source.output(run, lines if lines is not None else 1000)
        if not output and not found.state.alive:
            raise not_found(f"run '{run}' has no log; `runner status {run}` shows how it stands")
        for line in output:
            cli.write(line)
    return 0

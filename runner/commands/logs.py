"""Print a run's log, also of one that is over."""

import click

from runner import completion
from runner.terminal import Environment


@click.command(help=__doc__)
@click.argument("run", shell_complete=completion.runs)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--tail", "lines", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.pass_obj
def command(env: Environment, run: str, follow: bool, lines: int | None) -> int:
    from runner import run_log
    from runner.errors import not_found
    from runner.find_run import find_run

    found = find_run(env, run)
    files, path = found.target.files("checkpoints"), f"{run}/log.txt"
    text, end = run_log.tail(files, path, lines)
    env.write(text, newline=False)

    def alive() -> bool:
        return any(state.run == run and state.alive for state in found.target.runs())

    if follow:
        for piece in run_log.follow(files, path, end, alive):
            env.write(piece, newline=False)
    if files.size(path) is None:  # it died before it had a log, or is a job that keeps none
        output = found.target.output(run, lines if lines is not None else 1000)
        if not output and not found.state.alive:
            raise not_found(f"run '{run}' has no log; `runner status {run}` shows how it stands")
        for line in output:
            env.write(line)
    return 0

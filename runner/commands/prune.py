"""Delete old checkpoints, after asking for confirmation; records, curves and samples remain.

\b
  runner prune --older-than 30d             of every run that ended 30 days ago or earlier
  runner prune --older-than 2h 'seed*'      of these runs

Each run keeps its newest intact checkpoint and the one with the lowest validation loss.
"""

import click

from runner import completion
from runner.cli_options import DURATION, YES
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="[RUN...]", shell_complete=completion.runs)
@click.option(
    "--older-than",
    type=DURATION,
    required=True,
    metavar="TIME",
    help="Minimum time since the run ended: 2h, 30d.",
)
@YES
@click.pass_obj
def command(cli: CliContext, names: tuple[str, ...], older_than: float, yes: bool) -> int:
    import time

    from job.format import byte_size, count
    from job.step_folders import STEP_FOLDER
    from runner.console import confirm
    from runner.runs.find import ResolvedRun, every_run, find_run, match_names
    from runner.runs.history import read_fully
    from runner.runs.store import folder_size, listing, step_of
    from runner.transfer.plan import newest_intact

    runs = [find_run(cli, name) for name in match_names(cli, names)] if names else every_run(cli)
    before, total = time.time() - older_than, 0
    old: list[tuple[ResolvedRun, str]] = []
    details: list[str] = []
    for run in runs:
        state, files = run.state, run.source.files("checkpoints")
        if state.alive or (state.ended or state.started or time.time()) > before:
            continue  # also if its record is damaged
        newest = step_of(files, state.run)
        if newest is None:
            continue  # without `latest`, any of the checkpoints may be the only intact one
        best = read_fully(state.run, run.source, all_samples=False).metrics.best
        kept = {newest, best[0] if best else newest}
        folders = [entry.path.rpartition("/")[2] for entry in listing(files, state.run)]
        steps = [n for n in folders if (m := STEP_FOLDER.match(n)) and int(m[1]) not in kept]
        if not steps:
            continue
        intact = newest_intact(files, state.run, folders)
        steps = [name for name in steps if name != intact]
        if intact is None:
            cli.warn(f"run '{state.run}' has no intact checkpoint; none of them is deleted")
        if intact is None or not steps:
            continue
        size = sum(folder_size(files, f"{state.run}/{name}")[1] for name in steps)
        total += size
        old += [(run, name) for name in steps]
        details.append(f"{state.run}: {count(len(steps), 'checkpoint')}, {byte_size(size)}")
    if not old:
        cli.info("no old checkpoints to delete; each run has only those that it keeps")
        return 0
    if not confirm(cli, details, f"delete {byte_size(total)} permanently", yes):
        return 103
    for run, name in old:
        run.remove(name)
    cli.info(f"deleted {count(len(old), 'checkpoint')}, {byte_size(total)}")
    return 0

"""Delete runs, sweeps, or a path of a volume on Modal or a box, after asking for confirmation.

\b
  runner rm my_run other_run                        two runs, with their checkpoints
  runner rm my_sweep                                a sweep with all its runs
  runner rm checkpoints my_run/step_00001000 -r     a folder of a volume on Modal

A run on Modal and its pulled copy are deleted separately: run the command once for each.
"""

import click

from job.format import byte_size, count
from job.paths import VOLUMES
from runner import completion
from runner.cli_options import REMOTE, YES
from runner.console import CliContext


@click.command(help=__doc__)
@click.argument(
    "names", nargs=-1, required=True, metavar="RUN... | VOLUME PATH", shell_complete=completion.runs
)
@click.option("-r", "--recursive", is_flag=True, help="Delete a folder of a volume.")
@REMOTE
@YES
@click.pass_obj
def command(
    cli: CliContext, names: tuple[str, ...], recursive: bool, target: str | None, yes: bool
) -> int:
    from runner.errors import usage

    if names[0] not in VOLUMES:
        if recursive:
            raise usage(f"-r is for a path of a volume; runs need none: `runner rm {names[0]}`")
        return _remove_runs(cli, names, yes)
    if len(names) != 2:
        raise usage(f"expected one path in the volume {names[0]}: `runner rm {names[0]} PATH`")
    return _remove_path(cli, names[0], names[1], recursive, target, yes)


def _remove_runs(cli: CliContext, names: tuple[str, ...], yes: bool) -> int:
    from contextlib import ExitStack

    from job.step_folders import discard
    from runner.console import confirm
    from runner.errors import RunnerError
    from runner.runs.find import every_run, find_run, match_names, sweep_folder
    from runner.runs.store import folder_size
    from runner.sweep.record import runs_of_sweep, sweep_lock

    sweeps = {name: folder for name in names if (folder := sweep_folder(cli, name))}
    single = [name for name in dict.fromkeys(names) if name not in sweeps]
    resolved = [find_run(cli, name) for name in match_names(cli, single)]
    details = [f"sweep '{name}', with its runs" for name in sweeps]
    if sweeps:
        trials = {run for name, folder in sweeps.items() for run in runs_of_sweep(name, folder)}
        trials -= {run.state.run for run in resolved}
        resolved += [run for run in every_run(cli) if run.state.run in trials]
        if cli.unreachable_targets:
            raise RunnerError(
                "a skipped target may have runs of the sweep; nothing was deleted: reach it, or "
                "name single runs"
            )
    for run in resolved:
        name = run.state.run
        if run.state.alive:
            raise RunnerError(f"run '{name}' is active; stop it first: `runner stop {name}`")
        files, size = folder_size(run.source.files("checkpoints"), name)
        where = "the copy that was pulled" if run.state.is_copy else run.target.name
        details.append(f"run '{name}' ({where}): {count(files, 'file')}, {byte_size(size)}")
    with ExitStack() as locks:
        for name, folder in sweeps.items():
            locks.enter_context(sweep_lock(name, folder))
        if not confirm(cli, details, "delete permanently", yes):
            return 103
        for run in resolved:
            run.remove()
            cli.info(f"deleted run '{run.state.run}'")
        for name, folder in sweeps.items():
            discard(folder)
            cli.info(f"deleted sweep '{name}'")
    return 0


def _remove_path(
    cli: CliContext, volume: str, path: str, recursive: bool, target: str | None, yes: bool
) -> int:
    from runner.console import confirm
    from runner.errors import usage
    from runner.transfer.mapping import is_active_remotely, open_mapping, remote_not_found

    mapping = open_mapping(cli, volume, target=target)
    path = path.strip("/")
    if not path:
        raise usage("PATH is the whole volume; give a file or folder in it")
    try:
        entries = mapping.files.listing(path)
    except FileNotFoundError as error:
        raise remote_not_found(mapping, path) from error
    is_file = [entry.path for entry in entries] == [path]
    if not is_file and not recursive:
        raise usage(f"{path} is a folder; pass -r to delete it and its files: `{cli.line} -r`")
    files = [entry for entry in entries if entry.kind != "directory"]
    details = [
        f"{volume}/{path}: {count(len(files), 'file')}, {byte_size(sum(f.size for f in files))}"
    ]
    if mapping.has_runs:
        run = path.split("/")[0]
        if is_active_remotely(mapping, run):
            details.append(f"run '{run}' is active on {mapping.place}")
    if not confirm(cli, details, f"delete it from {mapping.place} permanently", yes):
        return 103
    mapping.files.remove(path, recursive=not is_file)
    cli.info(f"deleted {volume}/{path}")
    return 0

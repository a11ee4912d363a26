"""List and delete files of volumes, runs, checkpoints and caches."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

import click

from job.exit_status import ExitStatus
from job.format import byte_size, count
from job.paths import VOLUMES
from job.step_folders import STEP_FOLDER, discard
from runner import completion
from runner.cli_options import DURATION, JSON, REMOTE, VOLUME, YES, Choice, target_option
from runner.console import CliContext, confirm
from runner.errors import RunnerError, did_you_mean, not_found, usage
from runner.project import find_checkout

if TYPE_CHECKING:
    from runner.targets.blocks import BlockFiles, RemoteEntry
    from runner.transfer.mapping import RemoteVolumes


@click.command()
@VOLUME
@click.argument("path", default="")
@REMOTE
@JSON
@click.pass_obj
def ls_command(cli: CliContext, volume: str, path: str, target: str | None, as_json: bool) -> None:
    """List the files of a volume on Modal or a box, with the total size of each folder.

    \b
      runner ls checkpoints
      runner ls checkpoints my_run
    """
    from runner.transfer.mapping import list_remote, open_mapping

    mapping = open_mapping(cli, volume, target=target)
    try:
        entries = add_up(list_remote(mapping, path), path.strip("/"))
    except RunnerError as error:
        if path.strip("/") or error.exit_code != ExitStatus.NOT_FOUND:
            raise
        entries = []  # no job has created the volume yet
    if as_json:
        cli.json(entries)
        return
    for entry in entries:
        num_files = f"{entry.files:,} files" if entry.is_folder else ""
        when = datetime.fromtimestamp(entry.modified).strftime("%Y-%m-%d %H:%M")
        name = f"{ascii(entry.path)[1:-1]}{'/' if entry.is_folder else ''}"
        cli.write(f"{byte_size(entry.size):>10}  {num_files:>12}  {when}  {name}")
    if len(entries) > 1:
        files, size = sum(entry.files for entry in entries), sum(entry.size for entry in entries)
        cli.info(f"{byte_size(size):>10}  {files:,} files in total")
    if not entries:
        cli.info(f"{volume}/{path} is empty; `runner push {volume} PATH` uploads files")


@dataclass(frozen=True)
class ListedEntry:
    """A file, or a folder with the sums of all files in it."""

    path: str
    size: int
    files: int
    modified: float
    is_folder: bool = False


def add_up(entries: Sequence[RemoteEntry], folder: str) -> list[ListedEntry]:
    """Return the files and folders directly in ``folder`` by name, from its recursive listing."""
    depth = len(PurePosixPath(folder).parts) + 1
    entries_by_name: dict[str, ListedEntry] = {}
    for entry in entries:
        path, is_file = "/".join(entry.path.split("/")[:depth]), entry.kind != "directory"
        is_folder = path != entry.path or not is_file
        known = entries_by_name.get(path) or ListedEntry(
            path, 0, 0, float(entry.modified), is_folder
        )
        entries_by_name[path] = replace(
            known,
            size=known.size + (entry.size if is_file else 0),
            files=known.files + is_file,
            modified=max(known.modified, float(entry.modified)),
        )
    return [entries_by_name[path] for path in sorted(entries_by_name)]


@click.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="RUN... | VOLUME PATH", shell_complete=completion.runs
)
@click.option("-r", "--recursive", is_flag=True, help="Delete a folder of a volume.")
@REMOTE
@YES
@click.pass_obj
def rm_command(
    cli: CliContext, names: tuple[str, ...], recursive: bool, target: str | None, yes: bool
) -> None:
    """Delete runs, sweeps, or a path of a volume on Modal or a box, after asking.

    \b
      runner rm my_run other_run                        two runs, with their checkpoints
      runner rm my_sweep                                a sweep with all its runs
      runner rm checkpoints my_run/step_00001000 -r     a folder of a volume on Modal

    A run on Modal and its pulled copy are deleted separately: run the command once for each.
    """
    if names[0] in VOLUMES:
        if len(names) != 2:
            raise usage(f"expected one path in the volume {names[0]}: `runner rm {names[0]} PATH`")
        _remove_path(cli, names[0], names[1], recursive, target, yes)
        return
    if recursive:
        raise usage(f"-r is for a path of a volume; runs need none: `runner rm {names[0]}`")
    _remove_runs(cli, names, yes)


def _remove_runs(cli: CliContext, names: tuple[str, ...], yes: bool) -> None:
    from runner.runs.find import every_run, find_run, match_names, sweep_folder
    from runner.runs.volume import folder_size
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
        confirm(cli, details, "delete permanently", yes)
        for run in resolved:
            run.remove()
            cli.info(f"deleted run '{run.state.run}'")
        for name, folder in sweeps.items():
            discard(folder)
            cli.info(f"deleted sweep '{name}'")


def _remove_path(
    cli: CliContext, volume: str, path: str, recursive: bool, target: str | None, yes: bool
) -> None:
    from runner.transfer.mapping import is_active_remotely, list_remote, open_mapping

    mapping = open_mapping(cli, volume, target=target)
    path = path.strip("/")
    if not path:
        raise usage("PATH is the whole volume; give a file or folder in it")
    entries = list_remote(mapping, path)
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
    confirm(cli, details, f"delete it from {mapping.place} permanently", yes)
    mapping.files.remove(path, recursive=not is_file)
    cli.info(f"deleted {volume}/{path}")


@click.command()
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
def prune_command(cli: CliContext, names: tuple[str, ...], older_than: float, yes: bool) -> None:
    """Delete old checkpoints, after asking; records, curves and samples remain.

    \b
      runner prune --older-than 30d             of every run that ended 30 days ago or earlier
      runner prune --older-than 2h 'seed*'      of these runs

    Each run keeps its newest intact checkpoint and the one with the lowest validation loss.
    """
    from runner.runs.find import ResolvedRun, every_run, find_run, match_names
    from runner.runs.history import read_fully
    from runner.runs.volume import folder_size, listing, step_of
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
        needed = {newest, best[0] if best else newest}
        folders = [entry.path.rpartition("/")[2] for entry in listing(files, state.run)]
        steps = [n for n in folders if (m := STEP_FOLDER.match(n)) and int(m[1]) not in needed]
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
        return
    confirm(cli, details, f"delete {byte_size(total)} permanently", yes)
    for run, name in old:
        run.remove(name)
    cli.info(f"deleted {count(len(old), 'checkpoint')}, {byte_size(total)}")


# The folders that jobs and the image create. Others are listed too, by their name alone.
DESCRIPTIONS = {
    "inductor": "graphs compiled by torch.compile",
    "triton": "GPU kernels compiled by Triton",
    "cuda": "GPU kernels compiled by the driver",
    "tiktoken": "tokenizer vocabularies",
    "huggingface": "models, datasets and tokenizers from the Hub",
    "pretrained": "published weights, for train.init_from",
}


@dataclass(frozen=True)
class Cache:
    """The files of one kind."""

    kind: str
    files: int
    bytes: int


def local_caches(root: Path) -> list[Cache]:
    """Return the caches on this machine. Hidden folders are not caches: .sync has the journal."""
    caches = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
            caches.append(Cache(path.name, len(files), sum(f.lstat().st_size for f in files)))
    return caches


def remote_caches(files: BlockFiles) -> list[Cache]:
    """Return the caches of a target that is not this machine."""
    try:
        entries = add_up(files.listing(), "")
    except FileNotFoundError:  # no job has created the volume yet
        entries = []
    return [
        Cache(entry.path, entry.files, entry.size)
        for entry in entries
        if entry.is_folder and not entry.path.startswith(".")
    ]


def select_caches(caches: list[Cache], kinds: tuple[str, ...]) -> list[Cache]:
    """Return the caches of these kinds, or all for none.

    Raises RunnerError, exit status 102, for a kind that does not exist.
    """
    by_kind = {cache.kind: cache for cache in caches}
    for kind in kinds:
        if kind not in by_kind:
            existing = f"; existing caches: {', '.join(by_kind) or 'none'}"
            raise not_found(f"unknown cache '{kind}'{did_you_mean(kind, by_kind) or existing}")
    return [by_kind[kind] for kind in dict.fromkeys(kinds)] if kinds else caches


@click.command()
@click.argument("action", type=Choice(["ls", "clear"]), default="ls")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@target_option("host, local, cloud or remote:BOX, whose caches to list or delete.", "host")
@JSON
@YES
@click.pass_obj
def cache_command(
    cli: CliContext, action: str, kinds: tuple[str, ...], target: str, as_json: bool, yes: bool
) -> None:
    """List the jobs' caches by kind, with their sizes, or delete them.

    \b
      runner cache ls                          on this machine
      runner cache ls --target cloud           on Modal's volume
      runner cache ls --target remote:lab      on a box
      runner cache clear inductor triton       these two kinds
      runner cache clear --target cloud -y     all of them

    A job that needs a deleted cache compiles or downloads it again.
    """
    from runner.target import open_target

    opened = open_target(target, cli, find_checkout(cli.cwd))
    root, files = opened.volumes.cache, None
    if opened.has_remote_volumes:
        files = cast("RemoteVolumes", opened).block_files("cache")
    caches = select_caches(remote_caches(files) if files else local_caches(root), kinds)
    lines = [
        f"{cache.kind:<12} {byte_size(cache.bytes):>10}  {count(cache.files, 'file'):<12}  "
        f"{DESCRIPTIONS.get(cache.kind, '')}".rstrip()
        for cache in caches
    ]
    if action == "clear" and caches:
        active = [f"run '{info.run}' is active" for info in opened.runs() if info.alive]
        confirm(cli, [*lines, *active], "delete them", yes)
        for cache in caches:
            if files:
                files.remove(cache.kind, recursive=True)
            else:
                shutil.rmtree(root / cache.kind)
    if as_json:
        cli.json(caches)
    elif action == "clear":
        total = byte_size(sum(cache.bytes for cache in caches))
        cli.info(
            f"deleted {', '.join(cache.kind for cache in caches)}: {total}"
            if caches
            else "no cache to delete"
        )
    else:
        for line in lines:
            cli.write(line)
        if not caches:
            cli.info("no caches yet; jobs create them")

"""List the jobs' caches by kind, with their sizes, or delete them.

\b
  runner cache ls                          on this machine
  runner cache ls --target cloud           on Modal's volume
  runner cache ls --target remote:lab      on a box
  runner cache clear inductor triton       these two kinds
  runner cache clear --target cloud -y     all of them

A job that needs a deleted cache compiles or downloads it again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import click

from job.format import byte_size, count
from runner import completion
from runner.cli_options import JSON, YES, Choice
from runner.console import CliContext, confirm
from runner.errors import did_you_mean, not_found
from runner.project import find_checkout
from runner.target import open_target
from runner.targets.blocks import BlockFiles
from runner.transfer.mapping import RemoteVolumes

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

    @property
    def description(self) -> str:
        """Return what it contains; '' for an unknown kind."""
        return DESCRIPTIONS.get(self.kind, "")


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
    sizes: dict[str, list[int]] = {}
    try:
        entries = files.listing()
    except FileNotFoundError:  # no job has created the volume yet
        entries = []
    for entry in entries:
        kind, slash, _ = entry.path.partition("/")
        if slash and entry.kind != "directory" and not kind.startswith("."):
            sizes.setdefault(kind, []).append(entry.size)
    return [
        Cache(kind, len(file_sizes), sum(file_sizes)) for kind, file_sizes in sorted(sizes.items())
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
    return [by_kind[kind] for kind in kinds] if kinds else caches


@click.command(help=__doc__)
@click.argument("action", type=Choice(["ls", "clear"]), default="ls")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@click.option(
    "--target",
    metavar="TARGET",
    default="host",
    show_default=True,
    help="host, local, cloud or remote:BOX, whose caches to list or delete.",
    shell_complete=completion.targets,
)
@JSON
@YES
@click.pass_obj
def command(
    cli: CliContext, action: str, kinds: tuple[str, ...], target: str, as_json: bool, yes: bool
) -> int:
    opened = open_target(target, cli, find_checkout(cli.cwd))
    root, files = opened.volumes.cache, None
    if opened.has_remote_volumes:
        files = cast(RemoteVolumes, opened).block_files("cache")
    caches = select_caches(remote_caches(files) if files else local_caches(root), kinds)
    lines = [
        f"{cache.kind:<12} {byte_size(cache.bytes):>10}  {count(cache.files, 'file'):<12}  "
        f"{cache.description}".rstrip()
        for cache in caches
    ]
    if action == "clear" and caches:
        active = [f"run '{info.run}' is active" for info in opened.runs() if info.alive]
        if not confirm(cli, [*lines, *active], "delete them", yes):
            return 103
        for cache in caches:
            if files:
                files.remove(cache.kind, recursive=True)
            else:
                shutil.rmtree(root / cache.kind)
    if as_json:
        cli.json([asdict(cache) for cache in caches])
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
    return 0

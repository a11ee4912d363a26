"""Which of a volume's files a transfer is about. Pure, but for the manifests that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from job.step_folders import LATEST, MANIFEST
from runner.cloud.volumes import RemoteEntry
from runner.sync.checkpoints import Manifest, is_record, missing_from, parse_manifest, step_of
from runner.sync.names import OF_A_PROCESS, is_temporary, why_refused
from runner.sync.workers import Missing


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. ``folder`` is ``<run>/step_...``; ``manifest_content`` as in the volume."""

    folder: str
    step: int
    entries: tuple[RemoteEntry, ...]
    manifest: Manifest = field(hash=False)
    manifest_content: bytes = b""

    @property
    def run(self) -> str:
        """Its run."""
        return self.folder.split("/")[0]

    @property
    def name(self) -> str:
        """``step_...``: what ``latest`` names."""
        return self.folder.split("/")[1]

    @property
    def size(self) -> int:
        """Bytes in all its files."""
        return sum(entry.size for entry in self.entries)


@dataclass
class Selection:
    """What a transfer is about: ``refused`` can't become files, ``notes`` say what was passed over."""

    files: list[RemoteEntry] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    refused: list[Missing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(
    entries: Iterable[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    *,
    runs: bool,
    everything: bool,
) -> Selection:
    """Choose of a listing. ``runs``: it is of the checkpoints volume, where a run gives its records and its
    newest complete checkpoint, or with ``everything`` all of them."""
    chosen = Selection()
    entries = list(entries)
    # Only a trainer's run has steps; of a command's run and of a kept folder everything is wanted.
    trained = {of_step[0] for entry in entries if (of_step := step_of(entry.path)) is not None}
    steps: dict[tuple[str, str, int], list[RemoteEntry]] = {}
    for entry in entries:
        if entry.kind == "directory":
            continue
        why = why_refused(entry.path)
        if why is not None:
            chosen.refused.append(Missing(entry.path, f"the name {why}"))
        elif entry.kind != "file":
            chosen.notes.append(f"{entry.path} is left out: it is a {entry.kind}, not a file")
        elif is_temporary(entry.path):
            continue
        elif runs and (of_step := step_of(entry.path)) is not None:
            steps.setdefault(of_step, []).append(entry)
        elif not runs or _is_wanted(entry.path, everything, entry.path.split("/")[0] in trained):
            chosen.files.append(entry)
    newest: set[str] = set()
    for (run, name, step), found in sorted(steps.items(), key=lambda item: (item[0][0], -item[0][2])):
        if run in newest and not everything:
            continue
        checkpoint = _complete(f"{run}/{name}", step, found, read_manifest, chosen)
        if checkpoint is not None:
            newest.add(run)
            chosen.checkpoints.append(checkpoint)
    return chosen


def _is_wanted(path: str, everything: bool, trained: bool) -> bool:
    name = path.rsplit("/", 1)[-1]
    if not everything and "/last_whole/" in path:
        return False  # a second copy of a command's checkpoint
    if name in OF_A_PROCESS or (name == LATEST and path.count("/") == 1):
        return False  # `latest` is written from what is whole, and not copied
    return everything or not trained or is_record(path)


def _complete(
    folder: str,
    step: int,
    entries: list[RemoteEntry],
    read_manifest: Callable[[RemoteEntry], bytes],
    chosen: Selection,
) -> Checkpoint | None:
    sizes = {entry.path.removeprefix(f"{folder}/"): entry.size for entry in entries}
    listed = next((entry for entry in entries if entry.path == f"{folder}/{MANIFEST}"), None)
    content = b"" if listed is None else read_manifest(listed)
    manifest = parse_manifest(content)
    if manifest is None:
        chosen.notes.append(f"{folder} is passed over: it is not complete ({MANIFEST} is missing)")
        return None
    lacking = missing_from(manifest, sizes)
    if lacking is not None:
        chosen.notes.append(f"{folder} is passed over: it is not complete ({lacking})")
        return None
    return Checkpoint(folder, step, tuple(entries), manifest, content)

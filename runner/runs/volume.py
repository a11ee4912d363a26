"""Runs on a volume of any target: their names, sizes, records, recipes, newest steps and logs.

Also whether a dataset is complete.
"""

from __future__ import annotations

import calendar
import codecs
import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from job.run_record import RunRecord, parse_record
from job.step_folders import LATEST
from runner.target import RunSource, VolumeEntry, VolumeFiles

if TYPE_CHECKING:
    from job.recipe import Recipe

CHUNK_BYTES = 64 * 1024

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # job/display.py writes it, in UTC


def listing(files: VolumeFiles, path: str = "") -> list[VolumeEntry]:
    """Return the entries of a folder on a volume, sorted by name; [] if it is not a folder."""
    try:
        return list(files.entries(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def folder_size(files: VolumeFiles, path: str) -> tuple[int, int]:
    """Return the number of files below the folder, and their bytes."""
    count = size = 0
    for entry in listing(files, path):
        inner = folder_size(files, entry.path) if entry.is_folder else (1, entry.size)
        count, size = count + inner[0], size + inner[1]
    return count, size


def run_names(files: VolumeFiles, with_recipe: bool = False) -> list[str]:
    """Return the runs on a checkpoints volume that have a record, newest first.

    ``with_recipe`` skips commands and experiments.
    """
    runs = []
    for folder in listing(files):
        entries = listing(files, folder.path) if folder.is_folder else []
        modified = {entry.path: entry.modified for entry in entries}
        started = modified.get(f"{folder.path}/run.json")
        if started is not None and (not with_recipe or f"{folder.path}/recipe.yaml" in modified):
            runs.append((started, folder.path))
    return [name for _, name in sorted(runs, reverse=True)]


def record_of(files: VolumeFiles | None, run: str) -> RunRecord | None:
    """Return the run's record on a checkpoints volume; None without one."""
    if files is None:
        return None
    try:
        return parse_record(files.read(f"{run}/run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def recipe_of(
    files: VolumeFiles, run: str, overrides: tuple[str, ...] = (), section: str = "sample"
) -> Recipe | None:
    """Return the recipe that the run recorded, with ``overrides``; None if it recorded none yet.

    ``section`` is the job whose keys need no prefix in the overrides.
    """
    from job.exit_status import RecipeError
    from job.recipe import load  # pydantic is slow to import

    name = f"{run}/recipe.yaml"
    if files.size(name) is None:
        return None
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "recipe.yaml"
        copy.write_bytes(files.read(name))
        try:
            return load(copy, overrides, section)
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(copy), name)) from None


def step_of(files: VolumeFiles, run: str) -> int | None:
    """Return the step of the checkpoint that ``latest`` names on the volume; None without one."""
    try:
        latest = files.read(f"{run}/{LATEST}").decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    number = latest.strip().removeprefix("step_")
    return int(number) if number.isdigit() else None


def is_dataset_ready(data: VolumeFiles, dataset: str) -> bool | None:
    """Return True if the dataset is complete.

    None for shards of other programs, without meta.json.
    """
    names = [entry.path.rpartition("/")[2] for entry in listing(data, dataset)]
    if "meta.json" in names:
        return True
    return None if any("train" in name and name.endswith(".bin") for name in names) else False


def tail(files: VolumeFiles, path: str, lines: int | None) -> tuple[str, int]:
    """Return the last ``lines`` of the file (None for all) and the offset of its end, in bytes."""
    end = files.size(path)
    if end is None:
        return "", 0
    if lines is None:
        return files.read(path, 0, end).decode(errors="replace"), end
    chunks, breaks, start = list[bytes](), 0, end
    while start and breaks <= lines:
        size = min(CHUNK_BYTES, start)
        start -= size
        chunks.append(files.read(path, start, size))
        breaks += chunks[-1].count(b"\n")
    last = b"".join(reversed(chunks)).splitlines(keepends=True)[-lines:] if lines else []
    return b"".join(last).decode(errors="replace"), end


def has_timestamps(text: str) -> bool:
    """Return True if a line begins with a time; the log of a user's command has none."""
    return any(TIMESTAMP.match(line) for line in text.splitlines())


def since(text: str, start: float) -> str:
    """Return the lines written at ``start``, in seconds since the epoch, or later.

    A line without a time has the time of the line before it.
    """
    lines_since, is_recent = [], False
    for line in text.splitlines(keepends=True):
        if TIMESTAMP.match(line):
            written = calendar.timegm(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
            is_recent = written >= int(start)
        if is_recent:
            lines_since.append(line)
    return "".join(lines_since)


def follow(source: RunSource, run: str, start: int) -> Iterator[str]:
    """Yield text added after the offset ``start`` until the run has ended and its log is read."""
    files, path = source.files("checkpoints"), f"{run}/log.txt"
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        state = source.state(run)  # before reading, so that the last lines are read after the end
        while (files.size(path) or 0) > start:
            text = files.read(path, start, CHUNK_BYTES)
            if not text:
                break
            start += len(text)
            yield decoder.decode(text)
        if state is None or not state.alive:
            return
        time.sleep(source.poll_interval_s)

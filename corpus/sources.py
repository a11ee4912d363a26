"""The files of a text source: a file, folder, glob, URL or Python's standard library.

Links to folders are followed, each folder once. Omitted files are reported and counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote, urlsplit

from corpus import NO_MONITOR, DataError, InvalidSource, Monitor, Progress, printable
from corpus.download import download
from corpus.formats import SourceFile, Unreadable, inspect
from corpus.shards import folder_shards
from job.format import url_problem
from job.run_record import launch_metadata

STDLIB = "stdlib"
STOP_BYTES = 1 << 24  # smaller files are hashed at once, without asking if the work should stop
MAX_SHOWN = 5  # names of each kind in the message about skipped files

# Without tests and tools; what isn't code (pydoc_data: documentation; encodings: tables, a seventh
# of all); and what differs from one machine to the next.
NOT_THE_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idlelib|lib2to3|turtledemo|ensurepip|pydoc_data"
    r"|encodings|__pycache__|config-[^/]*|_sysconfigdata[^/]*"
    r"|sitecustomize\.py|usercustomize\.py)(/|$)"
)


class _Skipped(dict[str, list[str]]):
    """The names of omitted files, by reason."""

    def add(self, reason: str, name: str) -> None:
        self.setdefault(reason, []).append(printable(name))

    def message(self) -> str:
        """Return one line that counts and names them."""
        parts = [
            f"{len(names)} {reason} ({_shorten_list(names)})"
            for reason, names in sorted(self.items())
        ]
        count = sum(map(len, self.values()))
        return f"skipped {count} of the source's files and folders: {'; '.join(parts)}"


def _shorten_list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(sorted(names)[:MAX_SHOWN]) + more


def is_url(source: str) -> bool:
    """Return True if the source is a URL."""
    return source.lower().startswith(("http://", "https://"))


def find_files(
    source: str, raw: Path, column: str = "text", monitor: Monitor = NO_MONITOR
) -> list[SourceFile]:
    """Return the files of ``source``, sorted by name; a URL is downloaded once into ``raw``."""
    skipped, shown = _Skipped(), printable(source)
    if is_url(source):
        _download(source, _raw_path(source, raw), monitor)
    candidates = _candidates(source, raw, skipped)
    is_single = len(candidates) == 1 and not skipped and source != STDLIB
    files = []
    for path, name in candidates:
        try:
            file = inspect(path, name, column)
        except (Unreadable, OSError) as error:
            problem = error.problem if isinstance(error, Unreadable) else "cannot be read"
            if not is_single:
                skipped.add(problem, name)
                continue
            if isinstance(error, OSError):
                raise DataError(f"{printable(path)}: {problem}: {error.strerror}") from None
            raise
        if file.is_binary and not is_single:
            skipped.add("not text", name)
        elif file.size == 0 or file.kind == "empty":
            skipped.add("empty", name)
        elif source != STDLIB or _is_utf8(path):
            files.append(file)
    if skipped and source != STDLIB:
        monitor.report(skipped.message())
    if not files:
        if skipped and set(skipped) <= {"empty", "hidden"}:
            raise DataError(f"{shown} is empty; add text to learn from")
        advice = "data.source (--source) is a file, folder, glob or URL"
        raise DataError(f"{shown}: no text file found; {advice}")
    if packed := [file.compression for file in files if file.compression]:
        kinds = ", ".join(sorted(set(packed)))
        monitor.report(f"decompressing {len(packed)} of {len(files)} files ({kinds})")
    if is_single and files[0].is_binary:
        warning = "not text (it has zero bytes); its bytes are read as they are"
        monitor.report(f"{printable(files[0].path)}: {warning}")
    return sorted(_with_rows_decided(files, monitor), key=lambda file: file.name)


def snapshot(source: str, raw: Path) -> str | None:
    """Hash the names, sizes and modification times of a source's files; None if it is missing."""
    try:
        entries = sorted((n, os.stat(path)) for path, n in _candidates(source, raw, _Skipped()))
    except (DataError, OSError):
        return None
    facts = [[name, status.st_size, status.st_mtime_ns] for name, status in entries]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest() if facts else None


def content_sha256(files: Sequence[SourceFile], monitor: Monitor = NO_MONITOR) -> str:
    """Hash the names and the content of the files; of a single file, only the content."""
    total, done = sum(file.path.stat().st_size for file in files), 0

    def digest(file: SourceFile) -> tuple[str, int]:
        if file.size > STOP_BYTES:
            monitor.check()
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()

    facts = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for file, (sha256, size) in zip(files, pool.map(digest, files), strict=True):
            facts.append([file.name if len(files) > 1 else "", sha256])
            done += size
            monitor.report(Progress("hashing the text", done, total))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _candidates(source: str, raw: Path, skipped: _Skipped) -> list[tuple[Path, str]]:
    """Return the files of a source with their names; DataError if it does not exist."""
    if is_url(source):
        path = _raw_path(source, raw)
        return [(path, path.name)]
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        modules = ((path, path.relative_to(root).as_posix()) for path in root.rglob("*.py"))
        return [
            (p, name) for p, name in modules if p.is_file() and not NOT_THE_LIBRARY.search(name)
        ]
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source):
        advice = "data.source is a file, folder, glob or http(s) URL"
        problem = f"{scheme[1]}:// addresses are not supported"
        raise InvalidSource(f"{printable(source)}: {problem}; {advice}")
    try:
        root = Path(source).expanduser()
        if root.is_dir():
            return list(_walk(root, skipped))
        if root.exists():
            return [(root, root.name)]
        if root.is_symlink():
            raise DataError(f"{printable(source)}: a broken link to {printable(os.readlink(root))}")
        return list(_matches(root, skipped))
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~ of no user
        reason = getattr(error, "strerror", None) or error
        raise InvalidSource(f"{printable(source)}: not a readable path: {reason}") from None


def _walk(root: Path, skipped: _Skipped) -> Iterator[tuple[Path, str]]:
    """Yield the files below ``root``, each folder once.

    Links come after real folders: they never change the name of a file, which decides its split.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [(root, "")], list[tuple[Path, str]]()
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped.add("links to a folder that is read already", prefix.rstrip("/"))
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            skipped.add("folders that cannot be read", prefix.rstrip("/") or str(root))
            continue
        products = _products(folder)
        for entry in entries:
            path, name = Path(entry.path), prefix + entry.name
            if entry.name.startswith("."):
                skipped.add("hidden", name)
            elif entry.name in products:
                skipped.add("of a prepared dataset", name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append((path, name + "/"))
            elif path.is_dir():
                links.append((path, name + "/"))
            elif not path.exists():
                skipped.add("broken links", name)
            else:
                yield path, name
        links.sort(key=lambda link: link[1])


def _products(folder: Path) -> set[str]:
    """Return the names of the files in ``folder`` that belong to a prepared dataset."""
    shards = {path.name for path in folder_shards(folder)}
    return {*shards, "meta.json"} if shards else set()


def _matches(pattern: Path, skipped: _Skipped) -> Iterator[tuple[Path, str]]:
    """Yield a glob's matches; a file that ``**`` reaches through several links comes once."""
    root = pattern
    while has_magic(str(root)):
        root = root.parent
    seen: set[Path] = set()
    for match in sorted(glob(str(pattern), recursive=True), key=lambda match: (len(match), match)):
        path = Path(match)
        name = path.relative_to(root).as_posix()
        # A path through a cycle of links may have more of them than the system follows.
        place = Path(os.path.realpath(path.parent), path.name)
        if place in seen:
            continue
        seen.add(place)
        if place.is_dir():
            if "**" not in str(pattern):
                skipped.add("folders (end the glob with /** to read them)", name)
        elif not place.exists():
            skipped.add("broken links", name)
        elif path.name in _products(place.parent):
            skipped.add("of a prepared dataset", name)
        else:
            yield path, name


def _with_rows_decided(files: list[SourceFile], monitor: Monitor) -> list[SourceFile]:
    """Read JSON among other texts as text, unless its rows have the text column."""
    if all(file.kind == "json array" for file in files):
        tools = {"": "cat", "gzip": "zcat", "bzip2": "bzcat", "xz": "xzcat", "zstd": "zstdcat"}
        shown = printable(files[0].path)
        raise DataError(
            f"{shown}: an array of JSON objects, not text; make a row of each: "
            f"`{tools[files[0].compression]} {shlex.quote(shown)} | jq -c '.[]' > NEW-FILE.jsonl`, "
            "and name that"
        )
    others = any(file.kind in ("text", "parquet") or file.is_named_jsonl for file in files)

    def is_text(file: SourceFile) -> bool:
        has_rows = file.has_column or file.is_named_jsonl or not others
        return file.kind == "json array" or (file.kind == "jsonl" and not has_rows)

    if as_text := [printable(file.name) for file in files if is_text(file)]:
        monitor.report(
            f"JSON without the text column is read as plain text: {_shorten_list(as_text)}"
        )
    return [replace(file, kind="text") if is_text(file) else file for file in files]


def _is_utf8(path: Path) -> bool:
    with suppress(UnicodeDecodeError, OSError):
        return bool(path.read_bytes().decode())
    return False


def _raw_path(url: str, raw: Path) -> Path:
    """Return the file for a URL: a hash of the URL, and its name; many end in input.txt."""
    if problem := url_problem(url):
        raise InvalidSource(f"can't download {printable(url)}: {problem}")
    name = unquote(urlsplit(url).path).rpartition("/")[2].replace("\0", "")[-100:] or "download"
    key = hashlib.blake2b(url.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return raw / f"{key}-{name}"


def _download(url: str, path: Path, monitor: Monitor) -> None:
    if path.exists():
        return
    monitor.report(f"downloading {printable(url)}")
    try:
        download(url, path, monitor)
    except InvalidSource:
        raise
    except DataError as error:
        copy = "`prepare --source FILE`"
        if launch_metadata().get("target") == "cloud":
            copy = "`runner push data FILE`, then source=/vol/data/FILE"
        raise DataError(f"{error}. If you have a copy of the file: {copy}") from None
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) and not path.suffix.startswith(".htm"):
        monitor.report(f"warning: {printable(url)} gave a page of HTML, which is read as text")

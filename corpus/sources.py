"""The files of a text source: a file, folder, glob, URL or Python's standard library.

Links to folders are followed, each folder once. Whatever is left out is reported and counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote, urlsplit

from corpus import DataError, InvalidSource, Progress, Report, Stop, never, printable, quiet
from corpus.download import download
from corpus.formats import SourceFile, Unreadable, inspect
from corpus.segments import array_advice
from corpus.shards import SPLITS, matching_shards
from job.exit_status import Interrupted
from job.run_record import launch_facts

STDLIB = "stdlib"
STOP_BYTES = 1 << 24  # smaller files are hashed at once, without asking if the work should stop
SHOWN = 5  # names of each kind in the message about skipped files

# Without tests and tools; what isn't code (pydoc_data: documentation; encodings: tables, a seventh
# of all); and what differs from one machine to the next.
NOT_THE_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idlelib|lib2to3|turtledemo|ensurepip|pydoc_data"
    r"|encodings|__pycache__|config-[^/]*|_sysconfigdata[^/]*"
    r"|sitecustomize\.py|usercustomize\.py)(/|$)"
)


@dataclass
class _Skipped:
    """The files that are left out, by reason."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(printable(name))

    def message(self) -> str:
        """Return one line that counts and names them."""
        parts = []
        for reason, names in sorted(self.names.items()):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {reason} ({', '.join(sorted(names)[:SHOWN])}{more})")
        count = sum(map(len, self.names.values()))
        return (
            f"skipped {count} of the source's files and folders: {'; '.join(parts)}"
            if count
            else ""
        )


def is_url(source: str) -> bool:
    """Return if the source is downloaded."""
    return source.lower().startswith(("http://", "https://"))


def find_files(
    source: str,
    raw: Path,
    *,
    column: str = "text",
    report: Report = quiet,
    should_stop: Stop = never,
) -> list[SourceFile]:
    """Return the files of ``source``, sorted by name; a URL is downloaded once into ``raw``.

    Raises DataError if there is no text.
    """
    skipped = _Skipped()
    if is_url(source):
        path = _downloaded(source, raw, report, should_stop)
        candidates = [(path, path.name)]
    else:
        candidates = _candidates(source, skipped)
    is_single = len(candidates) == 1 and not skipped.names and source != STDLIB
    files = []
    for path, name in candidates:
        if source == STDLIB and not _is_utf8(path):
            continue
        try:
            file = inspect(path, name, column)
        except Unreadable as error:
            if is_single:
                raise
            skipped.add(error.what, name)
            continue
        except OSError as error:
            if is_single:
                raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from None
            skipped.add("cannot be read", name)
            continue
        if file.is_binary and not is_single:
            skipped.add("not text", name)
        elif file.size == 0 or file.kind == "empty":
            skipped.add("empty", name)
        else:
            files.append(file)
    if source != STDLIB and (message := skipped.message()):
        report(message)
    if not files:
        if skipped.names and set(skipped.names) <= {"empty", "hidden"}:
            raise DataError(f"{printable(source)}: is empty: there is no text to learn from")
        raise DataError(
            f"{printable(source)}: no text file found; "
            "data.source (--source) is a file, folder, glob or URL"
        )
    if packed := sorted({file.compression for file in files if file.compression}):
        count = sum(1 for file in files if file.compression)
        report(f"decompressing {count} of {len(files)} files ({', '.join(packed)})")
    if is_single and files[0].is_binary:
        report(
            f"{printable(files[0].path)}: not text (it has zero bytes); "
            "its bytes are read as they are"
        )
    return sorted(_with_rows_decided(files, report), key=lambda file: file.name)


def snapshot(source: str, raw: Path) -> str | None:
    """Return a hash of the names, sizes and modification times of a source's files.

    It reads no file, and an unchanged snapshot means an unchanged text. None if the source is not
    on this machine.
    """
    try:
        candidates = (
            [(_raw_path(source, raw), "")] if is_url(source) else _candidates(source, _Skipped())
        )
        found = sorted((name, os.stat(path)) for path, name in candidates)
    except (DataError, OSError):
        return None
    facts = [[name, status.st_size, status.st_mtime_ns] for name, status in found]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest() if facts else None


def content_sha256(
    files: Sequence[SourceFile], report: Report = quiet, should_stop: Stop = never
) -> str:
    """Hash the names and the content of the files; of a single file, only the content."""
    total = sum(file.path.stat().st_size for file in files)
    done = 0

    def digest(file: SourceFile) -> tuple[str, int]:
        if file.size > STOP_BYTES and should_stop():
            raise Interrupted
        with file.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()

    facts = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for file, (sha256, size) in zip(files, pool.map(digest, files), strict=True):
            facts.append([file.name if len(files) > 1 else "", sha256])
            done += size
            report(Progress("hashing the text", done, total))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _candidates(source: str, skipped: _Skipped) -> list[tuple[Path, str]]:
    """Return the files of a local source with their names; DataError if it does not exist."""
    try:
        if source == STDLIB:
            root = Path(sysconfig.get_path("stdlib"))
            found = ((path, path.relative_to(root).as_posix()) for path in root.rglob("*.py"))
            return [
                (p, name) for p, name in found if p.is_file() and not NOT_THE_LIBRARY.search(name)
            ]
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source):
            raise InvalidSource(
                f"{printable(source)}: {scheme[1]}:// addresses are not supported; "
                "data.source is a file, folder, glob or http(s) URL"
            )
        root = Path(source).expanduser()
        if root.is_dir():
            return list(_walk(root, skipped))
        if root.exists():
            return [(root, root.name)]
        if root.is_symlink():
            raise DataError(f"{printable(source)}: a broken link to {printable(os.readlink(root))}")
        return list(_matches(root, skipped))
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # too long, a zero byte, ~ of an unknown user
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InvalidSource(f"{printable(source)}: not a readable path: {reason}") from None


def _walk(root: Path, skipped: _Skipped) -> Iterator[tuple[Path, str]]:
    """Yield the files below ``root``: real folders first, then links to folders, each folder once.

    Real folders come first, so a link never changes the name of a file, which decides its split.
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
    shards = {path.name for split in SPLITS for path in matching_shards(folder, split)}
    return {*shards, "meta.json"} if shards else set()


def _matches(pattern: Path, skipped: _Skipped) -> Iterator[tuple[Path, str]]:
    """Yield what a glob matches; a file that ``**`` reaches through several links comes once."""
    root = pattern
    while has_magic(str(root)):
        root = root.parent
    seen: set[str] = set()
    for match in sorted(glob(str(pattern), recursive=True), key=lambda match: (len(match), match)):
        path = Path(match)
        name = path.relative_to(root).as_posix()
        place = os.path.join(os.path.realpath(path.parent), path.name)
        if path.is_dir():
            if "**" not in str(pattern):
                skipped.add("folders (end the glob with /** to read them)", name)
        elif not path.exists():
            skipped.add("broken links", name)
        elif path.name in _products(path.parent):
            skipped.add("of a prepared dataset", name)
        elif place not in seen:
            seen.add(place)
            yield path, name


def _with_rows_decided(files: list[SourceFile], report: Report) -> Iterable[SourceFile]:
    """Read JSON among other texts as text, unless its rows have the text column."""
    if all(file.kind == "json array" for file in files):
        raise DataError(array_advice(files[0]))
    others = any(file.kind in ("text", "parquet") or file.is_named_jsonl for file in files)
    as_text = []
    for file in files:
        if file.kind == "json array" or (
            file.kind == "jsonl" and not file.has_column and not file.is_named_jsonl and others
        ):
            as_text.append(printable(file.name))
            yield SourceFile(file.path, file.name, file.size, "text", file.compression)
        else:
            yield file
    if as_text:
        more = f" and {len(as_text) - SHOWN} more" if len(as_text) > SHOWN else ""
        report(
            "JSON without the text column is read as plain text: "
            f"{', '.join(as_text[:SHOWN])}{more}"
        )


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return False
    return True


def _raw_path(url: str, raw: Path) -> Path:
    """Return the file for a URL: a hash of the URL, and its name; many end in input.txt."""
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError("it has no host")
    except ValueError as error:
        raise InvalidSource(f"{printable(url)}: not a valid URL: {error}") from None
    name = unquote(parts.path).rpartition("/")[2].replace("\0", "")[-100:] or "download"
    key = hashlib.blake2b(url.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return raw / f"{key}-{name}"


def _downloaded(url: str, raw: Path, report: Report, should_stop: Stop) -> Path:
    path = _raw_path(url, raw)
    if not path.exists():
        report(f"downloading {printable(url)}")
        try:
            download(
                url,
                path,
                report=lambda done, total: report(Progress("downloading", done, total)),
                should_stop=should_stop,
            )
        except InvalidSource:
            raise
        except DataError as error:
            in_cloud = launch_facts().get("target") == "cloud"
            copy = (
                "`runner push data FILE`, then source=/vol/data/FILE"
                if in_cloud
                else "`prepare --source FILE`"
            )
            raise DataError(f"{error}. If you have a copy of the file: {copy}") from None
        with path.open("rb") as file:
            start = file.read(200).lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")) and not path.suffix.startswith(".htm"):
            report(f"warning: {printable(url)} gave a page of HTML, which is read as text")
    return path

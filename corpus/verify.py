"""Check that a prepared dataset is the one asked for, from the text as it is now, and undamaged.

Checks of a finished dataset take no lock and write nothing into its folder. They compare sizes and
modification times with those in the cache volume, and read only the files for which these differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from corpus import DataError, Progress, Report, Stop, never, printable, quiet
from corpus.dataset import META, Meta, dataset_meta, identity, other_dataset
from corpus.shards import SPLITS, ShardContent, matching_shards, read_content, read_header
from corpus.sources import STDLIB, content_sha256, find_files, is_url, snapshot
from corpus.tokenizers import TOKENIZER, Tokenizer, from_meta, read_tokenizer, tokenizer_fingerprint
from job.exit_status import Interrupted
from job.files import write_atomically
from job.paths import VolumePaths
from job.pretrained import FINEWEB
from job.recipe import DataConfig

REBUILD = "`prepare --force` makes it again"


class ChecksumCache:
    """Checksums of one dataset's shards and text, valid while size and modification time stay."""

    def __init__(self, folder: Path) -> None:
        key = blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
        self._path = VolumePaths.current().cache / "datasets" / f"{key}.json"
        self._entries: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError, RecursionError):
            tree = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(tree, dict):
                self._entries = {
                    name: entry for name, entry in tree.items() if isinstance(entry, list)
                }

    def shard(self, path: Path) -> ShardContent | None:
        """Return what was read of a shard; None if the file may have changed since."""
        match self._entries.get(path.name):
            case [int(size), int(mtime), str(sha256), int(largest)] if [size, mtime] == _stat(path):
                return ShardContent(sha256, largest)
        return None

    def add_shard(self, path: Path, content: ShardContent) -> None:
        """Note what was read of a shard."""
        self._entries[path.name] = [*_stat(path), *content]

    def text(self, source: str, now: str) -> str | None:
        """Return the hash of the text at ``source`` whose snapshot is ``now``; None if unknown."""
        match self._entries.get(_text_key(source)):
            case [str(seen), str(sha256)] if seen == now:
                return sha256
        return None

    def add_text(self, source: str, now: str, sha256: str) -> None:
        """Note the hash of the text at ``source``."""
        self._entries[_text_key(source)] = [now, sha256]

    def save(self) -> None:
        """Write the cache, if its volume can be written."""
        with suppress(OSError):
            write_atomically(self._path, json.dumps(self._entries) + "\n")


def _text_key(source: str) -> str:
    """Return the key of a text; no shard has a slash in its name."""
    return "/" + (source if is_url(source) else str(Path(source).absolute()))


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def verify_shards(
    folder: Path,
    meta: Meta,
    *,
    thorough: bool = False,
    report: Report = quiet,
    should_stop: Stop = never,
) -> dict[str, str]:
    """Return the SHA-256 of the shards by name.

    ``thorough`` reads every shard, changed or not. Raises DataError if one is missing, replaced,
    damaged or foreign.
    """
    present = {path.name for split in SPLITS for path in matching_shards(folder, split)}
    if foreign := sorted(present - meta.names):
        raise DataError(
            f"{folder / foreign[0]}: not among the shards that {META} lists; move it away, or "
            f"{REBUILD}"
        )
    cache, contents = ChecksumCache(folder), dict[str, ShardContent]()
    shards = [shard for split in SPLITS for shard in meta.shards[split]]
    for shard in shards:
        try:
            if read_header(folder / shard.name) != shard.tokens:
                raise DataError(f"{folder / shard.name}: not the shard that {META} lists")
        except DataError as error:
            raise DataError(f"{error}; {REBUILD}") from None
        if not thorough and (known := cache.shard(folder / shard.name)):
            contents[shard.name] = known
    unread = [shard for shard in shards if shard.name not in contents]

    def read(name: str) -> ShardContent:
        if should_stop():
            raise Interrupted
        return read_content(folder / name)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, content in enumerate(pool.map(read, [shard.name for shard in unread]), 1):
            shard = unread[number - 1]
            contents[shard.name] = content
            cache.add_shard(folder / shard.name, content)
            report(Progress("checking shards", number, len(unread)))
    for shard in shards:
        sha256, largest = contents[shard.name]
        if shard.sha256 and sha256 != shard.sha256:
            raise DataError(
                f"{folder / shard.name}: damaged or replaced: its SHA-256 is not the one in "
                f"{META}; {REBUILD}"
            )
        if largest >= meta.vocab_size:
            raise DataError(
                f"{folder / shard.name}: has token {largest}, and tokenizer "
                f"{meta.tokenizer.get('name')} has {meta.vocab_size}; the shard is damaged "
                "or of another tokenizer"
            )
    if unread:
        cache.save()
    return {name: content.sha256 for name, content in contents.items()}


def dataset_identity(folder: Path, meta: Meta) -> dict[str, Any]:
    """Return what a run records of the dataset in ``folder``."""
    if all(shard.sha256 for shards in meta.shards.values() for shard in shards):
        return identity(meta, {s.name: s.sha256 for shards in meta.shards.values() for s in shards})
    return identity(meta, verify_shards(folder, meta))


def require_dataset_of_run(run: str, recorded: Mapping[str, Any], folder: Path) -> Meta:
    """Return the meta of the dataset in ``folder``; DataError if it is damaged or not the run's."""
    meta = dataset_meta(folder)
    if why := other_dataset(run, recorded, identity(meta, verify_shards(folder, meta))):
        raise DataError(why)
    return meta


def tokenizer_of_run(run: Path, recorded: Mapping[str, Any], dataset: Path) -> Tokenizer:
    """Return the tokenizer in a run's folder, else that of its dataset.

    Raises DataError if it is damaged or not the one that the run recorded.
    """
    described = read_tokenizer(run)
    if described is None:
        described = require_dataset_of_run(run.name, recorded, dataset).tokenizer
    if recorded.get("tokenizer") not in (None, tokenizer_fingerprint(described)):
        raise DataError(
            f"{run / TOKENIZER}: not the tokenizer of run {run.name}; if the run's dataset is "
            "here, remove this file and run the command again"
        )
    return from_meta(described)


def is_prepared(
    config: DataConfig,
    folder: Path,
    *,
    any_source: bool = False,
    thorough: bool = False,
    accept_changed_text: bool = False,
    report: Report = quiet,
    should_stop: Stop = never,
) -> bool:
    """Return if ``folder`` holds what ``config`` asks for.

    With ``any_source``, a dataset made from another text is accepted, with a message, if the
    recipe's own text is not on this machine. ``accept_changed_text`` only reports that the text has
    changed: a run that resumes keeps its dataset. DataError if another dataset is there,
    with the difference, or if it is damaged.
    """
    if not (folder / META).exists() and not all(matching_shards(folder, split) for split in SPLITS):
        return False
    meta = dataset_meta(folder)
    verify_shards(folder, meta, thorough=thorough, report=report, should_stop=should_stop)
    changed = differences(meta.config or {**config.model_dump(), "tokenizer": "gpt2"}, config)
    sources = changed.pop("source", None)
    if changed:
        raise DataError(_other_settings(folder, changed))
    if config.source == FINEWEB and sources is None:
        return len(meta.shards["train"]) >= config.shards
    now = None
    if config.source and config.source not in (FINEWEB, STDLIB) and (sources or meta.source_sha256):
        now = _text_sha256(config, folder, thorough, report, should_stop)
    if not meta.config and config.source not in (None, FINEWEB):
        report(
            f"warning: {folder} has shards of another program, used instead of "
            f"{printable(config.source)}"
        )
    if sources and (now is None or now != meta.source_sha256):
        if now is not None or config.source == STDLIB or not any_source:
            raise DataError(_other_settings(folder, {"source": sources}))
        if config.source:
            report(
                f"warning: {folder} was prepared from {printable(meta.source)}, instead of "
                f"{printable(config.source)}, which the recipe names and which is not here"
            )
    elif now is not None and meta.source_sha256 and now != meta.source_sha256:
        said = f"{printable(config.source)} has changed since {folder} was prepared from it"
        if not accept_changed_text:
            raise DataError(
                f"{said}. Prepare it again with `prepare --force`, or keep both with "
                "data.dataset=NEW_NAME"
            )
        report(f"warning: {said}; the run keeps the text that it began with")
    return True


def _text_sha256(
    config: DataConfig, folder: Path, thorough: bool, report: Report, should_stop: Stop
) -> str | None:
    """Return the hash of the recipe's text as it is now; None if it is not on this machine."""
    source, raw = config.source or "", folder / "raw"
    if (now := snapshot(source, raw)) is None:
        return None
    cache = ChecksumCache(folder)
    if not thorough and (known := cache.text(source, now)):
        return known
    files = find_files(source, raw, column=config.text_column, should_stop=should_stop)
    sha256 = content_sha256(files, report, should_stop)
    cache.add_text(source, now, sha256)
    cache.save()
    return sha256


def differences(old: Mapping[str, Any], config: DataConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that make ``config`` another dataset than ``old``: key → (old, new)."""
    keys = ["source", "tokenizer"]
    if config.source != FINEWEB:
        keys += ["text_column", "split", "val_fraction", "shard_tokens"]
    new = config.model_dump()
    return {key: (old.get(key), new[key]) for key in keys if old.get(key) != new[key]}


def _other_settings(folder: Path, changed: Mapping[str, tuple[Any, Any]]) -> str:
    listed = ", ".join(f"{key} was {before}, now {now}" for key, (before, now) in changed.items())
    use = f", use it with data.source={changed['source'][0]}" if list(changed) == ["source"] else ""
    return (
        f"{folder} was prepared with other settings: {printable(listed)}. Keep both with "
        f"data.dataset=NEW_NAME{printable(use)}, or replace it with `prepare --force`"
    )

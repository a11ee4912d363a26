"""Check that a prepared dataset is the one asked for, from the text as it is now, and undamaged.

``open_training_data`` opens the dataset of a training run, after these checks.

Checks of a finished dataset take no lock and write nothing into its folder. They compare sizes and
modification times with those in the cache volume, and read only the files for which these differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from corpus import NO_MONITOR, DataError, Monitor, Progress, printable
from corpus.dataset import (
    META,
    Meta,
    TokenStream,
    dataset_meta,
    dataset_mismatch,
    is_present,
    prepare_command,
)
from corpus.shards import ShardContent, folder_shards, read_content, read_header
from corpus.sources import STDLIB, content_sha256, find_files, is_url, snapshot
from corpus.tokenizers import (
    TOKENIZER,
    Tokenizer,
    from_meta,
    read_tokenizer,
    same_tokens,
    tokenizer_fingerprint,
)
from job.files import write_atomically
from job.paths import VolumePaths
from job.pretrained import FINEWEB
from job.recipe import DataConfig, Recipe
from job.run_record import recorded_dataset
from job.step_folders import steps


@dataclass(frozen=True)
class Checks:
    """Options for comparing a finished dataset with the recipe."""

    any_source: bool = False  # accept a different text's, if the recipe's is not on this machine
    changed_text: bool = False  # only warn that the text has changed: a resumed run keeps its own
    thorough: bool = False  # read the shards and the text, even if sizes and times are the old ones


def _rebuild_advice() -> str:
    return f"prepare it again: {prepare_command('--force')}"


class ChecksumCache:
    """Checksums of one dataset's shards and text, valid while size and modification time stay."""

    _file = TypeAdapter(dict[str, tuple[str, ShardContent]])

    def __init__(self, folder: Path) -> None:
        key = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()
        self._path = VolumePaths.current().cache / "datasets" / f"{key}.json"
        self._entries: dict[str, tuple[str, ShardContent]] = {}
        with suppress(OSError, ValueError):
            self._entries = self._file.validate_json(self._path.read_bytes())

    def get(self, file: Path | str, now: str = "") -> ShardContent | None:
        """Return what was read of a shard, or of a text with the snapshot ``now``, if unchanged."""
        key, version = _key(file, now)
        seen, content = self._entries.get(key, ("", None))
        return content if seen == version else None

    def add(self, file: Path | str, content: ShardContent, now: str = "") -> None:
        """Record the part that was read of a shard, or of the text at the source ``file``."""
        key, version = _key(file, now)
        self._entries[key] = version, content

    def save(self) -> None:
        """Write the cache, if its volume can be written."""
        with suppress(OSError):
            write_atomically(self._path, json.dumps(self._entries) + "\n")


def _key(file: Path | str, now: str) -> tuple[str, str]:
    if isinstance(file, Path):
        status = file.stat()
        return file.name, f"{status.st_size} {status.st_mtime_ns}"
    # No shard has a slash in its name.
    return "/" + (file if is_url(file) else str(Path(file).absolute())), now


def verify_shards(
    folder: Path, meta: Meta, thorough: bool = False, monitor: Monitor = NO_MONITOR
) -> dict[str, str]:
    """Return the SHA-256 of the shards by name; DataError if one is missing, damaged or foreign."""
    if foreign := sorted({path.name for path in folder_shards(folder)} - meta.names):
        remedy = f"move it away, or {_rebuild_advice()}"
        raise DataError(f"{folder / foreign[0]}: not among the shards that {META} lists; {remedy}")
    cache, contents = ChecksumCache(folder), dict[str, ShardContent]()
    for shard in meta.all_shards:
        path = folder / shard.name
        try:
            if read_header(path) != shard.tokens:
                raise DataError(f"{path}: not the shard that {META} lists")
        except DataError as error:
            raise DataError(f"{error}; {_rebuild_advice()}") from None
        if not thorough and (known := cache.get(path)):
            contents[shard.name] = known
    unread = [shard.name for shard in meta.all_shards if shard.name not in contents]

    def read(name: str) -> ShardContent:
        monitor.check()
        return read_content(folder / name)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, content in enumerate(pool.map(read, unread)):
            contents[unread[number]] = content
            cache.add(folder / unread[number], content)
            monitor.report(Progress("checking shards", number + 1, len(unread)))
    for shard in meta.all_shards:
        path, content = folder / shard.name, contents[shard.name]
        if shard.sha256 and content.sha256 != shard.sha256:
            problem = f"damaged or replaced: its SHA-256 is not the one in {META}"
            raise DataError(f"{path}: {problem}; {_rebuild_advice()}")
        if content.max_token >= meta.vocab_size:
            raise DataError(
                f"{path}: has token {content.max_token}, and tokenizer "
                f"{meta.tokenizer.get('name')} has {meta.vocab_size}; the shard is damaged "
                "or of a different tokenizer"
            )
    if unread:
        cache.save()
    return {name: content.sha256 for name, content in contents.items()}


def dataset_identity(folder: Path, meta: Meta, verify: bool = False) -> dict[str, Any]:
    """Return what a run records of its dataset: source, token counts and a fingerprint.

    The fingerprint covers the tokenizer and every token of both splits. With ``verify`` the shards
    are compared with their checksums in meta.json; those that have none are always read.
    """
    checksums = {shard.name: shard.sha256 for shard in meta.all_shards}
    if verify or not all(checksums.values()):
        checksums = verify_shards(folder, meta)
    content = {
        split: [[shard.tokens, checksums[shard.name]] for shard in shards]
        for split, shards in meta.shards.items()
    }
    text = json.dumps([meta.tokenizer, content], sort_keys=True)
    return {
        "source": meta.source,
        "tokenizer": tokenizer_fingerprint(meta.tokenizer),
        "train_tokens": meta.train_tokens,
        "val_tokens": meta.val_tokens,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
    }


def require_dataset_of_run(run: str, recorded: Mapping[str, Any], folder: Path) -> Meta:
    """Return the meta of the dataset in ``folder``; DataError if it is damaged or not the run's."""
    meta = dataset_meta(folder)
    if problem := dataset_mismatch(run, recorded, dataset_identity(folder, meta, verify=True)):
        raise DataError(problem)
    return meta


def refuse_different_tokens(run: str, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise DataError if the dataset in ``folder`` is damaged or has other tokens than ``run``."""
    meta = dataset_meta(folder)
    verify_shards(folder, meta)
    if not same_tokens(meta.tokenizer, tokenizer.to_meta()):
        raise DataError(
            f"{folder} has a different tokenizer, or different characters, than run '{run}'; "
            "prepare its text with the run's tokenizer"
        )


def tokenizer_of_run(run: Path, recorded: Mapping[str, Any], dataset: Path) -> Tokenizer:
    """Return the tokenizer in a run's folder, else its dataset's; DataError if not the run's."""
    described = read_tokenizer(run)
    if described is None:
        described = require_dataset_of_run(run.name, recorded, dataset).tokenizer
    if recorded.get("tokenizer") not in (None, tokenizer_fingerprint(described)):
        raise DataError(
            f"{run / TOKENIZER}: not the tokenizer of run '{run.name}'; if this machine has "
            "the run's dataset, remove this file and run the command again"
        )
    return from_meta(described)


def is_prepared(
    config: DataConfig, folder: Path, checks: Checks | None = None, monitor: Monitor = NO_MONITOR
) -> bool:
    """Return True if ``folder`` has the dataset of ``config``; DataError if a different one."""
    if not is_present(folder):
        return False
    meta, checks = dataset_meta(folder), checks or Checks()
    verify_shards(folder, meta, checks.thorough, monitor)
    changed = differences(meta.config or {**config.model_dump(), "tokenizer": "gpt2"}, config)
    sources, source = changed.pop("source", None), printable(config.source)
    if changed:
        raise _other_settings(folder, changed)
    if config.source == FINEWEB and not sources:
        return len(meta.shards["train"]) >= config.shards
    has_text = config.source not in (None, FINEWEB, STDLIB)
    now = None
    if has_text and (sources or meta.source_sha256):
        now = _text_sha256(config, folder, checks.thorough, monitor)
    if not meta.config and config.source not in (None, FINEWEB):
        warning = f"{folder} has shards of a different program, used instead of {source}"
        monitor.report(f"warning: {warning}")
    is_same = now is not None and now == meta.source_sha256
    if sources and not is_same:
        if now is not None or config.source == STDLIB or not checks.any_source:
            raise _other_settings(folder, {"source": sources})
        if config.source:
            monitor.report(
                f"warning: {folder} was prepared from {printable(meta.source)}, instead of "
                f"{source}, which the recipe names and this machine lacks"
            )
    elif now and meta.source_sha256 and not is_same:
        warning = f"{source} has changed since {folder} was prepared from it"
        if not checks.changed_text:
            again = f"{_rebuild_advice()}, or keep both with data.dataset=NEW_NAME"
            raise DataError(f"{warning}; {again}")
        monitor.report(f"warning: {warning}; the run keeps the text that it started with")
    return True


def _text_sha256(config: DataConfig, folder: Path, fresh: bool, monitor: Monitor) -> str | None:
    """Return the hash of the recipe's text as it is now; None if it is not on this machine."""
    source, raw = config.source or "", folder / "raw"
    if (now := snapshot(source, raw)) is None:
        return None
    cache = ChecksumCache(folder)
    if not fresh and (known := cache.get(source, now)):
        return known.sha256
    silent = Monitor(should_stop=monitor.should_stop)
    sha256 = content_sha256(find_files(source, raw, config.text_column, silent), monitor)
    cache.add(source, ShardContent(sha256, -1), now)
    cache.save()
    return sha256


def differences(old: Mapping[str, Any], config: DataConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that make the datasets different: key → (old, new)."""
    keys = ["source", "tokenizer"]
    if config.source != FINEWEB:
        keys += ["text_column", "split", "val_fraction", "shard_tokens"]
    new = config.model_dump()
    return {key: (old.get(key), new[key]) for key in keys if old.get(key) != new[key]}


def _other_settings(folder: Path, changed: Mapping[str, tuple[Any, Any]]) -> DataError:
    listed = ", ".join(f"{key} was {before}, now {now}" for key, (before, now) in changed.items())
    use = f", use it with data.source={changed['source'][0]}" if list(changed) == ["source"] else ""
    return DataError(
        f"{folder} was prepared with other settings: {printable(listed)}. Keep both with "
        f"data.dataset=NEW_NAME{printable(use)}, or replace it: {prepare_command('--force')}"
    )


@dataclass(frozen=True)
class TrainingData:
    """A dataset that a run may train on; ``identity`` is for the run's record."""

    meta: Meta
    tokenizer: Tokenizer
    train: TokenStream
    val: TokenStream
    identity: dict[str, Any]


def open_training_data(recipe: Recipe, dataset: Path, run: Path) -> TrainingData:
    """Open the dataset for the ``run`` of ``recipe``.

    Raises DataError if the run learned a different dataset, RecipeError if a split is shorter than
    the context.
    """
    meta = dataset_meta(dataset)
    identity, recorded = dataset_identity(dataset, meta), recorded_dataset(run)
    if (recorded or steps(run)) and (problem := dataset_mismatch(run.name, recorded, identity)):
        raise DataError(problem)
    block = recipe.model.block_size
    streams = TokenStream(dataset, "train"), TokenStream(dataset, "val")
    for part, stream in zip(("training", "validation"), streams, strict=True):
        if len(stream) <= block:
            raise recipe.mistake(
                "model.block_size",
                f"block_size ({block}) is longer than the {part} set of {recipe.data.dataset} "
                f"({len(stream)} tokens)",
            )
    return TrainingData(meta, from_meta(meta.tokenizer), *streams, identity)

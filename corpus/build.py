"""Build a dataset: text to shards, as a stream, on all cores; resumable to the same bytes.

The main thread reads and writes in order; threads encode in between (tiktoken releases the GIL:
6.4 Mtokens/s in two threads, as fast as two processes, with nothing pickled). Everything is written
into the folder ``.preparing``; the old dataset stays whole until the new one is complete. A journal
records, every few seconds and when a shard is full, the cursor in the source and how much of each
open shard is valid. The next start truncates what was written later, so a kill at any moment is
harmless.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from corpus import (
    DataError,
    Progress,
    Report,
    Stop,
    hub,
    never,
    printable,
    quiet,
    segments,
    sources,
)
from corpus.dataset import JOURNAL, META, STAGING, Meta, dataset_meta
from corpus.download import wait_for_lock
from corpus.formats import SourceFile
from corpus.segments import Cursor
from corpus.shards import SPLITS, ShardContent, ShardWriter, Split, Tokens, matching_shards
from corpus.split import ByDocument, ByTail, Part, Splitter, count_characters
from corpus.tokenizers import Tokenizer, from_meta
from corpus.verify import ChecksumCache, differences, is_prepared
from job.exit_status import Interrupted
from job.files import fsync_folder, write_atomically
from job.pretrained import FINEWEB
from job.recipe import DataConfig

JOURNAL_INTERVAL_S = 5.0
BATCH_BYTES, BATCH_PARTS = 1 << 20, 4096  # limits of one call of a thread

R = TypeVar("R")


def prepare(
    config: DataConfig,
    folder: Path,
    *,
    workers: int | None = None,
    force: bool = False,
    any_source: bool = False,
    thorough: bool = False,
    accept_changed_text: bool = False,
    report: Report = quiet,
    should_stop: Stop = never,
) -> Meta:
    """Make the dataset ``config`` in ``folder``, unless it is there already.

    ``workers`` is the number of threads, by default one for each core; the result is the same for
    any number. ``force`` replaces what is there; ``any_source``, ``thorough`` and
    ``accept_changed_text`` are those of ``verify.is_prepared``. If another process is preparing the
    dataset, wait for it. Raises DataError with the fix; Interrupted if ``should_stop`` says so, and
    the same call resumes.
    """

    def finished() -> Meta | None:
        if force or not is_prepared(
            config,
            folder,
            any_source=any_source,
            thorough=thorough,
            accept_changed_text=accept_changed_text,
            report=report,
            should_stop=should_stop,
        ):
            return None
        meta = dataset_meta(folder)
        report(f"{folder} is already prepared, from {printable(meta.source)}")
        return meta

    if (folder / META).exists() and (meta := finished()):
        return meta
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DataError(
            f"{folder}: a file, not a folder; move it away, or use data.dataset=NEW_NAME"
        ) from None
    with wait_for_lock(folder, "another process is preparing it", report, should_stop):
        _finish_replacing(folder)
        if meta := finished():
            return meta
        if config.source == FINEWEB:
            return hub.download_shards(
                config, folder, force=force, report=report, should_stop=should_stop
            )
        if config.source is None:
            raise DataError(f"{folder}: data.source names no text; add --source FILE to `prepare`")
        if not force and not (folder / META).exists() and _shards(folder):
            raise DataError(f"{folder}: has shards but no {META}; `prepare --force` replaces them")
        files = sources.find_files(
            config.source,
            folder / "raw",
            column=config.text_column,
            report=report,
            should_stop=should_stop,
        )
        return _Preparation(config, folder, files, workers or _cores(), report, should_stop).run()


def _finish_replacing(folder: Path) -> None:
    """Move a complete dataset out of STAGING; harmless to interrupt and repeat."""
    staging = folder / STAGING
    if not (staging / META).exists():
        return
    new = dataset_meta(staging).names
    (folder / META).unlink(missing_ok=True)
    for stale in _shards(folder):
        if stale.name not in new or (staging / stale.name).exists():
            stale.unlink()
    for name in sorted(new):
        if (staging / name).exists():
            (staging / name).replace(folder / name)
    fsync_folder(folder)
    (staging / META).replace(folder / META)
    fsync_folder(folder)
    shutil.rmtree(staging)


def _shards(folder: Path) -> list[Path]:
    return [path for split in SPLITS for path in matching_shards(folder, split)]


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Batch(NamedTuple):
    parts: list[Part]
    after: Cursor
    passed: int


@dataclass
class _Journal:
    """The work done so far: everything before ``cursor``."""

    config: dict[str, Any]
    snapshot: str | None  # of the source's files, and the hash of their content
    source_sha256: str
    characters: str | None = None  # the distinct ones, for the tokenizer; None: not surveyed yet
    length: int = 0  # of the whole text in characters, for the split by tail
    cursor: Cursor = (0, 0)
    passed: int = 0  # the splitter's count of characters
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))  # of text
    writers: dict[Split, Any] = field(default_factory=dict)


_JOURNAL = TypeAdapter(_Journal)


@dataclass
class _Preparation:
    config: DataConfig
    folder: Path
    files: list[SourceFile]
    workers: int
    report: Report
    should_stop: Stop

    def run(self) -> Meta:
        """Build the dataset in STAGING, then put it in the place of the old one."""
        (self.folder / STAGING).mkdir(exist_ok=True)
        journal = None
        try:
            journal = self._resume()
            meta = self._build(journal)
        except DataError:
            if journal is None or journal.cursor == (0, 0) or journal.cursor[0] == len(self.files):
                shutil.rmtree(self.folder / STAGING)  # nothing that another try could use
            raise
        _finish_replacing(self.folder)
        self._fill_cache(meta, journal)
        return meta

    def _build(self, journal: _Journal) -> Meta:
        config, staging = self.config, self.folder / STAGING
        by_document = (
            ByDocument(self.files, config.val_fraction) if config.split == "documents" else None
        )
        if journal.characters is None and (config.tokenizer == "chars" or not by_document):
            self._survey(journal)
        splitter = by_document or ByTail(journal.length, config.val_fraction, journal.passed)
        tokenizer = from_meta({"name": config.tokenizer, "characters": journal.characters})
        states = [(split, journal.writers.get(split)) for split in SPLITS]
        writers = {
            s: ShardWriter(staging, config.dataset, s, config.shard_tokens, x) for s, x in states
        }
        try:
            for left in staging.glob(".*.tmp"):  # by a kill
                left.unlink()
            self._note(journal, writers)
            self._tokenize(journal, tokenizer, splitter, writers)
            return self._finish(journal, tokenizer, writers)
        finally:
            for writer in writers.values():
                writer.close()

    def _resume(self) -> _Journal:
        staging, now = self.folder / STAGING, self._snapshot()
        if (staging / JOURNAL).exists():
            try:
                journal = _JOURNAL.validate_json((staging / JOURNAL).read_bytes())
                for split, state in journal.writers.items():
                    ShardWriter(
                        staging, self.config.dataset, split, self.config.shard_tokens, state
                    ).close()
            except (ValidationError, DataError, KeyError, TypeError):
                journal = None
            if journal and journal.snapshot == now and not differences(journal.config, self.config):
                done = self._done(journal.cursor) / max(1, self._total)
                self.report(f"resuming from {done:.0%} of the text")
                return journal
            self.report(
                "the unfinished preparation is damaged or had other settings or text: starting over"
            )
        for left in staging.iterdir():
            left.unlink()
        sha256 = sources.content_sha256(self.files, self.report, self.should_stop)
        return _Journal(self.config.model_dump(), now, sha256)

    def _snapshot(self) -> str | None:
        return sources.snapshot(self.config.source or "", self.folder / "raw")

    def _fill_cache(self, meta: Meta, journal: _Journal) -> None:
        """Note the checksums, so that the first training reads neither shards nor text again."""
        cache = ChecksumCache(self.folder)
        for shard in (shard for shards in meta.shards.values() for shard in shards):
            cache.add_shard(
                self.folder / shard.name, ShardContent(shard.sha256, meta.vocab_size - 1)
            )
        if journal.snapshot:
            cache.add_text(meta.source, journal.snapshot, journal.source_sha256)
        cache.save()

    def _survey(self, journal: _Journal) -> None:
        """Read the text once for its distinct characters and its length."""
        distinct = self.config.tokenizer == "chars"

        def look(batch: _Batch) -> tuple[set[str], int]:
            texts = (self._checked(bytes.decode, part) for part in batch.parts if distinct)
            return set().union(*texts), sum(count_characters(part.text) for part in batch.parts)

        characters: set[str] = set()
        for batch, (found, length) in self._in_threads(look, (0, 0), ByTail(0, 0.5)):
            characters |= found
            journal.length += length
            self.report(Progress("reading", self._done(batch.after), self._total))
            if self.should_stop():
                raise Interrupted
        journal.characters = "".join(sorted(characters))

    def _tokenize(
        self,
        journal: _Journal,
        tokenizer: Tokenizer,
        splitter: Splitter,
        writers: dict[Split, ShardWriter],
    ) -> None:
        eot = np.array([] if tokenizer.eot is None else [tokenizer.eot], np.uint16)

        def encode(batch: _Batch) -> dict[Split, Tokens]:
            tokens: dict[Split, list[Tokens]] = {split: [eot[:0]] for split in SPLITS}
            for part in batch.parts:
                tokens[part.split] += [eot] * part.first + [self._checked(tokenizer.encode, part)]
            return {split: np.concatenate(tokens[split]) for split in SPLITS}

        noted, finished = time.monotonic(), 0
        for batch, tokens in self._in_threads(encode, journal.cursor, splitter):
            for split in SPLITS:
                writers[split].write(tokens[split])
            for part in batch.parts:
                journal.bytes[part.split] += len(part.text)
            journal.cursor, journal.passed = batch.after, batch.passed
            stop, full = self.should_stop(), sum(len(writer.shards) for writer in writers.values())
            if stop or full > finished or time.monotonic() - noted > JOURNAL_INTERVAL_S:
                self._note(journal, writers)
                noted, finished = time.monotonic(), full
            if stop:
                raise Interrupted
            written = sum(writer.total for writer in writers.values())
            self.report(Progress("tokenizing", self._done(batch.after), self._total, written))

    def _batches(self, start: Cursor, splitter: Splitter) -> Iterator[_Batch]:
        parts: list[Part] = []
        size, after = 0, start
        for segment in segments.read(self.files, self.config.text_column, start):
            parts += splitter(segment) if segment.text else ()
            size, after = size + len(segment.text), segment.after
            if size >= BATCH_BYTES or len(parts) >= BATCH_PARTS:
                yield _Batch(parts, after, splitter.passed)
                parts, size = [], 0
        yield _Batch(parts, after, splitter.passed)

    def _in_threads(
        self, function: Callable[[_Batch], R], start: Cursor, splitter: Splitter
    ) -> Iterator[tuple[_Batch, R]]:
        """Yield batches and results in order; two per worker are in memory."""
        pending: deque[tuple[_Batch, Future[R]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for batch in self._batches(start, splitter):
                pending.append((batch, pool.submit(function, batch)))
                if len(pending) > 2 * self.workers:
                    batch, future = pending.popleft()
                    yield batch, future.result()
            for batch, future in pending:
                yield batch, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _checked(self, function: Callable[[bytes], R], part: Part) -> R:
        """Apply ``function`` to the part's text; DataError with the place if it is not UTF-8."""
        try:
            return function(part.text)
        except UnicodeDecodeError as error:
            file = self.files[part.file]
            bytes_help = (
                "" if file.is_binary else ", or use data.tokenizer=bytes, which reads any bytes"
            )
            raise DataError(
                f"{printable(file.path)}: not UTF-8 text at byte {part.offset + error.start}; "
                f"convert it (`iconv -f LATIN1 -t UTF-8`){bytes_help}"
            ) from None

    def _note(self, journal: _Journal, writers: dict[Split, ShardWriter]) -> None:
        journal.writers = {split: writer.state() for split, writer in writers.items()}
        write_atomically(self.folder / STAGING / JOURNAL, json.dumps(asdict(journal)))

    def _done(self, cursor: Cursor) -> int:
        """Return the input before ``cursor``, in the units of Progress."""
        return min(self._total, self._before[cursor[0]] + cursor[1])

    @property
    def _total(self) -> int:
        return self._before[-1]

    @cached_property
    def _before(self) -> list[int]:
        """The total size before each file and after the last, needed with every batch."""
        return list(accumulate((file.size for file in self.files), initial=0))

    def _finish(
        self, journal: _Journal, tokenizer: Tokenizer, writers: dict[Split, ShardWriter]
    ) -> Meta:
        train, val = (writers[split].total for split in SPLITS)
        if not train or not val:
            remedy = "data.split=tail" if self.config.split == "documents" else "more text"
            raise DataError(
                f"{printable(self.config.source)}: too little text to split: it gives "
                f"{train} training and {val} validation tokens; use {remedy}, or another "
                "data.val_fraction"
            )
        if self._snapshot() != journal.snapshot:
            raise DataError(
                f"{printable(self.config.source)}: the text changed while it was prepared; "
                "run the command again"
            )
        for writer in writers.values():
            writer.finish_shard()
        meta = Meta(
            tokenizer=tokenizer.to_meta(),
            vocab_size=tokenizer.vocab_size,
            train_tokens=train,
            val_tokens=val,
            train_bytes=journal.bytes["train"],
            val_bytes=journal.bytes["val"],
            source=self.config.source or "",
            config=self.config.model_dump(),
            shards={split: writer.shards for split, writer in writers.items()},
            source_sha256=journal.source_sha256,
        )
        meta.write(self.folder / STAGING)
        return meta

"""Build a dataset by streaming text into shards on all cores.

An interrupted build resumes and produces the same bytes.

The main thread reads and writes in order; threads encode in between (tiktoken releases the GIL:
6.4 Mtokens/s in two threads, as fast as two processes, with nothing pickled). The old dataset stays
whole until the new one is complete in the folder ``.preparing``. A journal records, every few
seconds and when a shard is full, the cursor in the source and how much of each open shard is valid.
The next call truncates what was written later, so being killed at any moment is harmless.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from corpus import NO_MONITOR, DataError, Monitor, Progress, hub, printable, segments, sources
from corpus.dataset import JOURNAL, META, STAGING, Meta, dataset_meta, prepare_command
from corpus.download import wait_for_lock
from corpus.formats import SourceFile
from corpus.segments import ByDocument, ByTail, Cursor, Segment, Splitter, count_characters
from corpus.shards import SPLITS, ShardContent, ShardWriter, Split, Tokens, folder_shards
from corpus.tokenizers import Tokenizer, from_meta
from corpus.verify import Checks, ChecksumCache, differences, is_prepared
from job.exit_status import Interrupted
from job.files import fsync_folder, write_atomically
from job.machine import available_cpus
from job.pretrained import FINEWEB
from job.recipe import DataConfig

JOURNAL_INTERVAL_S = 5.0
BATCH_BYTES, BATCH_PARTS = 1 << 20, 4096  # limits of one call of a thread

R = TypeVar("R")
Writers = dict[Split, ShardWriter]


def prepare(
    config: DataConfig,
    folder: Path,
    checks: Checks | None = None,
    monitor: Monitor = NO_MONITOR,
    *,
    force: bool = False,
    workers: int | None = None,
) -> Meta:
    """Build the dataset that ``config`` describes in ``folder``.

    If it already exists, do nothing unless ``force``.

    The result is the same for any number of ``workers`` (threads). Waits for another process that
    is preparing it. Raises DataError with the fix; after Interrupted the same call resumes.
    """

    def finished() -> Meta | None:
        if force or not is_prepared(config, folder, checks, monitor):
            return None
        meta = dataset_meta(folder)
        monitor.report(f"{folder} is already prepared, from {printable(meta.source)}")
        return meta

    if (folder / META).exists() and (meta := finished()):
        return meta
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        remedy = "move it away, or use data.dataset=NEW_NAME"
        raise DataError(f"{folder}: a file, not a folder; {remedy}") from None
    with wait_for_lock(folder, "another process is preparing it", monitor):
        _finish_replacing(folder)
        if meta := finished():
            return meta
        if config.source == FINEWEB:
            return hub.download_shards(config, folder, force, monitor)
        if config.source is None:
            raise DataError(f"{folder}: data.source names no text; set data.source=FILE")
        if not force and not (folder / META).exists() and folder_shards(folder):
            replace = f"replace them: {prepare_command('--force')}"
            raise DataError(f"{folder}: has shards but no {META}; {replace}")
        files = sources.find_files(config.source, folder / "raw", config.text_column, monitor)
        return _Preparation(config, folder, files, workers or available_cpus(), monitor).run()


def _finish_replacing(folder: Path) -> None:
    """Move a complete dataset out of STAGING; harmless to interrupt and repeat."""
    staging = folder / STAGING
    if not (staging / META).exists():
        return
    new = dataset_meta(staging).names
    (folder / META).unlink(missing_ok=True)
    for stale in folder_shards(folder):
        if stale.name not in new or (staging / stale.name).exists():
            stale.unlink()
    for name in sorted(new):
        if (staging / name).exists():
            (staging / name).replace(folder / name)
    fsync_folder(folder)
    for rest in staging.iterdir():
        if rest.name != META:  # later starts skip this: the dataset is complete
            rest.unlink()
    (staging / META).replace(folder / META)
    fsync_folder(folder)
    staging.rmdir()


class _Batch(NamedTuple):
    parts: list[Segment]
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
    monitor: Monitor

    def __post_init__(self) -> None:
        self.staging = self.folder / STAGING
        # The total size before each file and after the last.
        self._before = list(accumulate((file.size for file in self.files), initial=0))

    def run(self) -> Meta:
        """Build the dataset in STAGING, then put it in the place of the old one."""
        self.staging.mkdir(exist_ok=True)
        journal = None
        try:
            journal = self._resume()
            meta = self._build(journal)
        except DataError:
            if journal is None or journal.cursor == (0, 0) or journal.cursor[0] == len(self.files):
                shutil.rmtree(self.staging)  # nothing that another try could use
            raise
        _finish_replacing(self.folder)
        # So that the first training reads neither shards nor text again.
        cache = ChecksumCache(self.folder)
        for shard in meta.all_shards:
            content = ShardContent(shard.sha256, meta.vocab_size - 1)
            cache.add(self.folder / shard.name, content)
        if journal.snapshot:
            cache.add(meta.source, ShardContent(journal.source_sha256, -1), journal.snapshot)
        cache.save()
        return meta

    def _build(self, journal: _Journal) -> Meta:
        config = self.config
        splitter: Splitter | None = None
        if config.split == "documents":
            splitter = ByDocument(self.files, config.val_fraction)
        if journal.characters is None and (config.tokenizer == "chars" or not splitter):
            self._survey(journal)
        splitter = splitter or ByTail(journal.length, config.val_fraction, journal.passed)
        tokenizer = from_meta({"name": config.tokenizer, "characters": journal.characters})
        writers = self._writers(journal)
        for leftover in self.staging.glob(".*.tmp"):  # left by a killed process
            leftover.unlink()
        try:
            self._note(journal, writers)
            self._tokenize(journal, tokenizer, splitter, writers)
            return self._finish(journal, tokenizer, writers)
        finally:
            for writer in writers.values():
                writer.close()

    def _writers(self, journal: _Journal) -> Writers:
        name, size, states = self.config.dataset, self.config.shard_tokens, journal.writers
        return {s: ShardWriter(self.staging, name, s, size, states.get(s)) for s in SPLITS}

    def _resume(self) -> _Journal:
        now = self._snapshot()
        if (self.staging / JOURNAL).exists():
            try:
                journal = _JOURNAL.validate_json((self.staging / JOURNAL).read_bytes())
                for writer in self._writers(journal).values():
                    writer.close()
            except (ValidationError, DataError, KeyError, TypeError):
                journal = None
            if journal and journal.snapshot == now and not differences(journal.config, self.config):
                done = self._done(journal.cursor) / max(1, self._before[-1])
                self.monitor.report(f"resuming from {done:.0%} of the text")
                return journal
            self.monitor.report(
                "the unfinished preparation is damaged, or its settings or text have changed; "
                "starting over"
            )
        for leftover in self.staging.iterdir():
            leftover.unlink()
        sha256 = sources.content_sha256(self.files, self.monitor)
        return _Journal(self.config.model_dump(), now, sha256)

    def _snapshot(self) -> str | None:
        return sources.snapshot(self.config.source or "", self.folder / "raw")

    def _survey(self, journal: _Journal) -> None:
        """Read the text once for its distinct characters and its length."""
        distinct = self.config.tokenizer == "chars"

        def scan(batch: _Batch) -> tuple[set[str], int]:
            texts = (self._checked(bytes.decode, part) for part in batch.parts if distinct)
            return set().union(*texts), sum(count_characters(part.text) for part in batch.parts)

        characters: set[str] = set()
        for batch, (batch_characters, length) in self._in_threads(scan, (0, 0), ByTail(0, 0.5)):
            characters |= batch_characters
            journal.length += length
            self._report("reading", batch.after)
            self.monitor.check()
        journal.characters = "".join(sorted(characters))

    def _tokenize(
        self, journal: _Journal, tokenizer: Tokenizer, splitter: Splitter, writers: Writers
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
            stop, full = self.monitor.should_stop(), sum(len(w.shards) for w in writers.values())
            if stop or full > finished or time.monotonic() - noted > JOURNAL_INTERVAL_S:
                self._note(journal, writers)
                noted, finished = time.monotonic(), full
            if stop:
                raise Interrupted
            self._report("tokenizing", batch.after, sum(w.total for w in writers.values()))

    def _report(self, phase: str, cursor: Cursor, tokens: int = 0) -> None:
        self.monitor.report(Progress(phase, self._done(cursor), self._before[-1], tokens))

    def _done(self, cursor: Cursor) -> int:
        """Return the input before ``cursor``, in the units of Progress."""
        return min(self._before[-1], self._before[cursor[0]] + cursor[1])

    def _batches(self, start: Cursor, splitter: Splitter) -> Iterator[_Batch]:
        parts: list[Segment] = []
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

    def _checked(self, function: Callable[[bytes], R], part: Segment) -> R:
        """Apply ``function`` to the part's text; DataError with the position if it is not UTF-8."""
        try:
            return function(part.text)
        except UnicodeDecodeError as error:
            file = self.files[part.file]
            remedy = "convert it (`iconv -f LATIN1 -t UTF-8`)"
            if not file.is_binary:
                remedy += ", or use data.tokenizer=bytes, which reads any bytes"
            place = f"at byte {part.offset + error.start}"
            raise DataError(f"{printable(file.path)}: not UTF-8 text {place}; {remedy}") from None

    def _note(self, journal: _Journal, writers: Writers) -> None:
        journal.writers = {split: writer.state() for split, writer in writers.items()}
        write_atomically(self.staging / JOURNAL, json.dumps(asdict(journal)))

    def _finish(self, journal: _Journal, tokenizer: Tokenizer, writers: Writers) -> Meta:
        train, val = (writers[split].total for split in SPLITS)
        source = self.config.source or ""
        if not train or not val:
            remedy = "data.split=tail" if self.config.split == "documents" else "more text"
            raise DataError(
                f"{printable(source)}: too little text to split: it gives {train} training and "
                f"{val} validation tokens; use {remedy}, or a different data.val_fraction"
            )
        if self._snapshot() != journal.snapshot:
            problem = "the text changed while it was prepared; run the command again"
            raise DataError(f"{printable(source)}: {problem}")
        for writer in writers.values():
            writer.finish_shard()
        meta = Meta(
            tokenizer=tokenizer.to_meta(),
            vocab_size=tokenizer.vocab_size,
            train_tokens=train,
            val_tokens=val,
            train_bytes=journal.bytes["train"],
            val_bytes=journal.bytes["val"],
            source=source,
            config=self.config.model_dump(),
            shards={split: writer.shards for split, writer in writers.items()},
            source_sha256=journal.source_sha256,
        )
        meta.write(self.staging)
        return meta

"""From text to shards: streams, on all cores, and goes on after any interruption with the same bytes.

The main thread reads and writes in order; threads encode in between (tiktoken lets go of the interpreter:
6.4 Mtokens/s in two threads, as fast as two processes, with nothing pickled). A journal notes every few
seconds, and when a shard is full, the cursor in the source and how much of each open shard is good. What was
written after it is cut off at the next start, so a kill at any moment is harmless.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from corpus import DataError, Progress, Report, Stop, fineweb, never, quiet, sources
from corpus.meta import JOURNAL, META, Meta, dataset_meta, differences, is_prepared
from corpus.shards import SPLITS, ShardWriter, Split, Tokens, shard_paths
from corpus.sources import Cursor, SourceFile
from corpus.split import ByDocument, ByTail, Part, Splitter, count_characters
from corpus.tokenizers import Tokenizer, from_meta
from job.exit_status import Interrupted
from job.files import alone_in, write_atomically
from job.pretrained import FINEWEB
from job.recipe import DataConfig

JOURNAL_SECONDS = 5.0
BATCH_BYTES, BATCH_PARTS = 1 << 20, 4096  # at most, for one call of a thread

R = TypeVar("R")


def prepare(
    config: DataConfig,
    folder: Path,
    *,
    workers: int | None = None,
    force: bool = False,
    any_source: bool = False,
    report: Report = quiet,
    should_stop: Stop = never,
) -> Meta:
    """Make the dataset ``config`` in ``folder``; leave it alone where it is already there.

    ``workers``: threads, by default one for each core; the result is the same for any number. ``force``
    replaces what was prepared with other settings; ``any_source`` accepts a dataset made from another source.
    DataError for what the user can mend; Interrupted where ``should_stop``: the same call goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder) as alone:
        if not alone:
            raise DataError(
                f"{folder}: another process is preparing it now; wait for it or stop it"
            )
        if not force and is_prepared(config, folder, any_source=any_source):
            meta = dataset_meta(folder)
            (folder / JOURNAL).unlink(missing_ok=True)  # killed just before its end
            report(f"{folder} is already prepared, from {meta.source}")
            return meta
        if config.source == FINEWEB:
            for stale in [
                path for path in _shards(folder) if force and not path.name.startswith("fineweb_")
            ]:
                stale.unlink()
            return fineweb.download_shards(config, folder, report=report, should_stop=should_stop)
        if config.source is None:
            raise DataError(f"{folder}: data.source names no text; add --source FILE to `prepare`")
        if not force and not (folder / JOURNAL).exists() and _shards(folder):
            raise DataError(
                f"{folder}: holds shards that nothing describes; `prepare --force` replaces them"
            )
        files = sources.find_files(
            config.source, folder / "raw", report=report, should_stop=should_stop
        )
        return _Preparation(config, folder, files, workers or _cores(), report, should_stop).run()


def _shards(folder: Path) -> list[Path]:
    return [path for split in SPLITS for path in shard_paths(folder, split)]


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Batch(NamedTuple):
    parts: list[Part]
    after: Cursor
    passed: int


@dataclass
class _Journal:
    """What is done: all up to ``cursor``."""

    config: dict[str, Any]
    files: str  # the fingerprint of the source's files
    characters: str | None = None  # the distinct ones, for the tokenizer; None: not surveyed yet
    length: int = 0  # of the whole text in characters, for the split by tail
    cursor: Cursor = (0, 0)
    passed: int = 0  # the splitter's count of characters
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))  # of text
    writers: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Preparation:
    config: DataConfig
    folder: Path
    files: list[SourceFile]
    workers: int
    report: Report
    should_stop: Stop

    def run(self) -> Meta:
        journal, config = self._resume(), self.config
        by_document = (
            ByDocument(self.files, config.val_fraction) if config.split == "documents" else None
        )
        if journal.characters is None and (config.tokenizer == "chars" or not by_document):
            self._survey(journal)
        splitter = by_document or ByTail(journal.length, config.val_fraction, journal.passed)
        tokenizer = from_meta({"name": config.tokenizer, "characters": journal.characters})
        try:
            states = [(split, journal.writers.get(split)) for split in SPLITS]
            writers = {
                s: ShardWriter(self.folder, config.dataset, s, config.shard_tokens, x)
                for s, x in states
            }
        except DataError as error:
            (self.folder / JOURNAL).unlink()
            raise DataError(f"{error}; `prepare --force` starts over") from None
        try:
            for left in self.folder.glob(".*.tmp"):  # by a kill
                left.unlink()
            self._note(journal, writers)
            if journal.cursor == (0, 0):  # an older dataset is given up only now
                (self.folder / META).unlink(missing_ok=True)
                for stale in _shards(self.folder):
                    stale.unlink()
            self._tokenize(journal, tokenizer, splitter, writers)
            return self._finish(journal, tokenizer, writers)
        finally:
            for writer in writers.values():
                writer.close()

    def _resume(self) -> _Journal:
        facts = [[file.name, file.size, file.path.stat().st_mtime_ns] for file in self.files]
        fresh = _Journal(
            self.config.model_dump(), hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        )
        if not (self.folder / JOURNAL).exists():
            return fresh
        journal = _Journal(**json.loads((self.folder / JOURNAL).read_text()))
        journal.cursor = (journal.cursor[0], journal.cursor[1])  # JSON makes a list of it
        if journal.files != fresh.files or differences(journal.config, self.config):
            self.report(
                "the unfinished preparation had other settings or another text: starting over"
            )
            return fresh
        self.report(
            f"going on from {self._done(journal.cursor) / max(1, self._total):.0%} of the text"
        )
        return journal

    def _survey(self, journal: _Journal) -> None:
        """A first pass over the text: its distinct characters and its length."""
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
            if stop or full > finished or time.monotonic() - noted > JOURNAL_SECONDS:
                self._note(journal, writers)
                noted, finished = time.monotonic(), full
            if stop:
                raise Interrupted
            written = sum(writer.total for writer in writers.values())
            self.report(Progress("tokenizing", self._done(batch.after), self._total, written))

    def _batches(self, start: Cursor, splitter: Splitter) -> Iterator[_Batch]:
        parts: list[Part] = []
        size, after = 0, start
        for segment in sources.read(self.files, self.config.text_column, start):
            parts += splitter(segment) if segment.text else ()
            size, after = size + len(segment.text), segment.after
            if size >= BATCH_BYTES or len(parts) >= BATCH_PARTS:
                yield _Batch(parts, after, splitter.passed)
                parts, size = [], 0
        yield _Batch(parts, after, splitter.passed)

    def _in_threads(
        self, function: Callable[[_Batch], R], start: Cursor, splitter: Splitter
    ) -> Iterator[tuple[_Batch, R]]:
        """Each batch from ``start`` on with its result, in order; two for each worker are in memory."""
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
        """``function`` of the part's text; DataError with the place where that is no UTF-8."""
        try:
            return function(part.text)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.files[part.file].path}: is no UTF-8 text at byte {part.offset + error.start}; convert it "
                "(`iconv -f LATIN1 -t UTF-8`), or take data.tokenizer=bytes, which reads any bytes"
            ) from None

    def _note(self, journal: _Journal, writers: dict[Split, ShardWriter]) -> None:
        journal.writers = {split: writer.state() for split, writer in writers.items()}
        write_atomically(self.folder / JOURNAL, json.dumps(asdict(journal)))

    def _done(self, cursor: Cursor) -> int:
        """The input before ``cursor``, in the units of Progress."""
        return min(self._total, self._before[cursor[0]] + cursor[1])

    @property
    def _total(self) -> int:
        return self._before[-1]

    @cached_property
    def _before(self) -> list[int]:
        """The sizes of all files before each, and behind the last: it is asked for with every batch."""
        return list(accumulate((file.size for file in self.files), initial=0))

    def _finish(
        self, journal: _Journal, tokenizer: Tokenizer, writers: dict[Split, ShardWriter]
    ) -> Meta:
        train, val = (writers[split].total for split in SPLITS)
        if not train or not val:
            (self.folder / JOURNAL).unlink()
            else_ = "data.split=tail" if self.config.split == "documents" else "more text"
            raise DataError(
                f"{self.config.source}: too little text to split: it gives {train} training and {val} validation "
                f"tokens; take {else_}, or another data.val_fraction"
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
        )
        meta.write(self.folder)
        (self.folder / JOURNAL).unlink()
        return meta

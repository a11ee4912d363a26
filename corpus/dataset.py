"""A prepared dataset: ``meta.json``, its token streams, and the order in which they are read.

``meta.json`` is written last, so its presence means that the dataset is complete. It lists the
shards with their SHA-256; a stream reads those files and no others.
"""

from __future__ import annotations

import json
import math
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from corpus import DataError
from corpus.shards import SPLITS, Shard, Split, Tokens, matching_shards, open_tokens, read_header
from job.files import write_atomically
from job.format import runner_command
from job.run_record import launch_metadata

META = "meta.json"
STAGING = ".preparing"  # the folder of a new dataset, until it replaces the old dataset
JOURNAL = ".progress.json"  # in STAGING

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
FEISTEL_ROUNDS = 8


@dataclass(frozen=True)
class Meta:
    """The content of ``meta.json``. Byte counts are of UTF-8 text; None if the text is unknown."""

    tokenizer: dict[str, Any]  # for tokenizers.from_meta
    vocab_size: int
    train_tokens: int
    val_tokens: int
    train_bytes: int | None
    val_bytes: int | None
    source: str
    config: dict[str, Any]  # the DataConfig; empty for shards provided by the user
    shards: dict[Split, list[Shard]]
    source_sha256: str | None = None  # of the text's files; None for published shards

    def write(self, folder: Path) -> None:
        """Write ``meta.json`` into ``folder``."""
        write_atomically(folder / META, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def all_shards(self) -> list[Shard]:
        """Return the shards of both splits."""
        return [shard for split in SPLITS for shard in self.shards[split]]

    @property
    def names(self) -> set[str]:
        """Return the file names of all shards."""
        return {shard.name for shard in self.all_shards}


_META = TypeAdapter(Meta)


def prepare_command(options: str = "") -> str:
    """Return the command that prepares the dataset on this target, for a message."""
    target = runner_command(launch_metadata().get("target") or "host")
    return f"`{' '.join([target, 'prepare RECIPE', *options.split()])}`"


def is_present(folder: Path) -> bool:
    """Return True if ``folder`` has a complete dataset, or shards of a different program."""
    return (folder / META).exists() or all(matching_shards(folder, split) for split in SPLITS)


def dataset_meta(folder: Path) -> Meta:
    """Return the meta of a complete dataset; shards without one are assumed to be GPT-2 tokens."""
    path = folder / META
    try:
        meta = _META.validate_json(path.read_bytes())
        if set(meta.shards) == set(SPLITS):
            return meta
    except FileNotFoundError:
        is_replacing = (folder / STAGING / META).exists()  # interrupted between two datasets
        if is_present(folder) and not is_replacing:
            return shards_meta(folder, {})
        raise DataError(f"{folder}: no complete dataset; prepare it: {prepare_command()}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError:
        pass
    raise DataError(f"{path}: damaged; rebuild the dataset: {prepare_command('--force')}")


def shards_meta(folder: Path, config: dict[str, Any]) -> Meta:
    """Describe GPT-2 shards that a different program made."""
    shards = {
        s: [Shard(p.name, read_header(p), "") for p in matching_shards(folder, s)] for s in SPLITS
    }
    train, val = (sum(shard.tokens for shard in shards[split]) for split in SPLITS)
    source = config.get("source") or str(folder)
    return Meta({"name": "gpt2"}, 50257, train, val, None, None, source, config, shards)


def dataset_mismatch(run: str, recorded: object, now: Mapping[str, Any]) -> str:
    """Explain why ``run``, which recorded one dataset, can't use a different one; "" if it can."""
    if not isinstance(recorded, dict) or not recorded.get("fingerprint"):
        return (
            f"run '{run}': its run.json does not say which dataset it was trained on, so it cannot "
            f"be compared with {now['source']}; restore run.json, or start a new run: "
            "--name NEW-NAME"
        )
    if recorded["fingerprint"] == now["fingerprint"]:
        return ""
    before, present = (
        f"{side.get('train_tokens')} training and {side.get('val_tokens')} validation tokens of "
        f"{side.get('source')}"
        for side in (recorded, now)
    )
    return (
        f"run '{run}' was trained on a different dataset: {before}; the dataset now has {present}. "
        "Start a new run with --name NEW-NAME, or restore the dataset from the old text: "
        f"{prepare_command('--force')}"
    )


class TokenStream:
    """All shards of one split as one sequence of tokens.

    Shards are mapped when they are first used, and few at a time: a memmap holds a file descriptor,
    and FineWeb's 100B sample has more shards (1,030) than most systems allow open files (1,024).
    Raises DataError if the split has at most ``more_than`` tokens, or a shard is damaged.
    """

    def __init__(self, folder: Path, split: Split, more_than: int = 0) -> None:
        paths = matching_shards(folder, split)
        if (folder / META).exists():
            paths = [folder / shard.name for shard in dataset_meta(folder).shards[split]]
        sized = [(path, count) for path in paths if (count := read_header(path))]
        if not sized:
            advice = f"prepare the dataset: {prepare_command()}"
            raise DataError(f"{folder}: no tokens in *{split}*.bin; {advice}")
        self._paths = [path for path, _ in sized]
        self._bounds = np.cumsum([0, *(count for _, count in sized)])
        self._versions = [_version(path) for path in self._paths]
        if len(self) <= more_than:
            raise DataError(
                f"{folder}: its {split} set has {len(self)} tokens, but the context needs more "
                f"than {more_than}; use more text or a smaller model.block_size"
            )
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = 1024 if soft_limit == resource.RLIM_INFINITY else min(1024, soft_limit // 8)
        self._shard = lru_cache(maxsize=max(8, most))(self._open)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def slice(self, start: int, stop: int) -> Tokens:
        """Copy tokens start … stop-1, across shard bounds: (stop - start,) uint16."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        tokens = np.empty(stop - start, np.uint16)
        shard, done = int(np.searchsorted(self._bounds, start, side="right")) - 1, 0
        while done < len(tokens):
            offset = start + done - int(self._bounds[shard])
            # Copied at once: a view would keep the file of its shard open.
            part = self._shard(shard)[offset : offset + len(tokens) - done]
            tokens[done : done + len(part)] = part
            done, shard = done + len(part), shard + 1
        return tokens

    def windows(self, starts: Int64, length: int) -> Tokens:
        """Copy the windows that begin at ``starts``: (len(starts), length) uint16."""
        return np.stack([self.slice(start, start + length) for start in starts.tolist()])

    def _open(self, number: int) -> np.memmap[Any, np.dtype[np.uint16]]:
        path = self._paths[number]
        if _version(path) != self._versions[number]:
            raise DataError(f"{path}: replaced while it was in use; run the command again")
        return open_tokens(path)


def _version(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a shard: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


class BatchOrder:
    """The order of the training windows: a pure function of the seed and the step.

        order = BatchOrder(len(stream), block_size, sequences_per_step, seed)
        batch = stream.windows(order.windows(step), block_size + 1)

    Every window of ``block_size`` tokens, and the last target after it, is read once in an epoch.
    Each epoch has a seeded offset in [0, block_size), so its windows differ from those of other
    epochs; the tokens left out at both ends are fewer than two windows. The permutation is a
    Feistel network: it takes no memory (numpy's shuffle of the 10^8 windows of 10^11 tokens takes
    400 MB in each process), and it does not depend on numpy's random generators, whose streams may
    change between versions. Raises DataError if the data is shorter than one window.
    """

    def __init__(
        self, num_tokens: int, block_size: int, sequences_per_step: int, seed: int
    ) -> None:
        if num_tokens <= block_size:
            raise DataError(
                f"the data has {num_tokens} tokens, and model.block_size={block_size} needs at "
                f"least {block_size + 1}; use model.block_size={max(2, num_tokens - 1)} "
                "or more text"
            )
        self.block_size, self.sequences_per_step, self.seed = block_size, sequences_per_step, seed
        self.windows_per_epoch = max(1, num_tokens // block_size - 1)
        self._offsets = min(block_size, num_tokens - self.windows_per_epoch * block_size)
        self._rows = math.isqrt(self.windows_per_epoch - 1) + 1
        self._columns = -(-self.windows_per_epoch // self._rows)

    def windows(self, step: int) -> Int64:
        """Return the starts of the windows of ``step``, (sequences_per_step,) int64."""
        return self.span(step * self.sequences_per_step, self.sequences_per_step)

    def span(self, first: int, count: int) -> Int64:
        """Return the starts of ``count`` windows from number ``first`` of the run, int64."""
        epochs, positions = np.divmod(first + np.arange(count), self.windows_per_epoch)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            key = _mix(_mix(np.array([self.seed], np.uint64)) ^ np.uint64(epoch))
            offset = int(_mix(key + np.uint64(FEISTEL_ROUNDS))[0]) % self._offsets
            starts[mine] = offset + self.block_size * self._permuted(positions[mine], key)
        return starts

    def _permuted(self, positions: Int64, key: UInt64) -> Int64:
        """Permute [0, windows_per_epoch): permute rows × columns until the result is in range."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(positions.astype(np.uint64), columns)
        for number in range(0, FEISTEL_ROUNDS, 2):
            row = (row + _mix(column ^ _mix(key + np.uint64(number))) % rows) % rows
            column = (column + _mix(row ^ _mix(key + np.uint64(number + 1))) % columns) % columns
        out = (row * columns + column).astype(np.int64)
        if (outside := out >= self.windows_per_epoch).any():
            out[outside] = self._permuted(out[outside], key)
        return out


def validation_windows(
    num_tokens: int, block_size: int, limit: int | None, micro_batch: int, rank: int, size: int
) -> Iterator[Int64]:
    """Yield the starts of the windows of each validation batch of process ``rank`` of ``size``.

    The windows cover the set, or ``limit`` tokens, from its start without overlap. Every process
    yields equally many batches, so the last ones can be short or empty.
    """
    count = (num_tokens - 1) // block_size
    if limit is not None:
        count = max(1, min(count, limit // block_size))
    starts = np.arange(count, dtype=np.int64) * block_size
    for first in range(rank * micro_batch, count + rank * micro_batch, size * micro_batch):
        yield starts[first : first + micro_batch]


def micro_batches(windows: Int64, rank: int, size: int, micro_batch: int) -> list[Int64]:
    """Return the micro-batches of process ``rank`` of ``size``: its part of the step's windows."""
    share = len(windows) // size
    mine = windows[rank * share : (rank + 1) * share]
    return [mine[i : i + micro_batch] for i in range(0, share, micro_batch)]


def _mix(values: UInt64) -> UInt64:
    """SplitMix64 (Steele, Lea and Flood 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

"""A prepared dataset: ``meta.json``, the identity that a run records, and its token streams.

``meta.json`` is written last, so its presence means that the dataset is complete. It lists the
shards with their SHA-256; a stream reads those files and no others.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from corpus import DataError
from corpus.shards import SPLITS, Shard, Split, Tokens, matching_shards, open_tokens, read_header
from corpus.tokenizers import tokenizer_fingerprint
from job.files import write_atomically

META = "meta.json"
STAGING = (
    ".preparing"  # the folder in which a dataset is made; it takes the old one's place at the end
)
JOURNAL = ".progress.json"  # in STAGING


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
    config: dict[str, Any]  # the DataConfig; empty for shards that the user put there
    shards: dict[Split, list[Shard]]
    source_sha256: str | None = None  # of the text's files; None for published shards

    def write(self, folder: Path) -> None:
        """Write ``meta.json`` into ``folder``."""
        write_atomically(folder / META, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def names(self) -> set[str]:
        """The file names of all shards."""
        return {shard.name for shards in self.shards.values() for shard in shards}


_META = TypeAdapter(Meta)


def dataset_meta(folder: Path) -> Meta:
    """Return the meta of the dataset in ``folder``; shards without one are taken for GPT-2 tokens.

    Raises DataError if ``folder`` holds no complete dataset.
    """
    try:
        text = (folder / META).read_bytes()
    except FileNotFoundError:
        is_replacing = (folder / STAGING / META).exists()  # interrupted between two datasets
        if is_replacing or not all(matching_shards(folder, split) for split in SPLITS):
            raise DataError(
                f"{folder}: no complete dataset; prepare it: `runner host prepare RECIPE`"
            ) from None
        return shards_meta(folder, {})
    except OSError as error:
        raise DataError(f"{folder / META}: cannot be read: {error.strerror}") from None
    try:
        meta = _META.validate_json(text)
        if set(meta.shards) != set(SPLITS):
            raise ValueError
    except (ValidationError, ValueError):
        raise DataError(
            f"{folder / META}: damaged; rebuild the dataset: `prepare --force`"
        ) from None
    return meta


def shards_meta(folder: Path, config: dict[str, Any]) -> Meta:
    """Describe GPT-2 shards that another program made."""
    shards = {
        s: [Shard(p.name, read_header(p), "") for p in matching_shards(folder, s)] for s in SPLITS
    }
    train, val = (sum(shard.tokens for shard in shards[split]) for split in SPLITS)
    source = config.get("source") or str(folder)
    return Meta({"name": "gpt2"}, 50257, train, val, None, None, source, config, shards)


def identity(meta: Meta, checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return what a run records of its dataset: source, token counts and a fingerprint.

    The fingerprint covers the tokenizer and every token of both splits. ``checksums`` are the
    SHA-256 of the shards, by name (``verify.verify_shards``).
    """
    content = {
        split: [[s.tokens, checksums[s.name]] for s in meta.shards[split]] for split in SPLITS
    }
    text = json.dumps([meta.tokenizer, content], sort_keys=True)
    return {
        "source": meta.source,
        "tokenizer": tokenizer_fingerprint(meta.tokenizer),
        "train_tokens": meta.train_tokens,
        "val_tokens": meta.val_tokens,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
    }


def other_dataset(run: str, recorded: object, now: Mapping[str, Any]) -> str:
    """Explain why ``run``, which recorded one dataset, cannot use another; "" if it can."""
    if not isinstance(recorded, dict) or not recorded.get("fingerprint"):
        return (
            f"run {run}: its run.json does not say which dataset it learned, so it cannot be "
            f"compared with {now['source']}; restore run.json, or start another run: "
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
        f"run {run} learned another dataset: {before}; the dataset now has {present}. "
        "Start another run with --name NEW-NAME, or restore the dataset: `prepare --force` "
        "with the old text"
    )


class TokenStream:
    """All shards of one split as one sequence of tokens.

    Shards are mapped when they are first used, and few at a time: a memmap holds a file descriptor,
    and FineWeb's 100B sample has more shards (1,030) than most systems allow open files (1,024).
    Raises DataError if the split has no tokens or a shard is damaged.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        shards = dataset_meta(folder).shards[split] if (folder / META).exists() else None
        paths = (
            matching_shards(folder, split) if shards is None else [folder / s.name for s in shards]
        )
        sized = [(path, count) for path in paths if (count := read_header(path))]
        if not sized:
            raise DataError(
                f"{folder}: no tokens in *{split}*.bin; prepare the dataset: "
                "`runner host prepare RECIPE`"
            )
        self._paths = [path for path, _ in sized]
        self._bounds = np.cumsum([0, *(count for _, count in sized)])
        self._versions = [_version(path) for path in self._paths]
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

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """Copy the windows that begin at ``starts``: (len(starts), length) uint16."""
        return np.stack([self.slice(start, start + length) for start in starts.tolist()])

    def _open(self, number: int) -> np.memmap[Any, np.dtype[np.uint16]]:
        path = self._paths[number]
        if _version(path) != self._versions[number]:
            raise DataError(f"{path}: replaced while it was in use; run the command again")
        return open_tokens(path)


def _version(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a shard: {error.strerror}") from None
    return found.st_size, found.st_mtime_ns

"""``meta.json``: what a prepared dataset is. Written last: its presence says that the dataset is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpus import DataError
from corpus.shards import SPLITS, Shard, read_header, shard_paths
from job.files import write_atomically
from job.pretrained import FINEWEB
from job.recipe import DataConfig

META, JOURNAL = "meta.json", ".progress.json"


@dataclass(frozen=True)
class Meta:
    """What ``meta.json`` holds. Bytes are those of the text as UTF-8; None where it was never here."""

    tokenizer: dict[str, Any]  # for tokenizers.from_meta
    vocab_size: int
    train_tokens: int
    val_tokens: int
    train_bytes: int | None
    val_bytes: int | None
    source: str
    config: dict[str, Any]  # the DataConfig; empty for shards that were put there by hand
    shards: dict[str, list[Shard]]  # by split

    def write(self, folder: Path) -> None:
        write_atomically(
            folder / META, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        )


def dataset_meta(folder: Path) -> Meta:
    """The meta of the dataset in ``folder``; shards without one are taken to be GPT-2 tokens.

    DataError where there is no complete dataset.
    """
    if (folder / META).exists():
        try:
            tree = json.loads((folder / META).read_text())
            return Meta(
                **{**tree, "shards": {s: [Shard(**x) for x in tree["shards"][s]] for s in SPLITS}}
            )
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"{folder / META}: can't be read; `prepare --force` makes it again"
            ) from None
    if (folder / JOURNAL).exists() or not all(shard_paths(folder, split) for split in SPLITS):
        raise DataError(f"{folder}: holds no complete dataset; `python -m corpus.prepare` makes it")
    return shards_meta(folder, {})


def shards_meta(folder: Path, config: dict[str, Any]) -> Meta:
    """The meta of GPT-2 shards that were made elsewhere, of text that nobody here has counted."""
    shards = {
        str(s): [Shard(p.name, read_header(p), "") for p in shard_paths(folder, s)] for s in SPLITS
    }
    train, val = (sum(shard.tokens for shard in shards[split]) for split in SPLITS)
    source = config.get("source") or str(folder)
    return Meta({"name": "gpt2"}, 50257, train, val, None, None, source, config, shards)


def is_prepared(config: DataConfig, folder: Path, *, any_source: bool = False) -> bool:
    """Whether ``folder`` holds what ``config`` asks for; with ``any_source`` from whatever text it was made.

    DataError where another dataset is there, with the difference, or where it is damaged.
    """
    if not (folder / META).exists() and (
        (folder / JOURNAL).exists() or not shard_paths(folder, "val")
    ):
        return False
    meta = dataset_meta(folder)
    for shard in (shard for shards in meta.shards.values() for shard in shards):
        try:
            if read_header(folder / shard.name) != shard.tokens:
                raise DataError(f"{folder / shard.name}: is not the one that {META} tells of")
        except DataError as error:
            raise DataError(f"{error}; `prepare --force` makes it again") from None
    old = meta.config or {**config.model_dump(), "tokenizer": "gpt2"}
    changed = differences(old, config)
    if any_source:
        changed.pop("source", None)
    if changed:
        told = ", ".join(f"{key} was {before}, now {now}" for key, (before, now) in changed.items())
        raise DataError(
            f"{folder} was prepared with other settings: {told}. Keep both with data.dataset=NEW_NAME, or "
            "replace it with `prepare --force`"
        )
    return config.source != FINEWEB or len(meta.shards["train"]) >= config.shards


def differences(old: Mapping[str, Any], config: DataConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that make ``config`` another dataset than ``old``: key → (old, new)."""
    keys = ["source", "tokenizer"]
    if config.source != FINEWEB:
        keys += ["text_column", "split", "val_fraction", "shard_tokens"]
    new = config.model_dump()
    return {key: (old.get(key), new[key]) for key in keys if old.get(key) != new[key]}

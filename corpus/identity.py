"""What a run notes of its dataset, so that it goes on with no other."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from corpus.meta import Meta
from corpus.shards import TokenStream

WINDOWS, LENGTH = (
    64,
    1024,
)  # tokens that the fingerprint is of, evenly spread: 128 kB of any dataset


def identity(meta: Meta, train: TokenStream) -> dict[str, Any]:
    """Where the text is from, how many training tokens there are, and a fingerprint of these."""
    length = min(LENGTH, len(train))
    starts = np.linspace(0, len(train) - length, WINDOWS, dtype=np.int64)
    fingerprint = blake2b(
        train.windows(starts, length).astype("<u2").tobytes(), digest_size=8
    ).hexdigest()
    return {"source": meta.source, "train_tokens": len(train), "fingerprint": fingerprint}


def other_dataset(run: str, noted: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why ``run``, which noted one dataset, can't go on with another; '' where it can."""
    if not noted or noted.get("fingerprint") == now["fingerprint"]:
        return ""
    return (
        f"run {run} was begun with {noted.get('train_tokens'):,} training tokens of {noted.get('source')}, and there are "
        f"{now['train_tokens']:,} of {now['source']} now. Start another run with --name NEW-NAME, or put the dataset "
        "back: `prepare --force`"
    )

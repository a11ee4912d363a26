"""FineWeb's first 10 billion tokens as published GPT-2 shards, those of the modded-nanogpt speedrun."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from corpus import DataError, Progress, Report, Stop, never, quiet
from corpus.download import download
from corpus.hub import address, headers
from corpus.meta import Meta, shards_meta
from corpus.shards import read_header
from job.exit_status import Interrupted
from job.pretrained import FINEWEB
from job.recipe import DataConfig

REPOSITORY = "datasets/kjj0/fineweb10B-gpt2"  # on the Hugging Face Hub
PUBLISHED = 103  # training shards of 100 million tokens, 200 MB each
PARALLEL = 4


def download_shards(
    config: DataConfig,
    folder: Path,
    *,
    report: Report = quiet,
    should_stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> Meta:
    """Download the validation shard and ``config.shards`` training shards into ``folder``, four at a time.

    Shards that are there are kept, partial ones gone on with. HF_TOKEN is sent where it is set. DataError
    where a shard can't be had or is damaged; Interrupted where ``should_stop``.
    """
    if config.shards > PUBLISHED or config.tokenizer != "gpt2":
        raise DataError(
            f"{FINEWEB} is {PUBLISHED} shards of GPT-2 tokens: take fewer, and data.tokenizer=gpt2"
        )
    names = [
        "fineweb_val_000000.bin",
        *(f"fineweb_train_{i:06d}.bin" for i in range(1, config.shards + 1)),
    ]
    missing = [name for name in names if not _is_whole(folder / name)]
    report(f"downloading {len(missing)} of {len(names)} shards from {address(REPOSITORY, '')}")
    done, total, failed = dict.fromkeys(missing, 0), dict.fromkeys(missing, 0), threading.Event()

    def fetch(name: str) -> None:
        def tell(got: int, size: int) -> None:
            done[name], total[name] = got, size
            report(
                Progress(
                    "downloading",
                    sum(done.values()),
                    sum(size or max(total.values()) for size in total.values()),
                )
            )

        try:
            download(
                address(REPOSITORY, name),
                folder / name,
                headers=headers(),
                check=read_header,
                report=tell,
                should_stop=lambda: failed.is_set() or should_stop(),
                pause=pause,
            )
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(PARALLEL) as pool:
        errors = [task.exception() for task in [pool.submit(fetch, name) for name in missing]]
    # The cause goes before the downloads that stopped because of it.
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
        raise error
    meta = shards_meta(folder, config.model_dump())
    meta.write(folder)
    return meta


def _is_whole(path: Path) -> bool:
    try:
        return read_header(path) > 0
    except DataError:
        return False

"""Files from the Hugging Face Hub: FineWeb's token shards, and GPT-2's weights."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from corpus import DataError, Progress, Report, Stop, never, quiet
from corpus.dataset import META, Meta, dataset_meta, shards_meta
from corpus.download import download, wait_for_lock
from corpus.shards import SPLITS, Shard, matching_shards, read_content, read_header
from corpus.verify import ChecksumCache
from job.exit_status import Interrupted
from job.paths import VolumePaths
from job.pretrained import FINEWEB, Pretrained, gpt2_shape, other_shape, weights_of
from job.recipe import DataConfig, Recipe

ENDPOINT = "https://huggingface.co"  # HF_ENDPOINT names a mirror
FINEWEB_REPOSITORY = "datasets/kjj0/fineweb10B-gpt2"  # the shards of the modded-nanogpt speedrun
FINEWEB_SHARDS = 103  # training shards of 100 million tokens, 200 MB each
PARALLEL_DOWNLOADS = 4


def address(repository: str, file: str, revision: str = "main") -> str:
    """Return the URL of a file; a dataset's repository begins with ``datasets/``."""
    base = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    return f"{base}/{repository}/resolve/{revision}/{file}"


def headers() -> dict[str, str]:
    """Return the request headers: HF_TOKEN, if it is set."""
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def download_shards(
    config: DataConfig,
    folder: Path,
    *,
    force: bool = False,
    report: Report = quiet,
    should_stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> Meta:
    """Download FineWeb's validation shard and ``config.shards`` training shards, four at a time.

    Intact shards are kept and partial ones resumed; with ``force`` all other shards in ``folder``
    are removed. Raises DataError if a shard cannot be downloaded or is damaged.
    """
    if config.shards > FINEWEB_SHARDS or config.tokenizer != "gpt2":
        raise DataError(
            f"{FINEWEB} has {FINEWEB_SHARDS} shards of GPT-2 tokens: use fewer, and "
            "data.tokenizer=gpt2"
        )
    names = [
        "fineweb_val_000000.bin",
        *(f"fineweb_train_{i:06d}.bin" for i in range(1, config.shards + 1)),
    ]
    sha256 = _recorded_sha256(folder)
    missing = [name for name in names if not _is_intact(folder / name, sha256.get(name, ""))]
    report(
        f"downloading {len(missing)} of {len(names)} shards from {address(FINEWEB_REPOSITORY, '')}"
    )
    done, total, failed = dict.fromkeys(missing, 0), dict.fromkeys(missing, 0), threading.Event()

    def fetch(name: str) -> None:
        def progress(got: int, size: int) -> None:
            done[name], total[name] = got, size
            whole = sum(size or max(total.values()) for size in total.values())
            report(Progress("downloading", sum(done.values()), whole))

        try:
            download(
                address(FINEWEB_REPOSITORY, name),
                folder / name,
                headers=headers(),
                check=read_header,
                report=progress,
                should_stop=lambda: failed.is_set() or should_stop(),
                pause=pause,
            )
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        errors = [task.exception() for task in [pool.submit(fetch, name) for name in missing]]
    # The cause before the downloads that stopped because of it.
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
        raise error
    if force:
        for path in [path for split in SPLITS for path in matching_shards(folder, split)]:
            if not path.name.startswith("fineweb_"):
                path.unlink()
    meta = _with_sha256(folder, shards_meta(folder, config.model_dump()))
    meta.write(folder)
    return meta


def _recorded_sha256(folder: Path) -> dict[str, str]:
    with suppress(DataError):
        if (folder / META).exists():
            return {
                s.name: s.sha256 for shards in dataset_meta(folder).shards.values() for s in shards
            }
    return {}


def _is_intact(path: Path, sha256: str) -> bool:
    try:
        return read_header(path) > 0 and sha256 in ("", read_content(path).sha256)
    except DataError:
        return False


def _with_sha256(folder: Path, meta: Meta) -> Meta:
    cache = ChecksumCache(folder)
    for shards in meta.shards.values():
        for number, shard in enumerate(shards):
            content = cache.shard(folder / shard.name) or read_content(folder / shard.name)
            cache.add_shard(folder / shard.name, content)
            shards[number] = Shard(shard.name, shard.tokens, content.sha256)
    cache.save()
    return meta


def ensure_weights(
    recipe: Recipe,
    locations: VolumePaths,
    *,
    report: Report = quiet,
    should_stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Download the Hub's weights that ``train.init_from`` names, unless they are in the cache.

    config.json must describe the recipe's network; model.safetensors comes after it. Raises a
    mistake in the recipe if they cannot be downloaded or do not fit.
    """
    source = weights_of(recipe)
    if source is None:
        return
    folder = locations.cache / source.folder
    files = (("config.json", _check_network(recipe, source)), ("model.safetensors", _check_tensors))
    if all((folder / name).exists() for name, _ in files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder, "another process is downloading it", report, should_stop):
        for name, check in files:
            if (folder / name).exists():
                continue
            url = address(source.repository, name, source.revision)
            report(f"downloading {url}")
            try:
                download(
                    url,
                    folder / name,
                    headers=headers(),
                    check=check,
                    report=lambda done, total: report(Progress("downloading", done, total)),
                    should_stop=should_stop,
                    pause=pause,
                )
            except DataError as error:
                raise recipe.mistake("train.init_from", f"{error}{_advice(str(error))}") from None


def _check_network(recipe: Recipe, source: Pretrained) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        try:
            config: dict[str, Any] = json.loads(path.read_bytes())
            layers, heads, width = (config[name] for name in ("n_layer", "n_head", "n_embd"))
            is_gpt2 = config["model_type"] == "gpt2"
        except (ValueError, KeyError, TypeError, RecursionError):
            is_gpt2 = False
        if not is_gpt2:
            raise DataError(f"{source.repository} is not a GPT-2; other networks cannot be read")
        theirs = gpt2_shape(layers, heads, width, config.get("n_positions", 1024))
        if words := other_shape(recipe.model.model_dump(), theirs):
            raise DataError(
                f"{source.repository} is another network than the recipe's; write {words}"
            )

    return check


def _check_tensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass  # reads the header, and compares the file's length with it
    except SafetensorError as error:
        raise DataError(f"not a complete safetensors file: {error}") from None


def _advice(error: str) -> str:
    if "answers 404" in error:
        return "; a repository needs config.json and model.safetensors"
    if "answers 401" in error or "answers 403" in error:
        return "; check the name, and that HF_TOKEN belongs to an account with access"
    return ""

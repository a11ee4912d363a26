"""Files from the Hugging Face Hub: FineWeb's token shards, and GPT-2's weights."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from corpus import DataError, Monitor, Progress
from corpus.dataset import Meta, dataset_meta, shards_meta
from corpus.download import download, wait_for_lock
from corpus.shards import folder_shards, read_content, read_header
from corpus.tokenizer_export import VOCABULARY_FILES, foreign_tokenizer
from corpus.tokenizers import from_meta
from corpus.verify import verify_shards
from job.exit_status import Interrupted
from job.paths import VolumePaths
from job.pretrained import FINEWEB, Pretrained, refuse_different_gpt2, weights_of
from job.recipe import DataConfig, Recipe

ENDPOINT = "https://huggingface.co"  # HF_ENDPOINT names a mirror
FINEWEB_REPOSITORY = "datasets/kjj0/fineweb10B-gpt2"  # the shards of the modded-nanogpt speedrun
FINEWEB_SHARDS = 103  # training shards of 100 million tokens, 200 MB each
PARALLEL_DOWNLOADS = 4


def address(repository: str, file: str, revision: str = "main") -> str:
    """Return the URL of a file; a dataset's repository begins with ``datasets/``."""
    base = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    return f"{base}/{repository}/resolve/{revision}/{file}"


def _fetch(url: str, path: Path, monitor: Monitor, check: Callable[[Path], object]) -> None:
    token = os.environ.get("HF_TOKEN")
    download(url, path, monitor, {"Authorization": f"Bearer {token}"} if token else {}, check)


def download_shards(config: DataConfig, folder: Path, force: bool, monitor: Monitor) -> Meta:
    """Download FineWeb's validation shard and ``config.shards`` training shards, four at a time.

    Intact shards are kept and partial ones resumed; ``force`` removes all others in ``folder``.
    """
    if config.shards > FINEWEB_SHARDS or config.tokenizer != "gpt2":
        remedy = "use fewer, and data.tokenizer=gpt2"
        raise DataError(f"{FINEWEB} has {FINEWEB_SHARDS} shards of GPT-2 tokens: {remedy}")
    names = [f"fineweb_train_{number:06d}.bin" for number in range(1, config.shards + 1)]
    names.insert(0, "fineweb_val_000000.bin")
    intact = set(_intact(folder, names))
    missing = [name for name in names if name not in intact]
    source = address(FINEWEB_REPOSITORY, "")
    monitor.report(f"downloading {len(missing)} of {len(names)} shards from {source}")
    done, total, failed = dict.fromkeys(missing, 0), dict.fromkeys(missing, 0), threading.Event()

    def fetch(name: str) -> None:
        def report(event: Progress | str) -> None:
            if isinstance(event, Progress):
                done[name], total[name] = event.done, event.total
                whole = sum(size or max(total.values()) for size in total.values())
                monitor.report(Progress("downloading", sum(done.values()), whole))

        shard = Monitor(report, lambda: failed.is_set() or monitor.should_stop(), monitor.pause)
        try:
            _fetch(source + name, folder / name, shard, read_header)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        errors = [task.exception() for task in [pool.submit(fetch, name) for name in missing]]
    # The cause before the downloads that stopped because of it.
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Interrupted)):
        raise error
    for path in folder_shards(folder):
        if force and not path.name.startswith("fineweb_"):
            path.unlink()
    meta = shards_meta(folder, config.model_dump())
    sums = verify_shards(folder, meta, monitor=monitor)
    shards = {s: [replace(x, sha256=sums[x.name]) for x in meta.shards[s]] for s in meta.shards}
    meta = replace(meta, shards=shards)
    meta.write(folder)
    return meta


def _intact(folder: Path, names: list[str]) -> Iterator[str]:
    sha256: dict[str, str] = {}
    with suppress(DataError):
        sha256 = {shard.name: shard.sha256 for shard in dataset_meta(folder).all_shards}
    for name in names:
        with suppress(DataError):
            if read_header(folder / name):
                recorded = sha256.get(name)
                if not recorded or recorded == read_content(folder / name).sha256:
                    yield name


def ensure_weights(
    recipe: Recipe, tokenizer: object, locations: VolumePaths, monitor: Monitor
) -> None:
    """Download the Hub's weights that ``train.init_from`` names, unless they are in the cache.

    config.json must describe the recipe's network, and the tokenizer's file, if there is one, the
    tokens of ``tokenizer``, the description of the dataset's; model.safetensors comes last. Raises
    a mistake in the recipe if they cannot be downloaded or do not fit.
    """
    if (source := weights_of(recipe)) is None:
        return

    def check_network(path: Path) -> None:
        try:
            refuse_different_gpt2(path.read_bytes(), recipe.model, source.repository)
        except ValueError as error:
            raise DataError(str(error)) from None

    def check_vocabulary(folder: Path) -> None:
        own = from_meta(tokenizer)
        if foreign := foreign_tokenizer(own, folder):
            raise DataError(
                f"the tokens of {source.repository}/{Path(foreign).name} are not those of the "
                f"dataset's tokenizer ({own.name}); prepare the text with the weights' tokenizer"
            )

    try:
        download_weights(source, locations.cache, check_network, check_vocabulary, monitor)
    except DataError as error:
        raise recipe.mistake("train.init_from", str(error)) from None


def download_weights(
    source: Pretrained,
    cache: Path,
    check_network: Callable[[Path], object],
    check_vocabulary: Callable[[Path], object],
    monitor: Monitor,
) -> Path:
    """Download the weights unless they are in the cache; return their folder. Raises DataError.

    ``check_network`` gets config.json, and ``check_vocabulary`` the folder, before the weights.
    """
    folder = cache / source.folder
    if all((folder / name).exists() for name in ("config.json", "model.safetensors")):
        return folder

    def fetch(name: str, check: Callable[[Path], object] = lambda path: None) -> None:
        if (folder / name).exists():
            return
        url = address(source.repository, name, source.revision)
        monitor.report(f"downloading {url}")
        try:
            _fetch(url, folder / name, monitor, check)
        except DataError as error:
            raise DataError(f"{error}{_advice(str(error))}") from None

    folder.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder, "another process is downloading it", monitor):
        fetch("config.json", check_network)
        for name in VOCABULARY_FILES:  # a repository may have neither
            try:
                fetch(name)
                break
            except DataError as error:
                if "answers 404" not in str(error):
                    raise
        check_vocabulary(folder)
        fetch("model.safetensors", _check_tensors)
    return folder


def _check_tensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass  # reads the header, and compares the file's length with it
    except SafetensorError as error:
        raise DataError(f"not a complete safetensors file: {error}") from None


def _advice(error: str) -> str:
    access = "check the name, and that HF_TOKEN belongs to an account with access"
    files = "a repository needs config.json and model.safetensors"
    advice = {"401": access, "403": access, "404": files}
    return next((f"; {a}" for status, a in advice.items() if f"answers {status}" in error), "")

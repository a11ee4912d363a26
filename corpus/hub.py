"""The Hugging Face Hub: the addresses of its files, and GPT-2's weights from there into the cache volume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus import DataError, Progress, Report, Stop, never, quiet
from corpus.download import download
from job.files import alone_in
from job.paths import VolumePaths
from job.pretrained import Pretrained, gpt2_shape, other_shape, weights_of
from job.recipe import Recipe

ENDPOINT = "https://huggingface.co"  # HF_ENDPOINT names a mirror


def address(repository: str, file: str, revision: str = "main") -> str:
    """Where a file of a repository is had; of a dataset the repository begins with ``datasets/``."""
    base = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    return f"{base}/{repository}/resolve/{revision}/{file}"


def headers() -> dict[str, str]:
    """What goes with a request: HF_TOKEN, where it is set."""
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def ensure_weights(
    recipe: Recipe,
    locations: VolumePaths,
    *,
    report: Report = quiet,
    should_stop: Stop = never,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Download the weights that ``train.init_from`` names of the Hub, if it does and they are not in the cache volume:
    config.json, which must be the recipe's network, and model.safetensors.

    DataError where they can't be had or do not fit; Interrupted where ``should_stop``: the same call goes on.
    """
    source = weights_of(recipe)
    if source is None:
        return
    folder = locations.cache / source.folder
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder) as alone:
        if not alone:
            raise DataError(
                f"{folder}: another process is downloading it now; wait for it or stop it"
            )
        for name, check in (
            ("config.json", _fits(recipe, source)),
            ("model.safetensors", _is_whole),
        ):
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


def _fits(recipe: Recipe, source: Pretrained) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        try:
            config: dict[str, Any] = json.loads(path.read_text())
            layers, heads, width = (config[name] for name in ("n_layer", "n_head", "n_embd"))
            is_gpt2 = config["model_type"] == "gpt2"
        except (ValueError, KeyError, TypeError):
            is_gpt2 = False
        if not is_gpt2:
            raise DataError(f"{source.repository} is no GPT-2, and no other network can be read")
        theirs = gpt2_shape(layers, heads, width, config.get("n_positions", 1024))
        if words := other_shape(recipe.model.model_dump(), theirs):
            raise DataError(
                f"{source.repository} is another network than the recipe's; write {words}"
            )

    return check


def _is_whole(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass  # the header is read, and the file is as long as it says
    except SafetensorError as error:
        raise DataError(f"it is no whole file of tensors: {error}") from None


def _advice(error: str) -> str:
    if "answers 404" in error:
        return "; only what has config.json and model.safetensors can be read"
    if "answers 401" in error or "answers 403" in error:
        return "; there is no such thing, or HF_TOKEN must name somebody who may read it"
    return ""

"""What others have published: a dataset, weights; their names, and what weights need of a recipe. Free of torch and of
the network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from job.recipe import Recipe

FINEWEB = "fineweb10B"  # the dataset whose shards are downloaded: in a recipe a source, for `prepare` in a recipe's place

# OpenAI's four (Radford et al. 2019), as the Hub has them: n_layer, n_head, n_embd. All with biases and 1,024 positions.
GPT2 = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}

HUB = "hf://"

NAMED = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


class Pretrained(NamedTuple):
    """A repository of the Hugging Face Hub, and its branch, tag or commit."""

    repository: str
    revision: str = "main"

    @property
    def folder(self) -> str:
        """Where its files are kept in the cache volume."""
        return f"pretrained/{self.repository.replace('/', '--')}--{self.revision}"

    @property
    def weights(self) -> str:
        """The file that is written last: where it is, the rest is."""
        return f"{self.folder}/model.safetensors"


def pretrained(source: str | None) -> Pretrained | None:
    """What ``train.init_from`` names of the Hub: ``gpt2`` to ``gpt2-xl``, or ``hf://OWNER/NAME[@REVISION]``; None for a
    run or a folder. Raises ValueError for an address that is none."""
    if source in GPT2:
        return Pretrained(f"openai-community/{source}")
    if source is None or not source.startswith(HUB):
        return None
    if (found := NAMED.fullmatch(source)) is None:
        raise ValueError(f"{source} is no hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return Pretrained(found[1], found[2] or "main")


def weights_of(recipe: Recipe | None) -> Pretrained | None:
    """What a run of ``recipe`` begins with of the Hub."""
    return pretrained(recipe.train.init_from) if recipe is not None else None


def other_shape(mine: dict[str, object], theirs: dict[str, object]) -> str:
    """The settings, as they are typed, that make the recipe's model that of the weights; empty where it is."""
    return " ".join(
        f"{key}={str(value).lower()}" for key, value in theirs.items() if mine[key] != value
    )


def gpt2_shape(n_layer: int, n_head: int, n_embd: int, block_size: int = 1024) -> dict[str, object]:
    """What weights of GPT-2 ask of the section ``model``."""
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    return {"variant": "gpt2", **sizes, "bias": True}

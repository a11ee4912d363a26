"""Published datasets and weights.

Their names, and the recipe that the weights require. No torch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from job.recipe import Recipe

FINEWEB = "fineweb10B"  # published shards: a source in a recipe, and a name for `prepare`

# OpenAI's GPT-2 models (Radford et al. 2019): n_layer, n_head, n_embd. All have biases and 1,024
# positions.
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
        """Return its folder in the cache volume."""
        return f"pretrained/{self.repository.replace('/', '--')}--{self.revision}"

    @property
    def weights(self) -> str:
        """Return the file that is written last, so that its presence means completeness."""
        return f"{self.folder}/model.safetensors"


def pretrained(source: str | None) -> Pretrained | None:
    """Parse a Hub source of ``train.init_from``; return None for a run or a folder.

    ``gpt2`` to ``gpt2-xl``, or ``hf://OWNER/NAME[@REVISION]``. Raises ValueError for a bad address.
    """
    if source in GPT2:
        return Pretrained(f"openai-community/{source}")
    if source is None or not source.startswith(HUB):
        return None
    if (found := NAMED.fullmatch(source)) is None:
        raise ValueError(
            f"invalid Hub address {source}; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return Pretrained(found[1], found[2] or "main")


def weights_of(recipe: Recipe | None) -> Pretrained | None:
    """Return the Hub weights that a run of ``recipe`` starts from, if any."""
    return pretrained(recipe.train.init_from) if recipe is not None else None


def other_shape(mine: dict[str, object], theirs: dict[str, object]) -> str:
    """Return the overrides that make the recipe's model match the weights; '' if it matches."""
    return " ".join(
        f"{key}={str(value).lower()}" for key, value in theirs.items() if mine[key] != value
    )


def gpt2_shape(n_layer: int, n_head: int, n_embd: int, block_size: int = 1024) -> dict[str, object]:
    """Return the ``model`` section that GPT-2's weights require."""
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    return {"variant": "gpt2", **sizes, "bias": True}

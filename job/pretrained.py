"""Published datasets, weights and tasks by name, and the network of weights. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from job.typed_json import read_object

if TYPE_CHECKING:
    from job.recipe import ModelConfig, Recipe


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

NAMED = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # of `export --push`


def invalid_repository(name: str) -> str:
    """Return the error for a name of no repository that can be written."""
    return f"--push {name}: expected OWNER/NAME, such as --push me/my-gpt"


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
    if (match := NAMED.fullmatch(source)) is None:
        raise ValueError(
            f"invalid Hub address {source}; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return Pretrained(match[1], match[2] or "main")


def weights_of(recipe: Recipe | None) -> Pretrained | None:
    """Return the Hub weights that a run of ``recipe`` starts from, if any."""
    return pretrained(recipe.train.init_from) if recipe is not None else None


def shape_mismatch(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    """Return the overrides that make the recipe's model match the weights; '' if it matches."""
    return " ".join(
        f"{key}={str(value).lower()}" for key, value in actual.items() if expected[key] != value
    )


def gpt2_shape(n_layer: int, n_head: int, n_embd: int, block_size: int = 1024) -> dict[str, Any]:
    """Return the ``model`` section that GPT-2's weights require."""
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block_size}
    return {"variant": "gpt2", **sizes, "bias": True}


# transformers' names for the tanh form of GELU
GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")


def read_gpt2_config(text: bytes, name: str) -> dict[str, Any]:
    """Return the ``model`` section for a Hugging Face config.json, and ``vocab_size``.

    Raises ValueError for a network whose function this trainer's GPT-2 can't compute. Missing keys
    have the defaults of transformers.GPT2Config.
    """
    try:
        config = read_object(text)
        kind = config.get("model_type")
    except ValueError:
        raise ValueError(f"{name} is not a Hugging Face config.json") from None
    if kind != "gpt2":
        raise ValueError(
            f"{name} is not a GPT-2, its model_type is {kind!r}; other networks can't be read"
        )
    sizes = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
    for key in sizes:
        sizes[key] = config.get(key, sizes[key])
        if type(sizes[key]) is not int or sizes[key] < 1:
            raise ValueError(f"{name}: {key} is {sizes[key]!r}; expected a positive integer")
    inner = 4 * sizes["n_embd"]
    # key → the accepted values; the first is the default
    accepted: dict[str, tuple[Any, ...]] = {
        "activation_function": GELUS,
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, inner),
        "scale_attn_weights": (True,),
        # The first block is divided by 1.
        "scale_attn_by_inverse_layer_idx": (False,) if sizes["n_layer"] > 1 else (False, True),
        "add_cross_attention": (False,),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
    for key, values in accepted.items():
        if (value := config.get(key, values[0])) not in values:
            raise ValueError(
                f"{name}: {key} is {json.dumps(value)}, this trainer's GPT-2 has "
                f"{json.dumps(values[0])}: it would compute a different function"
            )
    block_size, vocab_size = sizes.pop("n_positions"), sizes.pop("vocab_size")
    return {**gpt2_shape(**sizes, block_size=block_size), "vocab_size": vocab_size}


def refuse_different_gpt2(text: bytes, model: ModelConfig, name: str) -> int:
    """Return the vocabulary in the ``text`` of a config.json, which messages call ``name``.

    Raises ValueError unless it describes the recipe's network.
    """
    theirs = read_gpt2_config(text, name)
    rows = theirs.pop("vocab_size")
    if words := shape_mismatch(model.model_dump(), theirs):
        raise ValueError(f"{name} is a different network than the recipe's; write {words}")
    return int(rows)


def gpt2_config(model: ModelConfig, vocab_size: int, eot: int | None) -> dict[str, Any]:
    """Return the config.json with which transformers.GPT2LMHeadModel computes our network."""
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), model.dropout)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": vocab_size,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "n_positions": model.block_size,
        "layer_norm_epsilon": 1e-5,
        **dropouts,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


@dataclass(frozen=True)
class TaskData:
    """A file that is downloaded once into the cache volume, and the scores to compare with."""

    url: str
    sha256: str
    published: dict[str, float]  # the task's score by model

    @property
    def file(self) -> str:
        """Return the path in the cache volume."""
        return f"tasks/{self.url.rpartition('/')[2]}"


TASKS = {
    # The validation set. The scores are accuracies per token: build-nanogpt's hellaswag.py.
    "hellaswag": TaskData(
        "https://raw.githubusercontent.com/rowanz/hellaswag/"
        "a29ff8e9a04bba4bd6588223785ce105328adc57/data/hellaswag_val.jsonl",
        "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
        {"GPT-2 124M": 0.2955, "GPT-2 1558M": 0.4893},
    ),
    # 22 tasks of DCLM (arXiv:2406.11794), as nanochat bundles and scores them.
    "core": TaskData(
        "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip",
        "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200",
        {"GPT-2 1558M": 0.256525},
    ),
}

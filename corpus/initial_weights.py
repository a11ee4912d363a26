"""Checks that the weights that a run starts from belong to the same kind of network.

Shapes show neither the number of heads nor the meaning of a token. So the checks also read the
recipe of a run, or the config.json of Hugging Face's GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from corpus.formats import refuse_known_formats
from corpus.tokenizer_export import foreign_tokenizer
from corpus.tokenizers import Tokenizer, read_tokenizer, same_tokens
from job.compatibility import does_not_fit
from job.exit_status import UserError
from job.paths import VolumePaths
from job.pretrained import pretrained, refuse_different_gpt2
from job.recipe import ModelConfig, load
from job.run_record import is_run_name
from job.step_folders import STEP_FOLDER, find_damage, newest_intact

PREFIX = "transformer."  # of names in Hugging Face's GPT-2
# Matrices that it stores transposed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Buffers of the causal mask in old files; the network does not need them.
MASKS = (".attn.bias", ".attn.masked_bias")


def weights_path(source: str, locations: VolumePaths) -> Path:
    """Return the folder of ``train.init_from``: a run, a checkpoint, or GPT-2 of Hugging Face."""
    if hub := pretrained(source):
        return locations.cache / hub.folder
    path = Path(source)
    # A run's name wins over a folder of this name in the current folder.
    is_run = is_run_name(source) and (locations.run(source).exists() or not path.exists())
    return locations.run(source) if is_run else path


def checkpoint_folder(
    path: Path, tokenizer: Tokenizer, model: ModelConfig, report: Callable[[str], None]
) -> Path:
    """Return ``path`` if it is an intact checkpoint, or the newest intact one of run ``path``.

    Raises ValueError unless the run learned the same tokens with the same kind of network.
    """
    folder: Path | None = path
    if not STEP_FOLDER.match(path.name):
        folder = newest_intact(path, report)
    elif damage := find_damage(path):
        raise ValueError(
            f"{path} is damaged: {path.name}: {damage}; use a different step of run "
            f"{path.parent.name}, or init_from={path.parent} for the newest intact one"
        )
    if folder is None:
        raise ValueError(
            f"{path} is not a run, not a checkpoint folder, and not a folder with Hugging Face's "
            "config.json and model.safetensors"
        )
    run = folder.parent
    described = read_tokenizer(run)
    if not (run / "recipe.yaml").exists() or described is None:
        raise ValueError(
            f"{run} has no recipe.yaml or no tokenizer.json, so the weights' network is unknown; "
            "restore them from the run's folder"
        )
    if not same_tokens(described, tokenizer.to_meta()):
        raise ValueError(
            f"{run.name} learned tokenizer {described['name']} with other tokens than the "
            f"dataset's {tokenizer.name}; prepare the text with that tokenizer, or remove "
            "train.init_from"
        )
    if problem := does_not_fit(run.name, load(run / "recipe.yaml").model, model):
        raise ValueError(problem)
    return folder


def refuse_different_shapes(
    source: str, own: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise UserError unless the weights of ``source`` have the names and shapes of ``own``."""
    for name in own.keys() | actual.keys():
        expected, shape = own.get(name, "missing"), actual.get(name, "missing")
        if expected != shape:
            raise UserError(
                f"train.init_from: {source} does not fit the recipe's model: {name} is {shape}, "
                f"the recipe's is {expected}; use its n_layer, n_head, n_embd, block_size, bias "
                "and variant"
            )


def gpt2_rows(folder: Path, tokenizer: Tokenizer, model: ModelConfig, vocab_size: int) -> int:
    """Return the vocabulary of Hugging Face's GPT-2 in ``folder``.

    Raises ValueError if it is a different network than ``model``, does not fit into ``vocab_size``
    rows, or has other tokens than ``tokenizer``.
    """
    config = folder / "config.json"
    rows = refuse_different_gpt2(config.read_bytes(), model, str(config))
    if not tokenizer.vocab_size <= rows <= vocab_size:
        raise ValueError(
            f"{config}: vocab_size is {rows}, but the dataset's tokenizer ({tokenizer.name}) has "
            f"{tokenizer.vocab_size} tokens in {vocab_size} rows; use the weights' tokenizer"
        )
    if foreign := foreign_tokenizer(tokenizer, folder):
        raise ValueError(
            f"{foreign}: not the tokenizer {tokenizer.name}: its tokens have other numbers"
        )
    _check_gpt2_file(folder / "model.safetensors", rows)
    return rows


def _check_gpt2_file(path: Path, rows: int) -> None:
    """Raise ValueError unless ``path`` is complete, in float, and has an embedding of ``rows``."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}; give a folder with GPT-2's weights")
    refuse_known_formats(path)
    try:
        with safe_open(path, "np") as file:
            names = {name.removeprefix(PREFIX): name for name in file.keys()}  # noqa: SIM118
            slices = {short: file.get_slice(name) for short, name in names.items()}
            shapes = {short: of.get_shape() for short, of in slices.items()}
            dtypes = [of.get_dtype() for short, of in slices.items() if not short.endswith(MASKS)]
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a complete safetensors file: {error}; download it again"
        ) from None
    embedding = shapes.get("wte.weight", shapes.get("lm_head.weight"))
    if embedding is None or len(embedding) != 2 or embedding[0] != rows:
        raise ValueError(
            f"{path.parent}: model.safetensors has no embedding of the {rows} rows in config.json"
        )
    if any("F" not in dtype for dtype in dtypes):  # F32, BF16 …
        raise ValueError(f"{path.parent}: model.safetensors is quantized; use float weights")

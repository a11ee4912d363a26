"""A run's tokenizer: kept in the run's folder, so that one that was brought from elsewhere samples without its dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corpus.meta import dataset_meta
from corpus.tokenizers import Tokenizer, from_meta
from job.files import write_atomically
from job.recipe import Recipe

TOKENIZER = "tokenizer.json"


def keep_tokenizer(folder: Path, tokenizer: dict[str, Any]) -> None:
    """Write what the dataset's meta says of its tokenizer into the run's folder."""
    write_atomically(folder / TOKENIZER, json.dumps(tokenizer) + "\n")


def run_tokenizer(folder: Path, dataset: Path) -> Tokenizer:
    """The run's own, else the dataset's. DataError where neither is there."""
    try:
        return from_meta(json.loads((folder / TOKENIZER).read_text()))
    except (OSError, ValueError):
        return from_meta(dataset_meta(dataset).tokenizer)


def vocabulary(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Rows of the network's vocabulary: the recipe's, else the tokenizer's padded to a multiple of 64."""
    rows = recipe.model.vocab_size
    if rows is None:
        return tokenizer.padded_vocab_size
    if rows < tokenizer.vocab_size:
        raise recipe.mistake(
            "model.vocab_size",
            f"vocab_size ({rows}) is below the tokenizer's {tokenizer.vocab_size} ({tokenizer.name})",
        )
    return rows

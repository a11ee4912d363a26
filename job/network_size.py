"""How large a network will be, counted from its recipe before torch is there to build it."""

from __future__ import annotations

from dataclasses import dataclass

from job.attention_windows import tokens_seen
from job.recipe import ModelConfig, Recipe

# Rows of the embedding where the recipe names none. `chars` is known only when the data is there.
ROWS = {"bytes": 320, "chars": 128, "gpt2": 50304}


@dataclass(frozen=True)
class Size:
    """Parameters of a network: all of them, and those of matrix products (the head included)."""

    parameters: int
    matrices: int
    rows: int


def network_size(config: ModelConfig, tokenizer: str) -> Size:
    """Count as model/gpt.py builds it."""
    width, rows = config.n_embd, config.vocab_size or ROWS[tokenizer]
    modern = config.variant == "modern"
    blocks = config.n_layer * 12 * width * width
    head = rows * width
    small = width if modern else width * (13 * config.n_layer + 2 if config.bias else 2 * config.n_layer + 1)
    positions = 0 if modern else config.block_size * width
    embeddings = head * (2 if modern else 1) + positions
    return Size(blocks + embeddings + small, blocks + head, rows)


def flops_per_token(recipe: Recipe) -> float:
    """Training FLOPs of one token, forward and backward, as model/gpt.py counts them: 6 N + 12 L C T (PaLM,
    arXiv:2204.02311, appendix B), with T the window where a block has one, at its final size."""
    config = recipe.model
    matrices = network_size(config, recipe.data.tokenizer).matrices
    return 6.0 * matrices + 12.0 * config.n_embd * tokens_seen(config, config.window_size)

"""A first estimate of whether a recipe fits in a GPU's memory. Pure, and free of torch.

It counts what can be counted: weights, gradients, AdamW's two moments, activations that the backward pass
keeps, logits. What CUDA, the allocator and the compiler take beside it is put at a tenth and 1.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.recipe import ModelConfig, Recipe

# GB (1e9 bytes) by the makers' datasheets.
MEMORY_GB = {
    "T4": 16,
    "L4": 24,
    "A10": 24,
    "L40S": 48,
    "A100": 40,
    "A100-40GB": 40,
    "A100-80GB": 80,
    "RTX-PRO-6000": 96,
    "H100": 80,
    "H100!": 80,
    "H200": 141,
    "B200": 180,
    "B200+": 180,
    "B300": 270,
}
# Rows of the embedding where the recipe names none. `chars` is known only when the data is there.
ROWS = {"bytes": 320, "chars": 128, "gpt2": 50304}

# float32 weights, gradients, and two moments of AdamW.
BYTES_PER_PARAMETER = 16
# bf16 values of width n_embd that a block keeps for its backward pass, with fused attention: the block's input
# twice normed, q, k, v, what attention gives and its projection's input, and the MLP's 4 + 4 widths.
WIDTHS_PER_BLOCK = 17
# Bytes for each logit: bf16 out of the head, float32 for the loss, and its gradient.
BYTES_PER_LOGIT = 10


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
    small = 0 if modern else width * (13 * config.n_layer + 2 if config.bias else 2 * config.n_layer + 1)
    positions = 0 if modern else config.block_size * width
    embeddings = head * (2 if modern else 1) + positions
    return Size(blocks + embeddings + small, blocks + head, rows)


def memory_gb(recipe: Recipe, processes: int) -> float:
    """Estimated peak of one GPU in GB, where ``processes`` share a step."""
    size = network_size(recipe.model, recipe.data.tokenizer)
    share = max(1, recipe.sequences_per_step // processes)
    tokens = min(recipe.train.micro_batch, share) * recipe.model.block_size
    state = size.parameters * BYTES_PER_PARAMETER
    activations = tokens * recipe.model.n_embd * WIDTHS_PER_BLOCK * recipe.model.n_layer * 2
    logits = tokens * size.rows * BYTES_PER_LOGIT
    return ((state + activations + logits) * 1.1 + 1.5e9) / 1e9


def fits(recipe: Recipe, names: tuple[str, ...], processes: int) -> str:
    """The row of the plan: ``about 9.1 of 80 GB (an estimate)``, with what to do where it does not fit."""
    needed = memory_gb(recipe, processes)
    smallest = min(names, key=lambda name: MEMORY_GB[name])
    there = MEMORY_GB[smallest]
    text = f"about {needed:.2g} of {there} GB on {smallest} (an estimate)"
    if needed > there:
        return f"{text}: it will not fit; lower micro_batch (now {recipe.train.micro_batch}) or take a larger GPU"
    if needed > 0.9 * there:
        return f"{text}: tight; if it runs out of memory, lower micro_batch (now {recipe.train.micro_batch})"
    return text

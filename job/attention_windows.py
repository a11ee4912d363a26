"""How far each block sees, and how that changes on the way. Pure.

``attention_pattern: SSSL`` with ``window_size: 256``: of four blocks three see the 256 newest tokens and one the whole
context, and so on; the last block always sees all of it. ``window_schedule: [[0, 64], [500, 256]]`` trains the first 500
steps with shorter windows. Evaluations and samples, those of a run that is under way too, have ``window_size``.
"""

from __future__ import annotations

from job.recipe import ModelConfig, Recipe


def short_blocks(config: ModelConfig) -> list[bool]:
    """Whether each block sees a window alone."""
    pattern = config.attention_pattern
    return [pattern[i % len(pattern)] == "S" for i in range(config.n_layer - 1)] + [False]


def tokens_seen(config: ModelConfig, window: int | None) -> int:
    """Tokens that one at the end of the context sees, summed over the blocks, with windows of ``window``."""
    return sum(window if short and window else config.block_size for short in short_blocks(config))


def window_at(recipe: Recipe, step: int) -> int | None:
    """Tokens of a window in training step number ``step``, from 0."""
    window = recipe.model.window_size
    for first, tokens in recipe.train.window_schedule:
        if first <= step:
            window = tokens
    return window

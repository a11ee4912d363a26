"""How many tokens a step reads, where a recipe lets it change on the way. Pure.

Small batches teach more for a token early in training, large ones use many GPUs: ``batch_schedule: [[1000, 262144],
[3000, 524288]]`` reads ``global_batch_tokens`` until step 1000, then 262,144, from step 3000 on 524,288.
"""

from __future__ import annotations

import math

from job.recipe import Recipe, TrainConfig


def stages(config: TrainConfig) -> list[tuple[int, int]]:
    """(first step, tokens a step) of each stage; the first begins at 0."""
    return [(0, config.global_batch_tokens), *((step, tokens) for step, tokens in config.batch_schedule)]


def tokens_before(config: TrainConfig, step: int) -> int:
    """Tokens that all steps before ``step`` read; of ``max_steps``: what the whole run reads."""
    all_stages = stages(config)
    ends = [first for first, _ in all_stages[1:]] + [step]
    return sum(
        max(0, min(end, step) - first) * tokens for (first, tokens), end in zip(all_stages, ends, strict=True)
    )


def tokens_at(config: TrainConfig, step: int) -> int:
    """Tokens that step number ``step``, from 0, reads."""
    return tokens_before(config, step + 1) - tokens_before(config, step)


def common_sequences(recipe: Recipe) -> int:
    """The largest number of sequences that divides every stage's step: processes and micro-batches share it out."""
    return math.gcd(*(tokens // recipe.model.block_size for _, tokens in stages(recipe.train)))

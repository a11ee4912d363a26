"""Schedules of a training: learning rate, tokens per step, attention windows."""

from __future__ import annotations

import math

from job.recipe import ModelConfig, Recipe, TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of ``step``, from 0: linear warm-up, plateau if any, decay."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    decay_steps = config.decay_steps or config.max_steps - config.warmup_steps
    progress = (step - (config.max_steps - decay_steps)) / decay_steps
    if config.schedule == "constant" or progress <= 0:
        return config.lr
    left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + left * (config.lr - config.min_lr)


def stages(config: TrainConfig) -> list[tuple[int, int]]:
    """Return (first step, tokens per step) of each stage; the first starts at 0."""
    return [
        (0, config.global_batch_tokens),
        *((step, tokens) for step, tokens in config.batch_schedule),
    ]


def tokens_before(config: TrainConfig, step: int) -> int:
    """Return the tokens of all steps before ``step``; for ``max_steps``: of the whole run."""
    all_stages = stages(config)
    ends = [first for first, _ in all_stages[1:]] + [step]
    return sum(
        max(0, min(end, step) - first) * tokens
        for (first, tokens), end in zip(all_stages, ends, strict=True)
    )


def tokens_at(config: TrainConfig, step: int) -> int:
    """Return the tokens of ``step``, from 0."""
    return tokens_before(config, step + 1) - tokens_before(config, step)


def common_sequences(recipe: Recipe) -> int:
    """Return the largest number of sequences that divides every stage's step."""
    return math.gcd(*(tokens // recipe.model.block_size for _, tokens in stages(recipe.train)))


def short_blocks(config: ModelConfig) -> list[bool]:
    """Return for each block whether it sees only a window."""
    pattern = config.attention_pattern
    return [pattern[i % len(pattern)] == "S" for i in range(config.n_layer - 1)] + [False]


def tokens_seen(config: ModelConfig, window: int | None) -> int:
    """Return the tokens visible at the end of the context, summed over blocks, for ``window``."""
    return sum(window if short and window else config.block_size for short in short_blocks(config))


def window_at(recipe: Recipe, step: int) -> int | None:
    """Return the window size in tokens of training step ``step``, from 0."""
    window = recipe.model.window_size
    for first, tokens in recipe.train.window_schedule:
        if first <= step:
            window = tokens
    return window

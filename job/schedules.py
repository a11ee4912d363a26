"""Schedules of a training run: learning rate, tokens per step, attention windows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
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


def muon_momentum(step: int, config: TrainConfig) -> float:
    """Return Muon's momentum in ``step``, from 0: low at first, to forget early gradients soon."""
    start, end = min(0.85, config.muon_momentum), config.muon_momentum
    if step >= config.muon_warmup_steps:
        return end
    return start + (end - start) * step / config.muon_warmup_steps


class Events(NamedTuple):
    """The actions after a step."""

    log: bool
    evaluate: bool
    save: bool
    sample: bool


def events_after(step: int, config: TrainConfig) -> Events:
    """Return the actions after ``step``, from 1; the last sample is part of the run's end."""
    is_last, every = step == config.max_steps, config.sample_every
    return Events(
        log=step % config.log_every == 0,
        evaluate=is_last or step % config.eval_every == 0,
        save=is_last or step % config.checkpoint_every == 0,
        sample=every is not None and step % every == 0 and not is_last,
    )


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

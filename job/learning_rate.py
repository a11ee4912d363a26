"""The learning rate of each step. Pure."""

from __future__ import annotations

import math

from job.recipe import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step ``step``, from 0: linear warm-up, a plateau if any, then the decay."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    decay_steps = config.decay_steps or config.max_steps - config.warmup_steps
    progress = (step - (config.max_steps - decay_steps)) / decay_steps
    if config.schedule == "constant" or progress <= 0:
        return config.lr
    left = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + left * (config.lr - config.min_lr)

"""A run of a few steps of any recipe: for a sweep's smoke run, and to compare targets."""

from __future__ import annotations

from typing import Any


def shortened(steps: int) -> dict[str, Any]:
    """The settings that end it after so many steps, whatever schedule the recipe has."""
    return {
        "train.max_steps": steps,
        "train.warmup_steps": 0,
        "train.decay_steps": None,
        "train.batch_schedule": [],
        "train.window_schedule": [],
        "train.eval_every": steps,
        "train.checkpoint_every": steps,
    }


def as_words(settings: dict[str, Any]) -> tuple[str, ...]:
    """As they are typed."""
    return tuple(f"{key}={'null' if value is None else value}" for key, value in settings.items())

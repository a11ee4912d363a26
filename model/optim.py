"""The optimizer and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from model.recipe import TrainConfig


def make_optimizer(network: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with decoupled decay on matrices only: norms and biases are not pulled to zero."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=device.type in ("cuda", "cpu"),
    )


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

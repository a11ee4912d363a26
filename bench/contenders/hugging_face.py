"""Hugging Face's GPT2LMHeadModel in the loop that one writes with it: bench/drivers/hugging_face.py."""

from __future__ import annotations

from bench.contenders import Task
from bench.drivers.start import drive
from bench.measured import Measured
from bench.setup import Setup


def train(setup: Setup, task: Task) -> Measured:
    """The recipe's shape as GPT-2, AdamW fused, bf16 autocast and torch.compile on CUDA."""
    return drive(setup, task, "hugging_face")

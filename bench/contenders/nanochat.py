"""karpathy/nanochat: network and optimizer from its checkout, in bench/drivers/nanochat.py."""

from __future__ import annotations

from pathlib import Path

from bench.contenders import Task
from bench.drivers.start import drive
from bench.measured import Measured
from bench.process import Failed
from bench.setup import Setup


def train(setup: Setup, task: Task) -> Measured:
    """Its own dataloader wants parquet files and a tokenizer of its own, so a loop of ours feeds it."""
    checkout = Path(setup.peers["nanochat"]).expanduser().resolve()
    if not (checkout / "nanochat/gpt.py").exists():
        raise Failed(f"{checkout} is no checkout of nanochat: it has no nanochat/gpt.py")
    return drive(setup, task, "nanochat", str(checkout))

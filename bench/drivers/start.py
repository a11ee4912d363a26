"""Start a driver as a process and read what it tells: a JSON line for each step, one at the end."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from bench.contenders import Task
from bench.drivers.loop import Orders
from bench.measured import Measured, Step
from bench.process import Failed, watch
from bench.setup import Setup
from job.paths import CHECKOUT


def drive(setup: Setup, task: Task, module: str, checkout: str = "") -> Measured:
    """Run ``bench.drivers.<module>`` on the recipe's tokens and shape; Failed where it does not come to its end."""
    recipe, network = setup.recipe, setup.recipe.model
    micro_batch = setup.micro_batch(task.micro_batch)
    orders = Orders(
        data=str(setup.dataset),
        device=setup.device,
        steps=task.steps,
        sequences=recipe.sequences_per_step,
        micro_batch=micro_batch,
        block_size=network.block_size,
        n_layer=network.n_layer,
        n_head=network.n_head,
        n_embd=network.n_embd,
        dropout=network.dropout,
        vocab_size=-(-setup.vocab_size // 64) * 64,
        seed=recipe.train.seed,
        lr=task.lr,
        val_tokens=task.val_tokens,
        checkout=checkout,
    )
    log = setup.work / f"{task.name}.log"
    command = [sys.executable, "-m", f"bench.drivers.{module}", json.dumps(asdict(orders))]
    seconds = watch(command, CHECKOUT, setup.environ, log, setup.results.left())
    text = log.read_text(errors="replace")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"')]
    steps = [Step(line["step"], line["seconds"], line["loss"]) for line in lines if "step" in line]
    if not steps or "peak_memory_bytes" not in lines[-1]:
        raise Failed(f"{task.name}: it did not say how it ended", text)
    more = {
        key: value
        for key, value in lines[-1].items()
        if key not in ("peak_memory_bytes", "val_loss")
    }
    tokens = recipe.train.global_batch_tokens
    end = lines[-1]
    return Measured(
        steps, tokens, seconds, micro_batch, end["peak_memory_bytes"], end["val_loss"], more
    )

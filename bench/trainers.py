"""The trainers that a bench can measure: ours and the baselines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import ours
from bench.baselines import nanogpt
from bench.baselines.training_loop import Orders
from bench.process import RunFailed, run_until
from bench.results import Measurement, Step
from bench.setup import Setup, Task
from job.exit_status import UserError
from job.paths import CHECKOUT

# Train ``task.steps`` steps of the recipe's shape and tokens. Raises RunFailed.
Train = Callable[[Setup, Task], Measurement]


def train_nanochat(setup: Setup, task: Task) -> Measurement:
    """Train nanochat's network from its checkout, in a loop of this project.

    nanochat's own loader reads only Parquet files and its own tokenizer.
    """
    checkout = Path(setup.baselines["nanochat"]).expanduser().resolve()
    if not (checkout / "nanochat/gpt.py").exists():
        raise RunFailed(f"{checkout} is not a nanochat checkout: nanochat/gpt.py is missing")
    return _run_loop(setup, task, "nanochat", str(checkout))


def train_hugging_face(setup: Setup, task: Task) -> Measurement:
    """Train transformers' GPT2LMHeadModel as a typical hand-written loop does."""
    return _run_loop(setup, task, "hugging_face")


TRAINERS: dict[str, Train] = {
    "ours": ours.train,
    "nanogpt": nanogpt.train,
    "nanochat": train_nanochat,
    "hf": train_hugging_face,
}


def select_trainers(setup: Setup, only: str | None) -> dict[str, Train]:
    """Return ours and the given baselines, by name, limited to the comma-separated ``only``."""
    wanted = only.split(",") if only else list(TRAINERS)
    unknown = [name for name in (*setup.baselines, *wanted) if name not in TRAINERS]
    if unknown:
        raise UserError(f"unknown trainer {unknown[0]!r}; expected one of {', '.join(TRAINERS)}")
    available = {"ours", *setup.baselines} & set(wanted)
    return {name: train for name, train in TRAINERS.items() if name in available}


def _run_loop(setup: Setup, task: Task, module: str, checkout: str = "") -> Measurement:
    """Run ``bench.baselines.<module>`` as a process and read the JSON lines that it prints."""
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
        vocab_size=setup.padded_vocab_size,
        seed=recipe.train.seed,
        lr=task.lr,
        val_tokens=task.val_tokens,
        checkout=checkout,
    )
    log = setup.work / f"{task.name}.log"
    command = [sys.executable, "-m", f"bench.baselines.{module}", json.dumps(asdict(orders))]
    seconds = run_until(command, CHECKOUT, setup.environ, log, setup.results.seconds_left())
    output = log.read_text(errors="replace")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    steps = [Step(line["step"], line["seconds"], line["loss"]) for line in lines if "step" in line]
    if not steps or "peak_memory_bytes" not in lines[-1]:
        raise RunFailed(f"{task.name}: its output has no final line", output)
    extra = lines.pop()
    peak, val_loss = extra.pop("peak_memory_bytes"), extra.pop("val_loss")
    tokens = recipe.train.global_batch_tokens
    return Measurement(steps, tokens, seconds, micro_batch, peak, val_loss, extra)

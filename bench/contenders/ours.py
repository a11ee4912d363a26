"""Our trainer, as a user starts it; its own metrics tell the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import Task
from bench.measured import Measured, Step
from bench.process import Failed, watch
from bench.setup import Setup
from job.metrics import read_metrics
from job.paths import CHECKOUT

NEVER = 10**9
END_BYTES = 1 << 16  # some 200 steps: more than pass between two looks


def train(setup: Setup, task: Task, settings: Sequence[str] = (), log_every: int = 1) -> Measured:
    """Start the recipe as it is and kill it after ``task.steps`` and the checkpoint behind them; with
    ``val_tokens`` let it come to its end. ``settings`` are further overrides, and replace the checkpoints."""
    whole = task.val_tokens is not None
    overrides = [
        f"log_every={log_every}",
        "sample.max_new_tokens=1",
        f"checkpoint_every={task.steps}",  # behind the steps: its writing takes nothing of their time
    ]
    overrides += [f"eval_every={NEVER}"]
    if whole:
        overrides += [f"max_steps={task.steps}", f"checkpoint_every={NEVER}"]
        overrides += [f"eval_tokens={task.val_tokens if task.val_tokens != -1 else 'null'}"]
    if task.micro_batch is not None:
        overrides += [f"micro_batch={task.micro_batch}"]
    if task.lr is not None:
        config = setup.recipe.train  # both optimizers' rates go up and down together
        overrides += [f"lr={task.lr}", f"muon_lr={config.muon_lr * task.lr / config.lr}"]
    folder = setup.volumes.run(task.name)
    command = [sys.executable, "-m", "model.train", *setup.words, *overrides, *settings]
    command += ["--name", task.name, "--device", setup.device]

    # The checkpoint comes after the step; with other checkpoints the step itself is the end.
    last = f'"kind": "{"train" if settings else "checkpoint"}", "step": {task.steps},'

    def reached() -> bool:
        return not whole and last in _end(folder / "metrics.jsonl")

    seconds = watch(
        command,
        CHECKOUT,
        setup.environ,
        setup.work / f"{task.name}.log",
        setup.results.left(),
        reached,
    )
    lines = read_metrics(folder / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    if not steps or steps[-1]["step"] < task.steps:
        raise Failed(f"{task.name}: no step {task.steps} in its metrics")
    tokens = setup.recipe.train.global_batch_tokens
    return Measured(
        [Step(line["step"], tokens / line["tokens_per_second"], line["loss"]) for line in steps],
        tokens,
        seconds,
        setup.micro_batch(task.micro_batch),
        max(line["memory_bytes"] for line in steps),
        next((line["loss"] for line in reversed(lines) if line["kind"] == "val"), None),
        _more(lines, tokens),
    )


def _more(lines: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    steps = [line for line in lines if line["kind"] == "train"]
    found: dict[str, Any] = {}
    for name in ("mfu", "mfu_roofline"):
        shares = [line[name] for line in steps[len(steps) // 5 :] if line.get(name) is not None]
        found[name] = round(median(shares), 4) if shares else None
    stalls = [line["stall_seconds"] for line in lines if line["kind"] == "checkpoint"]
    if stalls:
        step_seconds = median(tokens / line["tokens_per_second"] for line in steps)
        found["checkpoint_stall_ms"] = round(stalls[-1] * 1e3, 2)
        found["stall_share_every_100_steps"] = round(stalls[-1] / (100 * step_seconds), 5)
        found["stalls"] = stalls
    return found


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

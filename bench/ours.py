"""Measure this project's trainer, started as a user starts it, from its own metrics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.process import RunFailed, run_until
from bench.results import Measurement, Step
from bench.setup import Setup, Task
from job.metrics import read_metrics
from job.paths import CHECKOUT

NEVER = 10**9
TAIL_BYTES = 1 << 16  # about 200 steps: more than the trainer takes between two polls


def train(
    setup: Setup, task: Task, overrides: Sequence[str] = (), log_every: int = 1
) -> Measurement:
    """Train the recipe unchanged; kill it after ``task.steps`` and the checkpoint that follows.

    With ``task.val_tokens`` the run goes to its end. ``overrides`` come last, and replace the
    checkpoint.
    """
    runs_to_end = task.val_tokens is not None
    settings = [
        f"log_every={log_every}",
        "sample.max_new_tokens=1",
        f"checkpoint_every={task.steps}",  # after the timed steps: writing it slows none of them
        f"eval_every={NEVER}",
    ]
    if runs_to_end:
        settings += [f"max_steps={task.steps}", f"checkpoint_every={NEVER}"]
        settings += [f"eval_tokens={task.val_tokens if task.val_tokens != -1 else 'null'}"]
    if task.micro_batch is not None:
        settings += [f"micro_batch={task.micro_batch}"]
    if task.lr is not None:
        config = setup.recipe.train  # scale the rates of both optimizers together
        settings += [f"lr={task.lr}", f"muon_lr={config.muon_lr * task.lr / config.lr}"]
    folder = setup.volumes.run(task.name)
    metrics = folder / "metrics.jsonl"
    command = [sys.executable, "-m", "model.train", *setup.recipe_args, *settings, *overrides]
    command += ["--name", task.name, "--device", setup.device]

    # The checkpoint's line follows the step's; with other checkpoints, stop at the step itself.
    last_line = f'"kind": "{"train" if overrides else "checkpoint"}", "step": {task.steps},'

    def is_done() -> bool:
        return not runs_to_end and last_line in _tail(metrics)

    log = setup.work / f"{task.name}.log"
    timeout = setup.results.seconds_left()
    seconds = run_until(command, CHECKOUT, setup.environ, log, timeout, is_done)
    lines = read_metrics(metrics)
    steps = [line for line in lines if line["kind"] == "train"]
    if not steps or steps[-1]["step"] < task.steps:
        raise RunFailed(f"{task.name}: its metrics do not reach step {task.steps}")
    tokens = setup.recipe.train.global_batch_tokens
    return Measurement(
        [Step(line["step"], tokens / line["tokens_per_second"], line["loss"]) for line in steps],
        tokens,
        seconds,
        setup.micro_batch(task.micro_batch),
        max(line["memory_bytes"] for line in steps),
        next((line["loss"] for line in reversed(lines) if line["kind"] == "val"), None),
        _extra(lines, tokens),
    )


def _extra(lines: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    steps = [line for line in lines if line["kind"] == "train"]
    extra: dict[str, Any] = {}
    for name in ("mfu", "mfu_roofline"):
        shares = [line[name] for line in steps[len(steps) // 5 :] if line.get(name) is not None]
        extra[name] = round(median(shares), 4) if shares else None
    stalls = [line["stall_seconds"] for line in lines if line["kind"] == "checkpoint"]
    if stalls:
        step_seconds = median(tokens / line["tokens_per_second"] for line in steps)
        extra["checkpoint_stall_ms"] = round(stalls[-1] * 1e3, 2)
        extra["stall_share_every_100_steps"] = round(stalls[-1] / (100 * step_seconds), 5)
        extra["stalls"] = stalls
    return extra


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

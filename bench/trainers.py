"""The trainers that a bench can measure: ours, as a user starts it, and the baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import nanogpt
from bench.baseline_loop import encode
from bench.results import Measurement, RunFailed, Step
from bench.setup import Setup, Task
from job.exit_status import UserError
from job.metrics import read_metrics

NEVER = 10**9
TAIL_BYTES = 1 << 16  # about 200 steps: more than the trainer takes between two polls

# Train ``task.steps`` steps of the recipe's shape and tokens. Raises RunFailed.
Train = Callable[[Setup, Task], Measurement]


def train_ours(
    setup: Setup, task: Task, overrides: Sequence[str] = (), log_every: int = 1
) -> Measurement:
    """Train the recipe unchanged; kill it after ``task.steps`` and the checkpoint that follows.

    With ``task.val_tokens`` the run goes to its end. ``overrides`` come last, and replace the
    checkpoint.
    """
    runs_to_end = task.val_tokens is not None
    # The checkpoint comes after the timed steps: writing it slows none of them.
    settings = [f"log_every={log_every}", "sample.max_new_tokens=1", f"eval_every={NEVER}"]
    settings += [f"checkpoint_every={NEVER if runs_to_end else task.steps}"]
    if runs_to_end:
        settings += [f"max_steps={task.steps}"]
        settings += [f"eval_tokens={task.val_tokens if task.val_tokens != -1 else 'null'}"]
    if task.micro_batch is not None:
        settings += [f"micro_batch={task.micro_batch}"]
    if task.lr is not None:
        config = setup.recipe.train  # scale the rates of both optimizers together
        settings += [f"lr={task.lr}", f"muon_lr={config.muon_lr * task.lr / config.lr}"]
    metrics = setup.volumes.run(task.name) / "metrics.jsonl"
    # The checkpoint's line follows the step's; with other checkpoints, stop at the step itself.
    last_line = f'"kind": "{"train" if overrides else "checkpoint"}", "step": {task.steps},'
    _, seconds = setup.run_python(
        task.name,
        *("-m", "model.train", *setup.recipe_args, *settings, *overrides),
        *("--name", task.name, "--device", setup.device),
        is_done=lambda: not runs_to_end and last_line in _tail(metrics),
    )
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


def train_nanochat(setup: Setup, task: Task) -> Measurement:
    """Train nanochat's network; its own loader reads only Parquet files and its own tokenizer."""
    checkout = Path(setup.baselines["nanochat"]).expanduser().resolve()
    if not (checkout / "nanochat/gpt.py").exists():
        raise RunFailed(f"{checkout} is not a nanochat checkout: nanochat/gpt.py is missing")
    return _train_in_loop("nanochat", setup, task)


def _train_in_loop(name: str, setup: Setup, task: Task) -> Measurement:
    """Run bench/baseline_loop.py as a process and read the JSON lines that it prints."""
    task = replace(task, micro_batch=setup.micro_batch(task.micro_batch))
    args = ("-m", "bench.baseline_loop", name, encode(setup, task))
    output, seconds = setup.run_python(task.name, *args)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    steps = [Step(line["step"], line["seconds"], line["loss"]) for line in lines if "step" in line]
    if not steps or "peak_memory_bytes" not in lines[-1]:
        raise RunFailed(f"{task.name}: its output has no final line", output)
    extra = lines.pop()
    peak, val_loss = extra.pop("peak_memory_bytes"), extra.pop("val_loss")
    tokens, size = setup.recipe.train.global_batch_tokens, task.micro_batch or 1
    return Measurement(steps, tokens, seconds, size, peak, val_loss, extra)


TRAINERS: dict[str, Train] = {
    "ours": train_ours,
    "nanogpt": nanogpt.train,
    "nanochat": train_nanochat,
    "hf": lambda setup, task: _train_in_loop("hf", setup, task),
}


def select_trainers(setup: Setup, only: str | None) -> dict[str, Train]:
    """Return ours and the given baselines, by name, limited to the comma-separated ``only``."""
    selected = only.split(",") if only else list(TRAINERS)
    unknown = [name for name in (*setup.baselines, *selected) if name not in TRAINERS]
    if unknown:
        raise UserError(f"unknown trainer {unknown[0]!r}; expected one of {', '.join(TRAINERS)}")
    available = {"ours", *setup.baselines} & set(selected)
    return {name: train for name, train in TRAINERS.items() if name in available}

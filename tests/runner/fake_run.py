"""Fill a run's folder with metrics, samples and a log, as the trainer does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MEMORY_BYTES = 3 * 2**30


def metrics(steps: int, lr: float = 1e-3, evaluate_every: int = 10) -> str:
    """Return metrics.jsonl; the loss falls to 1 + 100 ``lr``, at 1,000 tokens per step."""
    rows = []
    for step in range(1, steps + 1):
        loss = 1 + lr * 100 + 4 * math.exp(-step / 20) + 0.1 * math.sin(step * 7)
        rows.append(
            {
                "kind": "train",
                "step": step,
                "tokens": step * 1000,
                "loss": loss,
                "lr": lr,
                "grad_norm": 0.5,
                "tokens_per_second": 2000.0,
                "mfu": 0.25,
                "memory_bytes": MEMORY_BYTES,
            }
        )
        if step % evaluate_every == 0:
            rows.append({"kind": "val", "step": step, "loss": loss + 0.05, "eval_tokens": 100})
    return "".join(json.dumps(row) + "\n" for row in rows)


def fill_run(
    folder: Path, steps: int = 100, lr: float = 1e-3, sample: str = "def f", **record: Any
) -> None:
    """Fill a folder of ``make_run`` with a recipe, metrics, samples and a log."""
    recipe = (
        f"name: {folder.name}\nmodel:\n  n_layer: 2\n  bias: false\n"
        f"train:\n  lr: {lr}\n  max_steps: {steps}\n"
    )
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text(metrics(steps, lr))
    (folder / "samples").mkdir()
    (folder / "samples" / f"step_{steps // 2:08d}.txt").write_text("an earlier one")
    (folder / "samples" / f"step_{steps:08d}.txt").write_text(sample)
    (folder / "log.txt").write_text("".join(f"2026-11-21 03:00:00 step {i}\n" for i in range(300)))
    tree = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**tree, **record}))

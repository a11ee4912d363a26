"""The metrics of a run.

Metrics.jsonl and TensorBoard always, Weights & Biases if there is a key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.files import naming, write_atomically
from job.format import json_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all complete lines of a metrics.jsonl, skipping lines that a kill cut short."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


class Metrics:
    """Writes one line for each logged step and evaluation of a run.

    A run that resumes at ``resume_step`` drops lines that an earlier attempt logged after it, so
    the file holds each step once.
    """

    def __init__(
        self, folder: Path, resume_step: int, wandb_project: str | None, say: Callable[[str], None]
    ) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
        write_atomically(self.path, "".join(json_text(line) + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1, encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter

        self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=resume_step + 1)
        self.wandb = _wandb_run(folder, wandb_project, say)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Write one line; ``kind`` is train, val or checkpoint."""
        with naming(self.path):
            self.file.write(json_text({"kind": kind, "step": step, **values}) + "\n")
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        for key, value in numbers.items():
            self.tensorboard.add_scalar(f"{kind}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{kind}/{key}": value for key, value in numbers.items()}, step=step)

    def flush(self) -> None:
        """Make the lines visible to readers."""
        self.file.flush()
        self.tensorboard.flush()

    def close(self) -> None:
        self.file.close()
        self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb_run(folder: Path, project: str | None, say: Callable[[str], None]) -> Any:
    if project is None:
        return None
    if not os.environ.get("WANDB_API_KEY"):
        say("train.wandb_project is set but WANDB_API_KEY is not: logging to TensorBoard only")
        return None
    try:
        import wandb
    except ImportError:
        say(
            "train.wandb_project is set but wandb is not installed (pip install wandb): "
            "TensorBoard only"
        )
        return None
    # The id is the run's name: an attempt that resumes continues the same W&B run.
    return wandb.init(project=project, id=folder.name, name=folder.name, dir=folder, resume="allow")
